"""Importing the package must stay cheap: the CLI's --help pays for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("mlx", "numpy", "transformers", "mlx_lm", "tokenizers", "rich", "huggingface_hub")


@pytest.mark.parametrize(
    "module", ["sgl_mlx", "sgl_mlx.testing", "sgl_mlx.compat.runtime", "sgl_mlx.server"]
)
def test_import_loads_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
