"""The front end: `trace` turns a Python function and its arguments into a graph."""
