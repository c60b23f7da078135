"""Loads an OpenAI-compatible server and measures its answers: what `distaff bench` does."""
