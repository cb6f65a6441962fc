"""The back end: it turns a graph into steps and runs them on the language's own streams."""
