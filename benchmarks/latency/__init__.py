"""How fast a start is seen, and what a request to a stopped server costs beside doing it by hand."""
