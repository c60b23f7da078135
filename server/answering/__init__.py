"""From a request's body to its answer: what all routes that generate have in common."""
