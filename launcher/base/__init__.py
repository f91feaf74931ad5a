"""The ground floor: small pure helpers that any room may use and that use no room."""
