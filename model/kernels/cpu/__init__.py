"""Backends of operations on CPUs: calls of the native kernels."""
