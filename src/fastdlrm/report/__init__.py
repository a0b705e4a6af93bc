"""Results -> pages that a person reads."""
