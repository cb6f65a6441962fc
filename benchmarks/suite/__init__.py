"""Workloads of the SGLang paper, each as a program and as plain HTTP calls, on several systems.

`workloads.catalogue` lists the workloads. `run` runs one workload on one system. `compare` runs
all workloads on several systems and compares the systems. `report` writes the results. The systems
are in `sgl_mlx.benchmarks.peers`.
"""
