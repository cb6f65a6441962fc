"""Benchmarks of `sgl-mlx bench`; every figure in the README comes from one of them.

`suite` runs the workloads of the SGLang paper on several systems and compares times. `peers` are
those systems. `micro` measures one part of this package at a time. `modelled` computes times on
Apple chips from exact counts.
"""
