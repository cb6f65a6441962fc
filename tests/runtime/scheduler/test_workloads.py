"""Four workloads over recurrent layers, counted to the token: snapshots where programs branch.

Each workload is a list of rounds; the prompts of one round arrive together. Outputs are scripted,
and memory is large enough for all snapshots, so that the counts are exact.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from sgl_mlx.core import SamplingParams
from sgl_mlx.runtime.cache.prefix_cache import PrefixCache
from sgl_mlx.runtime.scheduler.admission import SchedulerLimits
from sgl_mlx.runtime.scheduler.cuts import SnapshotPolicy
from sgl_mlx.runtime.scheduler.plan import Extend, Plan, Scores, StepResult
from sgl_mlx.runtime.scheduler.scheduler import Scheduler
from sgl_mlx.runtime.scheduler.sequence import Sequence as Seq
from tests.runtime.truth import Recorder

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """A prompt, the output that follows, and where its parts end; `scored_from` for a choice."""

    prompt: Tokens
    output: Tokens = ()
    parts: Tokens = ()
    scored_from: int | None = None


Round = list[Call]


PAIRS = """27 02 06 61 09 37 97 30
71 10 10 34 47 97 14 87
81 72 14 69 46 50 67 93
25 49 52 95 79 50 71 59"""
"""Which two of ten documents the questions of four rounds are about."""


class Words:
    """Makes tokens of which none comes twice."""

    def __init__(self) -> None:
        self._next = 1

    def __call__(self, count: int) -> Tokens:
        self._next += count
        return tuple(range(self._next - count, self._next))


def few_shot_select(words: Words) -> list[Round]:
    """Four subjects with examples of their own; 25 questions each, with four choices."""
    rounds = []
    for examples in [words(400) for _ in range(4)]:
        questions = [examples + words(60) for _ in range(25)]
        rounds.append([Call(q + words(2), scored_from=460) for q in questions for _ in range(4)])
    return rounds


def chat(words: Words) -> list[Round]:
    """Eight conversations of four turns over one system text; thoughts leave the history."""
    system = words(300)
    histories, rounds = [system] * 8, []
    for _ in range(4):
        asked = [history + words(61) for history in histories]
        answers = [words(150) for _ in asked]
        rounds.append([Call(p, words(200) + a) for p, a in zip(asked, answers, strict=True)])
        histories = [p + a for p, a in zip(asked, answers, strict=True)]
    return rounds


def tree_of_thought(words: Words) -> list[Round]:
    """Three thoughts from each node, three levels deep."""
    level, rounds = [words(250)], []
    for _ in range(3):
        calls = [Call(prompt, words(60)) for prompt in level for _ in range(3)]
        rounds.append(calls)
        level = [call.prompt + call.output + words(15) for call in calls]
    return rounds


def retrieval(words: Words) -> list[Round]:
    """A system text, two documents and a question; the program's parts end after each of them."""
    system, documents = words(200), [words(400) for _ in range(10)]
    return [
        [
            Call(
                system + documents[int(a)] + documents[int(b)] + words(30),
                words(60),
                parts=(200, 600),
            )
            for a, b in line.split()
        ]
        for line in PAIRS.splitlines()
    ]


class Bench:
    """A scheduler over more memory than any workload needs, and a runner that says the outputs."""

    def __init__(self, snapshots: SnapshotPolicy, states: int = 1000, **limits: int | str) -> None:
        self.cache = PrefixCache(100_000, states=states)
        self.scheduler = Scheduler(self.cache, SchedulerLimits(snapshots=snapshots, **limits))  # type: ignore[arg-type]
        self._outputs: dict[str, Tokens] = {}
        self._ids = itertools.count()

    def play(self, rounds: list[Round]) -> tuple[int, int]:
        """Run the rounds one after another; how many prompt tokens and snapshots they took."""
        for calls in rounds:
            for call in calls:
                self.scheduler.add(self._sequence(call))
            while (plan := self.scheduler.next()) is not None:
                self.scheduler.commit(plan, self._run(plan))
            assert self.scheduler.idle
            self.scheduler.check()
        assert self.cache.snapshots is not None
        return self.scheduler.counters.computed_tokens, self.cache.snapshots.taken

    def _sequence(self, call: Call) -> Seq:
        name = str(next(self._ids))
        self._outputs[name] = call.output
        scored = call.scored_from is not None
        return Seq(
            id=name,
            tokens=list(call.prompt),
            output=Recorder(),
            params=SamplingParams(max_new_tokens=len(call.output), return_logprob=scored),
            logprob_start=call.scored_from,
            parts=call.parts,
        )

    def _run(self, plan: Plan) -> StepResult:
        said = {s.id: self._outputs[s.id][len(s.output_tokens) :][:1] for s in self.running}
        if not isinstance(plan, Extend):
            return StepResult({name: said[name] for name in plan.ids})
        scores = {row.id: Scores(((0.0, 0),) * len(row.targets)) for row in plan.rows}
        sampled = [row for row in plan.rows if row.sample]
        return StepResult(
            {row.id: said[row.id] or (0,) for row in sampled},
            {name: found for name, found in scores.items() if found.tokens},
            {row.id: Scores(((0.0, 0),)) for row in sampled if row.params.return_logprob},
        )

    @property
    def running(self) -> list[Seq]:
        return self.scheduler.running


OFF, EVERY_256 = SnapshotPolicy("off"), SnapshotPolicy("every", 256)
WORKLOADS: dict[str, Callable[[Words], list[Round]]] = {
    "few-shot select": few_shot_select,
    "chat": chat,
    "tree of thought": tree_of_thought,
    "retrieval": retrieval,
}
BY_PROGRAM = {
    "few-shot select": (8700, 104),
    "chat": (5876, 89),
    "tree of thought": (468, 52),
    "retrieval": (17560, 80),
}
"""Prompt tokens computed and snapshots taken where programs branch."""
BY_STRIDE = {
    "few-shot select": (83424, 4),
    "chat": (7600, 49),
    "tree of thought": (1326, 39),
    "retrieval": (20416, 111),
}
"""The same with a snapshot every 256 tokens of a prompt, and at the end of an output."""


@pytest.mark.parametrize("order", ["lpm", "dfs-weight", "fcfs"])
@pytest.mark.parametrize("step_tokens", [100, 512, 5000])
@pytest.mark.parametrize("name", WORKLOADS)
def test_prompt_tokens_and_snapshots_by_workload(name: str, step_tokens: int, order: str) -> None:
    bench = Bench(SnapshotPolicy(), step_tokens=step_tokens, policy=order)
    assert bench.play(WORKLOADS[name](Words())) == BY_PROGRAM[name]


@pytest.mark.parametrize("name", WORKLOADS)
def test_snapshots_at_fixed_strides_compute_more(name: str) -> None:
    assert Bench(EVERY_256).play(WORKLOADS[name](Words())) == BY_STRIDE[name]
    assert BY_STRIDE[name][0] > BY_PROGRAM[name][0]


@pytest.mark.parametrize("name", WORKLOADS)
def test_without_snapshots_everything_is_computed(name: str) -> None:
    rounds = WORKLOADS[name](Words())
    prompts = sum(len(call.prompt) for calls in rounds for call in calls)
    assert Bench(OFF).play(rounds) == (prompts, 0)


@pytest.mark.parametrize("name", WORKLOADS)
def test_with_few_slots_the_least_useful_snapshots_go_first(name: str) -> None:
    """A fifth of the snapshots fits; still far fewer tokens are computed than with strides."""
    bench = Bench(SnapshotPolicy(), states=20, max_running=16)
    computed, _ = bench.play(WORKLOADS[name](Words()))
    assert BY_PROGRAM[name][0] < computed < 1.25 * BY_STRIDE[name][0]
