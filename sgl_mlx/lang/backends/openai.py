"""`OpenAI`: a backend for OpenAI's API and compatible ones, through the `openai` package.

Chat models take messages, but programs write text. So this backend writes prompts with a chat
template (ChatML), and splits them into messages again before it sends them (`openai_wire`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

from sgl_mlx import bounds
from sgl_mlx.core import (
    ChoiceScores,
    Completion,
    Prompt,
    SamplingParams,
    Shift,
    StreamEvent,
)
from sgl_mlx.errors import BackendError, NotYetError
from sgl_mlx.lang.backends import openai_select
from sgl_mlx.lang.backends import openai_wire as wire
from sgl_mlx.lang.pictures import data_urls, flat_text
from sgl_mlx.lang.templates.chat_template import ChatTemplate, get_chat_template

_THREADS = 64
_COMPLETION_MODELS = re.compile(r"instruct|davinci|babbage", re.IGNORECASE)
_MOST_REFUSALS = 8
"""The most attempts at one request; after each, the parameter that the API refused is left out."""


@dataclass
class TokenUsage:
    """The tokens that the API has counted since the last `reset`."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def reset(self) -> None:
        self.prompt_tokens = self.completion_tokens = 0


class OpenAI:
    """A `Backend` over OpenAI's API.

    Args:
        model_name: the name of the model in the API.
        is_chat_model: True if the model takes messages; None guesses it from the model's name.
        chat_template: how a completion model writes turns; chat models ignore it.
        is_azure: use Azure's client.
        args, kwargs: arguments for the `openai` client, such as `base_url` and `api_key`.
        client: an `openai` client to use instead of a new one.

    Attributes:
        token_usage: the tokens that the API has counted.

    Raises:
        BackendError: when the `openai` package or the API key is missing, or `model_name` is no
            text.
    """

    supports_parallel = False
    counts_calls = True  # each call has its price: see `ahead`

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
        self.model_name = bounds.filled_text("model_name", model_name, BackendError)
        guess = not _COMPLETION_MODELS.search(model_name)
        self.is_chat_model = guess if is_chat_model is None else is_chat_model
        named = chat_template or get_chat_template("default")
        self.chat_template = wire.CHATML if self.is_chat_model else named
        self.token_usage = TokenUsage()
        self._client = client or _new_client(is_azure, args, kwargs)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="sgl-openai")
        self._lock = Lock()

    def get_chat_template(self) -> ChatTemplate:
        return self.chat_template

    def get_model_name(self) -> str:
        return self.model_name

    # -- Backend ------------------------------------------------------------------------------

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False
    ) -> str:
        return self.chat_template.get_prompt(messages) + wire.OPEN_TURN * add_generation_prompt

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        on_event: Callable[[StreamEvent], None] | None = None,
    ) -> Future[tuple[Completion, ...]]:
        if any(isinstance(part, Shift) for part in prompt):
            raise NotYetError("position_ids_offset needs an in-process Engine")
        request = self._request(prompt, params)
        begun = wire.begun_answer(flat_text(prompt, wire.PICTURE)) if self.is_chat_model else ""
        if on_event is None:
            return self._pool.submit(self._generate, request, params, begun)
        if params.dtype is not None or begun:  # the text is known only when it is complete
            return self._pool.submit(self._generate_shown, request, params, begun, on_event)
        return self._pool.submit(self._generate_stream, request, on_event, params.n)

    def score(
        self, prompt: Prompt, choices: Sequence[str], unconditional: bool = False
    ) -> Future[ChoiceScores]:
        if self.is_chat_model:
            raise NotYetError(
                "select needs a model that completes text; a chat model tells nothing about "
                "texts given to it: use gen() and read the answer"
            )
        params = SamplingParams(max_new_tokens=openai_select.TOKENS, temperature=0.0)
        return self._pool.submit(self._score, self._request(prompt, params), list(choices))

    def prefill(self, prompt: Prompt) -> Future[int]:
        """Do nothing, since the API caches prefixes by itself; the future gives 0."""
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

    def _request(self, prompt: Prompt, params: SamplingParams) -> dict[str, Any]:
        text, urls = flat_text(prompt, wire.PICTURE), data_urls(prompt)
        options = wire.options(self.model_name, params)
        if self.is_chat_model:
            return {"messages": wire.messages(text, urls), **options}
        if urls:
            raise NotYetError(f"{self.model_name} completes text; pictures need a chat model")
        return {"prompt": text, **options}

    def _create(self, request: Mapping[str, Any]) -> Any:
        """Send a request; if the API refuses a parameter, send it again without this parameter.

        Raises:
            BackendError: the API reports an error, or refuses too many parameters.
        """
        api = self._client.chat.completions if self.is_chat_model else self._client.completions
        asked: Mapping[str, Any] | None = request
        for _ in range(_MOST_REFUSALS):
            try:
                return api.create(**asked or request)
            except Exception as error:
                asked = wire.without_refused(asked or request, error)
                if asked is None:
                    self._explain(error)
                    raise
        raise BackendError(f"{self.model_name} refuses one parameter after another: {request}")

    def _generate(
        self, request: Mapping[str, Any], params: SamplingParams, begun: str
    ) -> tuple[Completion, ...]:
        answer = self._create({**request, "n": params.n})
        usage = getattr(answer, "usage", None)
        self._count(usage)
        choices = wire.choices_of(answer)
        if not choices:
            raise BackendError(f"{self.model_name} answered without choices: {answer}")
        return tuple(self._read(choice, usage, params, begun) for choice in choices)

    def _read(self, choice: Any, usage: Any, params: SamplingParams, begun: str) -> Completion:
        text = wire.text_of(choice)
        if begun:
            text = _until(text.removeprefix(begun), params.stop)
        text = wire.typed(text, params.dtype)
        return self._completion(
            text, getattr(choice, "finish_reason", None), usage, wire.refusal_of(choice)
        )

    def _generate_shown(
        self,
        request: Mapping[str, Any],
        params: SamplingParams,
        begun: str,
        on_event: Callable[[StreamEvent], None],
    ) -> tuple[Completion, ...]:
        completions = self._generate(request, params, begun)
        for sample, completion in enumerate(completions):
            on_event(_last_event(sample, completion.text, completion))
        return completions

    def _generate_stream(
        self, request: Mapping[str, Any], on_event: Callable[[StreamEvent], None], n: int
    ) -> tuple[Completion, ...]:
        texts, refusals, reasons, usage = [""] * n, [""] * n, ["stop"] * n, None
        answered = False
        streaming = {"n": n, "stream": True, "stream_options": {"include_usage": True}}
        for event in self._events({**request, **streaming}):
            usage = getattr(event, "usage", None) or usage
            for i, choice in enumerate(wire.choices_of(event)):
                answered = True
                told = getattr(choice, "index", None)
                sample = i if told is None else told
                if sample not in range(n):
                    raise BackendError(f"{self.model_name} streams choice {sample} of {n}")
                reasons[sample] = getattr(choice, "finish_reason", None) or reasons[sample]
                refusals[sample] += wire.refusal_of(choice) or ""
                if piece := wire.text_of(choice):
                    texts[sample] += piece
                    on_event(StreamEvent(sample, piece, id=getattr(event, "id", None) or ""))
        if not answered:
            raise BackendError(f"{self.model_name} answered without choices: no event has any")
        self._count(usage)
        done = tuple(map(self._completion, texts, reasons, [usage] * n, refusals))
        for sample, completion in enumerate(done):
            on_event(_last_event(sample, "", completion))
        return done

    def _events(self, request: Mapping[str, Any]) -> Iterator[Any]:
        try:
            yield from self._create(request)
        except Exception as error:
            self._explain(error)
            raise

    def _explain(self, error: Exception) -> None:
        """Raise a `BackendError` for an error of the API or of its client; ignore other errors."""
        told = wire.told(error, getattr(self._client, "base_url", "its default address"))
        if told is not None:
            raise BackendError(f"{self.model_name}: {told}") from error

    def _score(self, request: Mapping[str, Any], choices: Sequence[str]) -> ChoiceScores:
        (completion,) = self._generate(request, SamplingParams(), "")
        return openai_select.scores(completion.text, choices, completion.prompt_tokens)

    def _count(self, usage: Any) -> None:
        if usage is not None:
            with self._lock:
                self.token_usage.prompt_tokens += wire.count(usage, "prompt_tokens")
                self.token_usage.completion_tokens += wire.count(usage, "completion_tokens")

    def _completion(
        self, text: str, reason: str | None, usage: Any, refusal: str | None
    ) -> Completion:
        extra: dict[str, Any] = {"refusal": refusal} if refusal else {}
        if usage is not None:
            extra["completion_tokens"] = wire.count(usage, "completion_tokens")
        prompt_tokens = wire.count(usage, "prompt_tokens")
        return Completion(text, (), wire.finish_reason(reason), prompt_tokens, 0, extra=extra)


def _until(text: str, stops: Iterable[str]) -> str:
    """Return the text before the first stop string; the whole text if none occurs."""
    return text[: min([text.find(stop) for stop in stops if stop in text], default=len(text))]


def _new_client(is_azure: bool, args: Iterable[Any], kwargs: Mapping[str, Any]) -> Any:
    try:
        import openai  # an optional dependency
    except ImportError:
        raise BackendError(
            "the OpenAI backend needs the openai package: pip install 'sgl-mlx[openai]'"
        ) from None
    try:
        return (openai.AzureOpenAI if is_azure else openai.OpenAI)(*args, **kwargs)
    except openai.OpenAIError as error:
        raise BackendError(f"no client of OpenAI's API: {error}") from error


def _last_event(sample: int, text: str, completion: Completion) -> StreamEvent:
    """Return the last event of a sample, with its last piece of text and its finish reason."""
    return StreamEvent(
        sample,
        text,
        finish_reason=completion.finish_reason,
        prompt_tokens=completion.prompt_tokens,
        extra=completion.extra,
    )
