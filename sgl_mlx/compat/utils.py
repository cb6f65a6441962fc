"""Helpers that programs import from `sglang.utils` and `sglang.test.test_utils`."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from typing import Any

from sgl_mlx.lang.backend import Backend
from sgl_mlx.lang.backends.openai import OpenAI
from sgl_mlx.lang.backends.runtime_endpoint import RuntimeEndpoint
from sgl_mlx.lang.state import ProgramState
from sgl_mlx.lang.stream import Stream

BaseBackend = Backend
StreamExecutor = Stream


def read_jsonl(filename: str) -> Iterator[Any]:
    """The documents of a file that has one on each line; lines that begin with # are left out."""
    with open(filename, encoding="utf-8") as file:
        for line in file:
            if line.strip() and not line.startswith("#"):
                yield json.loads(line)


def dump_state_text(filename: str, states: Iterable[ProgramState | str], mode: str = "w") -> None:
    """Write the texts of states to a file, each under its number."""
    with open(filename, mode, encoding="utf-8") as file:
        for i, state in enumerate(states):
            text = state if isinstance(state, str) else state.text()
            file.write(f"{'=' * 40} {i} {'=' * 40}\n{text}\n")


def add_common_sglang_args_and_parse(parser: ArgumentParser) -> Namespace:
    """The options that SGLang's benchmark programs share."""
    parser.add_argument("--parallel", type=int, default=64)
    parser.add_argument("--host", default="http://127.0.0.1")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--backend", default="srt")
    parser.add_argument("--result-file", default="result.jsonl")
    parser.add_argument("--raw-result-file")
    return parser.parse_args()


def select_sglang_backend(args: Namespace) -> Backend:
    """A server for `--backend srt`, OpenAI's API for `--backend gpt-...`.

    Raises:
        ValueError: for another backend.
    """
    if args.backend.startswith("srt"):
        return RuntimeEndpoint(f"{args.host}:{args.port}")
    if args.backend.startswith("gpt-"):
        return OpenAI(args.backend)
    raise ValueError(f"unknown backend {args.backend!r}; there are srt and gpt-...")
