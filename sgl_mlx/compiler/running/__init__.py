"""The back end: a graph becomes steps, and the steps run on the language's own streams."""
