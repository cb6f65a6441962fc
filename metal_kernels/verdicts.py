"""Cache of self-test results on disk, for later processes.

A file is valid for one chip, system, version of MLX and source of the kernels. A log beside it has
the full messages of failures, such as errors of Metal's compiler. An unreadable file counts as
empty.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sgl_mlx.metal_kernels.records import cache_folder, key_of, machine, write_json


class Verdict(NamedTuple):
    """Result of a kernel's self-test.

    Args:
        case: `str` of a `selftest.Case`.
        good: True if the kernel may be used.
        seen: the difference from the reference, or the error message.
    """

    case: str
    good: bool
    seen: str

    @property
    def summary(self) -> str:
        """First line of `seen`."""
        return self.seen.strip().partition("\n")[0].strip()


class VerdictFile:
    """Cache file of this machine's verdicts, at `path`, and the log of failures, at `log`."""

    def __init__(self, folder: Path | None = None) -> None:
        name = f"verdicts-{key_of('verdicts')}"
        self.path = (folder or cache_folder()) / f"{name}.json"
        self.log = self.path.with_suffix(".log")

    def load(self) -> dict[str, Verdict]:
        """Load the verdicts as a dictionary by case; empty if there is no readable file."""
        try:
            rows = json.loads(self.path.read_text("utf-8"))["verdicts"]
            found = [Verdict(str(case), good is True, str(seen)) for case, good, seen in rows]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return {verdict.case: verdict for verdict in found}

    def add(self, verdicts: Iterable[Verdict]) -> None:
        """Add verdicts to the file, and append the full messages of failures to the log.

        Verdicts of other cases stay in the file.

        Raises:
            OSError: the folder cannot be made or written.
        """
        verdicts = list(verdicts)
        every = self.load() | {verdict.case: verdict for verdict in verdicts}
        rows = [(v.case, v.good, v.summary) for v in every.values()]
        write_json(self.path, {**machine(), "verdicts": rows})
        failed = [v for v in verdicts if not v.good]
        if failed:
            with self.log.open("a", encoding="utf-8") as log:
                log.writelines(f"== {v.case}\n{v.seen}\n" for v in failed)


def kept_verdicts() -> list[Verdict]:
    """List the cached self-test results of this machine; no kernel is compiled or tested."""
    return list(VerdictFile().load().values())
