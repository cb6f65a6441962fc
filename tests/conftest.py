"""Shared by all tests.

`--forbid-skips` turns an unexpected skip into a failure; without it, the last line of the run says
how many tests were not run and why. Text that a test records as `SHOWN` (`record_property`) is
printed at the end, also if tests run in several processes.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Generator, Iterator
from types import ModuleType
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings

from sgl_mlx import machine
from sgl_mlx.blas import load_fast_blas

pytest_plugins = ["tests.darwin", "tests.gpu"]

EXPECTED_SKIPS = {
    "linux": ("needs macOS", "needs Metal", "needs a GPU", "needs root", "no clients for Node.js"),
    "darwin": (
        "needs Linux",
        "the CPU kernels are for Linux",
        "needs Metal",
        "not simulated: ",
        "no clients for Node.js",
    ),
}
"""Beginnings of the reasons for which CI may skip a test, by system."""

SHOWN = "shown"

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in a shell's background job. Programs that tests start would not end at Ctrl-C either.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# On GPUs from M5 on, MLX multiplies float32 with 10 bits of mantissa by default. Tests that compare
# results in float32 ask for all 24, before MLX reads this.
os.environ.setdefault("MLX_ENABLE_TF32", "0")
# A loaded machine is slow at drawing examples and at running them.
settings.register_profile("sgl-mlx", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sgl-mlx")

load_fast_blas()  # before any test module imports mlx, or all of them run on the reference BLAS


@pytest.fixture(scope="session")
def cpu_kernels() -> ModuleType:
    """The compiled CPU kernels; `make setup` compiles them."""
    from sgl_mlx.cpu_kernels import build  # imports mlx, which must come after the BLAS

    if reason := build.why_not():
        pytest.skip(reason)
    found = build.load()
    assert found is not None
    return found


@pytest.fixture(scope="module", autouse=True)
def freed_memory() -> Iterator[None]:
    """Give freed memory back to the system after each file's tests.

    Otherwise glibc keeps the weights and pools of engines that were shut down, and a process that
    runs all tests grows to several gigabytes.
    """
    yield
    from sgl_mlx.models.memory import return_freed_memory  # imports mlx: after the BLAS

    return_freed_memory()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--forbid-skips",
        action="store_true",
        help="fail on skips, except for the reasons that tests/conftest.py lists",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _judge((yield), item.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _judge((yield), collector.config)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    lines = [text for r in reports for name, text in r.user_properties if name == SHOWN]
    if lines:
        terminalreporter.section("shown by tests")
        for line in lines:
            terminalreporter.line(str(line))


def pytest_unconfigure(config: pytest.Config) -> None:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    counts = Counter(map(_reason, skipped))
    missed = [f"{n} ({reason})" for reason, n in counts.items() if not _is_expected(reason)]
    if missed:
        reporter.write_line(f"Tests not run: {'; '.join(missed)}")


def _is_expected(reason: str) -> bool:
    return reason.startswith(EXPECTED_SKIPS.get(machine.system(), ()))


def _judge(report: Report, config: pytest.Config) -> Report:
    if report.skipped and not hasattr(report, "wasxfail") and config.option.forbid_skips:
        reason = _reason(report)
        if not _is_expected(reason):
            report.outcome = "failed"
            report.longrepr = f"unexpected skip: {reason}"
    return report


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    # pytest's own shape of a skip: (path, line, "Skipped: reason")
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")
