"""Deployment: exported policies, their runtime, a server, and streaming control."""
