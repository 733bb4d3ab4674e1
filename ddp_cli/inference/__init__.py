"""Inference engines, and the agent that runs a policy in an episode."""
