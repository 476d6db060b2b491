"""Data sets: find, check, decode and split images; augment batches."""
