"""Training of one network: settings, optimizers, schedules, the training loop, checkpoints, metrics."""
