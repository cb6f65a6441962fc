"""The check that an architecture runs on the runtime's KV as it does in mlx-lm.

Everything goes through `ModelRunner` with the plans a scheduler would make, over slots scattered
through the pools. Layers with a sliding window have fewer slots of their own, which others get once
they are behind the window. What is compared is the whole distribution after every token: of prompts
taken in chunks over cached prefixes, batched with others, forked, decoded beyond the window and
continued. A sequence with recurrent state forks from a snapshot at a random cut. What is right is
mlx-lm's own forward pass, one sequence alone, with its own caches.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from sgl_mlx.core import SamplingParams
from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.models.adapter import Adapter
from sgl_mlx.models.architectures import RunPath, open_adapter
from sgl_mlx.runtime.pool.kv import KVPool
from sgl_mlx.runtime.pool.states import StatePool
from sgl_mlx.runtime.runner import ModelRunner
from sgl_mlx.runtime.scheduler.plan import Decode, Extend, Row, RowWindow, Scores, StepResult
from tests.models.toy import toy_configs, toy_model
from tests.models.toy_configs import ON_METAL, VOCABULARY, WITHOUT_TOY

TOLERANCE = 1e-4
"""Largest difference of log-probabilities, relative to the spread of the distribution."""

SLOTS, STRIDE = 331, 7
WINDOW_SLOTS = 113
STATE_SLOTS = 61
STEPS = 13
SHARED = 34
"""Tokens the forked sequences have in common: more than `spans.MIN_SHARED`."""

EVERYTHING = SamplingParams(
    max_new_tokens=STEPS, temperature=0, return_logprob=True, top_logprobs_num=VOCABULARY
)


class Mismatch(AssertionError):
    """Two ways of computing the same thing differ; the arguments say which, and by how much."""


@dataclass
class Branch:
    """One sequence: its tokens, the slots of those computed, and the distributions after them.

    Attributes:
        states: the slot of recurrent state after some numbers of tokens; 0 is that of none.
        window: the window slot of each token that has one, by its index.
    """

    name: str
    tokens: list[int]
    table: list[int] = field(default_factory=list)
    computed: int = 0
    states: dict[int, int] = field(default_factory=lambda: {0: 0})
    window: dict[int, int] = field(default_factory=dict)
    seen: dict[int, list[float]] = field(default_factory=dict)


class Check:
    """A pool with sequences in it, run step by step."""

    def __init__(self, adapter: Adapter) -> None:
        own = None if adapter.states or not adapter.ragged else WINDOW_SLOTS
        pool = KVPool(adapter.layers, SLOTS, adapter.dtype, window_slots=own)
        self._reach = max((adapter.layers[i].window or 0 for i in pool.windowed), default=0) - 1
        self._free_window = [1 + i * STRIDE % WINDOW_SLOTS for i in range(WINDOW_SLOTS)]
        states = StatePool(adapter.states, STATE_SLOTS) if adapter.states else None
        self._runner = ModelRunner(adapter, pool, frozenset(), states=states)
        self._free = [1 + i * STRIDE % SLOTS for i in range(SLOTS)]
        self._free_states = [1 + i * STRIDE % STATE_SLOTS for i in range(STATE_SLOTS)]
        self._recurrent = states is not None

    def extend(self, *parts: tuple[Branch, int]) -> None:
        """Compute some more tokens of each branch in one step."""
        result = self._runner.run(Extend(tuple(self._row(b, n, n) for b, n in parts)))
        for branch, count in parts:
            self._keep(branch, count, result)

    def decode(self, branches: Sequence[Branch], steps: int) -> None:
        """Generate `steps` tokens after each branch's last one, in one epoch, a step ahead."""
        opening = tuple(self._row(b, 1, steps) for b in branches)
        ids = tuple(b.name for b in branches)
        for step in range(steps):
            ahead = step + 1 < steps
            plan = Decode(ids, steps, ahead, () if step else opening)
            result = self._runner.run(plan)
            for branch in branches:
                self._keep(branch, 1, result)
                branch.tokens += result.tokens[branch.name]

    def decode_alone(self, branches: Sequence[Branch], steps: int) -> None:
        """The same, each step an epoch of its own: what a runtime of dense models does."""
        for _ in range(steps):
            self.decode(branches, 1)

    def fork(self, branch: Branch, name: str, tokens: list[int]) -> Branch:
        """A sequence that goes on from what `branch` has in common with `tokens`.

        With recurrent state it goes on from the last snapshot within.
        """
        pairs = zip(branch.tokens[: branch.computed], tokens, strict=False)
        shared = next(i for i, (a, b) in enumerate(pairs) if a != b)
        if not self._recurrent:
            seen = {i: branch.window[i] for i in self._in_window(shared, branch)}
            return Branch(name, tokens, branch.table[:shared], shared, window=seen)
        cut = max(at for at in branch.states if at <= shared)
        return Branch(name, tokens, branch.table[:cut], cut, {cut: branch.states[cut]})

    def _row(self, branch: Branch, count: int, slots: int) -> Row:
        start, end = branch.computed, branch.computed + count
        while len(branch.table) < start + slots:
            branch.table.append(self._free.pop(0))
        state = None
        if self._recurrent:
            state = branch.states[start], self._free_states.pop(0)
            branch.states[start + slots] = state[1]
        return Row(
            window=self._row_window(branch, start, start + slots),
            id=branch.name,
            tokens=tuple(branch.tokens[start:end]),
            prefix=tuple(branch.table[:start]),
            slots=tuple(branch.table[start : start + slots]),
            position=start,
            sample=True,
            params=EVERYTHING,
            targets=tuple(branch.tokens[start + 1 : end]),
            state=state,
        )

    def _in_window(self, end: int, branch: Branch) -> list[int]:
        """The tokens before `end` that a token there sees in layers with a window."""
        return [i for i in range(max(end - self._reach, 0), end) if i in branch.window]

    def _row_window(self, branch: Branch, start: int, end: int) -> RowWindow | None:
        """Free slots behind the window, except those a fork needs; take slots for new tokens."""
        if self._reach < 1:
            return None
        wanted = {*range(start - self._reach, start), *range(SHARED - self._reach, SHARED)}
        for i in sorted(branch.window.keys() - wanted):
            self._free_window.insert(0, branch.window.pop(i))
        branch.window |= {i: self._free_window.pop(0) for i in range(start, end)}
        seen = self._in_window(start, branch)
        assert len(seen) == min(self._reach, start)
        return RowWindow(*(tuple(branch.window[i] for i in x) for x in (seen, range(start, end))))

    def _keep(self, branch: Branch, count: int, result: StepResult) -> None:
        scores = [result.token_scores[branch.name]]
        if branch.name in result.prompt_scores:
            scores.insert(0, result.prompt_scores[branch.name])
        for distribution in (d for s in scores for d in _distributions(s)):
            branch.seen[branch.computed] = distribution
            branch.computed += 1


def _distributions(scores: Scores) -> list[list[float]]:
    return [[p for p, _ in sorted(top, key=lambda pair: pair[1])] for top in scores.top]


def check(adapter: Adapter) -> None:
    """Raise `Mismatch`, or whatever the architecture itself raises, unless it runs right."""
    draw = random.Random(5)
    long, mid, one = (draw.choices(range(VOCABULARY), k=n) for n in (40, 17, 1))
    twin = [*long[:SHARED], *draw.choices(range(VOCABULARY), k=7)]
    twin[SHARED] = (long[SHARED] + 1) % VOCABULARY
    run = Check(adapter)
    decode = run.decode if adapter.ragged else run.decode_alone

    a, b, c = Branch("a", long), Branch("b", mid), Branch("c", one)
    run.extend((a, 16))
    run.extend((a, draw.randint(1, SHARED - 16)))
    run.extend((a, 37 - a.computed), (b, 5))
    d = run.fork(a, "d", twin)
    run.extend((a, 3), (b, 11), (c, 1), (d, SHARED + 6 - d.computed))
    for branch in (a, b, c, d):
        branch.tokens += draw.choices(range(VOCABULARY), k=branch.computed + 1 - len(branch.tokens))
    decode([a, b, c, d], STEPS)
    for branch in (a, b):
        branch.tokens += draw.choices(range(VOCABULARY), k=5)
    run.extend((a, 6), (b, 6), (c, 1), (d, 1))
    compare_with_itself(a, adapter.model)
    for branch in (a, b, c, d):
        compare(branch, adapter.model)


def compare(branch: Branch, model: nn.Module) -> None:
    """A branch's distributions with mlx-lm's."""
    expected = reference(model, [branch.tokens[: branch.computed]])
    places = sorted(branch.seen)
    mine = mx.array([branch.seen[i] for i in places])
    agree(mine, expected[mx.array(places)], "its numbers differ from mlx-lm's")


def compare_with_itself(branch: Branch, model: nn.Module) -> None:
    """mlx-lm's own passes over a branch must agree before anything can agree with them."""
    tokens = branch.tokens[: branch.computed]
    start = branch.computed - STEPS - 6
    pieces = [tokens[:start], *([t] for t in tokens[start:])]
    what = "in mlx-lm itself a prompt and the same tokens decoded differ"
    agree(reference(model, pieces), reference(model, [tokens]), what)


def reference(model: nn.Module, pieces: list[list[int]]) -> mx.array:
    """mlx-lm's log-probabilities `(tokens, vocabulary)` of one sequence fed in pieces.

    With its caches, as it generates: gemma3n computes something else without.
    """
    caches = make_prompt_cache(model)
    logits = mx.concatenate([model(mx.array([p]), cache=caches) for p in pieces], axis=1)[0]
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def agree(mine: mx.array, theirs: mx.array, what: str) -> None:
    """Raise `Mismatch` unless log-probabilities `(tokens, vocabulary)` are the same."""
    error = float(mx.max(mx.abs(mine - theirs)) / (mx.max(theirs) - mx.min(theirs)))
    if not error < TOLERANCE:  # NaN too
        raise Mismatch(what, error)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Without `mx.compile`, which calls a C++ compiler for every new shape on the CPU."""
    mx.disable_compile()
    try:
        yield
    finally:
        mx.enable_compile()


class Verdict(NamedTuple):
    """How one configuration of an architecture runs.

    Attributes:
        reason: why it does not run ragged; "" if it does.
        refused: True if the adapter itself finds out, so that other configurations may run better.
    """

    path: Literal["ragged", "dense", "unsupported"]
    reason: str = ""
    refused: bool = False


_PATHS = ("ragged", "dense", "unsupported")
"""The best path first."""


@uncompiled()
def verdict(architecture: str) -> dict[str, str]:
    """Make an entry of `architectures.json`: the worst over the architecture's configurations.

    Configurations that the adapter refuses by itself are named in the reason instead.
    """
    if architecture in WITHOUT_TOY:
        return {"path": "unsupported", "reason": WITHOUT_TOY[architecture]}
    found = [verdict_on(toy_model(architecture, config)) for config in toy_configs(architecture)]
    if architecture in ON_METAL and all(v.path == "ragged" for v in found):
        return {"path": "ragged", "reason": ON_METAL[architecture], "needs": "a GPU"}
    others = [v for v in found if not v.refused] or found
    worst = max(others, key=lambda v: _PATHS.index(v.path))
    refused = next((v for v in found if v.refused and v.path != worst.path), None)
    if refused is not None:
        reason = f"{refused.path} in some configurations: {refused.reason}"
        return {"path": worst.path, "reason": reason}
    return {"path": worst.path} | ({"reason": worst.reason} if worst.reason else {})


def verdict_on(model: nn.Module) -> Verdict:
    """Find the best path on which a model is right."""
    reason = why_not_ragged(model)
    refused = reason is not None
    reason = reason or fault_of(model, "ragged")
    if reason is None:
        return Verdict("ragged")
    path: Any = "unsupported" if fault_of(model, "dense") else "dense"
    return Verdict(path, reason, refused)


def why_not_ragged(model: nn.Module) -> str | None:
    """Say what keeps a model off the ragged path when it is loaded."""
    try:
        Adapter(model)
    except UnsupportedModelError as e:
        return str(e)
    return None


def fault_of(model: nn.Module, path: RunPath) -> str | None:
    """Say what goes wrong on this path; None if the model is right."""
    try:
        check(open_adapter(model, path))
    except UnsupportedModelError as e:
        return str(e)
    except Mismatch as e:
        return str(e.args[0])
    except Exception as e:  # whatever an architecture may raise is a verdict on it
        return f"{type(e).__name__}: {e}".splitlines()[0]
    return None
