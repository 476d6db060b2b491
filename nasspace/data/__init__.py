"""Data sets found, checked, decoded, and held or streamed."""
