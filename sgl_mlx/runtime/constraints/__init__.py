"""Constraints on what may be sampled next: grammars and token healing."""
