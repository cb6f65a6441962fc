"""Writes `models/architectures.json` from the conformance checks of every architecture.

Run it in the repository's root after an update of mlx-lm or of the toy configurations:

    python -m tests.models.generate_architectures
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.models.conformance import verdict
from tests.models.toy import architectures

TABLE = Path("models/architectures.json")


def main() -> None:
    verdicts = {name: verdict(name) for name in architectures()}
    TABLE.write_text(json.dumps(verdicts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
