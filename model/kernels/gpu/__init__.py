"""Backends of operations on GPUs: Pallas kernels, compiled by Triton."""
