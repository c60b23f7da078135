"""Turns requests into device steps: token ids in, token ids out."""
