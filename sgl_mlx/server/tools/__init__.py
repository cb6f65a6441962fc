"""Tools: the forms in which families of models call them, and grammars that force a call."""
