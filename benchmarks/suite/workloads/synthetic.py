"""Workloads that show a single effect: the cost of the radix tree, the gain of prefetching."""

from __future__ import annotations

from typing import Any

import sgl_mlx as sgl
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import (
    TEMPORARY_FOLDER,
    Client,
    Row,
    Size,
    Workload,
)

# -- overhead ---------------------------------------------------------------------------------


@sgl.function
def overhead(s: Any, shared: str, own: str, tokens: int) -> None:
    s += shared + own
    s += sgl.gen("answer", max_tokens=tokens)


def overhead_http(client: Client, shared: str, own: str, tokens: int) -> None:
    client.complete(shared + own, max_tokens=tokens)


def overhead_rows(words: Words, size: Size) -> list[Row]:
    """Return one row for each prompt; the prompts form subtrees of 8 branches each.

    Full size is 16 subtrees, as in the paper. Each prompt has 256 tokens that its whole subtree
    shares, and 256 tokens of its own.
    """
    return [
        {
            "shared": words.text(size.tokens(256), f"subtree {tree}") + "\n",
            "own": words.text(size.tokens(256), f"subtree {tree} branch {branch}") + "\n",
            "tokens": 1,
        }
        for branch in range(8)
        for tree in range(size.count(16, least=4))
    ]


# -- a nested program with a long prefix, out of the pool by the time it is called -------------

HANDBOOKS = 3


@sgl.function
def judge(s: Any, handbook: str, draft: str) -> None:
    s += f"{handbook}\nDraft: {draft}\nVerdict:"
    s += sgl.gen("verdict", max_tokens=1, temperature=0, token_healing=False)


@sgl.function
def write(s: Any, handbook: str, topic: str, tokens: int) -> None:
    s += f"Write two sentences about {topic}.\n"
    s += sgl.gen("draft", max_tokens=tokens)
    s += "\nVerdict:" + judge(handbook=handbook, draft=s["draft"])["verdict"]


def write_http(client: Client, handbook: str, topic: str, tokens: int) -> None:
    draft = client.complete(f"Write two sentences about {topic}.\n", max_tokens=tokens)
    client.complete(f"{handbook}\nDraft: {draft}\nVerdict:", max_tokens=1)


def write_rows(words: Words, size: Size) -> list[Row]:
    """Return rows that use all handbooks (long constant texts) in turn, twice.

    By its second use, a handbook has been evicted from the pool by the other handbooks.
    """
    return [
        {
            "handbook": words.text(size.tokens(4096), f"handbook {number}"),
            "topic": words.text(4, f"topic {number} {again}"),
            "tokens": size.tokens(64),
        }
        for again in range(2)
        for number in range(HANDBOOKS)
    ]


def small_pool(size: Size) -> dict[str, Any]:
    """Return engine options: a KV pool for one and a half handbooks, and a disk cache."""
    return {
        "max_total_tokens": size.tokens(4096) * 3 // 2 + 256,
        "disk_cache_dir": TEMPORARY_FOLDER,
    }


WORKLOADS = (
    Workload(
        "prefetch",
        "a nested program with a long prefix that has left the pool",
        write_rows,
        write.compile(),
        write_http,
        concurrency=1,
        engine=small_pool,
    ),
    Workload(
        "overhead",
        "subtrees of eight branches, one token each: what tree and scheduler cost",
        overhead_rows,
        overhead,
        overhead_http,
        concurrency=32,
    ),
)
