"""Engines killed at any moment and started again never answer wrongly, and leave whole files.

`SGL_MLX_KILLS=500` kills that many of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from sgl_mlx import machine
from tests.conftest import SHOWN

KILLS = int(os.environ.get("SGL_MLX_KILLS", "12"))


@pytest.mark.skipif(machine.system() != "linux", reason="needs Linux, where MLX can be forked")
def test_kills_and_restarts(record_property: pytest.RecordProperty) -> None:
    command = [sys.executable, "-m", "tests.runtime.disk.killed_engines", str(KILLS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    record_property(SHOWN, f"kills: {found}")
    assert found["kills"] == KILLS
    assert found["examples"] == []
    assert found["wrong"] == found["unread"] == found["damaged"] == found["over"] == 0
    assert found["answers"] > 0
