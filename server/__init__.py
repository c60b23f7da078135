"""HTTP and text: the only package that uses Sanic, OpenAI's JSON and the command line."""
