"""The interpreter: it executes nodes, which write to a stream or send requests to the backend."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache, partial, reduce
from typing import Any, Protocol

from sgl_mlx.core import ChoiceScores, Completion, Image, SamplingParams, StreamEvent, Video
from sgl_mlx.errors import ProgramError
from sgl_mlx.lang import ir
from sgl_mlx.lang.backend import Backend
from sgl_mlx.lang.binding import Binding, Name, Step
from sgl_mlx.lang.reasoning import split_reasoning
from sgl_mlx.lang.transcript import Transcript


@dataclass(frozen=True)
class Asked:
    """A request to the backend or to another stream.

    `future` gives the answer; `then` is the function to call with the answer.
    """

    future: Future[Any]
    then: Callable[[Any], None]
    of_backend: bool = True
    """False when the answer comes from another stream."""


class Target(Protocol):
    """The part of a `Stream` that the interpreter reads and changes.

    Attributes:
        scopes: for each open variable scope, by name: the binding of the variable, and the length
            of the text where the scope began.
    """

    backend: Backend
    transcript: Transcript
    scopes: dict[str, tuple[Binding, int]]
    streaming: bool

    def writing(self) -> AbstractContextManager[Transcript]: ...

    def show(self, event: StreamEvent) -> None: ...


# -- when a node is submitted ---------------------------------------------------------------------


def names_of(node: ir.Expr) -> tuple[Name, ...]:
    """Return the names of the variables that a node sets; empty if it sets none."""
    if isinstance(node, ir.SeparateReasoning):
        return (node.gen.name, node.name)
    if isinstance(node, ir.Select):
        return (node.name,) if node.name is not None else ()
    return (node.name,) if isinstance(node, (ir.Gen, ir.VarScopeBegin)) else ()


def params_of(node: ir.Expr, defaults: SamplingParams) -> SamplingParams:
    """Return a node's sampling parameters: what its `gen` sets, and for the rest `defaults`.

    `defaults` come from `run()`. A constraint of the node replaces any constraint of the defaults.

    Raises:
        InvalidParamsError: for a value out of range.
    """
    generator = node.gen if isinstance(node, ir.SeparateReasoning) else node
    if isinstance(generator, ir.Gen):
        if ir.CONSTRAINTS.intersection(generator.sampling):
            unconstrained: dict[str, Any] = dict.fromkeys(ir.CONSTRAINTS)
            defaults = replace(defaults, **unconstrained)
        return defaults.override(**generator.sampling).validate()
    return defaults


def role_after(node: ir.Expr, role: str | None) -> str | None:
    """Return the role of the turn that is open after a node; None if no turn is open.

    Args:
        role: the role of the turn that is open before the node, or None.

    Raises:
        ProgramError: a turn begins inside a turn, or an end does not match the open turn.
    """
    if isinstance(node, ir.ExprList):
        return reduce(lambda open_role, leaf: role_after(leaf, open_role), node.items, role)
    if isinstance(node, ir.RoleBegin):
        if role is not None:
            raise ProgramError(
                f"Nested roles are not allowed: {node.role}() begins inside {role}(); "
                f"end the {role} turn first"
            )
        return node.role
    if isinstance(node, ir.RoleEnd):
        if role != node.role:
            open_role = f"the open turn is {role}" if role else "no turn is open"
            raise ProgramError(f"{node.role}_end() does not match: {open_role}")
        return None
    return role


# -- when a node is applied -----------------------------------------------------------------------


def apply(step: Step, stream: Target) -> Asked | None:
    """Apply a step to the stream.

    Returns None if the step is done, otherwise the request whose answer will complete the step.
    """
    node = step.node
    if isinstance(node, _WRITTEN):
        with stream.writing() as transcript:
            for leaf in ir.leaves(node):
                _write_leaf(leaf, transcript)
    elif isinstance(node, ir.VarScopeBegin):
        stream.scopes[node.name] = (step.bindings[0], len(stream.transcript.text))
    elif isinstance(node, ir.VarScopeEnd):
        _end_scope(node, stream)
    else:
        return _ask(step, stream)
    return None


_WRITTEN = (ir.Text, ir.Image, ir.Video, ir.RoleBegin, ir.RoleEnd, ir.ExprList)


def _write_leaf(leaf: ir.Expr, transcript: Transcript) -> None:
    if isinstance(leaf, ir.Text):
        transcript.append(leaf.value)
    elif isinstance(leaf, ir.Image):
        transcript.append_picture(Image(leaf.source))
    elif isinstance(leaf, ir.Video):
        transcript.append_picture(Video(leaf.source, leaf.num_frames))
    elif isinstance(leaf, ir.RoleBegin):
        transcript.begin(leaf.role)
    else:
        transcript.end()


def _ask(step: Step, stream: Target) -> Asked:
    node = step.node
    if isinstance(node, ir.Gen):
        return _generate(step, stream, _written)
    if isinstance(node, ir.SeparateReasoning):
        return _generate(step, stream, partial(_separated, node))
    if isinstance(node, ir.Select):
        return _select(node, step, stream)
    if isinstance(node, ir.CommitLazy):
        return Asked(stream.backend.prefill(stream.transcript.prompt()), lambda _: None)
    if isinstance(node, ir.FetchAhead):
        return Asked(stream.backend.prefetch(stream.transcript.prompt()), lambda _: None)
    if isinstance(node, ir.LateText):
        return Asked(node.text(), partial(_write, stream), of_backend=False)
    if isinstance(node, ir.Variable):
        source = node.source.binding(node.name).value
        return Asked(_relayed(source), partial(_append, stream), of_backend=False)
    raise ProgramError(f"{node!r} cannot be appended to a state")


def _end_scope(node: ir.VarScopeEnd, stream: Target) -> None:
    if node.name not in stream.scopes:
        raise ProgramError(f"the variable scope {node.name!r} ends but never began")
    binding, start = stream.scopes.pop(node.name)
    binding.settle(stream.transcript.text[start:])


def _relayed(source: Future[Any]) -> Future[Any]:
    """Return a new future with the result of `source`; cancelling it leaves `source` alone."""
    relay: Future[Any] = Future()

    def pass_on(done: Future[Any]) -> None:
        if relay.set_running_or_notify_cancel():
            error = done.exception()
            relay.set_exception(error) if error else relay.set_result(done.result())

    source.add_done_callback(pass_on)
    return relay


def _write(stream: Target, text: str) -> None:
    with stream.writing() as transcript:
        transcript.append(text)


def _append(stream: Target, value: object) -> None:
    with stream.writing() as transcript:
        transcript.append(str(value), healable=False)


Completions = tuple[Completion, ...]


def _generate(
    step: Step, stream: Target, then: Callable[[Step, Target, Completions], None]
) -> Asked:
    transcript = stream.transcript
    params = step.params
    heals = params.token_healing and transcript.healable and not params.constrained
    params = _completed(params, transcript.stop, heals)
    # Text that will be split into reasoning and answer must not be streamed before the split.
    show = stream.show if stream.streaming and then is _written else None
    future = stream.backend.submit(transcript.prompt(), params, show)
    return Asked(future, partial(then, step, stream))


@lru_cache(maxsize=256)
def _completed(params: SamplingParams, stop: tuple[str, ...], heals: bool) -> SamplingParams:
    return replace(params, stop=params.stop + stop, token_healing=heals)


def _written(step: Step, stream: Target, completions: Completions) -> None:
    with stream.writing() as transcript:
        transcript.append_generated(completions[0])
    texts = [completion.text for completion in completions]
    metas = [completion.meta_info() for completion in completions]
    several = step.params.n > 1
    step.bindings[0].settle(texts if several else texts[0], metas if several else metas[0])


def _separated(
    node: ir.SeparateReasoning, step: Step, stream: Target, completions: Completions
) -> None:
    completion = completions[0]
    reasoning, answer = split_reasoning(completion.text, node.model_type)
    with stream.writing() as transcript:
        if answer == completion.text:
            transcript.append_generated(completion)
        else:
            transcript.append(answer, healable=False)
    step.bindings[0].settle(answer, completion.meta_info())
    step.bindings[1].settle(reasoning)


def _select(node: ir.Select, step: Step, stream: Target) -> Asked:
    method = node.choices_method
    with stream.writing() as transcript:
        transcript.settle()
    future = stream.backend.score(
        transcript.prompt(), node.choices, method.requires_unconditional_logprobs
    )

    def decide(scores: ChoiceScores) -> None:
        decision = method.of(scores)
        _append(stream, decision.decision)
        for binding in step.bindings:
            binding.settle(decision.decision, decision.meta_info)

    return Asked(future, decide)
