"""Steps on the device: their shapes, their inputs, their programs, their state."""
