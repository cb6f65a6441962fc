"""Writes `models/architectures.json` from the conformance checks of every architecture.

Run it in the repository's root after an update of mlx-lm or of the toy configurations. With names,
only their entries are made anew:

    python -m tests.models.generate_architectures [NAME ...]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.models.conformance import verdict
from tests.models.toy import architectures

TABLE = Path("models/architectures.json")


def main(names: Sequence[str]) -> None:
    kept = json.loads(TABLE.read_text("utf-8")) if names else {}
    made = {name: verdict(name) for name in names or architectures()}
    table = {name: made.get(name) or kept[name] for name in architectures()}
    TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
