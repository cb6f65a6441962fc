"""The compiler: programs traced into graphs, graphs rewritten by passes, and run without Python."""
