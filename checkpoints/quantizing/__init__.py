"""Wide weights to quantised ones, on the host."""
