"""What each node of the language means to a stream."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import lru_cache, partial, reduce
from typing import TYPE_CHECKING, Any

from sgl_mlx.core import ChoiceScores, Completion, Image, SamplingParams, Video
from sgl_mlx.errors import ProgramError
from sgl_mlx.lang import ir
from sgl_mlx.lang.binding import Name, Step
from sgl_mlx.lang.reasoning import split_reasoning

if TYPE_CHECKING:
    from sgl_mlx.lang.stream import Stream
    from sgl_mlx.lang.transcript import Transcript


@dataclass(frozen=True)
class Asked:
    """A question to the backend, and what to do with the answer."""

    future: Future[Any]
    then: Callable[[Any], None]


# -- when a node is submitted ---------------------------------------------------------------------


def names_of(node: ir.Expr) -> tuple[Name, ...]:
    """The variables a node gives values to."""
    if isinstance(node, ir.SeparateReasoning):
        return (node.name, node.reasoning_name)
    if isinstance(node, ir.Select):
        return (node.name,) if node.name is not None else ()
    return (node.name,) if isinstance(node, (ir.Gen, ir.VarScopeBegin)) else ()


def params_of(node: ir.Expr, defaults: SamplingParams) -> SamplingParams:
    """The sampling parameters of a node: what it gives over what `run()` gave.

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
    """The open role after a node; raises `ProgramError` where roles do not nest or match."""
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


# -- when its turn comes --------------------------------------------------------------------------


def apply(step: Step, stream: Stream) -> Asked | None:
    """Let a node happen, or ask the backend for what it needs."""
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


def _ask(step: Step, stream: Stream) -> Asked:
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
        return Asked(node.text(), partial(_write, stream))
    if isinstance(node, ir.Variable):
        source = node.source.binding(node.name).value
        return Asked(_relayed(source), partial(_append, stream))
    raise ProgramError(f"{node!r} cannot be appended to a state")


def _end_scope(node: ir.VarScopeEnd, stream: Stream) -> None:
    if node.name not in stream.scopes:
        raise ProgramError(f"the variable scope {node.name!r} ends but never began")
    binding, start = stream.scopes.pop(node.name)
    binding.settle(stream.transcript.text[start:])


def _relayed(source: Future[Any]) -> Future[Any]:
    """A future of the same value that can be cancelled without its source."""
    relay: Future[Any] = Future()

    def pass_on(done: Future[Any]) -> None:
        if relay.set_running_or_notify_cancel():
            error = done.exception()
            relay.set_exception(error) if error else relay.set_result(done.result())

    source.add_done_callback(pass_on)
    return relay


def _write(stream: Stream, text: str) -> None:
    with stream.writing() as transcript:
        transcript.append(text)


def _append(stream: Stream, value: object) -> None:
    with stream.writing() as transcript:
        transcript.append(str(value), healable=False)


Completions = tuple[Completion, ...]


def _generate(
    step: Step, stream: Stream, then: Callable[[Step, Stream, Completions], None]
) -> Asked:
    transcript = stream.transcript
    params = step.params
    heals = params.token_healing and transcript.healable and not params.constrained
    params = _completed(params, transcript.stop, heals)
    # Text that will be taken apart afterwards must not be shown before.
    show = stream.show if stream.streaming and then is _written else None
    future = stream.backend.submit(transcript.prompt(), params, show)
    return Asked(future, partial(then, step, stream))


@lru_cache(maxsize=256)
def _completed(params: SamplingParams, stop: tuple[str, ...], heals: bool) -> SamplingParams:
    return replace(params, stop=params.stop + stop, token_healing=heals)


def _written(step: Step, stream: Stream, completions: Completions) -> None:
    with stream.writing() as transcript:
        transcript.append_generated(completions[0])
    texts = [completion.text for completion in completions]
    metas = [completion.meta_info() for completion in completions]
    several = step.params.n > 1
    step.bindings[0].settle(texts if several else texts[0], metas if several else metas[0])


def _separated(
    node: ir.SeparateReasoning, step: Step, stream: Stream, completions: Completions
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


def _select(node: ir.Select, step: Step, stream: Stream) -> Asked:
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
