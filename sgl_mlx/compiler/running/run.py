"""Runs of a plan, on the same streams that the interpreter uses, so that the results are equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from sgl_mlx.compiler.graph.choice_methods import CHOICES_METHODS
from sgl_mlx.compiler.graph.graph import ROOT
from sgl_mlx.compiler.graph.nodes import (
    Call,
    Fork,
    GetForkItem,
    Join,
    Node,
    Score,
    SetVariable,
    Sync,
)
from sgl_mlx.compiler.running.evaluate import RunValues
from sgl_mlx.compiler.running.steps import Hint, Part, Plan, Submission
from sgl_mlx.errors import SglError
from sgl_mlx.lang import ir
from sgl_mlx.lang.binding import Binding, Step
from sgl_mlx.lang.group import ProgramStateGroup
from sgl_mlx.lang.scoring import score
from sgl_mlx.lang.setting import Setting
from sgl_mlx.lang.state import ProgramState
from sgl_mlx.lang.stream import Stream
from sgl_mlx.waits import result_of


class Run:
    """One run of a plan.

    Args:
        plan: the steps to run.
        state: the state of stream 0.
        arguments: the value of each parameter of the graph, by name.
    """

    def __init__(self, plan: Plan, state: ProgramState, arguments: Mapping[str, Any]) -> None:
        self._plan = plan
        self.known = RunValues(arguments, states={ROOT: state})
        self._groups: dict[int, ProgramStateGroup[ProgramState]] = {}
        self._hints: list[ProgramState] = []  # kept alive: dropping a state cancels its requests

    def result(self) -> Any:
        """Run to the end of the body and return the value that the body returned.

        Raises:
            Exception: the error of a variable that the body reads, as in the interpreter.
        """
        self.submit()
        for source in self._plan.reads:
            for binding in self.known.bindings[source]:
                result_of(binding.value)
        for node in self._plan.returns:
            self.known.states[node.stream].ret_value = self.known.value(node.value)
        return self.known.value(self._plan.result)

    def submit(self) -> None:
        """Run all steps. Generation may still go on afterwards."""
        for step in self._plan.steps:
            if isinstance(step, Submission):
                self._submit(step)
            else:
                _STEPS[type(step)](self, step)

    # -- steps that only submit -----------------------------------------------------------------

    def _submit(self, step: Submission) -> None:
        stream = self.known.states[step.stream].stream_executor
        steps: list[Step] = []
        for part in step.parts:
            if part.sources and steps:  # submit the earlier steps: they may set the variables
                stream.enqueue(steps)
                steps = []
            steps.append(self._step(part, stream))
        stream.enqueue(steps)

    def _step(self, part: Part, stream: Stream) -> Step:
        bindings = tuple([Binding() for _ in range(part.variables)])
        if bindings:
            self.known.bindings[part.id] = bindings
        node = part.ready or self._node(part)
        params = self._plan.params(part, node, stream.defaults) if part.asks else stream.defaults
        return Step(node, part.site, params, bindings)

    def _node(self, part: Part) -> ir.Expr:
        if all(self.known.binding(variable).settled for variable in part.sources):
            return part.make(self.known.value)
        return ir.LateText(partial(self.known.later, part.text, part.sources))

    # -- steps that do something now ------------------------------------------------------------

    def _state(self, node: Node) -> ProgramState:
        return self.known.states[node.stream]

    def fork(self, node: Fork) -> None:
        offsets = node.offsets if any(node.offsets) else None
        self._groups[node.id] = self._state(node).fork(len(node.offsets), offsets)

    def get_fork_item(self, node: GetForkItem) -> None:
        self.known.states[node.stream] = self._groups[node.fork][node.index]

    def join(self, node: Join) -> None:
        self._groups[node.fork].join(node.mode)

    def call(self, node: Call) -> None:
        self.known.states[node.stream] = Setting.of(None, node.sampling).new_state()

    def sync(self, node: Sync) -> None:
        self._state(node).sync()

    def set_variable(self, node: SetVariable) -> None:
        self._state(node).set_var(self.known.value(node.name), self.known.value(node.value))

    def score(self, node: Score) -> None:
        choices = list(map(self.known.value, node.choices))
        decision = score(self._state(node), choices, CHOICES_METHODS[node.method]).decision
        self.known.bindings[node.id] = (Binding().settle(decision),)

    def hint(self, hint: Hint) -> None:
        """Prefetch the hinted prompt on a stream of its own; failures are ignored."""
        with suppress(SglError):
            state = Setting.of(None, {}).new_state()
            self._hints.append(state)
            stream = state.stream_executor
            stream.enqueue([self._step(part, stream) for part in hint.parts])
            stream.submit(ir.FetchAhead())


_STEPS: dict[type, Callable[[Run, Any], None]] = {
    Fork: Run.fork,
    GetForkItem: Run.get_fork_item,
    Join: Run.join,
    Call: Run.call,
    Sync: Run.sync,
    SetVariable: Run.set_variable,
    Score: Run.score,
    Hint: Run.hint,
}
