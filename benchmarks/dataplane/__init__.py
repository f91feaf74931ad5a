"""The data plane measured: the real front beside direct requests, over an instant upstream."""
