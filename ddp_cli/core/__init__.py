"""Learning: windows, the policy, its sampler, checkpoints and the training loop."""
