"""Reports of the suite: its JSON document, a table for a terminal, a page with plots."""
