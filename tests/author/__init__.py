"""The writer of fleet files."""
