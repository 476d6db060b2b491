"""Data sets: found, checked, decoded, split, held in memory; augmentation of batches."""
