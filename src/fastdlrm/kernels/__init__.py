"""The hot operators, one file an operator; they know tensors only."""
