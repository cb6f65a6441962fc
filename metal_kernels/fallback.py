"""The kernels, but none before it has been seen to agree with the reference on this machine.

A specialisation (a kernel with its head counts, head dim, dtype and options) is tried on a small
random case when it is first asked for. If it does not compile or is wrong, that is said once, and
the reference takes its place: an answer is never lost to a kernel.
"""

from __future__ import annotations

import logging
from typing import Literal, NamedTuple

import mlx.core as mx

from sgl_mlx.errors import KernelError
from sgl_mlx.metal_kernels import ops, reference
from sgl_mlx.metal_kernels.build import Kernels
from sgl_mlx.metal_kernels.plan import DecodePlan, ExtendPlan
from sgl_mlx.metal_kernels.pool import Options, PoolLayer
from sgl_mlx.metal_kernels.selftest import Case, compare

log = logging.getLogger(__name__)


class Verdict(NamedTuple):
    """Of a specialisation: whether to use it, and what was seen."""

    case: Case
    good: bool
    seen: str


class TrustedKernels:
    """See the module.

    Args:
        force: raise instead of falling back.
    """

    def __init__(self, kernels: Kernels, force: bool = False) -> None:
        self.verdicts: dict[Case, Verdict] = {}
        self._kernels = kernels
        self._force = force

    def extend(
        self,
        q: mx.array,
        keys: mx.array,
        values: mx.array,
        pool: PoolLayer,
        plan: ExtendPlan,
        options: Options,
    ) -> mx.array:
        """See `ops.extend_attention`.

        Raises:
            KernelError: with `force`, where the kernel is not to be trusted.
        """
        if self.verdict(Case.of("extend", q, pool, options)).good:
            return ops.extend_attention(q, keys, values, pool, plan, options, self._kernels)
        return reference.extend_attention(q, keys, values, pool, plan, options)

    def decode(
        self,
        q: mx.array,
        tail_keys: mx.array,
        tail_values: mx.array,
        tail_length: int,
        pool: PoolLayer,
        plan: DecodePlan,
        options: Options,
    ) -> mx.array:
        """See `ops.decode_attention`.

        Raises:
            KernelError: with `force`, where the kernel is not to be trusted.
        """
        tail = tail_keys, tail_values, tail_length
        if self.verdict(Case.of("decode", q, pool, options)).good:
            return ops.decode_attention(q, *tail, pool, plan, options, self._kernels)
        return reference.decode_attention(q, *tail, pool, plan, options)

    def failed(self, work: Literal["extend", "decode"]) -> bool:
        """Whether a kernel for this was found wanting, so that another way is better."""
        return any(c.work == work and not v.good for c, v in self.verdicts.items())

    def verdict(self, case: Case) -> Verdict:
        """Of a case; it is tried if it never was.

        Raises:
            KernelError: with `force`, where the kernel is not to be trusted.
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
