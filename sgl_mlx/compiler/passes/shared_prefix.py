"""Prompt prefixes that all runs of a program share, and the best order for a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sgl_mlx.compiler.graph.graph import Graph
from sgl_mlx.compiler.graph.nodes import Append, Node
from sgl_mlx.compiler.passes.opening import constant_opening, constant_text
from sgl_mlx.core import Prompt, prompt_text
from sgl_mlx.lang import ir
from sgl_mlx.lang.templates.turns import TurnWriter
from sgl_mlx.lang.transcript import Transcript


def shared_prefixes(
    graph: Graph, writer: Callable[[], TurnWriter], min_length: int = 64
) -> list[Prompt]:
    """Return the prompts to prefill before a batch: the constant beginning of each stream.

    Branches and nested programs are streams, too.

    Args:
        writer: makes a writer of turns; called only if the graph has roles.
        min_length: the least length of a prompt, in characters; a shorter prompt is not worth a
            request of its own.

    Returns:
        The prompts, in the order in which their streams begin. No prompt is a prefix of another.
    """
    openings = (constant_opening(graph, stream) for stream in graph.streams)
    prompts = list(dict.fromkeys(written_prompt(nodes, writer) for nodes in openings if nodes))
    texts = [prompt_text(prompt) for prompt in prompts]
    return [
        prompt
        for prompt, text in zip(prompts, texts, strict=True)
        if len(text) >= min_length
        and not any(other != text and other.startswith(text) for other in texts)
    ]


def written_prompt(nodes: Sequence[Node], writer: Callable[[], TurnWriter]) -> Prompt:
    """Return the prompt that the constant texts and roles among some nodes write."""
    transcript = Transcript(writer)
    for node in nodes:
        expr = node.expr if isinstance(node, Append) else None
        if isinstance(expr, ir.RoleBegin):
            transcript.begin(expr.role)
        elif isinstance(expr, ir.RoleEnd):
            transcript.end()
        elif isinstance(expr, ir.Text):
            transcript.append(constant_text((node,)))
    return transcript.prompt()


def order_batch(prompts: Sequence[str] | Sequence[tuple[int, ...]]) -> list[int]:
    """Return the positions of the prompts in an order that computes each shared prefix only once.

    The order is a depth-first walk of the prefix tree of the prompts. It is optimal for every LRU
    cache that holds the longest prompt (SGLang, arXiv 2312.07104 v2, theorem 3.1). Sorting the
    prompts gives such a walk; equal prompts keep their order.

    Args:
        prompts: texts, or token ids.
    """
    return sorted(range(len(prompts)), key=lambda i: prompts[i])
