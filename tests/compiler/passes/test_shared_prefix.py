from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.compiler.graph.graph import Graph
from sgl_mlx.compiler.graph.nodes import Call, Fork, GetForkItem
from sgl_mlx.compiler.graph.values import Argument, Constant, Variable, concat
from sgl_mlx.compiler.passes.shared_prefix import order_batch, shared_prefixes
from sgl_mlx.core import prompt_text
from sgl_mlx.lang.templates.chat_template import get_chat_template
from tests.compiler import nodes as make

Tokens = tuple[int, ...]
LONG = "You read reports of bridge inspections and answer with care and in full sentences. "


# -- prefixes -------------------------------------------------------------------------------------


def _prefixes(graph: Graph, min_length: int = 10) -> list[str]:
    prompts = shared_prefixes(graph, lambda: get_chat_template("chatml"), min_length)
    return [prompt_text(prompt) for prompt in prompts]


def test_roles_are_written_as_the_template_writes_them() -> None:
    turn = (
        make.role_begin(0, 0, "user"),
        make.text(1, 0, concat(LONG, Argument("x"))),
        make.role_end(2, 0, "user"),
    )
    assert _prefixes(Graph("chat", nodes=turn)) == ["<|im_start|>user\n" + LONG]


def test_nested_programs_and_branches_have_their_own() -> None:
    nodes = (
        make.text(0, 0, Constant(LONG)),
        make.gen(1, 0, Constant("tip")),
        Call(2, 1, "expand"),
        make.text(3, 1, concat("Please expand the tip: ", Variable(1, "tip"))),
        Fork(4, 1, (0, 0)),
        GetForkItem(5, 2, 4, 0),
    )
    assert _prefixes(Graph("tips", nodes=nodes)) == [LONG, "Please expand the tip: "]


def test_of_branches_only_the_longest_beginnings_are_kept() -> None:
    nodes = (
        make.text(0, 0, Constant(LONG)),
        Fork(1, 0, (0, 0, 0)),
        GetForkItem(2, 1, 1, 0),
        GetForkItem(3, 2, 1, 1),
        GetForkItem(4, 3, 1, 2),
        make.text(5, 1, Constant("Judge clarity.")),
        make.text(6, 2, Constant("Judge style.")),
        make.text(7, 3, Argument("other")),
    )
    graph = Graph("judge", nodes=nodes)
    assert _prefixes(graph) == [LONG + "Judge clarity.", LONG + "Judge style."]


def test_short_beginnings_are_not_worth_a_request() -> None:
    assert _prefixes(Graph("short", nodes=(make.text(0, 0, Constant("Hi.")),))) == []


# -- order ----------------------------------------------------------------------------------------


@dataclass
class LruTrie:
    """A radix cache of token prompts as a trie; the least recently used leaf goes first."""

    capacity: int
    used: dict[Tokens, int] = field(default_factory=dict)
    hits: int = 0
    asked: int = 0
    clock: int = 0

    def serve(self, prompt: Tokens) -> None:
        known = 0
        while known < len(prompt) and prompt[: known + 1] in self.used:
            known += 1
        self.hits += known
        self.asked += len(prompt)
        self.clock += 1
        self.used.update(dict.fromkeys((prompt[: n + 1] for n in range(len(prompt))), self.clock))
        inner = {path[:-1] for path in self.used}
        while len(self.used) > self.capacity:
            leaf = min((p for p in self.used if p not in inner), key=lambda p: self.used[p])
            while len(self.used) > self.capacity and leaf in self.used:
                if any(path[:-1] == leaf for path in self.used if len(path) == len(leaf) + 1):
                    break
                del self.used[leaf]
                leaf = leaf[:-1]
            inner = {path[:-1] for path in self.used}

    @property
    def rate(self) -> float:
        return self.hits / self.asked


def _rate(prompts: list[Tokens], capacity: int) -> float:
    cache = LruTrie(capacity)
    for prompt in prompts:
        cache.serve(prompt)
    return cache.rate


def _optimal(prompts: list[Tokens]) -> float:
    """Every edge of the prompts' tree is computed once; nothing can be better."""
    edges = {prompt[: n + 1] for prompt in prompts for n in range(len(prompt))}
    return 1 - len(edges) / sum(map(len, prompts))


def _batch(seed: int) -> list[Tokens]:
    """64 programs over 4 templates, each with 4 documents that 4 questions are asked about."""
    rng = random.Random(seed)
    tokens = iter(range(10**6))
    prompts = []
    for _ in range(4):
        template = [next(tokens) for _ in range(30)]
        for _ in range(4):
            document = [next(tokens) for _ in range(rng.randint(5, 30))]
            for _ in range(4):
                question = [next(tokens) for _ in range(rng.randint(2, 8))]
                prompts.append(tuple(template + document + question))
    rng.shuffle(prompts)
    return prompts


def test_a_batch_in_order_reaches_the_optimum_in_a_cache_that_is_too_small() -> None:
    prompts = _batch(seed=6)
    ordered = [prompts[i] for i in order_batch(prompts)]
    capacity = max(map(len, prompts))
    optimal, reached, unordered = (
        _optimal(prompts),
        _rate(ordered, capacity),
        _rate(prompts, capacity),
    )
    tokens = len({prompt[: n + 1] for prompt in prompts for n in range(len(prompt))})
    sys.stdout.write(
        f"\n64 programs, 4 templates, {tokens} distinct tokens, cache of {capacity}: hit rate "
        f"{reached:.1%} in order, {unordered:.1%} as given, {optimal:.1%} at best\n"
    )
    assert reached >= 0.99 * optimal
    assert unordered < 0.9 * optimal


PROMPTS = st.lists(st.lists(st.integers(0, 2), max_size=5).map(tuple), min_size=1, max_size=8)


@given(PROMPTS)
def test_any_batch_in_order_is_optimal_if_the_longest_prompt_fits(prompts: list[Tokens]) -> None:
    ordered = [prompts[i] for i in order_batch(prompts)]
    cache = LruTrie(max(1, *map(len, prompts)))
    for prompt in ordered:
        cache.serve(prompt)
    edges = {prompt[: n + 1] for prompt in prompts for n in range(len(prompt))}
    assert cache.asked - cache.hits == len(edges)


@given(PROMPTS)
def test_an_order_is_a_permutation_that_keeps_equal_prompts_in_theirs(
    prompts: list[Tokens],
) -> None:
    order = order_batch(prompts)
    assert sorted(order) == list(range(len(prompts)))
    for a, b in pairwise(order):
        assert prompts[a] != prompts[b] or a < b


def test_texts_are_ordered_as_tokens_are() -> None:
    assert order_batch(["b2", "a1", "b1", "a2"]) == [1, 3, 2, 0]
