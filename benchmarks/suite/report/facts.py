"""Conditions under which the suite ran, read from its document: machine, versions, size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def machine(document: Mapping[str, Any]) -> str:
    """Describe the machine in one line: processor, cores, system; "" if unknown."""
    found: Mapping[str, Any] = document.get("machine") or {}
    cores = found.get("cores")
    parts = (found.get("processor"), f"{cores} cores" if cores else "", _system(found))
    return ", ".join(str(part) for part in parts if part)


def instruction_sets(document: Mapping[str, Any]) -> dict[str, str]:
    """Return each system's instruction sets, by system; systems that name none are left out."""
    found: Mapping[str, Any] = document.get("instruction_sets") or {}
    return {name: str(sets) for name, sets in found.items() if sets}


def facts(document: Mapping[str, Any]) -> dict[str, str]:
    """Return all known conditions as text: machine, instruction sets, versions, size, by name."""
    found: Mapping[str, Any] = document.get("machine") or {}
    memory = found.get("memory_gb")
    named = {
        "machine": _system(found),
        "processor": found.get("processor"),
        "cores": found.get("cores"),
        "memory": f"{memory:g} GB" if isinstance(memory, int | float) else memory,
        **{
            f"instruction sets of {name}": sets for name, sets in instruction_sets(document).items()
        },
        **(document.get("versions") or {}),
        "commit": document.get("commit"),
        "scale": document.get("scale"),
        "repeats": document.get("repeats"),
    }
    return {name: str(value) for name, value in named.items() if value not in (None, "")}


def _system(machine: Mapping[str, Any]) -> str:
    return " ".join(str(machine[key]) for key in ("system", "machine") if machine.get(key))
