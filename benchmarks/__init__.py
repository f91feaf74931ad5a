"""Benchmarks: each compares with the thing it must beat, in one run."""
