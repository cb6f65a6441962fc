"""Shared by all tests.

`--forbid-skips` turns every skip that nobody expects into a failure. What a test records as `SHOWN`
(`record_property`) stands at the end of the run, also where tests run in several processes.
"""

from __future__ import annotations

from collections.abc import Generator
from types import ModuleType
from typing import TypeVar

import pytest

from sgl_mlx.blas import load_fast_blas

EXPECTED_SKIPS = ("needs macOS", "needs Metal", "needs a GPU")
"""How the reason of a skip may begin where CI runs: on Linux, on the CPU."""

SHOWN = "shown"

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

load_fast_blas()  # before any test module imports mlx, or all of them run on the reference BLAS


@pytest.fixture(scope="session")
def cpu_kernels() -> ModuleType:
    """The compiled kernels; `make setup` compiles them."""
    from sgl_mlx.cpu_kernels import build  # imports mlx, which must come after the BLAS

    if reason := build.why_not():
        pytest.skip(reason)
    found = build.load()
    assert found is not None
    return found


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--forbid-skips",
        action="store_true",
        help=f"fail on skips, except for reasons that begin with {' | '.join(EXPECTED_SKIPS)}",
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


def _judge(report: Report, config: pytest.Config) -> Report:
    if report.skipped and not hasattr(report, "wasxfail") and config.option.forbid_skips:
        reason = _reason(report)
        if not reason.startswith(EXPECTED_SKIPS):
            report.outcome = "failed"
            report.longrepr = f"unexpected skip: {reason}"
    return report


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    # pytest's own shape of a skip: (path, line, "Skipped: reason")
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")
