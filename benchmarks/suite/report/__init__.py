"""Reports of the suite: JSON document, table for a terminal, HTML page, SVG plot."""
