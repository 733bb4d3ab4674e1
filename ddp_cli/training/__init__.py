"""Training: runs and their folders, the training step and loop, data loading, losses, metrics and plots."""
