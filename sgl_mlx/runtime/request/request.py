"""One request on its way through the engine: its samples, its future, its events."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import replace
from functools import partial

from sgl_mlx.core import Completion, SamplingParams, StreamEvent
from sgl_mlx.errors import EngineStoppedError, RequestAborted
from sgl_mlx.runtime.loop import EngineLoop
from sgl_mlx.runtime.request.options import RequestOptions
from sgl_mlx.runtime.request.output import TextOutput
from sgl_mlx.runtime.request.prepare import Prepared
from sgl_mlx.runtime.scheduler.sequence import Sequence

Completions = tuple[Completion, ...]
OnEvent = Callable[[StreamEvent], None] | None


class Request:
    """The `n` samples of one prompt, from the call to the answer.

    Settling `future` early, by cancelling it or with an error, aborts the samples.

    Args:
        options: of the call, with its id.
        seed: of the first sample; each further one has the next.
        on_event: called with what every sample adds, on the delivery thread.
    """

    def __init__(
        self, options: RequestOptions, seed: int, loop: EngineLoop, on_event: OnEvent = None
    ) -> None:
        self.future: Future[Completions] = Future()
        self.id = options.rid or ""
        self._options = options
        self._seed = seed
        self._loop = loop
        self._on_event = on_event
        self._prepared: Prepared | None = None
        self._unfinished = 0
        self._outputs: list[TextOutput] = []
        self._sequences: list[Sequence] = []

    def build(self, prepared: Prepared) -> None:
        """Make the samples; raises `InvalidParamsError` for a `stop_regex` that is broken."""
        params, prompt = prepared.params, prepared.prompt
        self._prepared, self._unfinished = prepared, params.n
        start = params.logprob_start_len if params.return_logprob else None
        if start is not None and (start < 0 or start >= len(prompt.tokens)):
            start = None
        sampling = _with_one_more(params) if prepared.taken_back.tokens else params
        model, send = self._loop.model, self._send if self._on_event is not None else None
        for i, constraint in enumerate(prepared.constraints):
            output = TextOutput(
                params,
                model.tokenizer,
                model.tokenizer.eos_token_ids,
                self._sample_finished,
                send,
                prepared.taken_back,
                sample=i,
            )
            name = self.id if params.n == 1 else f"{self.id}-{i}"
            seed = self._seed + i
            made = prompt.sequence(name, output, sampling, seed, start, constraint=constraint)
            made.priority, made.deadline = self._options.priority, self._options.deadline
            self._outputs.append(output)
            self._sequences.append(made)

    def start(self) -> None:
        """Queue the samples, unless the request has ended already."""
        if not self.future.done():
            self._loop.post(partial(self._loop.add, self._sequences))
            self.future.add_done_callback(self._abort_if_unfinished)

    def fail(self, error: Exception) -> None:
        """End the request with an error, unless it has ended already."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)

    def _abort_if_unfinished(self, future: Future[Completions]) -> None:
        if self._unfinished:
            with suppress(EngineStoppedError):  # then it has ended already
                self._loop.post(partial(self._loop.abort, self._sequences, "given up"))

    # -- on the engine thread -----------------------------------------------------------------

    def _send(self, event: StreamEvent) -> None:
        self._loop.deliver(partial(self._hand_over, event))

    def _sample_finished(self, _: TextOutput) -> None:
        self._unfinished -= 1
        if self._unfinished == 0:
            self._loop.deliver(self._resolve)

    # -- on the delivery thread ---------------------------------------------------------------

    def _hand_over(self, event: StreamEvent) -> None:
        assert self._on_event is not None
        if self.future.done():
            return
        try:
            self._on_event(self._named(event))
        except Exception as error:  # the caller's own; nobody else may suffer
            self.fail(error)

    def _named(self, event: StreamEvent) -> StreamEvent:
        """Add what the request knows; the first event of a sample has the prompt's logprobs."""
        assert self._prepared is not None
        prompt, sequence = self._prepared.prompt, self._sequences[event.sample]
        logprobs, output = event.logprobs, self._outputs[event.sample]
        if logprobs is not None and not output.prompt_told:
            output.prompt_told = True
            logprobs = output.prompt_part(prompt.tokens) + logprobs
        return replace(
            event,
            logprobs=logprobs,
            id=sequence.id,
            prompt_tokens=self._prepared.prompt_tokens,
            cached_tokens=_cached(sequence),
        )

    def _resolve(self) -> None:
        assert self._prepared is not None
        reasons = [output.finish_reason for output in self._outputs]
        aborted = [r for r in reasons if r is not None and r.type == "abort"]
        if aborted:
            error = EngineStoppedError if self._loop.stopping else RequestAborted
            self.fail(error(aborted[0].message or "the request was aborted"))
            return
        prompt = self._prepared.prompt
        completions = tuple(
            output.completion(s.id, prompt.tokens, self._prepared.prompt_tokens, _cached(s))
            for s, output in zip(self._sequences, self._outputs, strict=True)
        )
        with suppress(InvalidStateError):  # cancelled, or failed by its callback
            self.future.set_result(completions)


def _with_one_more(params: SamplingParams) -> SamplingParams:
    """Allow for the token that spells what was taken back; a single one always does."""
    least = params.min_new_tokens
    return replace(
        params,
        max_new_tokens=params.max_new_tokens + 1,
        min_new_tokens=least + 1 if least else 0,
    )


def _cached(s: Sequence) -> int:
    """Count the prompt tokens that came from the cache, in the branches it was built on too."""
    return (s.cached_tokens or 0) + sum(_cached(needed) for needed in s.after)
