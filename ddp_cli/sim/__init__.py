"""The simulated robot: robosuite environments, rendering, scripted policies."""
