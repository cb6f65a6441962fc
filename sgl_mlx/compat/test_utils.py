"""Helpers that programs import from `sglang.test.test_utils`."""

from __future__ import annotations

import json
import socket
import unittest
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sgl_mlx.compat.utils import http_request, is_in_ci
from sgl_mlx.errors import BackendError
from sgl_mlx.lang.backend import Backend
from sgl_mlx.lang.backends.openai import OpenAI
from sgl_mlx.lang.backends.runtime_endpoint import RuntimeEndpoint
from sgl_mlx.lang.config import global_config

__all__ = [
    "DEFAULT_IMAGE_URL",
    "DEFAULT_MODEL_NAME_FOR_TEST",
    "DEFAULT_SMALL_MODEL_NAME_FOR_TEST",
    "DEFAULT_TIMEOUT_FOR_SERVER_LAUNCH",
    "DEFAULT_URL_FOR_TEST",
    "CustomTestCase",
    "add_common_other_args_and_parse",
    "add_common_sglang_args_and_parse",
    "dump_bench_raw_result",
    "find_available_port",
    "get_call_generate",
    "get_call_select",
    "is_in_ci",
    "select_sglang_backend",
]

DEFAULT_MODEL_NAME_FOR_TEST = "meta-llama/Llama-3.1-8B-Instruct"
DEFAULT_SMALL_MODEL_NAME_FOR_TEST = "meta-llama/Llama-3.2-1B-Instruct"
DEFAULT_URL_FOR_TEST = "http://127.0.0.1:6157"
DEFAULT_TIMEOUT_FOR_SERVER_LAUNCH = 600
DEFAULT_IMAGE_URL = (
    "https://github.com/sgl-project/sglang/blob/main/test/lang/example_image.png?raw=true"
)
_PORTS = {"lightllm": 22000, "guidance": 23000, "srt-raw": 30000}
_USUAL_PORT = 21000


class CustomTestCase(unittest.TestCase):
    """`unittest.TestCase` under SGLang's name; SGLang's own repeats failed tests, this does not."""


def add_common_sglang_args_and_parse(parser: ArgumentParser) -> Namespace:
    """Add the options that SGLang's benchmark programs share; return the parsed command line."""
    _add_shared(parser, port=30000)
    parser.add_argument("--backend", default="srt")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--raw-result-file")
    return parser.parse_args()


def add_common_other_args_and_parse(parser: ArgumentParser) -> Namespace:
    """Add the options of SGLang's benchmarks of other servers; return the parsed command line."""
    _add_shared(parser, port=None)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--n-ctx", type=int, default=4096)
    parser.add_argument("--model-path", default="meta-llama/Llama-2-7b-chat-hf")
    args = parser.parse_args()
    if args.port is None:
        args.port = _PORTS.get(args.backend, _USUAL_PORT)
    return args


def _add_shared(parser: ArgumentParser, port: int | None) -> None:
    parser.add_argument("--parallel", type=int, default=64)
    parser.add_argument("--host", default="http://127.0.0.1")
    parser.add_argument("--port", type=int, default=port)
    parser.add_argument("--result-file", default="result.jsonl")


def select_sglang_backend(args: Namespace) -> Backend:
    """Return the backend that `args.backend` names.

    "srt..." is the server at `args.host` and `args.port`, asked by SGLang's protocol. "gpt-..." is
    that model of OpenAI. "srt-no-parallel" also switches off parallel encoding for all programs of
    this process.

    Raises:
        ValueError: `args.backend` begins with neither "srt" nor "gpt-".
    """
    if args.backend.startswith("srt"):
        if args.backend == "srt-no-parallel":
            global_config.enable_parallel_encoding = False
        return RuntimeEndpoint(f"{args.host}:{args.port}")
    if args.backend.startswith("gpt-"):
        return OpenAI(args.backend)
    raise ValueError(f"unknown backend {args.backend!r}; there are srt and gpt-...")


def dump_bench_raw_result(
    path: str | None, states: Sequence[Any], preds: Sequence[Any], labels: Sequence[Any]
) -> None:
    """Write a line of JSON for each state of a benchmark, with its prompt, output and correctness.

    The output is the state's variable `answer`.

    Args:
        path: the file to write; nothing is written if it is empty or None.
        states: the final states of the benchmark's programs.
        preds: for each state, the answer that the benchmark read from the output.
        labels: for each state, the right answer; the output counts as correct if both are equal.
    """
    if not path:
        return
    rows = []
    for i, state in enumerate(states):
        output = state["answer"]
        row = {
            "prompt_id": i,
            "prompt": state.text().removesuffix(output),
            "output": output,
            "correct": bool(preds[i] == labels[i]),
        }
        rows.append(json.dumps(row))
    Path(path).write_text("\n".join(rows), "utf-8")


def find_available_port(base_port: int) -> int:
    """Return the first port from `base_port` on that no program listens on.

    Raises:
        BackendError: there is no such port.
    """
    for port in range(base_port, 65536):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise BackendError(f"no port from {base_port} on is free")


# -- other servers --------------------------------------------------------------------------------


def get_call_generate(args: Namespace) -> Callable[..., Any]:
    """Return a function that generates text over the HTTP API of the server `args.backend`.

    The function takes `(prompt, temperature, max_tokens, stop=None, n=1)`; only vLLM and Outlines
    heed `n`.

    Raises:
        ValueError: the server is not supported.
    """
    if args.backend not in _GENERATE:
        raise ValueError(f"unknown backend {args.backend!r}; there are {', '.join(_GENERATE)}")
    return partial(_GENERATE[args.backend], f"{args.host}:{args.port}/generate")


def get_call_select(args: Namespace) -> Callable[..., Any]:
    """Return a function `(context, choices)` that returns the index of the likeliest choice.

    The function uses the HTTP API of vLLM.

    Raises:
        ValueError: `args.backend` is not "vllm".
    """
    if args.backend != "vllm":
        raise ValueError(f"unknown backend {args.backend!r}; there is vllm")
    return partial(_select_by_prompt_logprob, f"{args.host}:{args.port}/generate")


def _generate_srt(
    url: str, prompt: str, temperature: float, max_tokens: int, stop: Any = None, **_: Any
) -> Any:
    sampling = {"temperature": temperature, "max_new_tokens": max_tokens, "stop": stop}
    return _answer(url, {"text": prompt, "sampling_params": sampling})["text"]


def _generate_lightllm(
    url: str, prompt: str, temperature: float, max_tokens: int, stop: Any = None, **_: Any
) -> Any:
    parameters = {"temperature": temperature, "max_new_tokens": max_tokens, "stop_sequences": stop}
    return _answer(url, {"inputs": prompt, "parameters": parameters})["generated_text"][0]


def _generate_vllm(
    url: str,
    prompt: str,
    temperature: float,
    max_tokens: int,
    stop: Any = None,
    n: int = 1,
    **more: Any,
) -> Any:
    asked = {"prompt": prompt, "temperature": temperature, "max_tokens": max_tokens, "stop": stop}
    answer = _answer(url, {**asked, "n": n, **more})
    texts = [text[len(prompt) :] for text in answer["text"]]
    return texts[0] if n == 1 else texts


def _select_by_prompt_logprob(url: str, context: str, choices: Sequence[str]) -> int:
    scores = []
    for choice in choices:
        asked = {"prompt": context + choice, "max_tokens": 1, "prompt_logprobs": 1}
        scores.append(_answer(url, asked)["prompt_score"])
    return max(range(len(scores)), key=scores.__getitem__)


_GENERATE: dict[str, Callable[..., Any]] = {
    "srt-raw": _generate_srt,
    "lightllm": _generate_lightllm,
    "vllm": _generate_vllm,
    "outlines": _generate_vllm,
}


def _answer(url: str, payload: Mapping[str, Any]) -> Any:
    response = http_request(url, json=payload)
    if response.status_code != 200:
        raise BackendError(f"{url} answered {response.status_code}: {response.text[:200]}")
    return response.json()
