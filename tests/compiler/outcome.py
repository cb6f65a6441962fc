"""All that a run leaves behind, to be compared with another run."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sgl_mlx as sgl
from sgl_mlx.core import prompt_text
from sgl_mlx.testing import ScriptedBackend

HINTS = ("prefill", "prefetch")
WORDS = ("yes", " no.", "a", " seven 7", "", "\nred apple", " zebra and ape")


def render(messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
    turns = "".join(f"<{m['role']}>{m['content']}</{m['role']}>\n" for m in messages)
    return turns + "<assistant>" * add_generation_prompt


def backend() -> ScriptedBackend:
    """Answers depend on the prompt alone."""
    return ScriptedBackend(
        lambda prompt: WORDS[zlib.crc32(prompt.encode()) % len(WORDS)],
        render_chat=render,
        logprobs={"no": -0.5},
    )


@dataclass(frozen=True)
class Outcome:
    """Everything a run did and gave; `requests` without their order, since streams have none.

    `hints` are prompts that it had computed ahead: no result depends on them.
    """

    error: str | None
    text: str = ""
    messages: tuple[Any, ...] = ()
    variables: tuple[Any, ...] = ()
    metas: tuple[Any, ...] = ()
    returned: str = ""
    requests: Any = None
    hints: Counter[str] = field(default_factory=Counter, compare=False)


def outcome(program: sgl.SglFunction, arguments: Mapping[str, Any], **options: Any) -> Outcome:
    """Run a program on a backend of its own."""
    asked = backend()
    sgl.set_default_backend(asked)
    try:
        state = program.run(backend=asked, **arguments, **options)
        if options.get("stream"):
            assert "".join(state.text_iter()) == state.text()
        names = sorted(state.stream_executor.bindings, key=str)
        variables = tuple((name, state[name]) for name in names if name is not None)
        metas = tuple((name, _meta(state, name)) for name, _ in variables)
        return Outcome(
            None,
            state.text(),
            tuple(map(repr, state.messages())),
            tuple(map(repr, variables)),
            metas,
            repr(state.ret_value),
            _requests(asked),
            Counter(asked.prefills),
        )
    except Exception as error:
        return Outcome(f"{type(error).__name__}: {error}")
    finally:
        sgl.set_default_backend(None)


def _meta(state: sgl.ProgramState, name: str) -> str:
    meta = state.get_meta_info(name)
    return repr(
        {k: v for k, v in meta.items() if k != "id"} if isinstance(meta, dict) else type(meta)
    )


def _requests(asked: ScriptedBackend) -> Counter[Any]:
    return Counter(
        (call.kind, prompt_text(call.prompt), repr(call.prompt), repr(call.params), call.choices)
        for call in asked.calls
        if call.kind not in HINTS
    )
