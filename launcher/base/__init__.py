"""The ground floor: small helpers that any room may use and that use no room; each says whether it is pure."""
