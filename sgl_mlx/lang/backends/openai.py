"""OpenAI's API and those like it, through the `openai` package.

A chat model takes messages, not text. So this backend has a chat template of its own, whose marks
it reads back when the prompt comes to be sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from threading import Lock
from typing import Any

from sgl_mlx.core import (
    ChoiceScores,
    Completion,
    FinishReason,
    Image,
    Part,
    Prompt,
    SamplingParams,
    Shift,
    StreamEvent,
    Text,
)
from sgl_mlx.errors import BackendError, NotYetError, ProgramError
from sgl_mlx.lang.pictures import data_urls, flat_text, openai_content
from sgl_mlx.lang.templates.chat_template import ChatTemplate, get_chat_template

_THREADS = 64
_COMPLETION_MODELS = re.compile(r"instruct|davinci|babbage", re.IGNORECASE)
_CHATML = get_chat_template("chatml")
_TURN = re.compile(r"<\|im_start\|>(system|user|assistant)\n(.*?)<\|im_end\|>\n", re.DOTALL)
_OPEN_TURN = "<|im_start|>assistant\n"
_PICTURE = "\ue00f"
_UNSUPPORTED = ("regex", "json_schema", "dtype", "grammar", "stop_regex", "stop_token_ids")


@dataclass
class TokenUsage:
    """Tokens paid for since the last `reset`."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def reset(self) -> None:
        self.prompt_tokens = self.completion_tokens = 0


class OpenAI:
    """A `Backend` over OpenAI's API.

    Args:
        model_name: as the API calls it.
        is_chat_model: whether it takes messages; otherwise told by its name.
        chat_template: for a completion model that is given turns.
        is_azure: use Azure's client.
        client: an `openai` client to use; otherwise one is made of the further arguments.

    Raises:
        BackendError: when the `openai` package is missing.
    """

    supports_parallel = False

    def __init__(
        self,
        model_name: str,
        is_chat_model: bool | None = None,
        chat_template: ChatTemplate | None = None,
        is_azure: bool = False,
        *args: Any,
        client: Any = None,
        **kwargs: Any,
    ) -> None:
        self.model_name = model_name
        guess = not _COMPLETION_MODELS.search(model_name)
        self.is_chat_model = guess if is_chat_model is None else is_chat_model
        named = chat_template or get_chat_template("default")
        self.chat_template = _CHATML if self.is_chat_model else named
        self.token_usage = TokenUsage()
        self._client = client or _new_client(is_azure, args, kwargs)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="sgl-openai")
        self._lock = Lock()

    # -- Backend ------------------------------------------------------------------------------

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False
    ) -> str:
        return self.chat_template.get_prompt(messages) + _OPEN_TURN * add_generation_prompt

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        on_event: Callable[[StreamEvent], None] | None = None,
    ) -> Future[tuple[Completion, ...]]:
        if any(isinstance(part, Shift) for part in prompt):
            raise NotYetError("position_ids_offset needs an in-process Engine")
        request = self._request(prompt, params)
        if on_event is None:
            return self._pool.submit(self._generate, request, params.n)
        return self._pool.submit(self._generate_stream, request, on_event, params.n)

    def score(
        self, prompt: Prompt, choices: Sequence[str], unconditional: bool = False
    ) -> Future[ChoiceScores]:
        raise NotYetError(
            "select needs the log-probabilities of given texts, which OpenAI's API does not "
            "tell; use gen() and read the answer, or another backend"
        )

    def prefill(self, prompt: Prompt) -> Future[int]:
        """Nothing: the API caches prefixes by itself."""
        done: Future[int] = Future()
        done.set_result(0)
        return done

    prefetch = prefill

    def flush_cache(self) -> bool:
        return False

    def get_server_info(self) -> dict[str, Any]:
        return {"model_path": self.model_name, "token_usage": vars(self.token_usage)}

    def shutdown(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    # -- requests -----------------------------------------------------------------------------

    def _request(self, prompt: Prompt, params: SamplingParams) -> Callable[..., Any]:
        text, urls = flat_text(prompt, _PICTURE), data_urls(prompt)
        options = _options(self.model_name, params)
        if self.is_chat_model:
            create = self._client.chat.completions.create
            return partial(create, messages=_messages(text, urls), **options)
        if urls:
            raise NotYetError(f"{self.model_name} completes text; pictures need a chat model")
        return partial(self._client.completions.create, prompt=text, **options)

    def _generate(self, request: Callable[..., Any], n: int) -> tuple[Completion, ...]:
        answer = request(n=n)
        self._count(answer.usage)
        return tuple(
            self._completion(_text(choice), choice.finish_reason, answer.usage)
            for choice in answer.choices
        )

    def _generate_stream(
        self, request: Callable[..., Any], on_event: Callable[[StreamEvent], None], n: int
    ) -> tuple[Completion, ...]:
        texts, reasons, usage = [""] * n, ["stop"] * n, None
        for event in request(n=n, stream=True, stream_options={"include_usage": True}):
            usage = event.usage or usage
            for i, choice in enumerate(event.choices):
                told = getattr(choice, "index", None)
                sample = i if told is None else told
                reasons[sample] = choice.finish_reason or reasons[sample]
                if piece := _text(choice):
                    texts[sample] += piece
                    on_event(StreamEvent(sample, piece, id=getattr(event, "id", None) or ""))
        self._count(usage)
        done = tuple(map(self._completion, texts, reasons, [usage] * n))
        for sample, completion in enumerate(done):
            about = completion.finish_reason, "", completion.prompt_tokens
            on_event(StreamEvent(sample, "", (), None, *about, extra=completion.extra))
        return done

    def _count(self, usage: Any) -> None:
        if usage is not None:
            with self._lock:
                self.token_usage.prompt_tokens += usage.prompt_tokens
                self.token_usage.completion_tokens += usage.completion_tokens

    def _completion(self, text: str, reason: str, usage: Any) -> Completion:
        finish = FinishReason("length" if reason == "length" else "stop")
        counted = {"completion_tokens": usage.completion_tokens} if usage else {}
        return Completion(text, (), finish, usage.prompt_tokens if usage else 0, 0, extra=counted)


def _new_client(is_azure: bool, args: Iterable[Any], kwargs: Mapping[str, Any]) -> Any:
    try:
        import openai  # an optional dependency
    except ImportError:
        raise BackendError(
            "the OpenAI backend needs the openai package: pip install 'sgl-mlx[openai]'"
        ) from None
    return (openai.AzureOpenAI if is_azure else openai.OpenAI)(*args, **kwargs)


def _options(model: str, params: SamplingParams) -> dict[str, Any]:
    """The parameters that the API has; raises `NotYetError` for constraints it has not."""
    asked = [name for name in _UNSUPPORTED if getattr(params, name)]
    if asked:
        raise NotYetError(f"{asked[0]} does not work on the OpenAI backend; leave it out")
    options = {
        "model": model,
        "max_tokens": params.max_new_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "frequency_penalty": params.frequency_penalty,
        "presence_penalty": params.presence_penalty,
        "logit_bias": dict(params.logit_bias) or None,
        "seed": params.seed,
        "stop": [stop for stop in params.stop if stop not in _CHATML.stop] or None,
    }
    return {name: value for name, value in options.items() if value is not None}


def _messages(text: str, urls: Iterable[str]) -> list[dict[str, Any]]:
    """The turns of a prompt that ends where the assistant's answer begins.

    Args:
        urls: of the pictures, in the order of their marks.
    """
    head, mark, rest = text.rpartition(_OPEN_TURN)
    turns = _TURN.findall(head)
    if not mark or rest or _TURN.sub("", head):
        raise ProgramError(
            "a chat model takes turns: put all text into system(), user() and assistant(), and "
            f"gen() first in an assistant turn. The prompt ends in {text[-60:]!r}"
        )
    left = iter(urls)
    return [{"role": role, "content": _content(content, left)} for role, content in turns]


def _content(text: str, urls: Iterator[str]) -> str | list[dict[str, Any]]:
    first, *others = text.split(_PICTURE)
    if not others:
        return text
    parts: list[Part] = [Text(first)]
    for url, piece in zip(islice(urls, len(others)), others, strict=True):
        parts += [Image(url), Text(piece)]
    return openai_content(tuple(parts))


def _text(choice: Any) -> str:
    """Of a completion, a chat message or a streamed piece of one."""
    for name in ("message", "delta"):
        if (part := getattr(choice, name, None)) is not None:
            return part.content or ""
    return choice.text or ""
