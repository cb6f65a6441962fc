"""A soak: mixed traffic over HTTP for minutes or hours, and a count of all that goes wrong."""
