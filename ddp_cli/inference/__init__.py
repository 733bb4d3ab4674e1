"""A policy as what an episode needs: engines that predict action chunks."""
