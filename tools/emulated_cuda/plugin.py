"""Runs tests on emulated CUDA cards: ``python -m pytest -p tools.emulated_cuda.plugin tests/gpu``."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # Not earlier: this imports torch, and tests/conftest.py must set its number of threads before.
    from tools.emulated_cuda.install import install

    install()


def pytest_report_header(config: pytest.Config) -> str:
    from tools.emulated_cuda.cards import CARDS, NAME

    return f"CUDA: {len(CARDS)} card(s), {NAME}"


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    # The emulated cards have all that tests need, so none may be skipped.
    if reporter is not None and reporter.stats.get("skipped") and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    from tools.emulated_cuda.graphs import CAPTURED, REPLAYS
    from tools.emulated_cuda.streams import WAITS

    captured = ", ".join(f"{number} of {size}" for size, number in sorted(CAPTURED.items()))
    waits = ", ".join(f"{what} {number}" for what, number in WAITS.most_common())
    terminalreporter.section("emulated CUDA device: nothing of this ran on a real card")
    if terminalreporter.stats.get("skipped"):
        terminalreporter.write_line(
            "FAILED: tests were skipped, though the emulated device has all they need"
        )
    if not CAPTURED:
        return  # the tests ran in other processes
    terminalreporter.write_line(
        f"graphs captured, by operations: {captured or 'none'}; replays: {REPLAYS['replays']}"
    )
    terminalreporter.write_line(f"waits of the host: {waits or 'none'}")
