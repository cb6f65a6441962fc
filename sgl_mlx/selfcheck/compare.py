"""Comparison of a program's answers with those of the same program computed alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sgl_mlx.core import Completion, Logprobs, TokenLogprob
from sgl_mlx.selfcheck.recording import Answer, Request


class Judge(Protocol):
    """Judge of differing tokens; see `ties.Ties`."""

    tolerance: float

    def is_tie(
        self, request: Request, sample: int, output: tuple[int, ...], rivals: set[int]
    ) -> bool: ...


@dataclass(frozen=True)
class Difference:
    """A request that was answered in two ways.

    Attributes:
        what: the part of the answers that differs.
        alone: this part of the answer computed alone.
        found: this part of the other answer.
    """

    request: Request
    what: str
    alone: object
    found: object

    def __str__(self) -> str:
        return f"{self.what} of {self.request}:\n  alone: {self.alone}\n  found: {self.found}"


@dataclass
class Comparison:
    """Counts of compared answers.

    Attributes:
        answers: answers compared, each sample and each select counted once.
        ties: answers that differ from a near-tie on, a place where rounding decides the token.
        after_ties: answers that could not be compared, because a near-tie led to other prompts.
        differences: answers that differ.
    """

    answers: int = 0
    ties: int = 0
    after_ties: int = 0
    differences: list[Difference] = field(default_factory=list)


LOGPROB_FACTOR = 20
"""A logprob may differ by this many times the tolerance of a logit: it sums up many roundings, and
the tokens before it were computed with roundings too."""


def compare(alone: Iterable[Answer], found: Sequence[Answer], judge: Judge) -> Comparison:
    """Compare all answers of a program with those of the program run alone.

    Requests are matched by their content. Where a near-tie gave another text, later prompts differ,
    and their answers are counted but not compared.
    """
    known: dict[Request, Answer] = {}
    for answer in alone:
        known.setdefault(answer.request, answer)
    result, unknown = Comparison(), list[Answer]()
    for answer in found:
        if answer.pieces is not None:
            result.differences.append(Difference(answer.request, "streamed pieces", *answer.pieces))
        elif answer.request in known:
            _Compared(known[answer.request], answer, judge, result).run()
        else:
            unknown.append(answer)
    if result.ties:
        result.after_ties += len(unknown)
    elif unknown and not result.differences:
        prompts = [request.prompt for request in known]
        what = "prompt"
        result.differences.append(Difference(unknown[0].request, what, prompts[-1:], "not asked"))
    missing = known.keys() - {answer.request for answer in found}
    if missing and not (result.ties or result.differences):
        result.differences.append(Difference(missing.pop(), "answer", "an answer", "no answer"))
    return result


class _Compared:
    """Two answers of one request."""

    def __init__(self, alone: Answer, found: Answer, judge: Judge, result: Comparison) -> None:
        self._alone, self._found, self._judge, self._result = alone, found, judge, result

    def run(self) -> None:
        alone, found = self._alone, self._found
        if alone.error or found.error:
            self._result.answers += 1
            self._same("error", alone.error, found.error)
        elif alone.scores is not None or found.scores is not None:
            self._result.answers += 1
            self._scores()
        else:
            for i, (one, other) in enumerate(zip(alone.samples, found.samples, strict=True)):
                self._result.answers += 1
                self._sample(i, one, other)
            for one, other in zip(found.streamed, found.samples, strict=False):
                self._whole("the stream's ", other, one)

    def _sample(self, number: int, one: Completion, other: Completion) -> None:
        if one.token_ids == other.token_ids:
            self._whole("", one, other)
            return
        pairs = enumerate(zip(one.token_ids, other.token_ids, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), None)
        if at is not None:
            rivals = {one.token_ids[at], other.token_ids[at]}
            request = self._found.request
            if self._judge.is_tie(request, number, one.token_ids[:at], rivals):
                self._result.ties += 1
                return
        self._differ(f"tokens of sample {number}", list(one.token_ids), list(other.token_ids))

    def _whole(self, whose: str, one: Completion, other: Completion) -> bool:
        return (
            self._same(f"{whose}tokens", one.token_ids, other.token_ids)
            and self._same(f"{whose}text", one.text, other.text)
            and self._same(f"{whose}finish reason", one.finish_reason, other.finish_reason)
            and self._same(f"{whose}prompt tokens", one.prompt_tokens, other.prompt_tokens)
            and self._logprobs(whose, one.logprobs, other.logprobs)
        )

    def _logprobs(self, whose: str, one: Logprobs | None, other: Logprobs | None) -> bool:
        if one is None or other is None:
            return self._same(f"{whose}logprobs", one, other)
        rows = [(one.input, other.input), (one.output, other.output)]
        tops = [
            *zip(one.input_top, other.input_top, strict=False),
            *zip(one.output_top, other.output_top, strict=False),
        ]
        return (
            all(self._near(f"{whose}logprobs", a, b) for a, b in rows)
            and all(self._near(f"{whose}top logprobs", a, b, ids=False) for a, b in tops)
            and self._same(f"{whose}top logprobs", *(_sizes(x) for x in (one, other)))
        )

    def _scores(self) -> None:
        one, other = self._alone.scores, self._found.scores
        if one is None or other is None:
            self._differ("scores", one, other)
            return
        for a, b in zip(one.choices, other.choices, strict=True):
            self._near("scores", a.tokens, b.tokens)
            self._near("unconditional scores", a.unconditional or (), b.unconditional or ())

    def _near(
        self,
        what: str,
        one: Sequence[TokenLogprob],
        other: Sequence[TokenLogprob],
        ids: bool = True,
    ) -> bool:
        """Return True if logprobs (with `ids`, tokens too) agree; else record a difference."""
        most = self._judge.tolerance * LOGPROB_FACTOR
        same = len(one) == len(other) and all(
            (not ids or a.token_id == b.token_id) and _apart(a.logprob, b.logprob) <= most
            for a, b in zip(one, other, strict=False)
        )
        return same or self._differ(what, _numbers(one), _numbers(other))

    def _same(self, what: str, one: object, other: object) -> bool:
        return one == other or self._differ(what, one, other)

    def _differ(self, what: str, one: object, other: object) -> bool:
        self._result.differences.append(Difference(self._found.request, what, one, other))
        return False


def _apart(a: float | None, b: float | None) -> float:
    if a is None or b is None:
        return 0.0 if a is b else float("inf")
    return 0.0 if a == b else abs(a - b)


def _numbers(row: Sequence[TokenLogprob]) -> list[tuple[float | None, int]]:
    return [(t.logprob, t.token_id) for t in row]


def _sizes(logprobs: Logprobs) -> tuple[list[int], list[int]]:
    return [*map(len, logprobs.input_top)], [*map(len, logprobs.output_top)]
