"""Batches: files of requests, one a line, and the files of their results."""
