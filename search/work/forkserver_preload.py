"""Imported once by the fork server, so that the processes forked from it need not (see ``forkserver.py``)."""

from __future__ import annotations

import importlib
import signal

#: What trains; and what torch imports late, for the first optimizer and for its first steps.
MODULES = (
    "search.work.processes",
    "trainer.evaluation.plots",
    "torch._dynamo",
    "torch.fx.experimental.symbolic_shapes",
)

# A scheduler sends this to all processes of a job. The worker, which decides what it means, must find its
# training processes alive, and these end with the server.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for module in MODULES:
    importlib.import_module(module)
