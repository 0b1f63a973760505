"""Preloads modules in the fork server, so that forked processes need not import them (``forkserver.py``)."""

from __future__ import annotations

import importlib
import signal

#: Modules for training, and those that torch imports late, for the first optimizer and its first steps.
MODULES = (
    "search.work.processes",
    "trainer.evaluation.plots",
    "torch._dynamo",
    "torch.fx.experimental.symbolic_shapes",
)

# A scheduler sends SIGTERM to all processes of a job. The worker handles it and still needs its training
# processes, which would end with the server.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for module in MODULES:
    importlib.import_module(module)
