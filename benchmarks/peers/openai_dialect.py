"""Dialect of OpenAI's `POST /v1/completions`, which mlx-lm's server and our own speak."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sgl_mlx.benchmarks.peers.completions import Question
from sgl_mlx.benchmarks.peers.system import Answer, PeerError


@dataclass(frozen=True)
class OpenAiDialect:
    """A `Dialect` of OpenAI's completions; `ignore_eos` and `ebnf` are extensions of SGLang.

    Args:
        name: the server's name in error messages.
        scored_tokens, drops_first_space: see `Dialect`.
        model: the model that requests name, which routers insist on; None for none.
    """

    name: str
    scored_tokens: int
    drops_first_space: bool
    path: str = "/v1/completions"
    model: str | None = None

    def request(self, question: Question) -> dict[str, Any]:
        free = question.grammar is None
        return {
            **({} if self.model is None else {"model": self.model}),
            "prompt": question.prompt,
            "max_tokens": question.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "stop": list(question.stop),
            "logit_bias": {str(token): bias for token, bias in question.bias.items()},
            **({"ignore_eos": True} if free else {"ebnf": question.grammar}),
        }

    def text(self, event: Mapping[str, Any]) -> str:
        choices = event.get("choices")
        if not isinstance(choices, list):
            raise PeerError(f"{self.name} sent no choices: {str(event)[:200]}")
        return "".join(str(choice.get("text") or "") for choice in choices)

    def usage(self, event: Mapping[str, Any]) -> Answer | None:
        usage = event.get("usage")
        if not usage:
            return None
        try:
            details = usage.get("prompt_tokens_details") or {}
            return Answer(
                int(usage["prompt_tokens"]),
                int(usage["completion_tokens"]),
                int(details.get("cached_tokens", 0)),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PeerError(f"{self.name} counts no tokens in {str(usage)[:200]}") from error
