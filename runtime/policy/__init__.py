"""What runs in the next step and what becomes of its samples. Nothing here imports JAX."""
