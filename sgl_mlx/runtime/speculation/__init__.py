"""Speculation: draft tokens that one step verifies together, for the same output in fewer steps."""
