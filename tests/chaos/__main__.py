"""Run a study while everything under it breaks, and report what was lost: ``make chaos``."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from tests.chaos.harness import run_chaos
from tests.chaos.plan import long_plan, short_plan


def main() -> None:
    """Break everything once, or for ten minutes; the exit status is 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of the plan of faults")
    parser.add_argument("--short", action="store_true", help="each kind of fault once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report to this file")
    arguments = parser.parse_args()
    # SIGTERM ends the run like Ctrl-C, so that the servers and workers end as well.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    report = run_chaos((short_plan if arguments.short else long_plan)(arguments.seed))
    print("\n".join(report.lines()))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(asdict(report), indent=2) + "\n")
    if not report.clean:
        sys.exit(1)


if __name__ == "__main__":
    main()
