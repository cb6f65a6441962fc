"""API speculative execution: one call to an API answers several `gen`s of a program.

The first `gen` asks for more text than it needs, without its stop strings. If the program then
appends exactly the text with which the surplus goes on, the next `gen` is answered from the rest of
the surplus. If it appends other text, one more call is made (Zheng et al., "SGLang", arXiv
2312.07104, section "API speculative execution").
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any

from sgl_mlx.core import Completion, FinishReason, Prompt, SamplingParams, StreamEvent
from sgl_mlx.lang.backend import Backend
from sgl_mlx.lang.pictures import flat_text

_MARK = "\ufffc"
"""Character that stands for a picture when prompts are compared as text."""
_MOST_KEPT = 64
"""The most surplus texts that are kept for one run; each branch of a fork may leave one."""
_SAFE_SHARE = 0.8
"""Share of a token limit up to which an estimated number of tokens is trusted."""

Completions = tuple[Completion, ...]
OnEvent = Callable[[StreamEvent], None]


@dataclass(frozen=True)
class _Left:
    """Text that an API call wrote beyond the answer to one `gen`; it may answer the next `gen`.

    Attributes:
        prompt: everything before the text.
        kind: sampling parameters of the call, reduced by `_kind`.
        ended: True if the model ended the text itself; False if the token limit cut it.
        bytes_per_token: mean bytes per token in the call; None if the API counts no tokens.
    """

    prompt: str
    text: str
    kind: SamplingParams
    ended: bool
    bytes_per_token: float | None

    def follows(self, prompt: str, params: SamplingParams) -> bool:
        """Return True if `text` may answer a `gen` after `prompt`.

        `prompt` must be `self.prompt` followed by the first characters of `text`, at least one but
        not all. The parameters must be of the same kind (see `_kind`).
        """
        more = len(prompt) - len(self.prompt)
        return (
            0 < more < len(self.text)
            and prompt.startswith(self.prompt)
            and self.text.startswith(prompt[len(self.prompt) :])
            and self.kind == _kind(params)
        )

    def answer(self, prompt: str, params: SamplingParams) -> tuple[str, FinishReason] | None:
        """Return the answer to a `gen` after `prompt`: its text and its finish reason.

        Returns None if `text` was cut before any stop string, or if the answer may have more than
        `max_new_tokens` tokens.
        """
        text = self.text[len(prompt) - len(self.prompt) :]
        stops = [(at, stop) for stop in params.stop if (at := text.find(stop)) >= 0]
        if not stops and not self.ended:
            return None
        at, stop = min(stops, default=(len(text), None))
        if not self._fits(text[:at], params.max_new_tokens):
            return None
        return text[:at], FinishReason("stop", matched=stop)

    def _fits(self, text: str, tokens: int) -> bool:
        """Return True if `text` has at most `tokens` tokens, surely or very probably.

        A text of at most `tokens` bytes surely fits, since each token has at least one byte. For a
        longer text, the estimated number of tokens must be at most `_SAFE_SHARE` x `tokens`.
        """
        size = len(text.encode())
        estimate = size / self.bytes_per_token if self.bytes_per_token else size
        return size <= tokens or estimate <= _SAFE_SHARE * tokens


class AskingAhead:
    """A `Backend` for one run of a program, in which one call to an API may answer several `gen`s.

    All attributes and methods except `submit` are those of the API's backend.

    Args:
        backend: the API's backend, which makes the calls.
        tokens: the number of tokens that a call asks for, unless the `gen` itself allows more.
    """

    def __init__(self, backend: Backend, tokens: int) -> None:
        self._backend = backend
        self._tokens = tokens
        self._kept: list[_Left] = []
        self._lock = Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def submit(
        self, prompt: Prompt, params: SamplingParams, on_event: OnEvent | None = None
    ) -> Future[Completions]:
        """Answer from text that an earlier call left over, if it suffices; else call the API.

        Requests for a stream, several samples, logprobs or constrained output are passed on to the
        API's backend unchanged.
        """
        if on_event is not None or params.n > 1 or params.constrained or params.return_logprob:
            return self._backend.submit(prompt, params, on_event)
        found: Future[Completions] = Future()
        text = flat_text(prompt, _MARK)
        left = self._take(text, params)
        if left is not None and (answer := self._answer(left, text, params)) is not None:
            cut, reason = answer
            found.set_result((Completion(cut, (), reason, 0, 0, extra={"completion_tokens": 0}),))
            return found
        most = max(params.max_new_tokens, self._tokens)
        longer = replace(params, stop=(), stop_token_ids=(), max_new_tokens=most)
        call = self._backend.submit(prompt, longer)
        self._relay(call, found, partial(self._first, prompt, params))
        return found

    def _relay(
        self,
        call: Future[Completions],
        found: Future[Completions],
        read: Callable[[Completions], Completions | Future[Completions]],
    ) -> None:
        """When `call` is done, pass its result to `read`, and what `read` returns to `found`.

        If `read` returns the future of another call, `found` gets the result of that call. An error
        of a call is passed on to `found`. Cancelling `found` cancels the calls.
        """

        def settle(call: Future[Completions]) -> None:
            if found.done():
                return
            try:
                answer = read(call.result())
            except BaseException as error:  # cancelled calls too
                with suppress(InvalidStateError):
                    found.set_exception(error)
                return
            if isinstance(answer, Future):
                self._relay(answer, found, lambda completions: completions)
            else:
                with suppress(InvalidStateError):
                    found.set_result(answer)

        found.add_done_callback(lambda done: call.cancel() if done.cancelled() else None)
        call.add_done_callback(settle)

    def _first(
        self, prompt: Prompt, params: SamplingParams, completions: Completions
    ) -> Completions | Future[Completions]:
        """Answer a `gen` from the result of its longer call, and keep the rest of the text.

        If the text does not suffice, the API is called again with the parameters of the `gen`. But
        if the token limit of the `gen` itself cut the text, the whole text is the answer.
        """
        [whole] = completions
        text = flat_text(prompt, _MARK)
        tokens = whole.extra.get("completion_tokens")
        mean = len(whole.text.encode()) / tokens if tokens else None
        ended = whole.finish_reason.type != "length"
        left = _Left(text, whole.text, _kind(params), ended, mean)
        answer = self._answer(left, text, params)
        if answer is not None:
            return (replace(whole, text=answer[0], finish_reason=answer[1]),)
        stopped = any(stop in whole.text for stop in params.stop)
        if not ended and not stopped and params.max_new_tokens >= self._tokens:
            return (whole,)
        return self._backend.submit(prompt, params)

    def _take(self, prompt: str, params: SamplingParams) -> _Left | None:
        """Remove and return a kept text that may answer a `gen` after `prompt`, or return None.

        Each text serves once, so that branches with the same prompt get different samples.
        """
        with self._lock:
            for i, left in enumerate(self._kept):
                if left.follows(prompt, params):
                    return self._kept.pop(i)
        return None

    def _answer(
        self, left: _Left, prompt: str, params: SamplingParams
    ) -> tuple[str, FinishReason] | None:
        """Answer a `gen` after `prompt` from the text of `left`, and keep the rest of that text.

        Returns None if the text of `left` does not suffice.
        """
        answer = left.answer(prompt, params)
        if answer is None:
            return None
        before = prompt + answer[0]
        rest = (left.prompt + left.text)[len(before) :]
        if rest:
            with self._lock:
                self._kept = [
                    *self._kept[-_MOST_KEPT + 1 :],
                    replace(left, prompt=before, text=rest),
                ]
        return answer


def _kind(params: SamplingParams) -> SamplingParams:
    """Reset the parameters that only decide where an output begins or ends to their defaults.

    Two `gen`s can share the text of one call if the results of this function are equal.
    """
    plain = SamplingParams()
    return replace(
        params,
        stop=(),
        stop_token_ids=(),
        max_new_tokens=plain.max_new_tokens,
        token_healing=False,
    )
