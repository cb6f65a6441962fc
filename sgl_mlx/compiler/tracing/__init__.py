"""The front end: a Python function and the kinds of its arguments become a graph (`trace`)."""
