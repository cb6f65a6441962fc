"""Questions about pictures, in LLaVA-Bench's shape: one to five questions a picture."""

from __future__ import annotations

from typing import Any

import sgl_mlx as sgl
from sgl_mlx.benchmarks.llava import question, spread, write_picture
from sgl_mlx.benchmarks.suite.words import Words
from sgl_mlx.benchmarks.suite.workload import IMAGE, Client, Row, Size, Workload

LEAD = "A chat about pictures. The assistant answers in detail.\nUSER: "


@sgl.function
def llava_bench(s: Any, picture: str, asked: str, tokens: int) -> None:
    s += LEAD + sgl.image(picture) + f"\n{asked}\nASSISTANT:"
    s += sgl.gen("answer", max_tokens=tokens)


def llava_bench_http(client: Client, picture: str, asked: str, tokens: int) -> None:
    prompt = f"{LEAD}{IMAGE}\n{asked}\nASSISTANT:"
    client.complete(prompt, max_tokens=tokens, images=[picture])


def llava_bench_rows(words: Words, size: Size) -> list[Row]:
    """24 pictures and 60 questions at full size; the pictures are files in `size.folder`."""
    pictures = size.count(24, least=3)
    files = [str(write_picture(size.folder, number)) for number in range(pictures)]
    return [
        {"picture": files[i], "asked": question(number), "tokens": size.tokens(128)}
        for number, i in enumerate(spread(pictures, pictures * 5 // 2))
    ]


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
