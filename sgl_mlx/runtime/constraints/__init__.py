"""Constraints on which tokens may be sampled next: grammars and token healing."""
