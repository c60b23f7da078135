"""Decides what runs in the next step and processes its samples. Nothing here imports JAX."""
