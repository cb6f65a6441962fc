"""Kernels that are used only after their self-test.

A specialisation (a kernel with its head counts, head dims, dtype and options) is compared with the
reference on a small random case: those of a model when it is loaded (`learn`), others when they
are first asked for. One that does not compile or differs is not used; others are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import mlx.core as mx

from sgl_mlx.errors import KernelError
from sgl_mlx.metal_kernels import ops
from sgl_mlx.metal_kernels.build import Kernels
from sgl_mlx.metal_kernels.inputs import DecodeInputs, ExtendInputs
from sgl_mlx.metal_kernels.selftest import Case, compare
from sgl_mlx.metal_kernels.verdicts import Verdict, VerdictFile

log = logging.getLogger(__name__)


class TestedKernels:
    """The kernels with the verdict of each specialisation's self-test.

    Args:
        file: where verdicts are kept; None keeps them for this object alone.
        force: raise an error instead of not using a kernel.
    """

    __test__ = False  # its name looks like a test's

    def __init__(
        self, kernels: Kernels, file: VerdictFile | None = None, force: bool = False
    ) -> None:
        self.verdicts: dict[Case, Verdict] = {}
        self._kernels = kernels
        self._file = file
        self._force = force

    def extend(self, inputs: ExtendInputs) -> mx.array:
        """See `ops.extend_attention`; call it only for what `takes` says."""
        return ops.extend_attention(inputs, self._kernels)

    def decode(self, inputs: DecodeInputs) -> mx.array:
        """See `ops.decode_attention`; call it only for what `takes` says."""
        return ops.decode_attention(inputs, self._kernels)

    def takes(self, inputs: ExtendInputs | DecodeInputs) -> bool:
        """True if the kernel for these inputs passed its self-test, which runs if it did not yet.

        Raises:
            KernelError: with `force`, when the kernel failed its self-test.
        """
        return self.verdict(Case.of(inputs)).good

    def failed(self, cases: Iterable[Case]) -> bool:
        """True if one of these cases is known to be wrong; tests nothing."""
        return any(case in self.verdicts and not self.verdicts[case].good for case in cases)

    def learn(self, cases: Sequence[Case]) -> None:
        """Find the verdicts of a model's cases, kept or by testing, and log one line about them.

        Raises:
            KernelError: with `force`, when a kernel failed its self-test.
        """
        kept = {} if self._file is None or self._force else self._file.load()
        known = {case: kept[str(case)] for case in cases if str(case) in kept}
        self.verdicts |= known
        tested = self._test([case for case in dict.fromkeys(cases) if case not in known])
        self._tell(cases, len(tested))

    def verdict(self, case: Case) -> Verdict:
        """Return the verdict on a case; the test runs when first asked for.

        Raises:
            KernelError: with `force`, when the kernel failed its self-test.
        """
        if case not in self.verdicts:
            found = self._test([case])[0]
            log.info("kernel %s: %s", case, found.summary)
        return self.verdicts[case]

    def _test(self, cases: Sequence[Case]) -> list[Verdict]:
        found = {case: self._try(case) for case in cases}
        self.verdicts |= found
        if self._file is not None and found:
            try:
                self._file.add(list(found.values()))
            except OSError as error:
                log.info("verdicts on the kernels are not kept: %s", error)
        return list(found.values())

    def _try(self, case: Case) -> Verdict:
        try:
            verdict = Verdict(str(case), *compare(case, self._kernels))
        except (RuntimeError, ValueError) as error:  # what MLX raises when Metal refuses the text
            verdict = Verdict(str(case), False, str(error))
        if self._force and not verdict.good:
            raise KernelError(f"{case}: {verdict.seen}")
        return verdict

    def _tell(self, cases: Sequence[Case], tested: int) -> None:
        mine = [self.verdicts[case] for case in dict.fromkeys(cases)]
        bad = [verdict for verdict in mine if not verdict.good]
        where = "" if self._file is None else f"; see {self._file.log}"
        if bad:
            log.warning(
                "%d of this model's %d Metal kernels are not used, plain MLX computes in their "
                "place: %s%s; to test again: sgl-mlx kernels selftest",
                *(len(bad), len(mine), ", ".join(v.case for v in bad), where),
            )
        else:
            log.info("%d Metal kernels agree with plain MLX, %d tested now", len(mine), tested)
