"""The fleet's events."""
