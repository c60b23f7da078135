"""From a request's body to its answer: the code shared by all routes that generate text."""
