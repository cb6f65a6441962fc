"""Programs as values: the graph, its nodes, and ways to draw, save and check it."""
