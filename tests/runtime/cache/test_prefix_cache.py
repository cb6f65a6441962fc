"""Slots move between free, cached and held; each prefix in a table holds its own tokens' KV."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sgl_mlx.runtime.cache.holding import Holding
from sgl_mlx.runtime.cache.prefix_cache import PrefixCache
from sgl_mlx.runtime.cache.radix import PLAIN

Tokens = tuple[int, ...]

prompts = st.lists(st.integers(1, 3), min_size=1, max_size=10).map(tuple)


@dataclass
class User:
    """A request whose first `computed` tokens were written to its slots."""

    tokens: Tokens
    holding: Holding
    computed: int


class CacheMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.cache = PrefixCache(0)
        self.memory: dict[int, tuple[object, Tokens]] = {}
        self.users: list[User] = []

    @initialize(capacity=st.integers(0, 30), more=st.sampled_from([0, 0, 1, 7, 40]))
    def start(self, capacity: int, more: int) -> None:
        self.cache = PrefixCache(capacity, most=capacity + more)

    def user(self, data: st.DataObject) -> User:
        return self.users[data.draw(st.integers(0, len(self.users) - 1))]

    @rule(tokens=prompts, namespace=st.sampled_from([PLAIN, "image"]))
    def open(self, tokens: Tokens, namespace: object) -> None:
        holding = self.cache.open(tokens, namespace)
        self.users.append(User(tokens, holding, holding.shared))

    @precondition(lambda self: self.users)
    @rule(data=st.data(), count=st.integers(0, 10))
    def extend(self, data: st.DataObject, count: int) -> None:
        user = self.user(data)
        count = min(count, len(user.tokens) - len(user.holding.table))
        available, before = self.cache.available, list(user.holding.table)
        fits = self.cache.extend(user.holding, count)
        assert fits == (count <= available)
        assert len(user.holding.table) == len(before) + fits * count
        assert self.cache.available == available - fits * count

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        user = self.user(data)
        for i in range(user.computed, len(user.holding.table)):
            self.memory[user.holding.table[i]] = (user.holding.namespace, user.tokens[: i + 1])
        user.computed = len(user.holding.table)

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        user = self.user(data)
        length = data.draw(st.integers(user.holding.shared, user.computed))
        self.cache.share(user.holding, user.tokens[:length])
        assert user.holding.shared == length

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def trim(self, data: st.DataObject) -> None:
        user = self.user(data)
        length = data.draw(st.integers(user.holding.shared, len(user.holding.table)))
        self.cache.trim(user.holding, length)
        user.computed = min(user.computed, length)

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        user = self.user(data)
        self.cache.close(user.holding)
        self.users.remove(user)

    @rule()
    def flush(self) -> None:
        self.cache.flush()
        assert self.cache.tree.evictable == 0

    @invariant()
    def every_slot_is_in_one_place_and_holds_what_it_should(self) -> None:
        self.cache.check(user.holding for user in self.users)
        for user in self.users:
            for i, slot in enumerate(user.holding.table[: user.computed]):
                assert self.memory[slot] == (user.holding.namespace, user.tokens[: i + 1])

    def teardown(self) -> None:
        for user in self.users:
            self.cache.close(user.holding)
        self.cache.flush()
        assert self.cache.slots.free_count == self.cache.capacity


TestCache = CacheMachine.TestCase
# derandomize: CI runs the same steps each time, so that a failure is the change's own
TestCache.settings = settings(
    max_examples=60, stateful_step_count=50, deadline=None, derandomize=True
)


# -- the example of the paper's figure of RadixAttention ------------------------------------------

# pieces of prompts and replies; a letter is a token
SYSTEM = "ssss"
HELLO, STORY, POEM = "hhhh", "m" * 24, "p" * 8  # turns of the first chat
SOLVE, AGAIN = "vvvv", "wwww"  # turns of the second chat
EXAMPLES, QUESTIONS = "eeee", ("1111", "2222", "3333", "4444")
SAMPLES = {"xxxx", "yyyy", "zzzz"}


def call(cache: PrefixCache, text: str) -> str:
    """Compute a text and leave it in the cache; the part that was cached already."""
    tokens = tuple(map(ord, text))
    holding = cache.open(tokens)
    cached = text[: holding.shared]
    assert cache.extend(holding, len(tokens) - holding.shared)
    cache.share(holding, tokens)
    cache.close(holding)
    cache.check()
    return cached


def edges(cache: PrefixCache) -> set[str]:
    return {"".join(map(chr, node.tokens)) for node in cache.tree.nodes()}


def test_the_nine_steps_of_the_paper() -> None:
    """The figure that explains RadixAttention (arXiv 2312.07104), with its splits and evictions."""
    cache = PrefixCache(38)
    assert edges(cache) == set()  # (1) nothing is cached

    # (2) a first chat: system prompt, message and reply are one edge
    assert call(cache, SYSTEM + HELLO) == ""
    assert edges(cache) == {SYSTEM + HELLO}

    # (3) its second turn goes on where the first ended
    assert call(cache, SYSTEM + HELLO + STORY) == SYSTEM + HELLO
    assert edges(cache) == {SYSTEM + HELLO, STORY}

    # (4) a second chat: the edge is split, so that both share the system prompt
    assert call(cache, SYSTEM + SOLVE) == SYSTEM
    assert edges(cache) == {SYSTEM, HELLO, STORY, SOLVE}

    # (5) the second chat goes on; memory is short and the first chat's last turn goes
    assert call(cache, SYSTEM + SOLVE + AGAIN) == SYSTEM + SOLVE
    assert edges(cache) == {SYSTEM, HELLO, SOLVE, AGAIN}

    # (6) a few-shot query shares nothing: the root gets a second child
    assert call(cache, EXAMPLES + QUESTIONS[0]) == ""
    assert edges(cache) == {SYSTEM, HELLO, SOLVE, AGAIN, EXAMPLES + QUESTIONS[0]}

    # (7) more queries with the same examples: these become an edge of their own
    for question in QUESTIONS[1:]:
        assert call(cache, EXAMPLES + question) == EXAMPLES
    assert edges(cache) == {SYSTEM, HELLO, SOLVE, AGAIN, EXAMPLES, *QUESTIONS}

    # (8) the first chat is back: the second, least recently used, is evicted from its end up
    assert call(cache, SYSTEM + HELLO + POEM) == SYSTEM + HELLO
    assert edges(cache) == {SYSTEM, HELLO, POEM, EXAMPLES, *QUESTIONS}

    # (9) more samples for one of the questions: the other questions go
    for sample in sorted(SAMPLES):
        assert call(cache, EXAMPLES + QUESTIONS[1] + sample) == EXAMPLES + QUESTIONS[1]
    assert edges(cache) == {SYSTEM, HELLO, POEM, EXAMPLES, QUESTIONS[1], *SAMPLES}


def test_too_many_slots_leave_the_cache_as_it_was() -> None:
    cache = PrefixCache(8)
    call(cache, "abcdef")
    holding = cache.open(tuple(map(ord, "abcdef")))
    assert not cache.extend(holding, 3)
    assert edges(cache) == {"abcdef"}
    assert cache.available == 2
    cache.close(holding)


def test_tokens_computed_twice_keep_the_slots_of_the_first() -> None:
    cache = PrefixCache(8)
    tokens = (1, 2, 3)
    first, second = cache.open(tokens), cache.open(tokens)
    for holding in (first, second):
        cache.extend(holding, 3)
    slots = list(first.table)
    cache.share(first, tokens)
    cache.share(second, tokens)
    assert second.table == first.table == slots
    assert cache.slots.free_count == 5
