"""Speculation in the scheduler: the choice of drafts that the next step verifies."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import NamedTuple, Protocol

from sgl_mlx.runtime.cache.prefix_cache import PrefixCache
from sgl_mlx.runtime.scheduler.admission import Counters, Share
from sgl_mlx.runtime.scheduler.plan import Extend, StepResult
from sgl_mlx.runtime.scheduler.sequence import Sequence
from sgl_mlx.runtime.speculation.acceptance import Acceptance
from sgl_mlx.runtime.speculation.costs import Costs
from sgl_mlx.runtime.speculation.drafter import Drafter, Proposal
from sgl_mlx.runtime.speculation.masks import walk
from sgl_mlx.runtime.speculation.pace import Pace
from sgl_mlx.runtime.speculation.policy import Guess, Step, lengths, model_length

_LONGEST = 16
"""Most drafted tokens of one sequence in a step."""
_LONGEST_TOGETHER = 64
"""Most drafted tokens of a step: each needs a row of logits."""


Draft = tuple[int, ...]
"""Drafted tokens of one sequence."""


class Drafts(Protocol):
    """The interface of a draft model: `model.ModelDrafter`, or `mtp.MtpDrafter`.

    Attributes:
        costs: costs of its steps.
        source: source of its proposals; see `Proposal.source`.
        cheap: True if its guesses cost little. Then it also guesses for a sequence that has a guess
            from the text or the tree, if its own is likelier to be accepted.
    """

    costs: Costs
    source: str
    cheap: bool

    def draft(self, sequences: Rows[Sequence], count: int) -> dict[str, Proposal]:
        """Guess up to `count` tokens after each sequence; return the proposals by sequence id."""
        ...

    def flush(self) -> None:
        """Forget all prefixes that the draft model has computed."""
        ...


class Speculation(NamedTuple):
    """The ways of an engine to draft, and how long its steps take.

    Attributes:
        drafters: asked in order; of two equally likely guesses the first is taken.
        costs: seconds of the engine's steps, from which draft lengths follow.
        model: the draft model, or the model's own MTP head. It guesses for sequences for which no
            drafter has a guess (see also `Drafts.cheap`), if that promises more tokens per second.
            None for neither.
        pace: corrects the costs by the steps of the running engine; None leaves the costs as they
            are.
    """

    drafters: tuple[Drafter, ...]
    costs: Costs
    model: Drafts | None = None
    pace: Pace | None = None


class Speculator:
    """The part of the scheduler that drafts; it keeps count of which drafts were accepted."""

    def __init__(self, speculation: Speculation, cache: PrefixCache, counters: Counters) -> None:
        self._drafters, self._costs, self._model, self._pace = speculation
        self._cache, self._counters = cache, counters
        self._acceptance = Acceptance()
        self._extends: list[float] = []  # seconds of an `Extend`, by its tokens
        self._sources: dict[str, str] = {}  # sources of the drafts being verified, by sequence id
        # by sequence id: `len(s.tokens)` when the masks were made, and the masks
        self._masks: dict[str, tuple[int, list[bytes | None]]] = {}

    def drafts(self, rows: Rows[Sequence], step_tokens: int) -> dict[str, Draft]:
        """Choose the drafts to verify in the next step, by sequence id; {} if none would pay.

        Args:
            rows: the running sequences.
            step_tokens: most tokens of a step.
        """
        ids = frozenset(s.id for s in rows)
        if self._pace is not None:
            self._pace.observe(ids)
        chosen = self._choose(rows, step_tokens)
        if self._pace is not None:
            self._pace.begin(ids, self._costs.of_decode(len(rows)))
        return chosen

    def _choose(self, rows: Rows[Sequence], step_tokens: int) -> dict[str, Draft]:
        self._sources.clear()
        self._masks.clear()
        decoding = [s for s in rows if not s.prefilling]
        plain = self._plain_step(rows, len(decoding), step_tokens)
        slots = self._cache.available - sum(s.pending for s in rows)
        most = min(_LONGEST_TOGETHER, slots, step_tokens - plain.tokens, _LONGEST * len(decoding))
        seconds = self._extend_seconds(plain.tokens, max(most, 0) + 1)
        if not _could_pay(plain, seconds):
            return {}
        proposals = {s.id: p for s in decoding if (p := self._propose(s)) is not None}
        if self._model is not None:
            lacking = [s for s in decoding if self._lacks(self._model, s, proposals.get(s.id))]
            proposals |= self._from_model(self._model, lacking, plain, seconds)
        guesses = {
            name: Guess(len(p.tokens), self._likelihood(name, p)) for name, p in proposals.items()
        }
        chosen = lengths(guesses, plain, seconds)
        for name, proposal in proposals.items():
            if name in chosen:
                self._sources[name] = proposal.source
            else:
                self._acceptance.idle(name, proposal.source)
        return {name: proposals[name].tokens[:length] for name, length in chosen.items()}

    def begin(self, share: Share) -> Share:
        """Return a sequence's share of a step, without its draft if no state slot is free for it.

        Only models with recurrent layers need such a slot. Slots reserved for drafted tokens that
        the share does not hold are freed.
        """
        s = share.sequence
        assert s.holding is not None
        if share.drafted and not self._cache.draft(s.holding):
            share = share.cut(share.count)
        self._cache.trim(s.holding, min(len(s.tokens) + len(share.drafted), len(s.table)))
        return share

    def verified(self, plan: Extend, result: StepResult, sequences: Rows[Sequence]) -> None:
        """Apply the result of a step's drafts, after its tokens were appended.

        Args:
            sequences: the running sequences, and the sequences that have ended in this step.
        """
        drafted = {row.id: row for row in plan.rows if row.drafted}
        if self._pace is not None:
            tokens = sum(len(row.tokens) for row in plan.rows)
            self._pace.extends(self._costs.of_extend(tokens) if drafted else None)
        for s in sequences:
            if s.id in drafted and s.holding is not None:
                row = drafted[s.id]
                start = row.position - s.base.origin
                if s.computed > start:
                    self._verified(s, start, row.drafted, len(result.tokens[s.id]) - 1)
                else:  # aborted before the step
                    self._cache.verified(s.holding, whole=False)
                self._cache.trim(s.holding, min(len(s.tokens), len(s.table)))

    def failed(self, sequences: Rows[Sequence]) -> None:
        """Forget the drafts of a step that failed; no state was written."""
        for s in sequences:
            if s.holding is not None:
                self._cache.verified(s.holding, whole=False)

    def _verified(self, s: Sequence, start: int, drafted: int, accepted: int) -> None:
        """Count one draft, and keep the KV of accepted tokens.

        With recurrent layers, a draft that is not accepted whole undoes its step: the last state
        that is right is that after `start` tokens, before the step.
        """
        kept = min(accepted, len(s.tokens) - s.computed)
        s.computed += kept
        s.drafted_tokens += drafted
        s.accepted_tokens += accepted
        self._counters.decode_tokens += kept
        self._counters.drafted_tokens += drafted
        self._counters.accepted_tokens += accepted
        self._acceptance.learn(s.id, self._sources.pop(s.id), drafted, accepted)
        assert s.holding is not None
        if not self._cache.verified(s.holding, whole=kept == drafted):
            self._undo(s, start)

    def _undo(self, s: Sequence, start: int) -> None:
        """Take back the tokens computed after `start`; they count when they are computed again."""
        in_prompt = max(s.prompt_length - start, 0)
        self._counters.computed_tokens -= in_prompt
        self._counters.decode_tokens -= s.computed - start - in_prompt
        s.computed = start

    def ended(self, s: Sequence) -> None:
        """Forget a sequence that has ended; its output may serve as a source of guesses."""
        self._acceptance.forget(s.id)
        for drafter in self._drafters:
            drafter.ended(s)

    def flush(self) -> None:
        """Forget the outputs of ended sequences."""
        for drafter in self._drafters:
            drafter.flush()
        if self._model is not None:
            self._model.flush()

    def masks(self, s: Sequence) -> list[bytes | None]:
        """Return what a sequence's constraint allows after 0, 1, 2 … tokens of its draft.

        None stands for every token. The list is empty if nothing is drafted after `s.tokens`.
        """
        length, masks = self._masks.get(s.id, (0, []))
        return masks if length == len(s.tokens) else []

    def _plain_step(self, rows: Rows[Sequence], decoding: int, step_tokens: int) -> Step:
        """Describe the step that would run without drafts."""
        if decoding == len(rows):
            factor = self._pace.decode if self._pace is not None else 1.0
            return Step(decoding, decoding, factor * self._costs.of_decode(decoding))
        tokens = min(sum(s.pending for s in rows), step_tokens)
        return Step(decoding, tokens, *self._extend_seconds(tokens, 1))

    def _extend_seconds(self, tokens: int, count: int) -> list[float]:
        """List the seconds of an `Extend`, for `count` sizes: `tokens`, `tokens + 1` … tokens."""
        known = len(self._extends)
        self._extends += [self._costs.of_extend(i) for i in range(known, tokens + count)]
        factor = self._pace.extend if self._pace is not None else 1.0
        return [factor * seconds for seconds in self._extends[tokens : tokens + count]]

    def _propose(self, s: Sequence) -> Proposal | None:
        """Return the drafters' likeliest proposal, cut where the constraint of `s` forbids it."""
        limit = _limit(s)
        if limit < 1:
            return None
        found = [p for drafter in self._drafters if (p := drafter.propose(s, limit)) is not None]
        if not found:
            return None
        best = max(found, key=lambda p: self._likelihood(s.id, p))
        return self._allowed(s, best)

    def _likelihood(self, sequence: str, p: Proposal) -> float:
        return self._acceptance.likelihood(sequence, p.source, p.likelihood)

    def _lacks(self, model: Drafts, s: Sequence, found: Proposal | None) -> bool:
        """Return True if the draft model should guess for `s`; drafters have guessed `found`."""
        if _limit(s) < 1 or found is None:
            return _limit(s) > 0
        mine = self._likelihood(s.id, Proposal((), model.source))
        return model.cheap and self._likelihood(s.id, found) < mine

    def _from_model(
        self, model: Drafts, lacking: list[Sequence], plain: Step, seconds: list[float]
    ) -> dict[str, Proposal]:
        """Return the draft model's guesses for `lacking`, by id; {} if none promise more speed."""
        if not lacking:
            return {}
        likely = [self._likelihood(s.id, Proposal((), model.source)) for s in lacking]
        mean = sum(likely) / len(likely)
        count = model_length(len(lacking), mean, plain, seconds, model.costs)
        if not count:
            for s in lacking:
                self._acceptance.idle(s.id, model.source)
            return {}
        guessed = model.draft(lacking, count)
        found: dict[str, Proposal] = {}
        for s in lacking:
            proposal = guessed.get(s.id)
            cut = proposal and self._allowed(
                s, proposal._replace(tokens=proposal.tokens[: _limit(s)])
            )
            if cut is not None:
                found[s.id] = cut
        return found

    def _allowed(self, s: Sequence, best: Proposal) -> Proposal | None:
        """Cut a proposal where the sequence's constraint forbids it; None if nothing is left."""
        if s.constraint is None:
            return best
        tokens, masks = walk(s.constraint, best.tokens)
        if not tokens:
            return None
        self._masks[s.id] = len(s.tokens), masks
        return best._replace(tokens=tokens)


def _limit(s: Sequence) -> int:
    """Return how many tokens may be drafted for a sequence; the last token needs no draft."""
    return min(_LONGEST, s.remaining - 1) if s.params.speculate else 0


def _could_pay(plain: Step, seconds: list[float]) -> bool:
    """Return True if drafts of some length would pay if all their tokens were accepted."""
    rate = plain.sampled / plain.seconds
    return any((plain.sampled + i) / s > rate for i, s in enumerate(seconds[1:], start=1))
