"""Recordings at rest: raw demonstrations, the store, and the way from one to the other."""
