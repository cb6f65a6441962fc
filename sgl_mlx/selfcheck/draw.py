"""Random programs, drawn from the words of the language."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sgl_mlx.core import Image, Text
from sgl_mlx.errors import SglError
from sgl_mlx.lang.backend import Backend
from sgl_mlx.selfcheck.statements import (
    BY_KV,
    BY_VARIABLE,
    Ask,
    Body,
    Choose,
    Fork,
    Program,
    Say,
    Show,
    Statement,
    Turn,
    noise,
)

_WORDS = (
    *("the", "cat", "red", "green", "12", "abc", "snow", "rain"),
    *("name", "Q:", "A:", "one", "two", "three", "river", "stone,", "said.", "and"),
)
_DOCUMENTS = 3
_DOCUMENT_TOKENS = 200
"""Tokens of a long text: enough for the disk cache to find it worth reading."""


@dataclass(frozen=True)
class Abilities:
    """The parts of the language that a model can take, and how large its programs may be.

    Attributes:
        joins: branches can be joined by keys and values, and positions skipped.
        chat: the model has a chat template.
        pictures: the model takes pictures.
        vocabulary: number of tokens, from which stop tokens and biases are drawn.
        document: number of characters of a long text.
        answers: most answers that a program asks for.
        new: most tokens of an answer.
    """

    joins: bool = True
    chat: bool = False
    pictures: bool = False
    vocabulary: int = 200
    document: int = 200
    answers: int = 3
    new: int = 8

    @classmethod
    def of(cls, engine: Any, answers: int = 3, new: int = 8) -> Abilities:
        """Return the abilities of an engine's model."""
        tokenizer = engine.tokenizer
        text = _document(0, 2000)
        tokens = len(tokenizer.encode(text))
        return cls(
            joins=engine.supports_parallel,
            chat=_renders(engine),
            pictures=_sees(engine),
            vocabulary=tokenizer.vocab_size,
            document=len(text) * _DOCUMENT_TOKENS // tokens,
            answers=answers,
            new=new,
        )


def _renders(backend: Backend) -> bool:
    try:
        return bool(backend.render_chat([{"role": "user", "content": "Hello"}]))
    except SglError:
        return False


def _sees(backend: Backend) -> bool:
    try:
        backend.prefill((Text("a"), Image(noise(0)))).result()
    except SglError:
        return False
    return True


def draw(seed: object, able: Abilities) -> Program:
    """Draw a program; the same seed and abilities give the same program."""
    return _Drawing(random.Random(repr(seed)), able).program()


def draw_texts(r: random.Random) -> str:
    """Draw a short text; texts of several draws often begin alike."""
    phrase = " ".join(r.choice(_WORDS[:8]) for _ in range(r.randint(1, 5)))
    if r.random() < 0.3:
        phrase = f"{phrase} {phrase} {phrase[: len(phrase) // 2]}"
    return phrase


def _document(number: int, length: int) -> str:
    r = random.Random(number)
    words = [r.choice(_WORDS) for _ in range(length)]
    return " ".join(words)[:length]


class _Drawing:
    def __init__(self, r: random.Random, able: Abilities) -> None:
        self._r = r
        self._able = able
        self._names = 0
        self._left = r.randint(1, able.answers)
        """Number of answers that may still be asked for."""

    def program(self) -> Program:
        r = self._r
        opening: list[Statement] = []
        if r.random() < 0.15:
            opening.append(Say(_document(r.randrange(_DOCUMENTS), self._able.document)))
        chats = self._able.chat and r.random() < 0.3
        body = self._chat() if chats else self._body(2)
        return Program((*opening, *body), self._settings())

    # -- statements ---------------------------------------------------------------------------

    def _body(self, depth: int) -> Body:
        r, body = self._r, list[Statement]()
        for _ in range(r.randint(1, 3)):
            body += self._said()
            if self._left <= 0:
                break
            kind = r.random()
            if depth and kind < 0.3:
                body.append(self._fork(depth - 1))
            elif kind < 0.45:
                body.append(self._choose())
            else:
                body.append(self._ask())
        return tuple(body)

    def _chat(self) -> Body:
        r, turns = self._r, list[Statement]()
        if r.random() < 0.5:
            turns.append(Turn("system", (Say(self._text()),)))
        for _ in range(r.randint(1, 2)):
            turns.append(Turn("user", tuple(self._said())))
            answer: list[Statement] = [Say(self._text())] if r.random() < 0.2 else []
            turns.append(Turn("assistant", (*answer, self._ask())))
        return tuple(turns)

    def _said(self) -> list[Statement]:
        said: list[Statement] = [Say(self._text())]
        if self._able.pictures and self._r.random() < 0.3:
            said += [Show(self._r.randrange(4)), Say(self._text())]
        return said

    def _text(self) -> str:
        return draw_texts(self._r) + self._r.choice(["", "", " ", "\n"])

    def _fork(self, depth: int) -> Fork:
        r = self._r
        count = r.randint(2, 3)
        branches = tuple(self._body(depth) for _ in range(count))
        if not self._able.joins or r.random() < 0.5:
            return Fork(branches, r.choice([None, BY_VARIABLE]))
        gaps = tuple(r.choice([0, 0, 3]) for _ in range(count)) if r.random() < 0.2 else ()
        return Fork(branches, BY_KV, gaps)

    def _choose(self) -> Choose:
        self._left -= 1
        methods = ["token_length_normalized", "greedy_token_selection"]
        method = self._r.choice([*methods, "unconditional_likelihood_normalized"])
        offered = self._r.sample(["yes", "no", "red", "green 12", "the cat", "abc"], 2)
        return Choose(self._name(), tuple(offered), method)

    def _ask(self) -> Ask:
        self._left -= 1
        r, new = self._r, self._r.randint(1, self._able.new)
        sampling: dict[str, Any] = {"max_tokens": new, "temperature": r.choice([0, 0, 0.7, 1.0])}
        for change in r.sample(self._changes(new), r.randint(0, 3)):
            sampling |= change()
        if r.random() < 0.2:
            sampling |= r.choice(_CONSTRAINTS)
        return Ask(self._name(), sampling)

    def _changes(self, new: int) -> list[Callable[[], dict[str, Any]]]:
        r, able = self._r, self._able
        return [
            lambda: {"top_p": 0.8},
            lambda: {"top_k": r.choice([1, 5, 40])},
            lambda: {"min_p": 0.05},
            lambda: {"frequency_penalty": 0.7, "presence_penalty": 0.3},
            lambda: {"stop": [r.choice("abcdefgh"), "th"]},
            lambda: {
                "stop_token_ids": [r.randrange(3, able.vocabulary)],
                "min_tokens": new // 2,
            },
            lambda: {"stop_regex": "[aeiou]{2}"},
            lambda: {"ignore_eos": True},
            lambda: {"return_logprob": True, "top_logprobs_num": r.choice([0, 2])},
            lambda: {"return_logprob": True},
            lambda: {"return_logprob": True, "logprob_start_len": 0},
            lambda: {"token_healing": r.random() < 0.5},
            lambda: {"n": r.randint(2, 3)},
        ]

    def _settings(self) -> dict[str, Any]:
        r = self._r
        settings: dict[str, Any] = {"seed": r.randrange(1000)}
        if r.random() < 0.1:
            settings["repetition_penalty"] = 1.3
        if r.random() < 0.1:
            settings["logit_bias"] = {r.randrange(3, self._able.vocabulary): 3.0}
        if r.random() < 0.1:
            settings["no_stop_trim"] = True
        if r.random() < 0.1:
            settings["skip_special_tokens"] = False
        return settings

    def _name(self) -> str:
        self._names += 1
        return f"v{self._names}"


_CONSTRAINTS: tuple[dict[str, Any], ...] = (
    {"regex": "(abc|abd|[x-z]{3,9}) end(ing)?s?"},
    {"regex": r"\d{3}-\d{4}( and \d+)*"},
    {"json_schema": '{"type":"object","properties":{"name":{"type":"string"}}}'},
    {"json_schema": '{"type":"array","items":{"type":"integer"}}'},
    {"grammar": 'start: "yes" | "no" | /[a-c]+/ ("," /[0-9]/)+'},
    {"dtype": "int"},
    {"dtype": "bool"},
)
