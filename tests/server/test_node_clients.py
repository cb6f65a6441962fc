"""Clients for Node.js: OpenAI's, Anthropic's and the AI SDK, each by its own file of tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sgl_mlx.runtime.engine import Engine
from tests.server.conftest import Serve
from tests.server.scripted import ScriptedEngine

FILES = Path(__file__).parent / "node"
PACKAGES = Path(sys.prefix) / "node" / "node_modules"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
PATIENCE = 240

pytestmark = pytest.mark.skipif(
    not PACKAGES.is_dir(), reason="no clients for Node.js (make test-node, with npm)"
)


def reply(prompt: str) -> str | Exception:
    """Answer as `node/asked.cjs` says."""
    if "break" in prompt:
        return RuntimeError("the step broke")
    if "<|im_start|>tool" in prompt:
        return "Sunny."
    called = '"name": "weather"' in prompt
    return f"<think>\nLet me look.\n</think>\n{CALL}" if called else "Hello there, friend"


@pytest.mark.parametrize("client", ["openai", "anthropic", "ai_sdk"])
def test_clients_for_node(client: str, smollm2: Engine, serve: Serve) -> None:
    """Chat, streams, tools, schemas and errors."""
    servers = {
        "SCRIPTED_URL": serve(ScriptedEngine(reply, piece=5), api_keys=["secret"]),
        "MODEL_URL": serve(smollm2),
    }
    environment = {**os.environ, **servers, "NODE_PATH": str(PACKAGES)}
    done = subprocess.run(
        ["node", "--test", "--test-reporter=tap", str(FILES / f"{client}.cjs")],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# skipped 0" in done.stdout
