"""Our own format: Orbax weights under a manifest."""
