"""Runs a module as ``python -m`` does, and ends it, with its children, when its parent is gone.

A parent that is killed cannot stop what it started. But the kernel then closes the parent's end of the pipe
that is the standard input here, and a thread notices that. Start it in a session of its own, because the
whole process group is ended.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

GRACE_SECONDS = 5.0
"""Time between SIGTERM and SIGKILL."""


def main() -> None:
    """Run the module that the first argument names, with the arguments after it."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.killpg(0, signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
