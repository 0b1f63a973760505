"""Runs a program on emulated CUDA cards.

``python -m tools.emulated_cuda worker my-study`` is ``anitune worker my-study``;
``python -m tools.emulated_cuda -m benchmarks --topics ...`` is ``python -m benchmarks --topics ...``.
The environment sets the number of cards and the failures: see :mod:`tools.emulated_cuda.install` and
:mod:`tools.emulated_cuda.failures`. Processes that the program starts have no emulated cards.
"""

from __future__ import annotations

import runpy
import sys

from tools.emulated_cuda.install import install


def main() -> None:
    """Install the cards, then run the program that the arguments name."""
    module, arguments = "search.cli.main", sys.argv[1:]
    if arguments[:1] == ["-m"]:
        module, arguments = arguments[1], arguments[2:]
    print("emulated CUDA device: nothing of this runs on a real card", file=sys.stderr)
    install()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
