"""Kernels: the backends of attention, experts and linear maps."""
