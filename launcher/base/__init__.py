"""The lowest layer: small helpers that any room may use and that import no room; each says whether it is pure."""
