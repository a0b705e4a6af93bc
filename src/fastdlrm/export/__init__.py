"""Checkpoint -> exported model: one directory that `ExportedModel` reads."""
