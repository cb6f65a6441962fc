"""Benchmarks behind `sgl-mlx bench`: every figure in the README is made by one of them.

`suite` compares the paper's workloads on several systems (`peers`), `micro` measures one part at a
time, `modelled` computes times on Apple chips from exact counts.
"""
