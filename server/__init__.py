"""HTTP and text: the only place that knows Sanic, the JSON of OpenAI and the command line."""
