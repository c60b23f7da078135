"""JSON of the OpenAI protocol to typed requests, and events back to JSON."""
