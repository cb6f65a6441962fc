"""The requests under way, by id, and the threads that prepare them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Lock

from sgl_mlx.errors import EngineStoppedError, InvalidParamsError, RequestAborted
from sgl_mlx.runtime.loop import EngineLoop
from sgl_mlx.runtime.request.prepare import Prepared
from sgl_mlx.runtime.request.request import Completions, Request

_THREADS = 2
Order = Callable[[], object]


class InFlight:
    """Prepares and starts requests, and ends them early; for any thread.

    Preparing that may take long happens on two threads, so that neither a caller's event loop nor
    the engine's thread is held up.
    """

    def __init__(self, loop: EngineLoop) -> None:
        self._loop = loop
        self._workers = ThreadPoolExecutor(_THREADS, thread_name_prefix="sgl-mlx prepare")
        self._requests: dict[str, Request] = {}
        self._lock = Lock()

    def launch(
        self, requests: Sequence[Request], prepare: Callable[[], Sequence[Prepared]], quick: bool
    ) -> list[Future[Completions]]:
        """Prepare requests and start them all, or none when one of them is wrong.

        What `prepare` raises fails every future. A request whose future is settled before its turn
        is not prepared.

        Args:
            prepare: makes what each request runs.
            quick: call it here and now.

        Raises:
            InvalidParamsError: an id is in flight already.
        """
        self._register(requests)
        deliver = _call if quick else self._deliver
        self.run(partial(self._prepare_and_start, requests, prepare, deliver), quick)
        return [request.future for request in requests]

    def run(self, job: Callable[[], object], quick: bool) -> None:
        """Call `job` here and now, or on a thread for preparing.

        Raises:
            EngineStoppedError: after `stop`.
        """
        if quick:
            job()
            return
        try:
            self._workers.submit(job)
        except RuntimeError:
            raise EngineStoppedError("the engine was shut down; make a new one") from None

    def _deliver(self, order: Order) -> None:
        """Call `order` where callers' callbacks run."""
        if self._loop.stopping:
            order()
        else:
            self._loop.deliver(order)

    def abort(self, rid: str) -> bool:
        """End a request with `RequestAborted`; False if there is none of this id."""
        with self._lock:
            request = self._requests.get(rid)
        if request is None:
            return False
        request.fail(RequestAborted(f"request {rid!r} was aborted"))
        return True

    def stop(self) -> None:
        """End the threads, after the engine's; what is still under way fails."""
        self._workers.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            left = list(self._requests.values())
        for request in left:
            request.fail(EngineStoppedError("the engine was shut down"))

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
        deliver: Callable[[Order], None],
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
                deliver(partial(request.fail, error))


def _call(order: Order) -> None:
    order()
