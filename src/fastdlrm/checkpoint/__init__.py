"""Save and load, atomically."""
