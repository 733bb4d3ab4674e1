"""The policy: observation windows, normalization, networks, diffusion and checkpoints."""
