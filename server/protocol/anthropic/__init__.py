"""Anthropic's messages: bodies, conversations, tools, replies and errors in the shapes of its API."""
