"""`ProgramStateGroup`: the branches that `fork` returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar

from sgl_mlx import bounds
from sgl_mlx.core import prompt_text
from sgl_mlx.errors import ProgramError
from sgl_mlx.lang.binding import Binding, Name
from sgl_mlx.lang.config import global_config
from sgl_mlx.lang.stream import Stream
from sgl_mlx.waits import result_of


class Branch(Protocol):
    """The part of a `ProgramState` that `ProgramStateGroup` uses."""

    stream_executor: Stream

    def extend(self, other: object) -> Any: ...

    def sync(self) -> None: ...


State = TypeVar("State", bound=Branch)


class ProgramStateGroup(Generic[State]):
    """The branches of a fork: states that began as copies of `src_state`."""

    def __init__(self, states: Sequence[State], src_state: State) -> None:
        self.states = list(states)
        self.src_state = src_state

    def __len__(self) -> int:
        return len(self.states)

    def __iter__(self) -> Iterator[State]:
        return iter(self.states)

    def __getitem__(self, index: int) -> State:
        return self.states[index]

    def __setitem__(self, index: int, value: object) -> None:
        # Python's `forks[i] += x` ends with `forks[i] = forks[i]`.
        if value is not self.states[index]:
            raise ProgramError("a branch cannot be replaced; append to it with forks[i] += ...")

    def __iadd__(self, other: object) -> ProgramStateGroup[State]:
        """Append to every branch.

        Branch i gets item i if `other` is a list or tuple, `other(i)` if it is a function, and
        `other` itself if it is anything else.

        Raises:
            ProgramError: a list or tuple does not have one item for each branch.
        """
        for state, value in zip(self.states, self._spread(other), strict=True):
            state.extend(value)
        return self

    def _spread(self, other: Any) -> Sequence[object]:
        if isinstance(other, (list, tuple)):
            if len(other) != len(self):
                raise ProgramError(
                    f"{len(other)} expressions for {len(self)} branches; a list or tuple needs one "
                    "for each branch"
                )
            return other
        if callable(other):
            return [other(i) for i in range(len(self))]
        return [other] * len(self)

    def join(
        self, mode: Literal["gather_variable", "concate_and_append"] = "gather_variable"
    ) -> None:
        """Wait for all branches, and copy their new variables or their texts to the source state.

        Args:
            mode: "gather_variable" sets each variable that is new in the branches to the list of
                its values, in the order of the branches. Its meta info becomes a list likewise.
                "concate_and_append" appends the new texts of all branches. If the backend supports
                parallel context windows, the branches' KV is reused for them.

        Raises:
            ProgramError: for an unknown mode.
            Exception: the error that stopped a branch.
        """
        joins: dict[str, Callable[[], None]] = {
            "gather_variable": self._gather,
            "concate_and_append": self._concatenate,
        }
        if not isinstance(mode, str) or mode not in joins:
            known = ", ".join(joins)
            raise ProgramError(f"unknown join mode {bounds.shown(mode)}; there are {known}")
        for state in self.states:
            state.sync()
        joins[mode]()

    def _gather(self) -> None:
        source = self.src_state.stream_executor
        gathered: dict[Name, list[Binding]] = {}
        for state in self.states:
            for name, binding in state.stream_executor.bindings.items():
                if name not in source.bindings:
                    gathered.setdefault(name, []).append(binding)
        for name, bindings in gathered.items():
            values = [result_of(binding.value) for binding in bindings]
            source.assign(name, values, [b.meta for b in bindings])

    def _concatenate(self) -> None:
        source = self.src_state.stream_executor
        source.sync()
        branches = [state.stream_executor.transcript.own_prompt() for state in self.states]
        with source.writing() as transcript:
            if source.backend.supports_parallel and global_config.enable_parallel_encoding:
                transcript.append_parallel([branch for branch in branches if branch])
            else:
                transcript.append("".join(map(prompt_text, branches)))
