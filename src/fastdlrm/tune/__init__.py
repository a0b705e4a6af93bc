"""Optimizers, the train step and the loop."""
