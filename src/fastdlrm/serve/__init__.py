"""An exported model behind HTTP and gRPC."""
