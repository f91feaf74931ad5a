"""Tests of the catalogue: GGUF headers, architectures, synthesised tensors, fleets."""
