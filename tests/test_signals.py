"""Ctrl-C in the processes that tests start, also where the tests run in the background."""

from __future__ import annotations

import subprocess
import sys

OBEYS = "import signal; raise SystemExit(signal.getsignal(signal.SIGINT) is not signal.default_int_handler)"


def test_a_process_obeys_ctrl_c() -> None:
    assert subprocess.run([sys.executable, "-c", OBEYS], timeout=60).returncode == 0


def test_it_does_so_under_nohup() -> None:
    test = f"{__file__}::{test_a_process_obeys_ctrl_c.__name__}"
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    ignoring = ["sh", "-c", """trap '' INT; exec "$@" """, "sh", *pytest]
    ended = subprocess.run(ignoring, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout
