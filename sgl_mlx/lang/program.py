"""Programs: Python functions whose first argument is the state `s`, and how they are run."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import fields
from functools import partial
from typing import Any, Literal, Self

from sgl_mlx import names
from sgl_mlx.core import SamplingParams, Text
from sgl_mlx.errors import ProgramError
from sgl_mlx.lang import words
from sgl_mlx.lang.batch import BatchRun, Row
from sgl_mlx.lang.body import Body
from sgl_mlx.lang.config import global_config
from sgl_mlx.lang.ir import CONSTRAINTS
from sgl_mlx.lang.prefix import constant_prefix
from sgl_mlx.lang.running import RunningProgram
from sgl_mlx.lang.scope import answer_of
from sgl_mlx.lang.setting import TIMEOUTS, Setting
from sgl_mlx.lang.state import ProgramState

_SAMPLING = frozenset(field.name for field in fields(SamplingParams))
# What SGLang's run() takes: names that mean something only to one `gen` may be a program's own.
_OPTIONS = (
    _SAMPLING.intersection(inspect.signature(words.gen).parameters)
    - {*CONSTRAINTS, "token_healing"}
) | {"max_new_tokens", "min_new_tokens", "stream", "backend", "use_thread"}
_NOT_OWN = _SAMPLING.union(TIMEOUTS)
_MIN_CACHED_PREFIX = 64
"""Characters: a shorter constant prefix is not worth a request of its own."""


class Program:
    """A program.

    Attributes:
        func: the Python function.
        arg_names: its parameters after `s`.
        bind_arguments: those that `bind` has settled.
        num_api_spec_tokens: accepted for SGLang's sake; calls are not speculated on.
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
        self.signature = inspect.signature(func)
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
        """Run the program; returns when its body has, while generation may go on.

        Args:
            args: the program's arguments.
            stream: run the body in a thread and return at once, for `text_iter`. Reading the
                state then waits for the body as well; see `RunningProgram`.
            backend: what to run on; the default backend otherwise.
            use_thread: False waits for all generation as well.
            kwargs: the program's arguments, and sampling parameters (`SamplingParams`) for
                every `gen` that does not give its own. Also `timeout`, the seconds that the
                whole program may take, and `request_timeout`, those of each `gen` or `select`;
                a program's own parameter of such a name goes before.

        Raises:
            BackendError: no backend is set.
            ProgramError: wrong arguments, or a name that is both an argument and an option.
            InvalidParamsError: a sampling value out of range.
            ProgramTimeout: the time was up before the body had returned.
        """
        options, arguments = self.split(kwargs)
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
        """Run the program without blocking the event loop; returns when all is generated.

        The body runs in a thread of its own, of which there may be hundreds. Cancelling the call
        cancels the program: its requests at once, its body at its next word or read.

        Args:
            args: as in `run`.
            stream: return at once, for `async for piece in state`. Cancelling the task that
                reads, or leaving `with state:`, then cancels the program.
            backend: as in `run`.
            kwargs: as in `run`.

        Raises:
            Exception: as `run`, and what went wrong in generation.
        """
        options, arguments = self.split(kwargs)
        options.pop("use_thread", None)
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
        """Run the program once for each row of arguments, many at a time.

        Args:
            batch_kwargs: a mapping of arguments, or a sequence of positional ones, for each run.
            backend: as in `run`.
            num_threads: how many bodies run at a time.
            progress_bar: show one.
            generator_style: return a generator of the states, for batches too long for a list.
            sampling: sampling parameters and timeouts, as in `run`.

        Returns:
            The states in the order of the rows, each with all its generation done. What went
            wrong in generation is in `state.error()` and raised where the state is read.

        Raises:
            BatchError: a body raised, or a row's arguments do not fit. It is raised when all
                rows have ended, and has their states; a generator yields them all before.
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
        """Run as `run_batch` does, without blocking the event loop; cancelling ends all rows.

        With `generator_style`, awaiting this gives an asynchronous iterator.
        """
        setting, rows = Setting.of(backend, sampling), self._rows(batch_kwargs)
        make = partial(self._body, setting)
        batch = BatchRun(make, rows, num_threads, progress_bar, self.batch_order)
        return batch.iterate_async() if generator_style else await batch.run_async()

    @property
    def precaches(self) -> bool:
        """True if a batch begins with `cache`."""
        return global_config.enable_precache_with_tracing

    def batch_order(self, rows: Sequence[Row]) -> Sequence[int]:
        """Return the order in which rows of a batch start; states come in the order of the rows."""
        return range(len(rows))

    def __call__(self, *args: Any, **kwargs: Any) -> ProgramState:
        return self.run(*args, **kwargs)

    def _start(
        self, setting: Setting, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> RunningProgram:
        body = self._body(setting, args, kwargs)
        # Here as well as in the body's thread, so that the caller learns it at once.
        self._check_arguments(body.state, args, {**self.bind_arguments, **kwargs})
        return RunningProgram.start(body, setting.streaming)

    def _body(self, setting: Setting, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Body:
        arguments = {**self.bind_arguments, **kwargs}

        def function(state: ProgramState) -> Any:
            self._check_arguments(state, args, arguments)
            return self.body(state, args, arguments)

        return Body(self.name, setting, function)

    def body(self, state: ProgramState, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run the program on the state, and return its result."""
        return self.func(state, *args, **kwargs)

    # -- arguments ----------------------------------------------------------------------------

    def split(self, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split keyword arguments into sampling parameters with timeouts, and the program's own."""
        self._check_clash(kwargs)
        own = {k: v for k, v in kwargs.items() if k in self.arg_names or k not in _NOT_OWN}
        return {k: v for k, v in kwargs.items() if k not in own}, own

    def _check_clash(self, given: Mapping[str, Any]) -> None:
        clash = sorted(_OPTIONS.intersection(self.arg_names, given))
        if clash:
            raise ProgramError(
                f"{clash[0]!r} is both a parameter of program {self.name}() and an option of "
                "run(); rename the parameter, or pass it by position"
            )

    def _rows(self, batch: Sequence[Any]) -> list[Row]:
        return [self._row(index, row) for index, row in enumerate(batch)]

    def _row(self, index: int, row: Any) -> Row:
        if isinstance(row, Mapping):
            return (), row
        if isinstance(row, (list, tuple)):
            return row, {}
        raise ProgramError(
            f"run_batch() takes a dict or a list of arguments for each run, got {row!r} "
            f"as row {index}"
        )

    def _check_arguments(
        self, state: ProgramState, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        try:
            self.signature.bind(state, *args, **kwargs)
        except TypeError as error:
            takes = ", ".join(self.arg_names) or "none"
            guess = names.meant(kwargs, (*self.arg_names, *_OPTIONS, *_SAMPLING))
            raise ProgramError(
                f"wrong arguments for program {self.name}(): {error}{guess}; it takes {takes}"
            ) from None

    # -- other forms --------------------------------------------------------------------------

    def bind(self, **kwargs: Any) -> Self:
        """Return the program with some arguments settled.

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
        """Compute the text that every run begins with; returns the number of tokens now cached."""
        setting = Setting.of(backend, {})
        prefix = constant_prefix(self, setting.writer)
        if len(prefix) <= _MIN_CACHED_PREFIX:
            return 0
        return int(answer_of(setting.backend.prefill((Text(prefix),))))
