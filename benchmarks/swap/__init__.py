"""How long a swap of the exclusive worker takes: cold, warm and locked, beside a bare llama-server's start."""
