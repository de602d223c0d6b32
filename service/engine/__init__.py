"""Everything between a checked request and its scores; knows nothing of HTTP."""
