"""Benchmarks of one part each: engine, compiler, constraints, prefetch, token healing, pictures."""
