"""Workload of questions about pictures, one to five per picture, as in LLaVA-Bench."""

from __future__ import annotations

from typing import Any

import sgl_mlx as sgl
from sgl_mlx.benchmarks.micro.llava import questions
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import IMAGE, Client, Row, Size, Workload
from sgl_mlx.core import Image, Text


@sgl.function
def llava_bench(s: Any, lead: str, picture: str, asked: str, tokens: int) -> None:
    s += lead + sgl.image(picture) + asked
    s += sgl.gen("answer", max_tokens=tokens)


def llava_bench_http(client: Client, lead: str, picture: str, asked: str, tokens: int) -> None:
    client.complete(f"{lead}{IMAGE}{asked}", max_tokens=tokens, images=[picture])


def llava_bench_rows(words: Words, size: Size) -> list[Row]:
    """Return one row for each question, and write the pictures into `size.folder`.

    At full size there are 24 pictures with 60 questions.
    """
    rows: list[Row] = []
    for lead, picture, asked in questions(size.folder, size.count(24, least=3)):
        assert isinstance(lead, Text)
        assert isinstance(picture, Image)
        assert isinstance(asked, Text)
        file = str(picture.source)
        tokens = size.tokens(128)
        rows.append({"lead": lead.text, "picture": file, "asked": asked.text, "tokens": tokens})
    return rows


WORKLOADS = (
    Workload(
        "llava_bench",
        "one to five questions about each picture",
        llava_bench_rows,
        llava_bench,
        llava_bench_http,
        concurrency=8,
        needs=frozenset({"images"}),
    ),
)
