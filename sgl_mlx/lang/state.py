"""`ProgramState`: the argument `s` of a program, and the result of running it."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from sgl_mlx import bounds
from sgl_mlx.errors import ProgramError, UnknownVariableError
from sgl_mlx.lang import words
from sgl_mlx.lang.group import ProgramStateGroup
from sgl_mlx.lang.ir import (
    CommitLazy,
    ExprList,
    Role,
    RoleBegin,
    RoleEnd,
    VarScopeBegin,
    VarScopeEnd,
    as_expr,
)
from sgl_mlx.lang.pictures import openai_message
from sgl_mlx.lang.readable import wakeups
from sgl_mlx.lang.stream import Stream

_MOST_BRANCHES = 1 << 16
_NOTHING = ExprList()


class ProgramState:
    """The prompt of a program: the program appends to it and reads its variables.

    Appending never waits. Reading a variable waits for its value. When the last reference to a
    state is dropped, its running requests are cancelled.

    Attributes:
        ret_value: the return value of the program's function; None before it returns.
    """

    ret_value: Any = None
    _whole = False
    """True in `RunningProgram`: reading also waits for the function of the program to end."""

    def __init__(self, stream: Stream) -> None:
        self.stream_executor = stream
        weakref.finalize(self, stream.abort).atexit = False

    # -- appending ----------------------------------------------------------------------------

    def __iadd__(self, other: object) -> ProgramState:
        """Append text or an expression; returns at once.

        Raises:
            ProgramError: for None and any other object that is neither text nor an expression, and
                for nested or unmatched roles.
            InvalidParamsError: for sampling values out of range.
            ProgramCancelled: the program that calls this was cancelled.
        """
        self.stream_executor.submit(as_expr(other))
        return self

    def extend(self, other: object) -> ProgramState:
        """Append text or an expression, as `+=` does."""
        return self.__iadd__(other)

    def gen(self, *args: Any, **kwargs: Any) -> ExprList:
        """Append `gen(...)`, as `s += gen(...)` does; returns an empty expression."""
        return self._append(words.gen(*args, **kwargs))

    def select(self, *args: Any, **kwargs: Any) -> ExprList:
        """Append `select(...)`, as `s += select(...)` does; returns an empty expression."""
        return self._append(words.select(*args, **kwargs))

    def _append(self, other: object) -> ExprList:
        # The result may be appended again (`s += s.user(x)`), which must add nothing.
        self.__iadd__(other)
        return _NOTHING

    # -- roles --------------------------------------------------------------------------------

    def system(self, expr: object = None) -> Any:
        """Append a system turn with `expr` as its content.

        Without `expr`, return a context manager: text appended inside `with s.system():` is the
        content of the turn.
        """
        return self._turn("system", expr)

    def user(self, expr: object = None) -> Any:
        """Append a user turn; without `expr`, return a context manager as `system` does."""
        return self._turn("user", expr)

    def assistant(self, expr: object = None) -> Any:
        """Append an assistant turn; without `expr`, return a context manager as `system` does."""
        return self._turn("assistant", expr)

    def _turn(self, role: Role, expr: object) -> ExprList | AbstractContextManager[None]:
        if expr is None:
            return self._enclosed(RoleBegin(role), RoleEnd(role))
        return self._append(words.role_turn(role, expr))

    def var_scope(self, name: str) -> AbstractContextManager[None]:
        """Return a context manager that stores the text appended in its block under `name`."""
        return self._enclosed(VarScopeBegin(name), VarScopeEnd(name))

    @contextmanager
    def _enclosed(self, begin: object, end: object) -> Iterator[None]:
        self._append(begin)
        yield
        self._append(end)

    # -- branching ----------------------------------------------------------------------------

    def fork(
        self, size: int = 1, position_ids_offset: Sequence[int] | None = None
    ) -> ProgramStateGroup[ProgramState]:
        """Return copies of this state (branches), which the program continues separately.

        Waits until everything appended so far is generated.

        Args:
            size: the number of copies.
            position_ids_offset: for each copy, a number of positions to skip before its new text.

        Raises:
            ProgramError: `size` is out of range, or there is not exactly one offset for each copy.
            Exception: an earlier error of this state.
        """
        stream = self.stream_executor
        if not 1 <= (bounds.whole(size) or 0) <= _MOST_BRANCHES:
            wanted = f"a size from 1 to {_MOST_BRANCHES:,}"
            raise ProgramError(f"fork() needs {wanted}, got {bounds.shown(size)}")
        gaps = [0] * size if position_ids_offset is None else list(position_ids_offset)
        if len(gaps) != size:
            raise ProgramError(
                f"position_ids_offset must have a number for each of {size} branches, got "
                f"{len(gaps)} numbers"
            )
        self.sync()
        if size > 1 and stream.transcript.text:
            stream.submit(CommitLazy())
            self.sync()
        return ProgramStateGroup([ProgramState(stream.fork(gap)) for gap in gaps], self)

    @contextmanager
    def copy(self, position_ids_offset: Sequence[int] | None = None) -> Iterator[ProgramState]:
        """Fork one branch for the `with` block, and join it at the end of the block.

        The join makes each variable that is new in the branch a list with its one value.

        Args:
            position_ids_offset: a list with the number of positions to skip before new text.
        """
        group = self.fork(1, position_ids_offset)
        yield group[0]
        group.join()

    # -- reading ------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Any:
        return self.get_var(name)

    def __setitem__(self, name: str, value: object) -> None:
        self.set_var(name, value)

    def __contains__(self, name: str) -> bool:
        """Return True if the variable already has its value; never waits."""
        binding = self.stream_executor.find(name)
        return binding is not None and binding.settled

    def get_var(self, name: str) -> Any:
        """Return the value of a variable; waits until it is generated.

        Raises:
            UnknownVariableError: nothing appended so far has this name.
            Exception: the error that stopped this state before the value was generated.
        """
        return self.stream_executor.value(name, self._whole)

    def set_var(self, name: str, value: object) -> None:
        self.stream_executor.assign(name, value)

    def get_meta_info(self, name: str) -> Any:
        """Return the backend's `meta_info` of a variable; waits for its value.

        Returns None if there is no such variable, or no information about it.
        """
        if self.stream_executor.find(name, self._whole) is None:
            return None
        self.get_var(name)
        return self.stream_executor.binding(name).meta

    def text(self) -> str:
        """Return the whole text, prompt and generated text; waits until all is generated."""
        self.sync()
        return self.stream_executor.transcript.text

    def messages(self) -> list[dict[str, Any]]:
        """Return the finished turns as OpenAI's messages `{"role": ..., "content": ...}`.

        Waits until everything is generated. An open turn is not included.

        Raises:
            ImageError: for a picture that cannot be read.
            NotYetError: for a video, which OpenAI's messages cannot hold.
        """
        self.sync()
        return [*map(openai_message, self.stream_executor.transcript.messages)]

    def sync(self) -> None:
        """Wait until everything appended so far is generated; raise the error that stopped it."""
        self.stream_executor.sync(self._whole)

    def error(self) -> BaseException | None:
        """Wait as `sync` does; return the error instead of raising it, or None without an error."""
        try:
            self.sync()
        except BaseException as error:
            if error is not self.stream_executor.error:
                raise
        return self.stream_executor.error

    def text_iter(self, var_name: str | None = None) -> Iterator[str]:
        """Yield the text of variable `var_name`, or the whole text, piece by piece as it comes.

        If the program was run without `stream=True`, this yields one piece and warns. If the
        program ends without such a variable, this yields an empty text, as in SGLang, and warns.
        """
        self._warn_unless_streaming("text_iter")
        position, ended = 0, False
        while not ended:
            chunk, ended = self.stream_executor.read_wait(var_name, position, self._whole)
            position += len(chunk)
            if ended and not position:
                self._warn_if_unknown(var_name)
            if chunk or (ended and not position):
                yield chunk

    async def text_async_iter(
        self, var_name: str | None = None, return_meta_data: bool = False
    ) -> AsyncIterator[Any]:
        """Yield pieces of text as `text_iter` does, without blocking the event loop.

        With `return_meta_data`, yield pairs of a piece and the variable's `meta_info` so far; the
        `meta_info` is empty for the whole text.
        """
        self._warn_unless_streaming("text_async_iter")
        async for chunk, ended in self._async_chunks(var_name):
            if return_meta_data:
                yield chunk, self._meta_info(var_name, ended)
            elif chunk or ended:
                yield chunk

    def _warn_unless_streaming(self, method: str) -> None:
        if not self.stream_executor.streaming:
            message = f"{method}() gives one piece; for pieces, run the program with stream=True"
            warnings.warn(message, stacklevel=3)

    def _warn_if_unknown(self, name: str | None) -> None:
        try:
            if name is not None:
                self.get_var(name)
        except UnknownVariableError as error:
            warnings.warn(str(error), stacklevel=4)

    def _meta_info(self, name: str | None, ended: bool) -> Any:
        if name is None:
            return {}
        return (self.get_meta_info(name) if ended else self.stream_executor.meta_so_far(name)) or {}

    async def _async_chunks(self, var_name: str | None) -> AsyncIterator[tuple[str, bool]]:
        position, ended = 0, False
        with wakeups(self.stream_executor) as changed:
            while not ended:
                changed.clear()
                chunk, ended = self.stream_executor.read(var_name, position, self._whole)
                position += len(chunk)
                if ended and not position:
                    self._warn_if_unknown(var_name)
                if chunk or ended:
                    yield chunk, ended
                else:
                    await changed.wait()

    def __iter__(self) -> Iterator[str]:
        return self.text_iter()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self.text_async_iter()

    def __repr__(self) -> str:
        return f"ProgramState({self.text()})"
