"""The engine's two threads: one runs the model, one hands out the results.

The engine thread takes orders (new sequences, aborts, questions) between turns; everything that
touches MLX, the scheduler or the cache happens there. The delivery thread runs callers'
callbacks, in order, so that a slow one never holds up the model.
"""

from __future__ import annotations

import atexit
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar

import mlx.core as mx

from sgl_mlx.errors import EngineStoppedError
from sgl_mlx.models.loader import LoadedModel
from sgl_mlx.runtime.assembly import OpenModel, RunnableModel, open_model
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.runtime.pool.exhausted import Exhausted
from sgl_mlx.runtime.scheduler.plan import Decode, Plan, Runner, StepResult
from sgl_mlx.runtime.scheduler.scheduler import Scheduler
from sgl_mlx.runtime.scheduler.sequence import Sequence
from sgl_mlx.runtime.stats import EngineStats

T = TypeVar("T")
Order = Callable[[], object]
_LONGEST_WAIT = 3600.0
"""Seconds to wait for a deadline at once; the operating system's timers end somewhere."""


class EngineLoop:
    """The two threads; start them once, and `stop` ends both.

    Args:
        loaded: a model that is loaded already, instead of the one that `config` names.
        open_model: opens the model, the scheduler and the runner, on the engine thread.
    """

    def __init__(
        self,
        config: EngineConfig,
        loaded: LoadedModel | None = None,
        open_model: OpenModel = open_model,
    ) -> None:
        self._open_model = partial(open_model, config, self._wake, loaded)
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._deliveries: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._stopping = False
        self._gate = threading.Lock()  # nothing is posted behind the order that stops
        self._model_seconds = 0.0
        self._decode_seconds = 0.0
        self._model: Future[RunnableModel] = Future()
        self._thread, self._delivery = (
            threading.Thread(target=work, name=f"sgl-mlx {name}", daemon=True)
            for name, work in (("engine", self._run), ("delivery", self._deliver))
        )

    def start(self) -> None:
        """Load the model on the engine thread, and raise here what that raises."""
        self._delivery.start()
        self._thread.start()
        try:
            self._model.result()
        except BaseException:
            self.stop()
            raise
        atexit.register(self.stop)

    @property
    def model(self) -> RunnableModel:
        return self._model.result()

    # -- from any thread ----------------------------------------------------------------------

    def post(self, order: Order) -> None:
        """Run `order` on the engine thread before its next turn.

        Raises:
            EngineStoppedError: after `stop`.
        """
        with self._gate:
            if self._stopping:
                raise EngineStoppedError("the engine was shut down; make a new one")
            self._orders.put(order)

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run a function as an order; the future has its result."""
        future: Future[T] = Future()

        def order() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self.post(order)
        return future

    def deliver(self, order: Order) -> None:
        """Run `order` on the delivery thread, after those before it."""
        self._deliveries.put(order)

    def stop(self) -> None:
        """End both threads, failing what is unfinished. Safe to call twice."""
        self._close_gate()
        atexit.unregister(self.stop)
        for thread in (self._thread, self._delivery):
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join()

    @property
    def stopping(self) -> bool:
        return self._stopping

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
        """Counts, and seconds by part, since the start."""
        scheduler, cache = self._scheduler, self._scheduler.cache
        return EngineStats(
            counters=replace(scheduler.counters),
            runner=self._runner.stats(),
            tree_seconds=cache.seconds,
            schedule_seconds=scheduler.seconds - cache.seconds,
            model_seconds=self._model_seconds,
            decode_seconds=self._decode_seconds,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            free_slots=cache.slots.free_count,
            cached_slots=cache.tree.evictable,
            restored_tokens=scheduler.restored_tokens,
            disk=self.model.disk.stats() if self.model.disk else None,
            pictures=self.model.pictures.stats(),
        )

    def resident(self, sequence: Sequence) -> int:
        """Count the leading tokens of a prompt that the pool has."""
        tree = self._scheduler.cache.tree
        return tree.match_length(sequence.key, sequence.namespace)[0]

    def _run(self) -> None:
        try:
            self._serve()
        finally:
            self._deliveries.put(None)
            # MLX aborts the process if a thread that used it ends with streams still open
            mx.synchronize()
            mx.clear_streams()

    def _serve(self) -> None:
        try:
            model = self._open_model()
        except BaseException as error:
            self._model.set_exception(error)
            return
        self._scheduler, self._runner = model.scheduler, model.runner
        self._exhausted = Exhausted(model.scheduler)
        self._model.set_result(model)
        busy, reason = False, "the engine was shut down"
        try:
            while not self._stopping:
                self._take_orders(wait=not busy)
                busy = self._turn(self._scheduler, self._runner)
            self._leave(model, reason)
        except BaseException as error:
            reason = f"the engine's thread died: {type(error).__name__}: {error}"
            raise
        finally:
            self._close_gate()
            self._drain()
            self._scheduler.fail_all(reason)
            model.wired.release()

    def _take_orders(self, wait: bool) -> None:
        """Carry out all orders; with nothing else to do, wait for one, or for a deadline."""
        if wait and self._orders.empty():
            self._attempt(self._move_to_pool)
            try:
                order = self._orders.get(timeout=self._patience())
            except queue.Empty:
                return
            order()
        self._drain()

    def _patience(self) -> float | None:
        left = self._scheduler.seconds_left
        return None if left is None else min(left, _LONGEST_WAIT)

    def _wake(self) -> None:
        """Have the scheduler look again, as blocks were read; from any thread."""
        with suppress(EngineStoppedError):
            self.post(self._scheduler.wake)

    def _move_to_pool(self) -> None:
        self._runner.synchronise(self._scheduler.cache.take_transfers())

    def _leave(self, model: RunnableModel, reason: str) -> None:
        """Spill the cache to disk, for the next engine that opens the folder."""
        if model.disk is not None:
            self._attempt(self._move_to_pool)
            self._scheduler.spill(reason)
            transfers = self._scheduler.cache.take_transfers()
            # where not all may wait to be written, the least recently used stay behind
            self._attempt(partial(self._runner.synchronise, transfers[::-1]))
            model.disk.store.close()

    def _drain(self) -> None:
        while not self._orders.empty():
            self._orders.get()()

    def _turn(self, scheduler: Scheduler, runner: Runner) -> bool:
        """Compute one plan; False if there is nothing to compute."""
        plan = scheduler.next()
        if plan is None:
            return False
        started = time.perf_counter()
        result = run_plan(plan, scheduler, runner, self._exhausted.recover)
        if result is not None:
            seconds = time.perf_counter() - started
            self._model_seconds += seconds
            self._decode_seconds += seconds if isinstance(plan, Decode) else 0
            scheduler.commit(plan, result)
        return True

    def _attempt(self, move: Callable[[], None]) -> None:
        """Move KV; a failure ends all requests but not the engine."""
        try:
            move()
        except Exception as error:
            lose_pool(self._scheduler, self._runner, error)

    def _deliver(self) -> None:
        while (order := self._deliveries.get()) is not None:
            order()


def run_plan(
    plan: Plan,
    scheduler: Scheduler,
    runner: Runner,
    recover: Callable[[Exception], bool] = lambda _: False,
) -> StepResult | None:
    """Return the result of a plan; None if it failed, and the scheduler was told.

    The pool is brought up to date first. So a step that fails loses the KV of its own tokens and
    of its own epoch alone, and its rows can be tried again.

    Args:
        recover: asked first; True if the error was of its kind, and the scheduler was told.
    """
    if not isinstance(plan, Decode) or plan.opening:
        try:
            runner.synchronise(plan.transfers)
        except Exception as error:
            lose_pool(scheduler, runner, error)
            return None
        plan = replace(plan, transfers=())
    try:
        return runner.run(plan)
    except Exception as error:
        runner.forget_epoch()
        if not recover(error):
            scheduler.retry(plan, _told(error))
        return None


def lose_pool(scheduler: Scheduler, runner: Runner, error: Exception) -> None:
    """End all requests and forget all KV, because the pool may hold anything."""
    runner.forget_epoch()
    scheduler.fail_all(_told(error))


def _told(error: Exception) -> str:
    return f"the step failed: {type(error).__name__}: {error}"
