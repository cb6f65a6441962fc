"""Test doubles for programs: a backend that answers from a script, and a byte-level tokenizer."""

from __future__ import annotations

import re
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from typing import Any, Literal

from sgl_mlx.core import (
    ChoiceScore,
    ChoiceScores,
    Completion,
    FinishReason,
    Prompt,
    SamplingParams,
    StreamEvent,
    TokenLogprob,
    prompt_text,
)
from sgl_mlx.errors import BackendError, EngineStoppedError, TokenizerError

Reply = str | BaseException
Script = str | Sequence[Reply] | Mapping[str, Reply] | Callable[[str], Reply]
_TOKEN = re.compile(r"\s*\S+|\s+$")
_UNLIKELY = -10.0
_UNCONDITIONAL = -1.0


@dataclass(eq=False)
class Call:
    """One call of a `ScriptedBackend`: the method (`kind`), its arguments, and the future."""

    kind: Literal["submit", "score", "prefill", "prefetch"]
    prompt: Prompt
    params: SamplingParams | None = None
    choices: tuple[str, ...] = ()
    future: Future[Any] = field(default_factory=Future)

    @property
    def text(self) -> str:
        return prompt_text(self.prompt)


class ScriptedBackend:
    """A `Backend` that answers from a script instead of a model. Each word counts as a token.

    Constraints and token healing are recorded in `calls[i].params` and do not change the answers.

    Args:
        script: the answers: one text for all calls; a list of texts, used in order; a mapping from
            substrings of the prompt to texts (if several substrings occur, the one that occurs
            last in the prompt counts); or a function from the prompt's text to an answer. An
            exception in place of a text makes the call fail with this exception.
        logprobs: a mapping from choices of `select` to the log-probability of each token, or to
            one number for every token. A choice that is left out gets -10 for every token.
        render_chat: the model's chat template: `(messages, add_generation_prompt) -> str`. Without
            it, the model has none.
        supports_parallel: the value of `Backend.supports_parallel`.
        manual: leave every call pending until `step`; otherwise calls are answered at once.
        piece: the number of characters in each streamed event.
        model_name: the value of `Backend.model_name`.

    Attributes:
        calls: all calls so far, in order.
    """

    def __init__(
        self,
        script: Script = (),
        *,
        logprobs: Mapping[str, float | Sequence[float]] | None = None,
        render_chat: Callable[[Sequence[Mapping[str, Any]], bool], str] | None = None,
        supports_parallel: bool = True,
        manual: bool = False,
        piece: int = 4,
        model_name: str = "scripted",
    ) -> None:
        self.model_name = model_name
        self.supports_parallel = supports_parallel
        self.calls: list[Call] = []
        self._reply = _replier(script)
        self._logprobs = dict(logprobs or {})
        self._render_chat = render_chat
        self._manual = manual
        self._piece = piece
        self._pending: list[tuple[Call, Callable[[], Any]]] = []
        self._lock = threading.Lock()
        self._stopped = False

    # -- what was asked -----------------------------------------------------------------------

    @property
    def prompts(self) -> list[str]:
        """The prompt texts of all calls of `submit`, in order."""
        return [call.text for call in self.calls if call.kind == "submit"]

    @property
    def prefills(self) -> list[str]:
        """The prompt texts of all calls of `prefill`, in order."""
        return [call.text for call in self.calls if call.kind == "prefill"]

    @property
    def prefetches(self) -> list[str]:
        """The prompt texts of all calls of `prefetch`, in order."""
        return [call.text for call in self.calls if call.kind == "prefetch"]

    @property
    def pending(self) -> list[Call]:
        """The calls that are not answered yet, oldest first; always empty without `manual`."""
        return [call for call, _ in self._pending if not call.future.done()]

    def step(self, call: Call | None = None) -> Call:
        """Answer and return one pending call: `call` if given, otherwise the oldest.

        Raises:
            BackendError: no call is pending, or `call` is not pending.
        """
        with self._lock:
            self._pending = [item for item in self._pending if not item[0].future.done()]
            for i, (waiting, _) in enumerate(self._pending):
                if call in (None, waiting):
                    chosen, answer = self._pending.pop(i)
                    break
            else:
                raise BackendError(
                    "no call is pending" if call is None else f"this call is not pending: {call!r}"
                )
        _settle(chosen.future, answer)
        return chosen

    def run_all(self) -> None:
        """Answer pending calls, and new calls that follow from answers, until no call is left."""
        while self.pending:
            self.step()

    # -- Backend ------------------------------------------------------------------------------

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False
    ) -> str:
        if self._render_chat is None:
            raise TokenizerError("the scripted model has no chat template")
        return self._render_chat(messages, add_generation_prompt)

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        on_event: Callable[[StreamEvent], None] | None = None,
    ) -> Future[tuple[Completion, ...]]:
        call = Call("submit", prompt, params)
        return self._ask(call, partial(self._complete, call, params, on_event))

    def score(
        self, prompt: Prompt, choices: Sequence[str], unconditional: bool = False
    ) -> Future[ChoiceScores]:
        call = Call("score", prompt, choices=tuple(choices))
        return self._ask(call, partial(self._score, call, unconditional))

    def prefill(self, prompt: Prompt) -> Future[int]:
        call = Call("prefill", prompt)
        return self._ask(call, lambda: len(_words(call.text)))

    def prefetch(self, prompt: Prompt) -> Future[int]:
        call = Call("prefetch", prompt)
        return self._ask(call, lambda: len(_words(call.text)))

    def flush_cache(self) -> bool:
        return not self.pending

    def get_server_info(self) -> dict[str, Any]:
        return {"model_path": self.model_name, "calls": len(self.calls)}

    def shutdown(self) -> None:
        self._stopped = True
        for call in self.pending:
            call.future.cancel()

    # -- answers ------------------------------------------------------------------------------

    def _ask(self, call: Call, answer: Callable[[], Any]) -> Future[Any]:
        if self._stopped:
            raise EngineStoppedError("the scripted backend was shut down")
        with self._lock:
            self.calls.append(call)
            if self._manual:
                self._pending.append((call, answer))
        if not self._manual:
            _settle(call.future, answer)
        return call.future

    def _complete(
        self, call: Call, params: SamplingParams, on_event: Callable[[StreamEvent], None] | None
    ) -> tuple[Completion, ...]:
        with self._lock:
            replies = [self._reply(call.text) for _ in range(params.n)]
        completions = tuple(_completion(call, reply, params) for reply in replies)
        if on_event is not None:
            for sample, completion in enumerate(completions):
                for event in _events(sample, completion, self._piece):
                    on_event(event)
        return completions

    def _score(self, call: Call, unconditional: bool) -> ChoiceScores:
        rows = [self._scored(choice) for choice in call.choices]
        alone = [_alone(row) if unconditional else None for row in rows]
        scores = tuple(map(ChoiceScore, call.choices, rows, alone))
        return ChoiceScores(scores, len(_words(call.text)), 0)

    def _scored(self, choice: str) -> tuple[TokenLogprob, ...]:
        given = self._logprobs.get(choice, _UNLIKELY)
        words = _words(choice)
        values = [given] * len(words) if isinstance(given, (int, float)) else given
        spelled = zip_longest(values, words[: len(values)], fillvalue="")
        return tuple(TokenLogprob(float(v), _token_id(str(w)), str(w)) for v, w in spelled)


def _replier(script: Script) -> Callable[[str], Reply]:
    if callable(script):
        return script
    if isinstance(script, str):
        return lambda prompt: script
    if isinstance(script, Mapping):
        return partial(_reply_to, script)
    rest = list(script)
    return lambda prompt: rest.pop(0) if rest else _missing(prompt)


def _reply_to(script: Mapping[str, Reply], prompt: str) -> Reply:
    found = max(script, key=prompt.rfind, default="")
    return script[found] if found in prompt and found in script else _missing(prompt)


def _missing(prompt: str) -> Reply:
    return BackendError(f"the script has no reply for the prompt ending in {prompt[-60:]!r}")


def _completion(call: Call, reply: Reply, params: SamplingParams) -> Completion:
    if isinstance(reply, BaseException):
        raise reply
    text, reason = _stopped(reply, params)
    words = _words(text)
    if len(words) > params.max_new_tokens:
        words = words[: params.max_new_tokens]
        text, reason = "".join(words), FinishReason("length", length=params.max_new_tokens)
    ids = tuple(map(_token_id, words))
    return Completion(text, ids, reason, len(_words(call.text)), 0, id=f"scripted-{id(call)}")


def _events(sample: int, completion: Completion, size: int) -> Iterator[StreamEvent]:
    """Yield a sample as events of `size` characters each; the last event has all token ids."""
    text = completion.text
    about = (completion.id, completion.prompt_tokens, completion.cached_tokens)
    begins = range(0, len(text), size) or (0,)
    for begin in begins:
        last = begin + size >= len(text)
        tokens = completion.token_ids if last else ()
        reason = completion.finish_reason if last else None
        yield StreamEvent(sample, text[begin : begin + size], tokens, None, reason, *about)


def _stopped(text: str, params: SamplingParams) -> tuple[str, FinishReason]:
    ends = [(text.index(stop), stop) for stop in params.stop if stop in text]
    if not ends:
        return text, FinishReason("stop")
    end, stop = min(ends)
    return text[: end + len(stop) * params.no_stop_trim], FinishReason("stop", matched=stop)


def _alone(row: Sequence[TokenLogprob]) -> tuple[TokenLogprob, ...]:
    return tuple(replace(token, logprob=_UNCONDITIONAL) for token in row)


def _settle(future: Future[Any], answer: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = answer()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


def _words(text: str) -> list[str]:
    return _TOKEN.findall(text)


def _token_id(word: str) -> int:
    return zlib.crc32(word.encode()) % 50_000


class ByteTokenizer:
    """A tokenizer in which every byte is a token; token 256 is the end token."""

    eos_token_id = 256
    eos_token_ids = frozenset({eos_token_id})
    vocab_size = 257

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens; invalid UTF-8 becomes U+FFFD, and end tokens are left out."""
        return bytes(t for t in token_ids if t < self.eos_token_id).decode(errors="replace")
