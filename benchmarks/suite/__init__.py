"""The paper's workloads, each as a program and as plain HTTP calls, on several systems.

`workloads.catalogue` lists the workloads, `run` runs one on one system, `compare` sets systems
side by side, `report` writes the results. Systems are in `sgl_mlx.benchmarks.peers`.
"""
