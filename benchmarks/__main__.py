"""Measure anitune against common alternatives, in one run on one machine.

    python -m benchmarks --help

It reports speeds, and never decides whether a test passes.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks import (
    features,
    full,
    gpu_count,
    loading,
    packs,
    precision,
    quickstart,
    scale,
    study,
    training,
)
from benchmarks.figures import RATIO, Figure
from benchmarks.machine import describe_machine
from benchmarks.plan import BenchmarkPlan
from benchmarks.report import PAGE, BenchmarkReport, print_table, write_json, write_page

#: All measurements by topic, in the order in which they run.
TOPICS: Final[Mapping[str, Callable[[BenchmarkPlan, Path], list[Figure]]]] = {
    training.TOPIC: training.measure,
    precision.TOPIC: precision.measure,
    packs.TOPIC: packs.measure,
    features.TOPIC: features.measure,
    loading.TOPIC: loading.measure,
    study.TOPIC: study.measure,
    full.TOPIC: full.measure,
    quickstart.TOPIC: quickstart.measure,
    **{scale.topic_of(sampler): partial(scale.measure_rates, sampler) for sampler in scale.PLAIN_SAMPLERS},
    scale.LATENCY: scale.measure_latency,
    gpu_count.TOPIC: gpu_count.measure,
}

#: Topics that run only on request, because they take many minutes or much disk space.
ON_REQUEST: Final = (
    full.TOPIC,
    quickstart.TOPIC,
    *map(scale.topic_of, scale.PLAIN_SAMPLERS),
    scale.LATENCY,
    gpu_count.TOPIC,
)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks", description="Measure anitune beside its references.")
    for field in dataclasses.fields(BenchmarkPlan):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
            help=f"{field.metadata['help']} (default: %(default)s)",
        )
    usual = [topic for topic in TOPICS if topic not in ON_REQUEST]
    parser.add_argument(
        "--topics",
        nargs="+",
        choices=list(TOPICS),
        default=usual,
        metavar="TOPIC",
        help=f"some of {', '.join(TOPICS)} (default: all but {', '.join(ON_REQUEST)})",
    )
    parser.add_argument(
        "--json", type=Path, default=Path("build/benchmarks.json"), help="file of the figures"
    )
    parser.add_argument(
        "--folder", type=Path, help="keep generated data sets and feature stores here for the next run"
    )
    parser.add_argument("--write-docs", action="store_true", help=f"put the table into docs/{PAGE.name}")
    options = parser.parse_args()
    plan = BenchmarkPlan(
        **{field.name: getattr(options, field.name) for field in dataclasses.fields(BenchmarkPlan)}
    )

    report = _measure(plan, options.topics, options.folder)
    print_table(report)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(report, options.json)
    if options.write_docs:
        asked_for = [topic for topic in options.topics if topic in ON_REQUEST]
        write_page(report, ", ".join([*asked_for, plan.device]))


def _measure(plan: BenchmarkPlan, topics: list[str], folder: Path | None) -> BenchmarkReport:
    started = time.perf_counter()
    measured_at = datetime.now(UTC).isoformat(timespec="minutes")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        place = folder.absolute() if folder is not None else Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        for topic in topics:
            print(f"measuring: {topic}", flush=True)
            figures += TOPICS[topic](plan, place)
    seconds = time.perf_counter() - started
    figures.sort(key=lambda figure: figure.unit != RATIO)
    return BenchmarkReport(measured_at, seconds, describe_machine(plan.device), plan, figures)


if __name__ == "__main__":
    main()
