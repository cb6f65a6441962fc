"""Benchmarks of one part: the engine, the compiler, constraints, prefetching, pictures."""
