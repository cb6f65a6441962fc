"""Metal kernels that are used only if they passed a self-test.

The test runs for each specialisation: a kernel with its head counts, head dims, dtype and options.
The specialisations that a model needs are tested when the model is loaded (`learn`), any other one
before its first use. A specialisation is not used if it does not compile, or if its result differs
from the reference, which is plain MLX.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import mlx.core as mx

from sgl_mlx.errors import KernelError
from sgl_mlx.metal_kernels import ops
from sgl_mlx.metal_kernels.build import Kernels
from sgl_mlx.metal_kernels.inputs import DecodeInputs, ExtendInputs
from sgl_mlx.metal_kernels.selftest import Case, compare
from sgl_mlx.metal_kernels.verdicts import Verdict, VerdictFile

log = logging.getLogger(__name__)


class TestedKernels:
    """The Metal kernels with the self-test's verdict on each specialisation.

    Args:
        file: cache of verdicts on disk; with None they are kept in memory only.
        force: test all kernels anew, and raise KernelError if a kernel fails.
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
        """Compute `ops.extend_attention`; call this only if `takes(inputs)` is True."""
        return ops.extend_attention(inputs, self._kernels)

    def decoder(self, inputs: DecodeInputs) -> Callable[[DecodeInputs], mx.array]:
        """Prepare decode attention for all steps of a plan from one step's inputs.

        Call this only if `takes(inputs)` is True.
        """
        return ops.DecodeCall(inputs, self._kernels)

    def takes(self, inputs: ExtendInputs | DecodeInputs) -> bool:
        """Return True if the kernel for these inputs passed its self-test; run the test if needed.

        Raises:
            KernelError: with `force`, if the kernel failed its self-test.
        """
        return self.verdict(Case.of(inputs)).good

    def failed(self, cases: Iterable[Case]) -> bool:
        """Return True if the self-test of any of these cases has failed; runs no test."""
        return any(case in self.verdicts and not self.verdicts[case].good for case in cases)

    def learn(self, cases: Sequence[Case]) -> None:
        """Load the verdicts on a model's cases; test cases without one, and log a summary.

        Raises:
            KernelError: with `force`, if a kernel failed its self-test.
        """
        kept = {} if self._file is None or self._force else self._file.load()
        known = {case: kept[str(case)] for case in cases if str(case) in kept}
        self.verdicts |= known
        tested = self._test([case for case in dict.fromkeys(cases) if case not in known])
        self._tell(cases, len(tested))

    def verdict(self, case: Case) -> Verdict:
        """Return the verdict on a case; run the self-test unless the verdict is in `verdicts`.

        Raises:
            KernelError: with `force`, if the kernel failed its self-test.
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
        except (RuntimeError, ValueError) as error:  # MLX's errors when Metal cannot compile
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
