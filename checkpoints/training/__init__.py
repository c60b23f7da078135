"""Checkpoints of training runs, as Orbax wrote them."""
