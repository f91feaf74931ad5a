"""The memory plan held against the real server: `python -m benchmarks.memory [--seed N] [--random N] [--write]`."""
