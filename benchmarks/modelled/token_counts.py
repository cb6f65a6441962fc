"""Exact token counts of a workload, without a model or a server.

The workload's HTTP version runs on a client that answers at once, with the output that the suite
makes every system write (`Words.steer`). From the prompts follow two counts: the fewest tokens that
must be computed (`Optimum`), for our engine, and the tokens that llama-server's slots compute.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

from sgl_mlx.benchmarks.modelled.llama_server_slots import Slots, rounds
from sgl_mlx.benchmarks.suite.optimum import Asked, Optimum
from sgl_mlx.benchmarks.suite.workloads.long_documents import CHARACTER_GBNF, FIELDS
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import IMAGE, Client, Row, Workload
from sgl_mlx.errors import BenchmarkError

IMAGE_TOKENS = 576
"""Tokens of a picture in LLaVA-1.5: 24 x 24 patches."""

_WORDS = 400


@dataclass(frozen=True)
class Call:
    """One call of a workload.

    Attributes:
        text: the prompt as text.
        asked: prompt and output in tokens.
        pictures: files of the pictures in the prompt.
        chosen: output tokens that no grammar forces.
    """

    text: str
    asked: Asked
    pictures: tuple[str, ...] = ()
    chosen: int = 0

    @property
    def decoded(self) -> int:
        """Output tokens that take a decode step: all but the first, which prefill gives."""
        return max(len(self.asked.output) - 1, 0)


@dataclass(frozen=True)
class Work:
    """Work of one system on a workload.

    Args:
        prefilled: tokens computed in prefill.
        decoded: tokens computed in decode steps.
        batch: sequences in a decode step.
        context: mean number of tokens whose keys a decode step reads for each sequence.
        encoded: number of pictures that are encoded.
    """

    prefilled: int
    decoded: int
    batch: int
    context: float = 0.0
    encoded: int = 0


@dataclass(frozen=True)
class Counts:
    """Token counts of a workload.

    Attributes:
        calls, prompt_tokens, output_tokens: counts that are the same on every system.
        ours: work of our engine.
        slots: work of llama-server.
    """

    calls: int
    prompt_tokens: int
    output_tokens: int
    ours: Work
    slots: Work


class OneTokenEach:
    """Tokenizer that makes a token of each word, number or run of signs with its leading space."""

    _PIECE = re.compile(r" ?(?:[A-Z][a-z]*|[a-z]+|\d+)| *[^\w\s]+|_|\s|.")

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._ids: dict[str, int] = {}
        self._lock = Lock()
        for number in range(_WORDS):
            self.token(" " + _word(number))

    @property
    def vocab_size(self) -> int:
        """Number of words that are known from the beginning."""
        return _WORDS

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        return [self.token(piece) for piece in self._PIECE.findall(text)]

    def decode(self, ids: Sequence[int], skip_special: bool = True, at_start: bool = True) -> str:
        return "".join(self._pieces[i] for i in ids)

    def token(self, piece: str) -> int:
        """Return the id of a piece of text, a new one if necessary. Safe from several threads."""
        known = self._ids.get(piece)
        if known is None:
            with self._lock:
                known = self._ids.setdefault(piece, len(self._pieces))
                if known == len(self._pieces):
                    self._pieces.append(piece)
        return known


class Counter:
    """A `Client` that answers at once, with the steered output, and records its calls."""

    def __init__(self, tokenizer: OneTokenEach, words: Words) -> None:
        self.calls: list[Call] = []
        self._tokenizer = tokenizer
        self._words = words

    def complete(
        self,
        prompt: str,
        max_tokens: int,
        stop: Sequence[str] = (),
        grammar: str | None = None,
        images: Sequence[str] = (),
    ) -> str:
        *_, spaced = self._words.steer(prompt)
        word = self._tokenizer.decode([spaced])
        text = word * max_tokens if grammar is None else _record(grammar, word[1:])
        output = tuple(self._tokenizer.encode(text))
        chosen = len(output) if grammar is None else sum(FIELDS.values())
        asked = Asked(tuple(self._tokens(prompt, images)), output)
        self.calls.append(Call(prompt, asked, tuple(images), chosen))
        return text

    def score(self, prompt: str, choices: Sequence[str]) -> None:
        for choice in choices:
            tokens = tuple(self._tokens(prompt + choice))
            self.calls.append(Call(prompt + choice, Asked(tokens, (), scored=True)))

    def _tokens(self, prompt: str, images: Sequence[str] = ()) -> Iterator[int]:
        first, *rest = prompt.split(IMAGE) if images else [prompt]
        yield from self._tokenizer.encode(first)
        for file, text in zip(images, rest, strict=True):
            yield from (self._tokenizer.token(f"{file} {patch}") for patch in range(IMAGE_TOKENS))
            yield from self._tokenizer.encode(text)


_: type[Client] = Counter


def vocabulary() -> tuple[OneTokenEach, Words]:
    """Return a tokenizer for counting, and the words of which workloads make their texts."""
    tokenizer = OneTokenEach()
    return tokenizer, Words(tokenizer)


def count(
    workload: Workload,
    rows: Sequence[Row],
    concurrency: int,
    tokenizer: OneTokenEach,
    words: Words,
) -> Counts:
    """Count calls and tokens of a workload, with `concurrency` programs at a time.

    Args:
        rows: arguments of the workload's programs.
        tokenizer, words: the objects from `vocabulary` with which `rows` were made.

    Raises:
        BenchmarkError: for a grammar other than that of `json_decode`.
    """
    programs = [_calls(workload, row, tokenizer, words) for row in rows]
    calls = [call for program in programs for call in program]
    optimum = Optimum.of(call.asked for call in calls)
    assert optimum is not None  # every call here is tokens
    batch = min(concurrency, len(programs))
    forced = sum(len(call.asked.output) - call.chosen for call in calls)
    decoded = sum(call.decoded for call in calls)
    context = sum(call.decoded * _middle(call) for call in calls) / max(decoded, 1)
    pictures = {picture for call in calls for picture in call.pictures}
    slots = _in_slots(programs, concurrency)
    return Counts(
        calls=len(calls),
        prompt_tokens=optimum.total,
        output_tokens=sum(len(call.asked.output) for call in calls),
        ours=Work(optimum.unique + forced, decoded - forced, batch, context, len(pictures)),
        slots=Work(slots[0], decoded, batch, context, slots[1]),
    )


def _calls(workload: Workload, row: Row, tokenizer: OneTokenEach, words: Words) -> list[Call]:
    """Return the calls of one program, from the shortest prompt to the longest."""
    client = Counter(tokenizer, words)
    workload.http(client, **row)
    return sorted(client.calls, key=lambda call: (len(call.asked.prompt), call.text))


def _in_slots(programs: Sequence[Sequence[Call]], concurrency: int) -> tuple[int, int]:
    """Count the prompt tokens that llama-server computes and the pictures that it encodes."""
    slots, tokens, pictures = Slots(concurrency), 0, 0
    for together in rounds(programs, concurrency):
        found = slots.cached([call.asked for call in together])
        for call, cached in zip(together, found, strict=True):
            tokens += len(call.asked.prompt) - cached
            # the text before a picture is far shorter: fewer cached tokens include no picture
            pictures += len(call.pictures) if cached < IMAGE_TOKENS else 0
    return tokens, pictures


def _middle(call: Call) -> float:
    return len(call.asked.prompt) + len(call.asked.output) / 2


def _record(grammar: str, word: str) -> str:
    """Return the JSON record that `grammar` allows, with `word` in each of its free places.

    Raises:
        BenchmarkError: the grammar is not the one of the workload `json_decode`.
    """
    if grammar != CHARACTER_GBNF:
        raise BenchmarkError("only the grammar of json_decode can be counted without a model")
    fields = ",\n".join(f'  "{name}": "{" ".join([word] * n)}"' for name, n in FIELDS.items())
    return f"{{\n{fields}\n}}"


def _word(number: int) -> str:
    """Return a different word of four letters for each number."""
    letters = (number // 26**place % 26 for place in range(4))
    return "".join(chr(ord("a") + letter) for letter in letters)
