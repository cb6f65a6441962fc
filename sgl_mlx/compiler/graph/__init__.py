"""Graphs: traced programs as data, and functions to draw, save, load and validate them."""
