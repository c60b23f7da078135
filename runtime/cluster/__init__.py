"""Several processes that run one engine."""
