"""The search loop, evaluation of candidates, delivery of the front, and full training."""
