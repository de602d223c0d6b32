"""The HTTP dialects, one file each, and what they share."""
