"""Bodies and answers of text-generation-inference's own API."""
