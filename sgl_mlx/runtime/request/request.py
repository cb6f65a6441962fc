"""One request on its way through the engine: its samples, its future, its text."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import replace
from functools import partial

from sgl_mlx.core import Completion, SamplingParams
from sgl_mlx.errors import EngineStoppedError, RequestAborted
from sgl_mlx.runtime.constraints.healing import Healing
from sgl_mlx.runtime.loop import EngineLoop
from sgl_mlx.runtime.request.encode import Encoded
from sgl_mlx.runtime.request.output import TextOutput
from sgl_mlx.runtime.scheduler.sequence import Constraint, Sequence

Completions = tuple[Completion, ...]


class Request:
    """`params.n` samples of one prompt. Cancelling `future` aborts them.

    Args:
        seed: of the first sample; each further one has the next.
        on_text: told of the first sample's text, on the delivery thread.
    """

    def __init__(
        self,
        name: str,
        prompt: Encoded,
        params: SamplingParams,
        seed: int,
        loop: EngineLoop,
        on_text: Callable[[str], None] | None = None,
    ) -> None:
        prompt, params, healed = _heal(prompt, params, loop)
        self.future: Future[Completions] = Future()
        self._prompt = prompt
        self._loop = loop
        self._on_text = on_text
        self._unfinished = params.n
        start = params.logprob_start_len if params.return_logprob else None
        if start is not None and (start < 0 or start >= len(prompt.tokens)):
            start = None
        self._outputs: list[TextOutput] = []
        self._sequences: list[Sequence] = []
        for i in range(params.n):
            output = TextOutput(
                params,
                loop.model.tokenizer,
                loop.model.tokenizer.eos_token_ids,
                self._sample_finished,
                self._send_text if on_text is not None and i == 0 else None,
                healed,
            )
            constraint: Constraint | None = None
            if healed:
                constraint = Healing(loop.model.spellings, healed.encode())
            elif params.constrained:
                constraint = loop.model.grammars.constraint(params)
            id = name if params.n == 1 else f"{name}-{i}"
            self._outputs.append(output)
            self._sequences.append(
                prompt.sequence(id, output, params, seed + i, start, constraint=constraint)
            )

    def start(self) -> None:
        """Queue the samples."""
        self._loop.post(partial(self._loop.add, self._sequences))
        self.future.add_done_callback(self._abort_if_cancelled)

    def _abort_if_cancelled(self, future: Future[Completions]) -> None:
        if future.cancelled():
            self._abort("cancelled")

    def _abort(self, message: str) -> None:
        with suppress(EngineStoppedError):  # then it has ended already
            self._loop.post(partial(self._loop.abort, self._sequences, message))

    # -- on the engine thread -----------------------------------------------------------------

    def _send_text(self, piece: str) -> None:
        self._loop.deliver(partial(self._hand_over, piece))

    def _sample_finished(self, _: TextOutput) -> None:
        self._unfinished -= 1
        if self._unfinished == 0:
            self._loop.deliver(self._resolve)

    # -- on the delivery thread ---------------------------------------------------------------

    def _hand_over(self, piece: str) -> None:
        assert self._on_text is not None
        if self.future.done():
            return
        try:
            self._on_text(piece)
        except Exception as error:  # the caller's own; nobody else may suffer
            self._fail(error)
            self._abort("its callback failed")

    def _resolve(self) -> None:
        reasons = [output.finish_reason for output in self._outputs]
        aborted = [r for r in reasons if r is not None and r.type == "abort"]
        if aborted:
            error = EngineStoppedError if self._loop.stopping else RequestAborted
            self._fail(error(aborted[0].message or "the request was aborted"))
            return
        completions = tuple(
            output.completion(s.id, self._prompt.tokens, self._prompt.total, _cached(s))
            for s, output in zip(self._sequences, self._outputs, strict=True)
        )
        with suppress(InvalidStateError):  # cancelled, or failed by its callback
            self.future.set_result(completions)

    def _fail(self, error: Exception) -> None:
        with suppress(InvalidStateError):
            self.future.set_exception(error)


def _heal(
    prompt: Encoded, params: SamplingParams, loop: EngineLoop
) -> tuple[Encoded, SamplingParams, str]:
    """Take back the end of the prompt where the output may merge with it; see `healing`."""
    if not params.token_healing or params.constrained or params.max_new_tokens == 0:
        return prompt, params, ""
    found = loop.model.spellings.heals(prompt.tokens[prompt.sealed :])
    if found is None or found[0] >= len(prompt.tokens):
        return prompt, params, ""
    count, text = found
    shorter = replace(prompt, tokens=prompt.tokens[:-count])
    return shorter, replace(params, max_new_tokens=params.max_new_tokens + count), text


def _cached(s: Sequence) -> int:
    """Prompt tokens that came from the cache, those of the branches it was built on included."""
    return (s.cached_tokens or 0) + sum(_cached(needed) for needed in s.after)
