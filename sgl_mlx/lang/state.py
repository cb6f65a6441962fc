"""The argument `s` of a program, and what running it returns."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from sgl_mlx.errors import ProgramError
from sgl_mlx.lang import words
from sgl_mlx.lang.binding import Binding
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
from sgl_mlx.lang.stream import Stream

_NOTHING = ExprList()


class ProgramState:
    """A prompt that a program appends to and whose variables it reads.

    Appending never waits; reading waits for what is read. When the last reference to a state
    goes, what it still has in flight is cancelled.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream_executor = stream
        self.ret_value: Any = None
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
        """The same as `+=`."""
        return self.__iadd__(other)

    def gen(self, *args: Any, **kwargs: Any) -> ExprList:
        """`s.gen(...)` is `s += gen(...)`. Returns an empty expression."""
        return self._append(words.gen(*args, **kwargs))

    def select(self, *args: Any, **kwargs: Any) -> ExprList:
        """`s.select(...)` is `s += select(...)`. Returns an empty expression."""
        return self._append(words.select(*args, **kwargs))

    def _append(self, other: object) -> ExprList:
        # What is returned may be appended again (`s += s.user(x)`) and must then add nothing.
        self.__iadd__(other)
        return _NOTHING

    # -- roles --------------------------------------------------------------------------------

    def system(self, expr: object = None) -> Any:
        """Append a system turn, or without an expression, `with s.system(): ...` encloses one."""
        return self._turn("system", expr)

    def user(self, expr: object = None) -> Any:
        """As `system`, for the user."""
        return self._turn("user", expr)

    def assistant(self, expr: object = None) -> Any:
        """As `system`, for the assistant."""
        return self._turn("assistant", expr)

    def _turn(self, role: Role, expr: object) -> ExprList | AbstractContextManager[None]:
        if expr is None:
            return self._enclosed(RoleBegin(role), RoleEnd(role))
        return self._append(words.role_turn(role, expr))

    def var_scope(self, name: str) -> AbstractContextManager[None]:
        """`with s.var_scope("x"): ...` keeps the text appended inside under "x"."""
        return self._enclosed(VarScopeBegin(name), VarScopeEnd(name))

    @contextmanager
    def _enclosed(self, begin: object, end: object) -> Iterator[None]:
        self._append(begin)
        yield
        self._append(end)

    # -- branching ----------------------------------------------------------------------------

    def fork(
        self, size: int = 1, position_ids_offset: Sequence[int] | None = None
    ) -> ProgramStateGroup:
        """Copies of this state that go on separately; waits for what was appended so far.

        Args:
            size: how many.
            position_ids_offset: for each copy, how many positions further on its text stands.

        Raises:
            ProgramError: for a size below 1, or offsets that are not one for each copy.
        """
        stream = self.stream_executor
        if size < 1:
            raise ProgramError(f"fork() needs a size of at least 1, got {size!r}")
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
        """One branch, joined at the end of the `with` block."""
        group = self.fork(1, position_ids_offset)
        yield group[0]
        group.join()

    # -- reading ------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Any:
        return self.get_var(name)

    def __setitem__(self, name: str, value: object) -> None:
        self.set_var(name, value)

    def __contains__(self, name: str) -> bool:
        """Whether the variable has its value by now; never waits."""
        binding = self.stream_executor.bindings.get(name)
        return binding is not None and binding.settled

    def get_var(self, name: str) -> Any:
        """The value of a variable; waits for it alone.

        Raises:
            UnknownVariableError: when nothing was submitted under this name.
        """
        return self.stream_executor.value(name)

    def set_var(self, name: str, value: object) -> None:
        self.stream_executor.bindings[name] = Binding().settle(value)

    def get_meta_info(self, name: str) -> Any:
        """What the backend said about a variable; None if there is no such variable."""
        if name not in self.stream_executor.bindings:
            return None
        self.get_var(name)
        return self.stream_executor.binding(name).meta

    def text(self) -> str:
        """The whole text, prompt included; waits for it."""
        self.sync()
        return self.stream_executor.transcript.text

    def messages(self) -> list[dict[str, Any]]:
        """The closed turns as `{"role", "content"}`, pictures as OpenAI has them; waits for them.

        Raises:
            ImageError: for a picture that cannot be read.
            NotYetError: for a video, which that form does not know.
        """
        self.sync()
        return [*map(openai_message, self.stream_executor.transcript.messages)]

    def sync(self) -> None:
        """Wait until everything appended has happened; raises what went wrong."""
        self.stream_executor.sync()

    def error(self) -> BaseException | None:
        """What went wrong, after waiting; None if nothing did."""
        try:
            self.sync()
        except BaseException as error:
            if error is not self.stream_executor.error:
                raise
        return self.stream_executor.error

    def text_iter(self, var_name: str | None = None) -> Iterator[str]:
        """The text piece by piece while it is written; all at once without `stream=True`."""
        position, ended = 0, False
        while not ended:
            chunk, ended = self.stream_executor.read_wait(var_name, position)
            position += len(chunk)
            if chunk or (ended and not position):
                yield chunk

    async def text_async_iter(
        self, var_name: str | None = None, return_meta_data: bool = False
    ) -> AsyncIterator[Any]:
        """As `text_iter`; with `return_meta_data`, pairs of a chunk and the meta info so far."""
        async for chunk, ended in self._async_chunks(var_name):
            if return_meta_data:
                yield chunk, self._meta_info(var_name, ended)
            elif chunk or ended:
                yield chunk

    def _meta_info(self, name: str | None, ended: bool) -> Any:
        if name is None:
            return {}
        return (self.get_meta_info(name) if ended else self.stream_executor.meta_so_far(name)) or {}

    async def _async_chunks(self, var_name: str | None) -> AsyncIterator[tuple[str, bool]]:
        changed = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(changed.set)

        position, ended = 0, False
        with self.stream_executor.listening(wake):
            while not ended:
                changed.clear()
                chunk, ended = self.stream_executor.read(var_name, position)
                position += len(chunk)
                if chunk or ended:
                    yield chunk, ended
                else:
                    await changed.wait()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self.text_async_iter()

    def __repr__(self) -> str:
        return f"ProgramState({self.text()})"
