"""Catalogue of all workloads, in the order of the report."""

from __future__ import annotations

from sgl_mlx.benchmarks.suite.workloads import (
    agents,
    conversations,
    few_shot,
    long_documents,
    pictures,
    synthetic,
    trees,
)
from sgl_mlx.benchmarks.suite.workloads.workload import Workload
from sgl_mlx.errors import BenchmarkError

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for module in (few_shot, agents, trees, long_documents, conversations, pictures, synthetic)
    for workload in module.WORKLOADS
}


def find(names: tuple[str, ...]) -> list[Workload]:
    """Return the workloads with these names, in the order of the catalogue; all if none is given.

    Raises:
        BenchmarkError: for a name that no workload has.
    """
    unknown = [name for name in names if name not in WORKLOADS]
    if unknown:
        raise BenchmarkError(
            f"no workload is called {', '.join(unknown)}; there are {', '.join(WORKLOADS)}"
        )
    return [w for name, w in WORKLOADS.items() if not names or name in names]
