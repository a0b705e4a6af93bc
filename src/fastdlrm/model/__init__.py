"""Single-process modules of plain arguments."""
