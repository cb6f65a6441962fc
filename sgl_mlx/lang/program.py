"""`Program`: a Python function whose first parameter is the state `s`, and the ways to run it."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import fields, replace
from functools import partial
from typing import Any, Literal, Self

from sgl_mlx import bounds, names
from sgl_mlx.core import SamplingParams, Text
from sgl_mlx.errors import ProgramError
from sgl_mlx.lang.ahead import AskingAhead
from sgl_mlx.lang.batch import BatchRun, Row
from sgl_mlx.lang.body import Body
from sgl_mlx.lang.config import global_config
from sgl_mlx.lang.prefix import constant_prefix
from sgl_mlx.lang.running import RunningProgram
from sgl_mlx.lang.scope import answer_of
from sgl_mlx.lang.setting import TIMEOUTS, Setting
from sgl_mlx.lang.state import ProgramState

_OPTIONS = frozenset(field.name for field in fields(SamplingParams)).union(TIMEOUTS)
_NOT_PLAIN = (
    inspect.iscoroutinefunction,
    inspect.isasyncgenfunction,
    inspect.isgeneratorfunction,
)
RESERVED = ("stream", "backend", "use_thread")
"""Options that `run()` takes itself, even if the program has a parameter of the same name."""

_MIN_CACHED_PREFIX = 64
"""A constant prefix of at most so many characters is not worth a prefill request."""


class Program:
    """A Python function that appends to a state `s`, and methods to run it.

    Attributes:
        func: the Python function.
        arg_names: the names of the function's parameters after `s`.
        arg_defaults: the default values of these parameters, without names, in order.
        bind_arguments: the arguments that `bind` has set, by name.
        num_api_spec_tokens: on backends of an API, the fewest tokens that each call asks for. Text
            beyond a `gen`'s answer may answer the next `gen`, see `ahead`; None turns this off.

    Raises:
        ProgramError: `func` is no ordinary Python function, or its first parameter is not named
            `s`.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        num_api_spec_tokens: int | None = None,
        bind_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.func = func
        self.num_api_spec_tokens = num_api_spec_tokens
        self.bind_arguments = dict(bind_arguments or {})
        try:
            self.signature = inspect.signature(func)
        except Exception as error:  # TypeError, ValueError, or raised by the caller's class
            bounds.refuse("a program", func, "a Python function", ProgramError, error)
        if any(kind(func) for kind in _NOT_PLAIN):
            wanted = "an ordinary function: without async, and without yield"
            raise ProgramError(f"program {self.name}() must be {wanted}; run_async() runs it")
        first, *rest = self.signature.parameters.values() or (None,)
        if first is None or first.name != "s":
            raise ProgramError(f"the first parameter of program {self.name}() must be named s")
        named = [p for p in rest if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        self.arg_names = [p.name for p in named]
        self.arg_defaults = [p.default for p in named if p.default is not p.empty]

    @property
    def name(self) -> str:
        return getattr(self.func, "__name__", repr(self.func))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}{self.signature})"

    # -- running ------------------------------------------------------------------------------

    def run(
        self,
        *args: Any,
        stream: bool = False,
        backend: Any = None,
        use_thread: bool = True,
        **kwargs: Any,
    ) -> ProgramState:
        """Run the program and return its state when the function returns.

        Generation may still go on then; reading the state waits for it.

        Args:
            args: positional arguments of the program, without `s`.
            stream: run the function in a thread and return at once, for `text_iter`. Reading the
                state then also waits for the function; see `RunningProgram`.
            backend: the backend to run on; None means the default backend.
            use_thread: False waits until all text is generated.
            kwargs: keyword arguments of the program, and sampling parameters (`SamplingParams`) for
                every `gen` that does not set them itself. Also `timeout`, the most seconds for the
                whole program, and `request_timeout`, the most seconds for each `gen` or `select`.
                If the program itself has a parameter with the name of an option, the value goes to
                the program alone.

        Raises:
            BackendError: no backend is set.
            ProgramError: wrong arguments.
            InvalidParamsError: a sampling value out of range.
            ProgramTimeout: `timeout` passed before the function returned; with `stream`, reading
                the state raises this.
            Exception: any exception of the function; with `stream`, reading the state raises it.
                With `use_thread=False`, also an error of generation.
        """
        options, arguments = self.split(kwargs)
        stream, use_thread = (
            bounds.switch("stream", stream),
            bounds.switch("use_thread", use_thread),
        )
        setting = Setting.of(backend, options, stream)
        if stream:
            return self._start(setting, args, arguments)
        body = self._body(setting, args, arguments)
        body.run()
        if not use_thread:
            body.state.sync()
        return body.state

    async def run_async(
        self, *args: Any, stream: bool = False, backend: Any = None, **kwargs: Any
    ) -> RunningProgram:
        """Run the program without blocking the event loop; returns when all text is generated.

        The function runs in a thread of its own; hundreds of such threads are fine. Cancelling
        this call cancels the program: its requests at once, and its function when it next appends
        to or reads a state.

        Args:
            args: as in `run`.
            stream: return at once, for `async for piece in state`. Then cancelling the task that
                reads, or leaving `with state:`, cancels the program.
            backend: as in `run`.
            kwargs: as in `run`.

        Raises:
            Exception: any exception that `run` raises, or an error of generation. With `stream`,
                reading the state raises errors of the function and of generation.
        """
        options, arguments = self.split(kwargs)
        options.pop("use_thread", None)
        stream = bounds.switch("stream", stream)
        running = self._start(Setting.of(backend, options, stream), args, arguments)
        if not stream:
            await running.finished()
        return running

    def run_batch(
        self,
        batch_kwargs: Sequence[Mapping[str, Any] | Sequence[Any]],
        *,
        backend: Any = None,
        num_threads: int | Literal["auto"] = "auto",
        progress_bar: bool = False,
        generator_style: bool = False,
        **sampling: Any,
    ) -> list[ProgramState] | Iterator[ProgramState]:
        """Run the program once for each set of arguments, many runs at a time.

        Args:
            batch_kwargs: for each run, a mapping of keyword arguments, or a list or tuple of
                positional ones.
            backend: as in `run`.
            num_threads: the largest number of runs at a time; "auto" means 16 per CPU core, at
                least 96.
            progress_bar: show a progress bar.
            generator_style: return a generator of the states, for batches too long for a list.
            sampling: sampling parameters and timeouts, as in `run`.

        Returns:
            The states in the order of `batch_kwargs`, with all text generated. `state.error()`
            returns an error of generation; reading such a state raises it.

        Raises:
            BatchError: the function raised in some runs, or some arguments do not fit. It is raised
                after all runs have ended, and has all states; a generator raises it after yielding
                all states.
            BackendError, InvalidParamsError: as in `run`.
            ProgramError: `batch_kwargs` is no list, an item of it is neither a mapping nor a list
                or tuple, or `num_threads` is below 1.
        """
        setting, rows = Setting.of(backend, sampling), self._rows(batch_kwargs)
        if len(rows) > 1 and self.precaches:
            self.cache(setting.backend)
        make = partial(self._body, setting)
        batch = BatchRun(make, rows, num_threads, progress_bar, self.batch_order)
        return batch.iterate() if generator_style else batch.run()

    async def run_batch_async(
        self,
        batch_kwargs: Sequence[Mapping[str, Any] | Sequence[Any]],
        *,
        backend: Any = None,
        num_threads: int | Literal["auto"] = "auto",
        progress_bar: bool = False,
        generator_style: bool = False,
        **sampling: Any,
    ) -> list[ProgramState] | AsyncIterator[ProgramState]:
        """Run a batch as `run_batch` does, without blocking the event loop.

        The arguments are those of `run_batch`. Cancelling this call cancels all runs. With
        `generator_style`, awaiting this call returns an asynchronous iterator of the states. Unlike
        `run_batch`, it never prefills the constant prefix first.
        """
        setting, rows = Setting.of(backend, sampling), self._rows(batch_kwargs)
        make = partial(self._body, setting)
        batch = BatchRun(make, rows, num_threads, progress_bar, self.batch_order)
        return batch.iterate_async() if generator_style else await batch.run_async()

    @property
    def precaches(self) -> bool:
        """True if `run_batch` first calls `cache` to prefill the constant prefix."""
        return global_config.enable_precache_with_tracing

    def batch_order(self, rows: Sequence[Row]) -> Sequence[int]:
        """Return the indices of a batch's runs in the order in which to start them."""
        return range(len(rows))

    def __call__(self, *args: Any, **kwargs: Any) -> ProgramState:
        return self.run(*args, **kwargs)

    def _start(
        self, setting: Setting, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> RunningProgram:
        body = self._body(setting, args, kwargs)
        # The body's thread checks them again; here, wrong arguments raise in the caller at once.
        self._check_arguments(body.state, args, {**self.bind_arguments, **kwargs})
        return RunningProgram.start(body, setting.streaming)

    def _body(self, setting: Setting, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Body:
        arguments = {**self.bind_arguments, **kwargs}

        def function(state: ProgramState) -> Any:
            self._check_arguments(state, args, arguments)
            return self.body(state, args, arguments)

        tokens = self.num_api_spec_tokens
        if tokens is not None and getattr(setting.backend, "counts_calls", False):
            setting = replace(setting, backend=AskingAhead(setting.backend, tokens))
        return Body(self.name, setting, function)

    def body(self, state: ProgramState, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call the function with the state and arguments, and return its result."""
        return self.func(state, *args, **kwargs)

    # -- arguments ----------------------------------------------------------------------------

    def split(self, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split keyword arguments into (sampling parameters and timeouts, the program's arguments).

        A name that could be either counts as the program's argument.
        """
        own = {k: v for k, v in kwargs.items() if k in self.arg_names or k not in _OPTIONS}
        return {k: v for k, v in kwargs.items() if k not in own}, own

    def _rows(self, batch: Sequence[Any]) -> list[Row]:
        try:
            rows = iter(batch)
        except Exception as error:  # raised by an array without dimensions, or the caller's class
            bounds.refuse("batch_kwargs", batch, "a list", ProgramError, error)
        return [self._row(index, row) for index, row in enumerate(rows)]

    def _row(self, index: int, row: Any) -> Row:
        if isinstance(row, Mapping):
            return (), row
        if isinstance(row, (list, tuple)):
            return row, {}
        raise ProgramError(
            f"run_batch() takes a dict or a list of arguments for each run, got "
            f"{bounds.shown(row)} as row {index}"
        )

    def _check_arguments(
        self, state: ProgramState, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        try:
            self.signature.bind(state, *args, **kwargs)
        except TypeError as error:
            takes = ", ".join(self.arg_names) or "none"
            guess = names.meant(kwargs, (*self.arg_names, *_OPTIONS, *RESERVED))
            raise ProgramError(
                f"wrong arguments for program {self.name}(): {error}{guess}; it takes {takes}"
            ) from None

    # -- other forms --------------------------------------------------------------------------

    def bind(self, **kwargs: Any) -> Self:
        """Return a copy of the program with some arguments set, as `functools.partial` does.

        Raises:
            ProgramError: for a name that is no parameter of the program.
        """
        unknown = sorted(set(kwargs) - set(self.arg_names))
        if unknown:
            raise ProgramError(
                f"program {self.name}() has no parameter {unknown[0]!r}; "
                f"it takes {', '.join(self.arg_names) or 'none'}"
            )
        bound = copy(self)
        bound.bind_arguments = {**self.bind_arguments, **kwargs}
        return bound

    def cache(self, backend: Any = None) -> int:
        """Prefill the constant text with which every run begins; return how many tokens are cached.

        Returns 0, and prefills nothing, if that text has at most 64 characters. `backend` is as in
        `run`.
        """
        setting = Setting.of(backend, {})
        prefix = constant_prefix(self, setting.writer)
        if len(prefix) <= _MIN_CACHED_PREFIX:
            return 0
        return int(answer_of(setting.backend.prefill((Text(prefix),))))
