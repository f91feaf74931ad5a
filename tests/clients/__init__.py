"""llama.cpp's own server tests, run directly and through the front, and compared (`make clients`)."""
