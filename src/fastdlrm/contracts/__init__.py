"""What crosses a disk or a process border: plain data, numpy and msgspec only."""
