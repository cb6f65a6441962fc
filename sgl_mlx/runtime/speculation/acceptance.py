"""Estimates of how likely a drafted token is accepted, by its source (drafter) and sequence."""

from __future__ import annotations

from dataclasses import dataclass

_WEIGHT_AT_FIRST = 4.0
"""Weight of the likelihood that is assumed before anything was verified, in tokens."""
_WEIGHT_OF_SOURCE = 3.0
_KEPT_BY_SEQUENCE = 0.85
"""Weight that a sequence's earlier trials keep at each new verification; texts change."""
_KEPT_BY_SOURCE = 0.98
_KEPT_IDLE = 0.97
"""Weight that trials keep in a step without a draft, so that a poor source is tried again."""


@dataclass
class _Trials:
    accepted: float = 0.0
    tried: float = 0.0

    def likelihood(self, before: float, weight: float) -> float:
        return (self.accepted + before * weight) / (self.tried + weight)

    def add(self, accepted: int, tried: int, kept: float) -> None:
        self.accepted = self.accepted * kept + accepted
        self.tried = self.tried * kept + tried

    def fade(self) -> None:
        self.accepted *= _KEPT_IDLE
        self.tried *= _KEPT_IDLE


class Acceptance:
    """Estimates from the drafts verified so far, for each source (`Proposal.source`).

    A sequence starts with the estimate of the source over all sequences.
    """

    def __init__(self) -> None:
        self._by_source: dict[str, _Trials] = {}
        self._by_sequence: dict[str, dict[str, _Trials]] = {}

    def likelihood(self, sequence: str, source: str, at_first: float) -> float:
        """Estimate how likely the next token that a source drafts for a sequence is accepted.

        Args:
            at_first: the estimate before anything was verified; see `Proposal.likelihood`.
        """
        of_source = self._by_source.get(source, _Trials()).likelihood(at_first, _WEIGHT_AT_FIRST)
        mine = self._by_sequence.get(sequence, {}).get(source)
        return of_source if mine is None else mine.likelihood(of_source, _WEIGHT_OF_SOURCE)

    def learn(self, sequence: str, source: str, drafted: int, accepted: int) -> None:
        """Count a verified draft; tokens after the first rejected token do not count as tried."""
        tried = min(accepted + 1, drafted)
        of_source = self._by_source.setdefault(source, _Trials())
        mine = self._by_sequence.setdefault(sequence, {}).setdefault(source, _Trials())
        of_source.add(accepted, tried, _KEPT_BY_SOURCE)
        mine.add(accepted, tried, _KEPT_BY_SEQUENCE)

    def idle(self, sequence: str, source: str) -> None:
        """Let old trials weigh less, after a step whose guess was not worth verifying."""
        mine = self._by_sequence.get(sequence, {}).get(source)
        for trials in (self._by_source.get(source), mine):
            if trials is not None:
                trials.fade()

    def forget(self, sequence: str) -> None:
        """Drop the estimates of a sequence that has ended."""
        self._by_sequence.pop(sequence, None)
