"""The engine's threads: one runs the model, one delivers results, one watches both.

The engine thread runs orders between steps of the model. An order is a function that adds or aborts
sequences, or reads the engine's state. Only this thread touches MLX, the scheduler or the cache.
The delivery thread runs callers' callbacks, in order, so that a slow one does not delay the model.
"""

from __future__ import annotations

import atexit
import queue
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from sgl_mlx.errors import EngineStoppedError
from sgl_mlx.models.loader import LoadedModel
from sgl_mlx.models.streams import borrowed_stream
from sgl_mlx.runtime.assembly import OpenModel, RunnableModel, open_model
from sgl_mlx.runtime.cache.tier import Transfer
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.runtime.pool.exhausted import Exhausted, lose_pool, told
from sgl_mlx.runtime.ranks.start import on_all_ranks
from sgl_mlx.runtime.request.deliveries import Deliveries, Order
from sgl_mlx.runtime.scheduler.plan import Decode, Plan, PoolLost, Runner, StepResult
from sgl_mlx.runtime.scheduler.scheduler import Scheduler
from sgl_mlx.runtime.scheduler.sequence import Sequence
from sgl_mlx.runtime.stats import EngineStats
from sgl_mlx.runtime.watchdog.pulse import ORDER, Pulse, Work
from sgl_mlx.runtime.watchdog.watchdog import Watchdog
from sgl_mlx.waits import result_of

T = TypeVar("T")
_SHUT_DOWN = "the engine was shut down; make a new one"
_JOIN_SECONDS = 0.5
"""Seconds after which a wait for a thread looks whether the engine hangs."""
_LONGEST_WAIT = 3600.0
"""Most seconds of one wait for a deadline, since the operating system limits timers."""


class EngineLoop:
    """The engine thread, the delivery thread and the watchdog. Call `start` once; `stop` ends all.

    Args:
        loaded: a model that is loaded already, used instead of `config.model_path`.
        open_model: called on the engine thread to make the model, its scheduler and its runner.

    Attributes:
        on_failure: called on any thread with the error when the engine thread hangs or has died.
    """

    def __init__(
        self,
        config: EngineConfig,
        loaded: LoadedModel | None = None,
        open_model: OpenModel = open_model,
    ) -> None:
        self._open_model = partial(on_all_ranks(open_model), config, self._wake, loaded)
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._deliveries = Deliveries()
        self._stopping = False
        self._gate = threading.Lock()  # no order is posted after the one that stops
        self._model_seconds = 0.0
        self._decode_seconds = 0.0
        self._model: Future[RunnableModel] = Future()
        self._calls: set[Future[Any]] = set()
        self.on_failure: Callable[[Exception], None] = lambda _: None
        self._failure: str | None = None
        self._pulse = Pulse()
        self._thread = threading.Thread(target=self._run, name="sgl-mlx engine", daemon=True)
        self._watchdog = Watchdog(
            self._pulse,
            lambda: self._thread.is_alive() or (self._stopping and self._failure is None),
            config.watchdog_seconds,
            partial(self.fail, stop=False),
            self._recover,
            self._deliveries.relieve,
        )

    def start(self) -> None:
        """Start the threads and wait until the model is loaded; raises the errors of loading."""
        self._deliveries.start()
        self._thread.start()
        try:
            result_of(self._model)
        except BaseException:
            self.stop()
            raise
        atexit.register(self.stop)
        self._watchdog.start()

    @property
    def model(self) -> RunnableModel:
        return self._model.result()

    # -- from any thread ----------------------------------------------------------------------

    def post(self, order: Order) -> None:
        """Queue a function for the engine thread, which calls it before its next step.

        Raises:
            EngineStoppedError: after `stop`.
        """
        with self._gate:
            if self._stopping:
                raise EngineStoppedError(self._failure or _SHUT_DOWN)
            self._orders.put(order)

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run a function on the engine thread; the future has its result or its exception.

        Raises:
            EngineStoppedError: after `stop`, and while the engine thread hangs.
        """
        future: Future[T] = Future()

        def order() -> None:
            with suppress(InvalidStateError):  # the engine hung, and the future has failed
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)

        self._calls.add(future)
        future.add_done_callback(self._calls.discard)
        try:
            self.check()
            self.post(order)
        except EngineStoppedError:
            future.cancel()
            raise
        return future

    def deliver(self, order: Order, owner: Hashable) -> None:
        """Queue a function for the delivery thread, which calls functions in the order queued.

        Args:
            owner: on whose behalf it is called; a call that blocks delays only calls of the same
                owner.
        """
        self._deliveries.put(order, owner)

    @property
    def delivering(self) -> bool:
        """True if the calling thread is running a function given to `deliver`."""
        return threading.current_thread() in self._deliveries.threads

    def stop(self) -> None:
        """End all threads and fail unfinished requests. Safe to call twice.

        An engine thread that hangs is left behind, with all that it holds.
        """
        self._close_gate()
        atexit.unregister(self.stop)
        self._join(self._thread)
        if self._thread.is_alive():
            self._deliveries.close()
        if not self.delivering:
            for thread in self._deliveries.threads:
                self._join(thread)
        self._watchdog.stop()

    def _join(self, thread: threading.Thread) -> None:
        """Wait for a thread to end, unless the engine hangs or `thread` is the calling thread."""
        if thread.ident is not None and thread is not threading.current_thread():
            thread.join(_JOIN_SECONDS)
            while thread.is_alive() and self._failure is None:
                thread.join(_JOIN_SECONDS)

    @property
    def stopping(self) -> bool:
        return self._stopping

    @property
    def failure(self) -> str | None:
        """The reason why no request is taken, if the engine thread hangs or has died; else None."""
        return self._failure

    def check(self) -> None:
        """Raise `EngineStoppedError` if the engine takes no requests now."""
        if self._stopping or self._failure is not None:
            raise EngineStoppedError(self._failure or _SHUT_DOWN)

    # -- on the watchdog's thread ---------------------------------------------------------------

    def fail(self, reason: str, stop: bool = True) -> None:
        """Fail everything that waits for the engine thread; the thread itself may go on.

        Args:
            stop: True if the engine is of no further use, so that it takes no more orders; then any
                thread may call this.
        """
        self._failure = self._failure or reason
        error = EngineStoppedError(self._failure)
        for future in list(self._calls):
            with suppress(InvalidStateError):
                future.set_exception(error)
        self.on_failure(error)
        if stop:
            self._close_gate()

    def _recover(self) -> None:
        if not self._stopping:
            self._failure = None

    def _close_gate(self) -> None:
        with self._gate:
            self._stopping = True
            self._orders.put(lambda: None)  # wakes the thread

    # -- on the engine thread -----------------------------------------------------------------

    def add(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            self._scheduler.add(sequence)

    def abort(self, sequences: list[Sequence], message: str) -> None:
        for sequence in sequences:
            self._scheduler.abort(sequence, message)

    def flush_cache(self) -> bool:
        return self._scheduler.flush_cache()

    def stats(self) -> EngineStats:
        """Return counts and seconds since the start; call it on the engine thread."""
        model = self.model
        return EngineStats.of(
            self._scheduler,
            self._runner.stats(),
            model_seconds=self._model_seconds,
            decode_seconds=self._decode_seconds,
            disk=model.disk.stats() if model.disk else None,
            pictures=model.pictures.stats(),
        )

    def resident(self, sequence: Sequence) -> int:
        """Return how many of a sequence's leading tokens are cached; call it on the engine thread.

        The computed tokens of a sequence that has just ended count as cached, because they are
        about to enter the tree.
        """
        cache, limit = self._scheduler.cache, sequence.match_limit
        ended = sequence.computed if sequence.holding is not None else 0
        return max(cache.reusable(sequence.key, sequence.namespace, limit)[0], ended)

    def _run(self) -> None:
        with borrowed_stream():
            try:
                self._serve()
            finally:
                self._deliveries.close()

    def _serve(self) -> None:
        try:
            model = self._open_model()
        except BaseException as error:
            self._model.set_exception(error)
            return
        self._scheduler, self._runner = model.scheduler, model.runner
        self._exhausted = Exhausted(model.scheduler)
        if model.ranks is not None:
            model.ranks.attach(self.fail, lambda order: self.call(order).result())
        self._model.set_result(model)
        busy = False
        try:
            while not self._stopping:
                self._take_orders(wait=not busy)
                busy = self._turn(self._scheduler, self._runner)
            self._leave(model, self._failure or _SHUT_DOWN)
        except BaseException as error:
            self._failure = f"the engine's thread died: {type(error).__name__}: {error}"
            raise
        finally:
            self._close_gate()
            self._drain()
            self._scheduler.fail_all(self._failure or _SHUT_DOWN)
            model.wired.release()
            if model.ranks is not None:
                model.ranks.close_engine()

    def _take_orders(self, wait: bool) -> None:
        """Run all queued orders; with `wait`, first wait for an order or for the next deadline."""
        if wait and self._orders.empty():
            self._move(self._scheduler.cache.take_transfers())
            try:
                order = self._orders.get(timeout=self._patience())
            except queue.Empty:
                return
            self._obey(order)
        self._drain()

    @contextmanager
    def _doing(self, what: Plan | str) -> Iterator[None]:
        """Show a piece of work to the watchdog while the `with` block runs."""
        work = self._pulse.work = Work(what)
        started = time.monotonic()
        try:
            yield
        finally:
            self._pulse.work, work.seconds = None, time.monotonic() - started
            self._pulse.done.append(work)

    def _obey(self, order: Order) -> None:
        with self._doing(ORDER):
            order()

    def _patience(self) -> float | None:
        left = self._scheduler.seconds_left
        return None if left is None else min(left, _LONGEST_WAIT)

    def _wake(self) -> None:
        """Tell the scheduler that a read from disk has finished; callable from any thread."""
        with suppress(EngineStoppedError):
            self.post(self._scheduler.wake)

    def _move(self, transfers: tuple[Transfer, ...]) -> None:
        """Write computed KV to the pool and carry out transfers.

        If that fails, all requests end but the engine goes on.
        """
        try:
            with self._doing("move of keys and values"):
                self._runner.synchronise(transfers)
        except Exception as error:
            lose_pool(self._scheduler, self._runner, error, transfers)

    def _leave(self, model: RunnableModel, reason: str) -> None:
        """End all requests and write the cached KV to the disk cache, if there is one."""
        if model.disk is not None:
            self._move(self._scheduler.cache.take_transfers())
            self._scheduler.spill(reason)
            # reversed: if the write queue is full, the least recently used blocks are dropped
            self._move(self._scheduler.cache.take_transfers()[::-1])
            model.disk.store.close()

    def _drain(self) -> None:
        while not self._orders.empty():
            self._obey(self._orders.get())

    def _turn(self, scheduler: Scheduler, runner: Runner) -> bool:
        """Plan, compute and commit one step; return False if there is nothing to compute."""
        with self._doing("planning of a step"):
            plan = scheduler.next()
        if plan is None:
            return False
        with self._doing(plan):
            started = time.perf_counter()
            result = run_plan(plan, scheduler, runner, self._exhausted.recover)
            if result is not None:
                seconds = time.perf_counter() - started
                self._model_seconds += seconds
                self._decode_seconds += seconds if isinstance(plan, Decode) else 0
                scheduler.commit(plan, result)
        return True


def run_plan(
    plan: Plan,
    scheduler: Scheduler,
    runner: Runner,
    recover: Callable[[Exception], bool] = lambda _: False,
) -> StepResult | None:
    """Compute a plan; return its result, or None after a failure that the scheduler has handled.

    Unless the plan continues an epoch (a run of decode steps with the same rows), the KV of earlier
    steps is written to the pool first. So a failed step loses only the KV of its own tokens and of
    its epoch, and its sequences can be tried again.

    Args:
        recover: called with the error of a failed step; returns True if it has handled the error.
    """
    if not isinstance(plan, Decode) or plan.opening:
        try:
            runner.synchronise(plan.transfers)
        except Exception as error:
            lose_pool(scheduler, runner, error, plan.transfers)
            return None
        plan = replace(plan, transfers=())
    try:
        return runner.run(plan)
    except PoolLost as error:
        lose_pool(scheduler, runner, error)
        return None
    except Exception as error:
        runner.forget_epoch()
        if not recover(error):
            scheduler.retry(plan, told(error))
        return None
