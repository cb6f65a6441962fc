"""The paper's workloads, each as a program and as plain HTTP calls, on several systems.

`catalogue` lists the workloads, `drive` runs one on one system, `compare` sets systems side by
side, `report` writes what came out. Systems are in `sgl_mlx.benchmarks.peers`.
"""
