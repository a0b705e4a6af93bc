"""Exported model behind HTTP and gRPC."""
