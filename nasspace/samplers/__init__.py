"""What to try next: mathematics on plain values."""
