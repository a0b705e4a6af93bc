"""Triton implementations of the hot operators, imported only where there is a GPU and Triton."""
