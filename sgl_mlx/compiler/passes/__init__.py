"""Passes: pure functions from graph to graph, each in a file of its own."""
