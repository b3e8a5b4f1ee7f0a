"""Sharded parameters in real processes, which talk through gloo."""
