"""Programs: Python functions whose first argument is the state `s`, and how they are run."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import fields
from functools import partial
from typing import Any, Literal, Self

from sgl_mlx import names
from sgl_mlx.core import SamplingParams, Text
from sgl_mlx.errors import ProgramError
from sgl_mlx.lang import words
from sgl_mlx.lang.batch import Row, run_batch
from sgl_mlx.lang.config import global_config
from sgl_mlx.lang.ir import CONSTRAINTS
from sgl_mlx.lang.prefix import constant_prefix
from sgl_mlx.lang.setting import Setting
from sgl_mlx.lang.state import ProgramState

_SAMPLING = frozenset(field.name for field in fields(SamplingParams))
# What SGLang's run() takes: names that mean something only to one `gen` may be a program's own.
_OPTIONS = (
    _SAMPLING.intersection(inspect.signature(words.gen).parameters)
    - {*CONSTRAINTS, "token_healing"}
) | {"max_new_tokens", "min_new_tokens", "stream", "backend", "use_thread"}
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
            stream: run the body in a thread and return at once, for `text_iter`.
            backend: what to run on; the default backend otherwise.
            use_thread: False waits for all generation as well.
            kwargs: the program's arguments, and sampling parameters (`SamplingParams`) for
                every `gen` that does not give its own.

        Raises:
            BackendError: no backend is set.
            ProgramError: wrong arguments, or a name that is both an argument and an option.
            InvalidParamsError: a sampling value out of range.
        """
        sampling, arguments = self.split(kwargs)
        setting = Setting.of(backend, sampling, stream)
        state = self.start(setting, args, arguments)
        if not use_thread:
            state.sync()
        return state

    async def run_async(self, *args: Any, **kwargs: Any) -> ProgramState:
        """`run` without blocking the event loop; returns when all is generated."""
        state = await asyncio.to_thread(self.run, *args, **kwargs)
        await asyncio.to_thread(state.sync)
        return state

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
            sampling: sampling parameters, as in `run`.

        Returns:
            The states in the order of the rows, each with all its generation done. What went
            wrong in generation is in `state.error()` and raised where the state is read; an
            exception of a body is raised here.
        """
        setting = Setting.of(backend, sampling)
        if len(batch_kwargs) > 1 and self.precaches:
            self.cache(setting.backend)
        rows = [self._row(row) for row in batch_kwargs]
        start = partial(self.start, setting)
        return run_batch(start, rows, num_threads, progress_bar, generator_style, self.batch_order)

    @property
    def precaches(self) -> bool:
        """True if a batch begins with `cache`."""
        return global_config.enable_precache_with_tracing

    def batch_order(self, rows: Sequence[Row]) -> Sequence[int]:
        """The order in which rows of a batch start; their states come in the order of the rows."""
        return range(len(rows))

    def __call__(self, *args: Any, **kwargs: Any) -> ProgramState:
        return self.run(*args, **kwargs)

    def start(
        self, setting: Setting, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> ProgramState:
        """Run the body on a fresh state; in a thread of its own when streaming."""
        arguments = {**self.bind_arguments, **kwargs}
        state = setting.new_state()
        self._check_arguments(state, args, arguments)
        if setting.streaming:
            body = partial(self._run_quietly, state, args, arguments)
            context = contextvars.copy_context()
            threading.Thread(target=context.run, args=(body,), daemon=True).start()
        else:
            self._run_body(state, args, arguments)
        return state

    def _run_body(
        self, state: ProgramState, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        try:
            state.ret_value = self.body(state, args, kwargs)
        except BaseException as error:
            state.stream_executor.abort(error)
            raise
        finally:
            state.stream_executor.close()

    def body(self, state: ProgramState, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run the program on the state, and return its result."""
        return self.func(state, *args, **kwargs)

    def _run_quietly(
        self, state: ProgramState, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        try:
            self._run_body(state, args, kwargs)
        except Exception:
            # Kept in the stream; raised where the state is read.
            return

    # -- arguments ----------------------------------------------------------------------------

    def split(self, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split keyword arguments into sampling parameters and the program's own."""
        self._check_clash(kwargs)
        own = {k: v for k, v in kwargs.items() if k in self.arg_names or k not in _SAMPLING}
        return {k: v for k, v in kwargs.items() if k not in own}, own

    def _check_clash(self, given: Mapping[str, Any]) -> None:
        clash = sorted(_OPTIONS.intersection(self.arg_names, given))
        if clash:
            raise ProgramError(
                f"{clash[0]!r} is both a parameter of program {self.name}() and an option of "
                "run(); rename the parameter, or pass it by position"
            )

    def _row(self, row: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
        if isinstance(row, Mapping):
            return (), row
        if isinstance(row, (list, tuple)):
            return row, {}
        raise ProgramError(
            f"run_batch() takes a dict or a list of arguments for each run, got {row!r}"
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
        """The program with some arguments settled.

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
        return setting.backend.prefill((Text(prefix),)).result()
