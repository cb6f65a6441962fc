"""Passes that leave every prompt as it is: pure functions from graph to graph, one in each file."""
