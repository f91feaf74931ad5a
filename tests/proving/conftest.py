"""The command line, for what is proven by it."""

from tests.cli.conftest import cli

__all__ = ["cli"]
