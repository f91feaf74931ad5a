"""What is found on a machine."""
