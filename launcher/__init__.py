"""launch: a compiler and launcher for fleets of llama.cpp `llama-server` processes."""

__version__ = "0.1.0"
