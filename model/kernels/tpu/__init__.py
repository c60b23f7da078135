"""Backends of operations on TPUs."""
