"""An engine that answers from a script, with the methods that the server needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import tokenizers

from sgl_mlx.core import ChoiceScores, Completion, Generated, Prompt, SamplingParams, StreamEvent
from sgl_mlx.testing import ScriptedBackend
from sgl_mlx.tokenizer import Tokenizer

CHATML = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% if m.content is string %}{{ m.content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template of Hermes' family."""


def byte_tokenizer(chat_template: str | None = CHATML) -> Tokenizer:
    """A tokenizer whose tokens are bytes."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    end = backend.token_to_id("<|im_end|>")
    return Tokenizer(backend, eos_token_ids=[end], chat_template=chat_template)


class ScriptedEngine(ScriptedBackend):
    """A scripted backend that takes an engine's keywords, and token ids as a prompt.

    Attributes:
        keywords: those of every call of `submit`.
    """

    failure: str | None = None
    embedder = None

    def __init__(self, script: Any = (), *, context_length: int = 4096, **options: Any) -> None:
        self.tokenizer = byte_tokenizer(options.pop("chat_template", CHATML))
        super().__init__(script, **options)
        self.keywords: list[dict[str, Any]] = []
        self._context = context_length

    def submit(
        self,
        prompt: Prompt | Sequence[int],
        params: SamplingParams,
        on_event: Callable[[StreamEvent], None] | None = None,
        **keywords: Any,
    ) -> Future[tuple[Completion, ...]]:
        self.keywords.append(keywords)
        if prompt and isinstance(prompt[0], int):
            ids = tuple(int(t) for t in prompt)  # type: ignore[arg-type]
            prompt = (Generated(self.tokenizer.decode(ids, skip_special=False), ids),)
        return super().submit(prompt, params.validate(), on_event)  # type: ignore[arg-type]

    def score(
        self, prompt: Prompt, choices: Sequence[str], unconditional: bool = False, **keywords: Any
    ) -> Future[ChoiceScores]:
        self.keywords.append(keywords)
        return super().score(prompt, choices, unconditional)

    def get_server_info(self) -> dict[str, Any]:
        return {
            **super().get_server_info(),
            "context_length": self._context,
            "max_total_num_tokens": self._context,
            "stats": {"running": len(self.pending), "waiting": 0, "free_slots": self._context},
        }
