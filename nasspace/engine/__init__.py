"""What is done with one network as a whole: its full training."""
