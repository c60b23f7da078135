"""One Sanic blueprint per API."""
