"""One network trained for a budget."""
