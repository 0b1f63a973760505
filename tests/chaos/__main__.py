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
from tests.chaos.study_files import STUDIES


def main() -> None:
    """Break everything once, or for five minutes a study; the exit status is 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of the plan of faults")
    parser.add_argument(
        "--study",
        choices=[*STUDIES],
        action="append",
        dest="studies",
        help="break only this study, not one after the other (default with --short: finalists)",
    )
    parser.add_argument("--short", action="store_true", help="each kind of fault once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the reports to this file")
    arguments = parser.parse_args()
    # SIGTERM ends the run like Ctrl-C, so that the servers and workers end as well.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    make_plan = short_plan if arguments.short else long_plan
    reports = []
    for study in arguments.studies or (["finalists"] if arguments.short else STUDIES):
        reports.append(run_chaos(make_plan(arguments.seed, study)))
        print("\n".join(reports[-1].lines()), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(report) for report in reports], indent=2) + "\n")
    if not all(report.clean for report in reports):
        sys.exit(1)


if __name__ == "__main__":
    main()
