"""A policy that leaves: artefacts that run without the training code."""
