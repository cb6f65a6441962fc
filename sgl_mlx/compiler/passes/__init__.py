"""Passes that change no prompt: pure functions from graph to graph, one in each file."""
