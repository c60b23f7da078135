"""Attention and linear kernels: one op, one file per way of doing it."""
