"""The service behind clients that nobody here wrote."""
