"""Tool calls: formats of the model families, their parsers, and grammars that force a call."""
