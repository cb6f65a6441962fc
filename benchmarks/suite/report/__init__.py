"""Reports of the suite: JSON document, table in a terminal, HTML page, SVG plot."""
