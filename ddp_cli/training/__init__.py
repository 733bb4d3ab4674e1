"""Training: a run as a folder, one step, the loop, what is recorded."""
