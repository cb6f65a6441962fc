"""The ways to run programs whose answers must be the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.selfcheck.statements import Function, Program, forks, function_of, lanes

Group = tuple[list[Function], Mapping[str, Any]]
"""Functions that stand for one program, and its settings."""


@dataclass(frozen=True)
class Way:
    """A way to run programs.

    Attributes:
        name: the property that holds if the answers are those of the programs alone.
        options: options of the engine.
        together: all programs run at once, beside other requests that are aborted.
        unrolled: forks are replaced by a program for each branch.
        streamed: programs run with `stream=True`.
        disk: programs first run on an engine that then writes its cache to disk and is shut down;
            their answers come from another engine that reads it.
        elsewhere: that other engine is in a new process.
        only_forks: programs without a fork are left out.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    together: bool = True
    unrolled: bool = False
    streamed: bool = False
    disk: bool = False
    elsewhere: bool = False
    only_forks: bool = False

    def takes(self, program: Program) -> bool:
        """Return True if a program can be run in this way."""
        return not self.only_forks or forks(program.body)


ALONE = Way(
    "alone",
    {
        "disable_radix_cache": True,
        "speculate": "off",
        "max_running_requests": 1,
        "chunked_prefill_size": 8192,
    },
    together=False,
    unrolled=True,
)
BATCHED = Way("batched = alone", {"disable_radix_cache": True, "speculate": "off"}, unrolled=True)
CACHED = Way("cached = uncached", {"speculate": "off"}, unrolled=True)
FORKED = Way("forked = alone", {"speculate": "off"}, only_forks=True)
STREAMED = Way("streamed = whole", {"speculate": "off"}, streamed=True)
DRAFTED = Way("with speculation = without", {"speculate": "auto"})
RESTORED = Way("restored from disk = computed", {"speculate": "off"}, disk=True)
RESTARTED = Way(
    "today's process = a restarted one", {"speculate": "off"}, disk=True, elsewhere=True
)
WAYS = (BATCHED, CACHED, FORKED, STREAMED, DRAFTED, RESTORED, RESTARTED)


def way_named(name: str) -> Way:
    """Return the way with a name; raises `InvalidParamsError` for an unknown one."""
    found = next((way for way in WAYS if way.name == name), None)
    if found is None:
        known = ", ".join(repr(way.name) for way in WAYS)
        raise InvalidParamsError(f"there is no way {name!r}; there are {known}")
    return found


def functions_of(way: Way, program: Program) -> Group:
    """Return a program as the functions that a way runs."""
    bodies = lanes(program.body) if way.unrolled else [program.body]
    return [*map(function_of, bodies)], program.settings
