"""Training of one network for a budget: settings, optimizers, schedules, the loop, checkpoints, metrics."""
