"""The web process's side of the engine processes: it starts and supervises them and exchanges frames."""
