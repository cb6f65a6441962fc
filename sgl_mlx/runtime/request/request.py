"""Requests in the engine, and the threads that prepare them.

`Request` is one request: its samples, its future and its events. `InFlight` keeps all unfinished
requests by id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import TypeVar

from sgl_mlx import bounds
from sgl_mlx.core import Completion, SamplingParams, StreamEvent
from sgl_mlx.errors import EngineStoppedError, InvalidParamsError, RequestAborted
from sgl_mlx.runtime.loop import EngineLoop
from sgl_mlx.runtime.request.inputs import RequestOptions
from sgl_mlx.runtime.request.output import TextOutput
from sgl_mlx.runtime.request.prepare import Prepared, Where
from sgl_mlx.runtime.scheduler.sequence import Sequence as Seq
from sgl_mlx.waits import SLICE

Completions = tuple[Completion, ...]
OnEvent = Callable[[StreamEvent], None] | None
T = TypeVar("T")
_THREADS = 2


class Request:
    """One request: the `n` samples of a prompt, and the future of their completions.

    Cancelling `future`, or settling it with an error, aborts the samples.

    Args:
        options: the request's id, priority, deadline and part of the prefix cache.
        seed: seed of sample 0; sample i has `seed + i`.
        loop: runs the samples.
        on_event: called on the delivery thread with each event of every sample; an error that it
            raises fails the request. None if nobody listens.
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
        self._sequences: list[Seq] = []

    def build(self, prepared: Prepared) -> None:
        """Make the sequences and outputs of all samples; call it once, before `start`.

        Raises:
            InvalidParamsError: a `stop_regex` cannot be compiled.
        """
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
            made = prompt.sequence(
                name,
                output,
                sampling,
                seed,
                start,
                constraint=constraint,
                extra_key=self._options.extra_key,
            )
            made.priority, made.deadline = self._options.priority, self._options.deadline
            self._outputs.append(output)
            self._sequences.append(made)

    def start(self) -> None:
        """Give the samples to the scheduler, unless the request has ended already.

        Raises:
            EngineStoppedError: the engine was shut down, hangs or has died.
        """
        if not self.future.done():
            self._loop.check()
            self._loop.post(partial(self._loop.add, self._sequences))
            self.future.add_done_callback(self._abort_if_unfinished)

    def fail(self, error: BaseException) -> None:
        """End the request with an error, unless it has ended already."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)

    def _abort_if_unfinished(self, future: Future[Completions]) -> None:
        if self._unfinished:
            with suppress(EngineStoppedError):  # then it has ended already
                self._loop.post(partial(self._loop.abort, self._sequences, "given up"))

    # -- on the engine thread -----------------------------------------------------------------

    def _send(self, event: StreamEvent) -> None:
        self._loop.deliver(partial(self._hand_over, event), self)

    def _sample_finished(self, _: TextOutput) -> None:
        self._unfinished -= 1
        if self._unfinished == 0:
            self._loop.deliver(self._resolve, self)

    # -- on the delivery thread ---------------------------------------------------------------

    def _hand_over(self, event: StreamEvent) -> None:
        assert self._on_event is not None
        if self.future.done():
            return
        try:
            self._on_event(self._named(event))
        except BaseException as error:  # raised by the caller's callback: only this request fails
            self.fail(error)

    def _named(self, event: StreamEvent) -> StreamEvent:
        """Return the event with the sample's id and token counts.

        A sample's first event also gets the prompt's logprobs, its last event the draft counts.
        """
        assert self._prepared is not None
        prompt, sequence = self._prepared.prompt, self._sequences[event.sample]
        logprobs, output = event.logprobs, self._outputs[event.sample]
        if logprobs is not None and not output.prompt_told:
            output.prompt_told = True
            logprobs = output.prompt_part(prompt.tokens) + logprobs
        drafts = _drafts(sequence) if event.finish_reason is not None else {}
        return replace(
            event,
            logprobs=logprobs,
            extra={**event.extra, **drafts},
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
        pairs = zip(self._sequences, self._outputs, strict=True)
        try:
            completions = tuple(self._completion(s, output) for s, output in pairs)
        except Exception as error:
            self.fail(error)
            return
        with suppress(InvalidStateError):  # cancelled, or failed by its callback
            self.future.set_result(completions)

    def _completion(self, s: Seq, output: TextOutput) -> Completion:
        assert self._prepared is not None
        tokens, total = self._prepared.prompt.tokens, self._prepared.prompt_tokens
        made = output.completion(s.id, tokens, total, _cached(s))
        return replace(made, extra={**made.extra, **_drafts(s)})


def _with_one_more(params: SamplingParams) -> SamplingParams:
    """Raise the token limits by one, for the token that repeats the taken-back text.

    The scheduler counts this token, but it is not part of the output.
    """
    least = params.min_new_tokens
    return replace(
        params,
        max_new_tokens=params.max_new_tokens + 1,
        min_new_tokens=least + 1 if least else 0,
    )


def _cached(s: Seq) -> int:
    """Return how many prompt tokens were cached, in a sequence and all sequences in its `after`."""
    return (s.cached_tokens or 0) + sum(_cached(needed) for needed in s.after)


def _drafts(s: Seq) -> dict[str, int]:
    """Return the counts of drafted and of accepted draft tokens; empty if none were drafted."""
    if not s.drafted_tokens:
        return {}
    return {"drafted_tokens": s.drafted_tokens, "accepted_tokens": s.accepted_tokens}


class InFlight:
    """The unfinished requests of an engine, by id; prepares, starts and aborts requests.

    Usable from any thread.

    Preparation that may take long runs on worker threads, so that it blocks neither a caller's
    event loop nor the engine thread: two for prompts and two for grammars, so that no prompt waits
    for a grammar.
    """

    def __init__(self, loop: EngineLoop) -> None:
        self._loop = loop
        self._workers = {
            kind: ThreadPoolExecutor(_THREADS, thread_name_prefix=f"sgl-mlx {kind}")
            for kind in ("prompts", "grammars")
        }
        self._requests: dict[str, Request] = {}
        self._lock = Lock()
        loop.on_failure = self.fail_all

    def launch(
        self, requests: Sequence[Request], prepare: Callable[[], Sequence[Prepared]], where: Where
    ) -> list[Future[Completions]]:
        """Prepare requests and start them; return their futures.

        If `prepare` raises, every future fails with that error and no request starts. `prepare` is
        not called if all futures were settled (cancelled, for example) before its turn.

        Args:
            prepare: returns one `Prepared` for each request, in order.
            where: "here" calls `prepare` at once on this thread, else a worker thread calls it.

        Raises:
            InvalidParamsError: an id is in flight already, or given twice.
            EngineStoppedError: after `stop`. If `where` is "here", the futures fail with this error
                instead.
        """
        self._register(requests)
        fail = Request.fail if where == "here" else self._fail
        self.run(partial(self._prepare_and_start, requests, prepare, fail), where)
        return [request.future for request in requests]

    def run(self, job: Callable[[], object], where: Where) -> None:
        """Call `job` at once on this thread if `where` is "here", else on a worker thread.

        An error of `job` on a worker thread is lost.

        Raises:
            EngineStoppedError: after `stop`, unless "here".
            Exception: the error of `job`, if "here".
        """
        if where == "here":
            job()
            return
        try:
            self._workers[where].submit(job)
        except RuntimeError:
            raise EngineStoppedError("the engine was shut down; make a new one") from None

    def _fail(self, request: Request, error: Exception) -> None:
        """Fail a request on the delivery thread; on this thread once the engine is stopping."""
        if self._loop.stopping:
            request.fail(error)
        else:
            self._loop.deliver(partial(request.fail, error), request)

    def abort(self, rid: str) -> bool:
        """End a request with `RequestAborted`; return False if no such request is in flight.

        Raises:
            InvalidParamsError: `rid` is not a text.
        """
        rid = bounds.text("rid", rid)
        with self._lock:
            request = self._requests.get(rid)
        if request is None:
            return False
        request.fail(RequestAborted(f"request {rid!r} was aborted"))
        return True

    def stop(self) -> None:
        """End the worker threads and fail unfinished requests; call it after `EngineLoop.stop`."""
        for workers in self._workers.values():
            workers.shutdown(wait=True, cancel_futures=True)
        self.fail_all(EngineStoppedError("the engine was shut down"))

    def fail_all(self, error: Exception) -> None:
        """Fail all unfinished requests with an error."""
        with self._lock:
            left = list(self._requests.values())
        for request in left:
            self._fail(request, error)

    def _register(self, requests: Sequence[Request]) -> None:
        with self._lock:
            names = [request.id for request in requests]
            twice = [n for n in names if n in self._requests or names.count(n) > 1]
            if twice:
                raise InvalidParamsError(
                    f"rid {twice[0]!r} is in flight already; give each request its own id"
                )
            self._requests.update(zip(names, requests, strict=True))
        for request in requests:
            request.future.add_done_callback(partial(self._forget, request.id))

    def _forget(self, rid: str, _: Future[Completions]) -> None:
        with self._lock:
            self._requests.pop(rid, None)

    def _prepare_and_start(
        self,
        requests: Sequence[Request],
        prepare: Callable[[], Sequence[Prepared]],
        fail: Callable[[Request, Exception], None],
    ) -> None:
        if all(request.future.done() for request in requests):
            return
        try:
            for request, prepared in zip(requests, prepare(), strict=True):
                request.build(prepared)
            for request in requests:
                request.start()
        except Exception as error:
            for request in requests:
                fail(request, error)


def wait_all(futures: Sequence[Future[T]]) -> list[T]:
    """Wait for all futures and return their results; an error or interrupt cancels all of them."""
    found: list[T] = []
    try:
        for future in futures:
            while not wait([future], SLICE).done:  # in slices for Ctrl-C's sake: see `waits`
                pass
            found.append(future.result())
        return found
    except BaseException:
        for future in futures:
            future.cancel()
        raise


async def wait_all_async(futures: Sequence[Future[T]]) -> list[T]:
    """Await all futures and return their results; an error or cancellation cancels all of them."""
    try:
        return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))
    finally:
        for future in futures:
            future.cancel()
