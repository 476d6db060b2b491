"""Make a trained network smaller: its description, and what is kept of its weights."""
