"""Workloads of long documents and structured answers.

`json_decode` writes JSON, half of which the grammar forces. `long_doc_json` extracts four fields
from a long document in one growing prompt. `multi_doc_qa` prefills several documents in parallel
and then answers a question.
"""

from __future__ import annotations

from typing import Any

import sgl_mlx as sgl
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import Client, Row, Size, Workload

# -- JSON by regex ----------------------------------------------------------------------------

FIELDS = {
    "name": 4,
    "house": 2,
    "blood_status": 2,
    "occupation": 3,
    "wand_wood": 2,
    "wand_core": 3,
    "wand_length": 2,
    "alive": 1,
    "patronus": 2,
    "boggart": 3,
    "friend": 2,
    "rival": 2,
}
"""Fields of the JSON record of a character, with the number of words of each."""

CHARACTER = (
    r"\{\n"
    + r",\n".join(
        rf'  "{name}": "[a-z]{{4}}( [a-z]{{4}}){{{words - 1}}}"' for name, words in FIELDS.items()
    )
    + r"\n\}"
)
"""Regular expression of a record with `FIELDS`."""

CHARACTER_GBNF = (
    'root ::= "{\\n" '
    + ' ",\\n" '.join(
        f'"  \\"{name}\\": \\"" word' + ' " " word' * (words - 1) + ' "\\""'
        for name, words in FIELDS.items()
    )
    + ' "\\n}"\nword ::= [a-z] [a-z] [a-z] [a-z]\n'
)
"""Grammar of a record with `FIELDS`, in llama.cpp's notation (GBNF)."""

CHARACTER_TOKENS = 256


@sgl.function
def json_decode(s: Any, name: str) -> None:
    s += f"{name} is a character. Please fill in what is known about {name}.\n"
    s += sgl.gen("character", max_tokens=CHARACTER_TOKENS, regex=CHARACTER)


def json_decode_http(client: Client, name: str) -> None:
    prompt = f"{name} is a character. Please fill in what is known about {name}.\n"
    client.complete(prompt, max_tokens=CHARACTER_TOKENS, grammar=CHARACTER_GBNF)


def json_decode_rows(words: Words, size: Size) -> list[Row]:
    return [{"name": words.text(2, f"character {i}")} for i in range(size.count(50, least=8))]


# -- fields of a long document ----------------------------------------------------------------

CITY_FIELDS = {"name": 8, "country": 8, "air port code": 8, "top 3 landmarks": 24}
"""Fields that are extracted, with the tokens generated for each."""


@sgl.function
def long_doc_json(s: Any, document: str) -> None:
    s += f"Please extract the information about a city from this page.\n{document}\n{{\n"
    for field, tokens in CITY_FIELDS.items():
        s += f'  "{field}": "'
        s += sgl.gen(field, max_tokens=tokens, stop='"') + '",\n'


def long_doc_json_http(client: Client, document: str) -> None:
    prompt = f"Please extract the information about a city from this page.\n{document}\n{{\n"
    for field, tokens in CITY_FIELDS.items():
        prompt += f'  "{field}": "'
        prompt += client.complete(prompt, max_tokens=tokens, stop=['"']) + '",\n'


def long_doc_json_rows(words: Words, size: Size) -> list[Row]:
    # the paper's 10,000 tokens do not fit into every model's context
    return [{"document": words.text(size.tokens(7000), f"city {i}")} for i in range(size.count(5))]


# -- several documents side by side -----------------------------------------------------------


@sgl.function
def multi_doc_qa(s: Any, question: str, documents: list[str]) -> None:
    s += f"Question: {question}\nRead these documents.\n"
    forks = s.fork(len(documents))
    forks += [f"Document: {document}\n" for document in documents]
    forks.join("concate_and_append")
    s += f"Question: {question}\nAnswer:"
    s += sgl.gen("answer", max_tokens=16)


def multi_doc_qa_http(client: Client, question: str, documents: list[str]) -> None:
    prompt = f"Question: {question}\nRead these documents.\n"
    prompt += "".join(f"Document: {document}\n" for document in documents)
    client.complete(f"{prompt}Question: {question}\nAnswer:", max_tokens=16)


def multi_doc_qa_rows(words: Words, size: Size) -> list[Row]:
    documents = [words.text(size.tokens(700), f"document {i}") for i in range(10)]
    return [
        {"question": words.text(size.tokens(20), f"documents {i}"), "documents": documents}
        for i in range(size.count(10))
    ]


WORKLOADS = (
    Workload(
        "json_decode",
        "a record of twelve fields by grammar, half of it forced",
        json_decode_rows,
        json_decode,
        json_decode_http,
        needs=frozenset({"grammar"}),
    ),
    Workload(
        "long_doc_json",
        "four fields of a long document, one after another",
        long_doc_json_rows,
        long_doc_json,
        long_doc_json_http,
        concurrency=1,
    ),
    Workload(
        "multi_doc_qa",
        "ten documents read side by side, then a question",
        multi_doc_qa_rows,
        multi_doc_qa,
        multi_doc_qa_http,
        concurrency=1,
    ),
)
