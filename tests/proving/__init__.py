"""Plans held against the real server's own dry run."""
