"""Verdicts of the self-test, kept from one process to the next.

A file holds for one chip, system, MLX and text of the kernels; a log beside it has what Metal's
compiler said. A file that cannot be read counts as empty.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sgl_mlx.metal_kernels.records import cache_folder, key_of, machine, write_json


class Verdict(NamedTuple):
    """Result of a self-test: whether the kernel may be used, and what was seen.

    Args:
        case: `str` of a `selftest.Case`.
    """

    case: str
    good: bool
    seen: str

    @property
    def summary(self) -> str:
        """The first line of what was seen."""
        return self.seen.strip().partition("\n")[0].strip()


class VerdictFile:
    """The file of this machine's verdicts and the log of those that failed."""

    def __init__(self, folder: Path | None = None) -> None:
        name = f"verdicts-{key_of('verdicts')}"
        self.path = (folder or cache_folder()) / f"{name}.json"
        self.log = self.path.with_suffix(".log")

    def load(self) -> dict[str, Verdict]:
        """Load the verdicts by case; empty if there is no readable file."""
        try:
            rows = json.loads(self.path.read_text("utf-8"))["verdicts"]
            found = [Verdict(str(case), good is True, str(seen)) for case, good, seen in rows]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return {verdict.case: verdict for verdict in found}

    def add(self, verdicts: Iterable[Verdict]) -> None:
        """Keep these verdicts beside those of other cases, and log what failed in full.

        Raises:
            OSError: the folder cannot be written to.
        """
        every = self.load() | {verdict.case: verdict for verdict in verdicts}
        rows = [(v.case, v.good, v.summary) for v in every.values()]
        write_json(self.path, {**machine(), "verdicts": rows})
        failed = [v for v in verdicts if not v.good]
        if failed:
            with self.log.open("a", encoding="utf-8") as log:
                log.writelines(f"== {v.case}\n{v.seen}\n" for v in failed)


def kept_verdicts() -> list[Verdict]:
    """List what is known of the kernels on this machine, case by case; nothing is compiled."""
    return list(VerdictFile().load().values())
