"""The kernels with the reference behind them: one that fails its self-test is not used.

A specialisation (a kernel with its head counts, head dim, dtype and options) is compared with the
reference on a small random case when it is first asked for. If it does not compile or differs, a
warning says so once, and the reference computes in its place.
"""

from __future__ import annotations

import logging
from typing import Literal, NamedTuple

import mlx.core as mx

from sgl_mlx.errors import KernelError
from sgl_mlx.metal_kernels import ops, reference
from sgl_mlx.metal_kernels.build import Kernels
from sgl_mlx.metal_kernels.inputs import DecodeInputs, ExtendInputs
from sgl_mlx.metal_kernels.selftest import Case, compare

log = logging.getLogger(__name__)


class Verdict(NamedTuple):
    """Result of a self-test: whether the kernel may be used, and what was seen."""

    case: Case
    good: bool
    seen: str


class KernelsWithFallback:
    """Kernels that are self-tested at first use, with the reference behind them.

    Args:
        force: raise instead of falling back.
    """

    def __init__(self, kernels: Kernels, force: bool = False) -> None:
        self.verdicts: dict[Case, Verdict] = {}
        self._kernels = kernels
        self._force = force

    def extend(self, inputs: ExtendInputs) -> mx.array:
        """See `ops.extend_attention`.

        Raises:
            KernelError: with `force`, when the kernel failed its self-test.
        """
        if self.verdict(Case.of(inputs)).good:
            return ops.extend_attention(inputs, self._kernels)
        return reference.extend_attention(inputs).astype(inputs.q.dtype)

    def decode(self, inputs: DecodeInputs) -> mx.array:
        """See `ops.decode_attention`.

        Raises:
            KernelError: with `force`, when the kernel failed its self-test.
        """
        if self.verdict(Case.of(inputs)).good:
            return ops.decode_attention(inputs, self._kernels)
        return reference.decode_attention(inputs).astype(inputs.q.dtype)

    def failed(self, work: Literal["extend", "decode"]) -> bool:
        """True if any kernel of this kind failed its self-test."""
        return any(c.work == work and not v.good for c, v in self.verdicts.items())

    def verdict(self, case: Case) -> Verdict:
        """The self-test's verdict on a case; the test runs when first asked for.

        Raises:
            KernelError: with `force`, when the kernel failed its self-test.
        """
        if case not in self.verdicts:
            self.verdicts[case] = self._try(case)
        return self.verdicts[case]

    def _try(self, case: Case) -> Verdict:
        try:
            verdict = Verdict(case, *compare(case, self._kernels))
        except (RuntimeError, ValueError) as error:  # what MLX raises when Metal refuses the text
            verdict = Verdict(case, False, str(error))
        if verdict.good:
            return verdict
        if self._force:
            raise KernelError(f"{case}: {verdict.seen}")
        log.warning("kernel %s falls back to plain MLX: %s", case, verdict.seen)
        return verdict
