"""How long a network takes on a device: convert it, run it, measure it, remember the answer."""
