"""Writes the Homebrew formula of a source distribution: `python formula.py dist/sgl_mlx-….tar.gz`.

The formula, with the version and the checksum of that file, goes to sgl-mlx.rb beside it.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

TEMPLATE = Path(__file__).with_name("sgl-mlx.rb.in")


def write_formula(sdist: Path) -> Path:
    """Fill the template in for a source distribution; returns the formula's file."""
    values = {
        "VERSION": sdist.name.removeprefix("sgl_mlx-").removesuffix(".tar.gz"),
        "SDIST": sdist.name,
        "SHA256": hashlib.sha256(sdist.read_bytes()).hexdigest(),
    }
    text = TEMPLATE.read_text("utf-8")
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    formula = sdist.with_name("sgl-mlx.rb")
    formula.write_text(text, "utf-8")
    return formula


if __name__ == "__main__":
    write_formula(Path(sys.argv[1]))
