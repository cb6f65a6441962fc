"""The engine's two threads: one runs the model, one hands out what came of it.

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
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

import mlx.core as mx

from sgl_mlx.errors import EngineStoppedError
from sgl_mlx.models.loader import LoadedModel
from sgl_mlx.runtime.assembly import RunnableModel, open_model
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.runtime.runner import Runner
from sgl_mlx.runtime.scheduler.plan import Decode
from sgl_mlx.runtime.scheduler.scheduler import Scheduler
from sgl_mlx.runtime.scheduler.sequence import Sequence

T = TypeVar("T")
Order = Callable[[], object]


class EngineLoop:
    """See the module. Start it once; `stop` ends both threads."""

    def __init__(self, config: EngineConfig, loaded: LoadedModel | None = None) -> None:
        self._config = config
        self._loaded = loaded
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._deliveries: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._stopping = False
        self._gate = threading.Lock()  # nothing is posted behind the order that stops
        self._model_seconds = 0.0
        self._decode_seconds = 0.0
        self._model: Future[RunnableModel] = Future()
        self._thread = threading.Thread(target=self._run, name="sgl-mlx engine", daemon=True)
        self._postman = threading.Thread(target=self._deliver, name="sgl-mlx delivery", daemon=True)

    def start(self) -> None:
        """Load the model on the engine thread; raises what that raises."""
        self._postman.start()
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
        """`post` for a function whose result is wanted."""
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
        for thread in (self._thread, self._postman):
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

    def stats(self) -> dict[str, Any]:
        """Counters, and seconds by part."""
        tree = self._scheduler.cache.seconds
        return {
            **asdict(self._scheduler.counters),
            "tree_seconds": tree,
            "schedule_seconds": self._scheduler.seconds - tree,
            "model_seconds": self._model_seconds,
            "decode_seconds": self._decode_seconds,
            "mask_seconds": self._runner.mask_seconds,
            "pool_tokens_read": self._runner.pool_tokens_read,
            "running": len(self._scheduler.running),
            "waiting": len(self._scheduler.waiting),
            "free_slots": self._scheduler.cache.slots.free_count,
            "cached_slots": self._scheduler.cache.tree.evictable,
            "restored_tokens": self._scheduler.restores.tokens,
            **(self.model.disk.stats() if self.model.disk else {}),
            **self._picture_stats(),
        }

    def _picture_stats(self) -> dict[str, float]:
        features = self._runner.features
        return {**self.model.pictures.stats(), **features.stats()} if features else {}

    def resident(self, sequence: Sequence) -> int:
        """How many leading tokens of a prompt the pool has."""
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
            model = open_model(self._config, self._wake, self._loaded)
        except BaseException as error:
            self._model.set_exception(error)
            return
        self._scheduler, self._runner = model.scheduler, model.runner
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

    def _take_orders(self, wait: bool) -> None:
        """All orders there are; waits for one when there is nothing else to do."""
        if wait and self._orders.empty():
            self._attempt(self._move_to_pool)
            self._orders.get()()
        self._drain()

    def _wake(self) -> None:
        """What sequences wait for has been read; from any thread."""
        with suppress(EngineStoppedError):
            self.post(self._scheduler.wake)

    def _move_to_pool(self) -> None:
        self._runner.synchronise(self._scheduler.cache.take_transfers())

    def _leave(self, model: RunnableModel, reason: str) -> None:
        """Spill what is cached, for the next engine that opens the folder."""
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
        """False if there was nothing to compute."""
        plan = scheduler.next()
        if plan is None:
            return False
        started = time.perf_counter()
        result = self._attempt(partial(runner.run, plan))
        if result is not None:
            seconds = time.perf_counter() - started
            self._model_seconds += seconds
            self._decode_seconds += seconds if isinstance(plan, Decode) else 0
            scheduler.commit(plan, result)
        return True

    def _attempt(self, step: Callable[[], T]) -> T | None:
        """None if it fails: the batch is lost, the engine is not."""
        try:
            return step()
        except Exception as error:
            self._runner.forget_epoch()
            self._scheduler.fail_all(f"the step failed: {type(error).__name__}: {error}")
            return None

    def _deliver(self) -> None:
        while (order := self._deliveries.get()) is not None:
            order()
