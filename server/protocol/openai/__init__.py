"""Bodies and answers of OpenAI's APIs."""
