"""Imported once by the server of :mod:`search.work.forks`, so that the processes forked from it need not."""

from __future__ import annotations

import signal

import search.work.processes  # noqa: F401

# A scheduler sends this to all processes of a job. The worker, which decides what it means, must find its
# training processes alive, and these end with the server.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
