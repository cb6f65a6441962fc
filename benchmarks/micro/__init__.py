"""Benchmarks that each measure one part of this package, such as the engine or the compiler."""
