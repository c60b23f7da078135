"""Hours of everything at once on one server: `python -m benchmarks.soak`."""
