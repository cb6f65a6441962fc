"""`ProgramState`: the argument `s` of a program, returned by running it."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from sgl_mlx import bounds
from sgl_mlx.errors import ProgramError
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

_NOTHING = ExprList()


class ProgramState:
    """A prompt that a program appends to and whose variables it reads.

    Appending never waits. Reading a variable waits for its value. When the last reference to a
    state is dropped, its running requests are cancelled.
    """

    ret_value: Any = None
    _whole = False
    """Whether reading waits for the body: never in the body itself."""

    def __init__(self, stream: Stream) -> None:
        self.stream_executor = stream
        weakref.finalize(self, stream.abort).atexit = False

    # -- appending ----------------------------------------------------------------------------

    def __iadd__(self, other: object) -> ProgramState:
        """Append text or an expression.

        Raises:
            ProgramError: for None, foreign objects, and roles that do not nest.
            InvalidParamsError: for sampling values out of range.
        """
        self.stream_executor.submit(as_expr(other))
        return self

    def extend(self, other: object) -> ProgramState:
        """Append text or an expression, as `+=` does."""
        return self.__iadd__(other)

    def gen(self, *args: Any, **kwargs: Any) -> ExprList:
        """Do `s += gen(...)`; returns an empty expression."""
        return self._append(words.gen(*args, **kwargs))

    def select(self, *args: Any, **kwargs: Any) -> ExprList:
        """Do `s += select(...)`; returns an empty expression."""
        return self._append(words.select(*args, **kwargs))

    def _append(self, other: object) -> ExprList:
        # What is returned may be appended again (`s += s.user(x)`) and must then add nothing.
        self.__iadd__(other)
        return _NOTHING

    # -- roles --------------------------------------------------------------------------------

    def system(self, expr: object = None) -> Any:
        """Append a system turn; without an expression, `with s.system(): ...` encloses the turn."""
        return self._turn("system", expr)

    def user(self, expr: object = None) -> Any:
        """Append a user turn, or enclose one; see `system`."""
        return self._turn("user", expr)

    def assistant(self, expr: object = None) -> Any:
        """Append an assistant turn, or enclose one; see `system`."""
        return self._turn("assistant", expr)

    def _turn(self, role: Role, expr: object) -> ExprList | AbstractContextManager[None]:
        if expr is None:
            return self._enclosed(RoleBegin(role), RoleEnd(role))
        return self._append(words.role_turn(role, expr))

    def var_scope(self, name: str) -> AbstractContextManager[None]:
        """Keep the text that is appended inside `with s.var_scope("x"): ...` as variable "x"."""
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
        """Make copies of this state that go on separately; waits for everything appended so far.

        Args:
            size: the number of copies.
            position_ids_offset: for each copy, the number of positions its text is moved on.

        Raises:
            ProgramError: for a size below 1, or offsets that are not one for each copy.
        """
        stream = self.stream_executor
        if (bounds.whole(size) or 0) < 1:
            raise ProgramError(f"fork() needs a size of at least 1, got {bounds.shown(size)}")
        gaps = [0] * size if position_ids_offset is None else list(position_ids_offset)
        if len(gaps) != size:
            raise ProgramError(f"{len(gaps)} position_ids_offset for {size} branches")
        self.sync()
        if size > 1 and stream.transcript.text:
            stream.submit(CommitLazy())
            self.sync()
        return ProgramStateGroup([ProgramState(stream.fork(gap)) for gap in gaps], self)

    @contextmanager
    def copy(self, position_ids_offset: Sequence[int] | None = None) -> Iterator[ProgramState]:
        """Make one branch, which is joined at the end of the `with` block."""
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
        binding = self.stream_executor.bindings.get(name)
        return binding is not None and binding.settled

    def get_var(self, name: str) -> Any:
        """Return the value of a variable; waits for it alone.

        Raises:
            UnknownVariableError: when nothing was submitted under this name.
        """
        return self.stream_executor.value(name, self._whole)

    def set_var(self, name: str, value: object) -> None:
        self.stream_executor.assign(name, value)

    def get_meta_info(self, name: str) -> Any:
        """Return the backend's information about a variable; None if there is no such variable."""
        if self.stream_executor.find(name, self._whole) is None:
            return None
        self.get_var(name)
        return self.stream_executor.binding(name).meta

    def text(self) -> str:
        """Return the whole text, prompt included; waits for it."""
        self.sync()
        return self.stream_executor.transcript.text

    def messages(self) -> list[dict[str, Any]]:
        """Return the closed turns as `{"role", "content"}`; waits for them.

        Pictures are written in OpenAI's form.

        Raises:
            ImageError: for a picture that cannot be read.
            NotYetError: for a video, which OpenAI's form does not have.
        """
        self.sync()
        return [*map(openai_message, self.stream_executor.transcript.messages)]

    def sync(self) -> None:
        """Wait until everything appended has been done; raises the error that stopped it."""
        self.stream_executor.sync(self._whole)

    def error(self) -> BaseException | None:
        """Wait as `sync` does, and return the error instead of raising it; None without one."""
        try:
            self.sync()
        except BaseException as error:
            if error is not self.stream_executor.error:
                raise
        return self.stream_executor.error

    def text_iter(self, var_name: str | None = None) -> Iterator[str]:
        """Yield the text in pieces while it is written; in one piece without `stream=True`."""
        self._warn_unless_streaming("text_iter")
        position, ended = 0, False
        while not ended:
            chunk, ended = self.stream_executor.read_wait(var_name, position, self._whole)
            position += len(chunk)
            if chunk or (ended and not position):
                yield chunk

    async def text_async_iter(
        self, var_name: str | None = None, return_meta_data: bool = False
    ) -> AsyncIterator[Any]:
        """Yield as `text_iter` does, without blocking the event loop.

        With `return_meta_data`, yields pairs of a chunk and the meta information so far.
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
                if chunk or ended:
                    yield chunk, ended
                else:
                    await changed.wait()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self.text_async_iter()

    def __repr__(self) -> str:
        return f"ProgramState({self.text()})"
