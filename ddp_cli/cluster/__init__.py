"""Processes of several machines, by Ray."""
