"""Makes the table of real trainings that searches are judged by: ``make search-table``.

Each configuration of a grid is trained in full on the shipped sample, as a row of a study of rows, without
sampler and pruner. It takes hours, and resumes where it stopped: finished trials are in the records of a home
folder, and trainings in the committed table are not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks.machine import describe_machine
from benchmarks.tracker_time import home_settings
from storage.database import open_database
from storage.errors import StudyNotFoundError
from storage.studies import open_study
from storage.trials.views import TrialRow, metric_curves, trial_rows

TABLE: Final = Path(__file__).parent / "search_table.parquet"
EPOCHS: Final = 81
"""3 to the power of 4: the rungs of a reduction factor of 3 are 1, 3, 9 and 27 epochs."""

GRID: Final[dict[str, tuple[Any, ...]]] = {
    "hidden": ((128,), (256,), (128, 128), (256, 128), (224, 256), (160, 128, 96)),
    "activation": ("relu", "celu", "gelu"),
    "learning_rate": (5e-4, 1.5e-3, 4e-3, 1e-2),
    "batch_size": (24, 64, 256),
    "weight_decay": (1e-7, 1e-2),
}
STUDY: Final[dict[str, Any]] = {
    "data": {"files": ["sample"]},
    "split": {"by": "structure", "fractions": [0.8, 0.1, 0.1], "seed": 7},
    "training": {
        "epochs": EPOCHS,
        "optimizer": "adamw",
        "schedule": "cosine",
        "ema_decay": 0.99,
        "dropout": 0.0,
        "precision": "float32",
        "device": "cpu",
        "threads": 1,
    },
    "seed": 0,
}
"""Settings that all trainings share: the quickstart's data, split and training."""

SEARCHED: Final = tuple(GRID)
"""Names of the settings that differ between the configurations."""

SEEDS: Final = (0, 1, 2)
FURTHER_SEEDS_BEST: Final = 40
FURTHER_SEEDS_SHARE: Final = 0.2
SCHEDULES: Final = (("constant", EPOCHS), ("cosine", 27), ("cosine", 9), ("cosine", 3))
"""Schedule and epochs of the trainings of some configurations by which schedules are compared."""
SCHEDULES_CELLS: Final = 40
TIMED_EPOCHS: Final = 5


@dataclass(frozen=True)
class Cell:
    """Settings of a training that differ between the rows of the table."""

    hidden: tuple[int, ...]
    activation: str
    learning_rate: float
    batch_size: int
    weight_decay: float
    seed: int = 0
    schedule: str = "cosine"
    epochs: int = EPOCHS

    @property
    def label(self) -> str:
        """Label of the row in its study, unique within one stage."""
        shape = "-".join(map(str, self.hidden))
        rates = f"{self.learning_rate:g} b{self.batch_size} w{self.weight_decay:.0e}"
        schedule = "" if self.schedule == "cosine" else self.schedule[0]
        epochs = "" if self.epochs == EPOCHS else f"e{self.epochs}"
        return f"{shape} {self.activation} {rates} s{self.seed}{schedule}{epochs}"

    @property
    def training(self) -> dict[str, Any]:
        """The settings of the row that differ from those of the study."""
        values = dataclasses.asdict(self) | {"hidden": list(self.hidden)}
        return {key: value for key, value in values.items() if STUDY["training"].get(key) != value}


@dataclass(frozen=True)
class Training:
    """A row of the table.

    Attributes
    ----------
    val_mae
        Validation MAE of each epoch, kcal/mol.
    parameters
        Weights and biases of all networks.
    seconds
        Median duration of an epoch on a quiet machine, s: one figure for each architecture, activation and
        batch size. None until it is measured.
    failure
        Why the training failed; then ``val_mae`` holds the epochs before.
    versions
        Versions of Python and the packages that it ran with, and the commit of this repository.
    cpu
        Model of the processor that it ran on.
    """

    cell: Cell
    val_mae: tuple[float, ...]
    parameters: int | None
    seconds: float | None = None
    failure: str | None = None
    versions: Mapping[str, str] | None = None
    cpu: str | None = None

    @property
    def error(self) -> float:
        """Least validation MAE, kcal/mol; infinite if the training failed."""
        return math.inf if self.failure is not None else min(self.val_mae)


def grid() -> list[Cell]:
    """All configurations. The order fills a full grid of most settings first, so half a table is useful."""
    cells = [Cell(*values) for values in itertools.product(*GRID.values())]
    random.Random(0).shuffle(cells)
    slowest = min(GRID["learning_rate"])
    return sorted(cells, key=lambda cell: (cell.weight_decay, cell.learning_rate == slowest))


def read_table(path: Path = TABLE) -> list[Training]:
    """Read the trainings of a table; none if there is no file."""
    if not path.exists():
        return []
    fields = [field.name for field in dataclasses.fields(Cell)]
    return [
        Training(
            Cell(**{name: row[name] for name in fields} | {"hidden": tuple(row["hidden"])}),
            tuple(row["val_mae"]),
            row["parameters"],
            row["seconds"],
            row["failure"],
            json.loads(row["versions"]) if row.get("versions") else None,
            row.get("cpu"),
        )
        for row in pq.read_table(path).to_pylist()
    ]


def full_grid(rows: Iterable[Training]) -> list[Training]:
    """The full trainings of the largest full grid that the rows contain, with all their seeds.

    While the table is being made, some configurations are missing. A search needs all combinations of the
    values that it chooses from, so values are left out such that as many configurations as possible remain.
    """
    full = [row for row in rows if (row.cell.schedule, row.cell.epochs) == ("cosine", EPOCHS)]
    trained = {settings_of(row.cell) for row in full}
    values = [sorted(set(column)) for column in zip(*trained, strict=True)]
    present = np.zeros([len(each) for each in values], dtype=bool)
    for settings in trained:
        present[tuple(each.index(value) for each, value in zip(values, settings, strict=True))] = True

    def kept(others: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """Positions of the values of the first setting, given those of all others."""
        part = present[np.ix_(range(len(values[0])), *others)]
        return [np.flatnonzero(part.reshape(len(part), -1).all(axis=1)).tolist(), *others]

    choices = itertools.product(*(_subsets(len(each)) for each in values[1:]))
    best = max((kept(others) for others in choices), key=lambda sets: math.prod(map(len, sets)))
    grid = set(itertools.product(*([each[n] for n in ns] for each, ns in zip(values, best, strict=True))))
    return [row for row in full if settings_of(row.cell) in grid]


def _subsets(count: int) -> list[tuple[int, ...]]:
    """All non-empty subsets of the first numbers, the largest first."""
    sizes = range(count, 0, -1)
    return [each for size in sizes for each in itertools.combinations(range(count), size)]


def settings_of(config: Any) -> tuple[Any, ...]:
    """The settings that differ between configurations, from any object that has them as attributes."""
    return tuple(getattr(config, name) for name in SEARCHED)


SCHEMA: Final = pa.schema(
    [
        ("hidden", pa.list_(pa.int32())),
        ("activation", pa.string()),
        ("learning_rate", pa.float64()),
        ("batch_size", pa.int32()),
        ("weight_decay", pa.float64()),
        ("seed", pa.int32()),
        ("schedule", pa.string()),
        ("epochs", pa.int32()),
        ("parameters", pa.int32()),
        ("seconds", pa.float32()),
        ("failure", pa.string()),
        ("versions", pa.string()),
        ("cpu", pa.string()),
        ("val_mae", pa.list_(pa.float32())),
    ]
)


def write_table(trainings: Iterable[Training], path: Path) -> None:
    """Write the trainings as Parquet, sorted by their settings, with the shared settings as metadata."""
    rows = [
        dataclasses.asdict(each.cell)
        | {"parameters": each.parameters, "seconds": each.seconds, "failure": each.failure}
        | {"versions": json.dumps(each.versions) if each.versions else None, "cpu": each.cpu}
        | {"val_mae": list(each.val_mae)}
        for each in sorted(trainings, key=lambda each: dataclasses.astuple(each.cell))
    ]
    table = pa.Table.from_pylist(rows, SCHEMA.with_metadata({"study": json.dumps(STUDY)}))
    new = path.with_suffix(".new")
    pq.write_table(table, new, compression="zstd", compression_level=19)
    new.replace(path)


def stages(rows: Mapping[Cell, Training]) -> Iterator[tuple[str, list[Cell]]]:
    """Names and trainings of the studies that make the table, in their order.

    The best configurations get further seeds, so ``rows`` must contain the first seeds of the whole grid
    before the next stage is asked for.
    """
    cells = grid()
    for weight_decay in GRID["weight_decay"]:
        yield f"search-table-{weight_decay:g}", [cell for cell in cells if cell.weight_decay == weight_decay]
    best = sorted((cell for cell in cells if cell in rows), key=lambda cell: rows[cell].error)
    yield from _seeds("search-table-best", best[:FURTHER_SEEDS_BEST])
    yield "search-table-schedules", other_schedules()
    share = random.Random(1).sample(cells, round(FURTHER_SEEDS_SHARE * len(cells)))
    yield from _seeds("search-table-share", share)


def _seeds(name: str, cells: Sequence[Cell]) -> Iterator[tuple[str, list[Cell]]]:
    """A study for each further seed."""
    for seed in SEEDS[1:]:
        yield f"{name}-{seed}", [dataclasses.replace(cell, seed=seed) for cell in cells]


def other_schedules() -> list[Cell]:
    """The trainings for the comparison of schedules."""
    cells = random.Random(2).sample(grid(), SCHEDULES_CELLS)
    return [
        dataclasses.replace(cell, schedule=schedule, epochs=epochs)
        for schedule, epochs in SCHEDULES
        for cell in cells
    ]


def timed() -> list[Cell]:
    """A short training of each architecture, activation and batch size."""
    cells = itertools.product(GRID["hidden"], GRID["activation"], GRID["batch_size"])
    return [Cell(hidden, name, 1e-3, size, 1e-7, epochs=TIMED_EPOCHS) for hidden, name, size in cells]


Shape = tuple[tuple[int, ...], str, int]


def shape_of(cell: Cell) -> Shape:
    """Widths, activation and batch size, which determine the time of an epoch."""
    return cell.hidden, cell.activation, cell.batch_size


def make_table(home: Path, path: Path, pack: str, *, train: bool = True) -> None:
    """Train what the table lacks, and rewrite the table after each stage; or only add what is trained."""
    rows = {each.cell: each for each in read_table(path)}
    for name, cells in stages(rows):
        missing = [cell for cell in cells if cell not in rows]
        if missing and train:
            run_study(study_file(home, name, missing), home, pack)
        collect(home, name, rows, path)
        if not all(cell in rows for cell in cells):
            break


def collect(home: Path, name: str, rows: dict[Cell, Training], path: Path) -> None:
    """Add the trainings of a study on this machine to the rows, and write the table."""
    cpu = describe_machine("cpu").cpu
    seconds = {shape_of(each.cell): each.seconds for each in rows.values()}
    for cell, trial, curve in _recorded(home, name, "val/mae_kcalmol"):
        parameters = trial.summary.get("parameters")
        rows[cell] = Training(
            cell,
            tuple(curve),
            None if parameters is None else int(parameters),
            seconds.get(shape_of(cell)),
            trial.reason if trial.state == "failed" else None,
            trial.worker.versions,
            cpu,
        )
    write_table(rows.values(), path)


def measure_seconds(home: Path, path: Path) -> None:
    """Time an epoch of each shape, one after the other, on a machine that does nothing else."""
    run_study(study_file(home, "search-table-seconds", timed()), home, pack="1")
    seconds = {
        shape_of(cell): statistics.median(curve[1:])  # the first epoch loads the features
        for cell, _, curve in _recorded(home, "search-table-seconds", "train/epoch_seconds")
    }
    rows = read_table(path)
    write_table((dataclasses.replace(each, seconds=seconds[shape_of(each.cell)]) for each in rows), path)


def study_file(home: Path, name: str, cells: Sequence[Cell]) -> Path:
    """The file of a study that trains these cells, created if it does not exist."""
    file = home / f"{name}.yaml"
    if not file.exists():  # a study that has begun keeps its rows
        listed = [{"label": cell.label, "training": cell.training} for cell in cells]
        home.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump({"name": name, **STUDY, "rows": listed}, sort_keys=False))
    return file


def run_study(file: Path, home: Path, pack: str) -> None:
    """Train the remaining rows of the study, ``pack`` at once."""
    command = [sys.executable, "-m", "search.cli.main", "study", "run", "--pack", pack, str(file)]
    subprocess.run(command, env={**os.environ, **home_settings(home).environment()}, check=True)


def _recorded(home: Path, name: str, metric: str) -> Iterator[tuple[Cell, TrialRow, list[float]]]:
    """The ended trainings of a study of rows, with a metric of each epoch."""
    with open_database(home_settings(home)) as database:
        try:
            study = open_study(database, name)
        except StudyNotFoundError:
            return
        ended = [trial for trial in trial_rows(database, study) if trial.state in ("complete", "failed")]
        curves = metric_curves(database, study, metric, [trial.number for trial in ended])
    for trial in ended:
        assert trial.config is not None
        values = {field.name: trial.config[field.name] for field in dataclasses.fields(Cell)}
        cell = Cell(**values | {"hidden": tuple(values["hidden"])})
        yield cell, trial, [value for _, value in curves.get(trial.number, ())]


def main() -> None:
    """Make the table, or add to it what there is so far."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--home", type=Path, default=Path("build/search-table"), help="folder of the trainings"
    )
    parser.add_argument("--table", type=Path, default=TABLE, help="the file that is created or extended")
    parser.add_argument("--pack", default="auto", help="number of trainings at the same time")
    parser.add_argument(
        "--collect", action="store_true", help="only add the results in the home folder; train nothing"
    )
    parser.add_argument("--seconds", action="store_true", help="only time epochs, on a quiet machine")
    arguments = parser.parse_args()
    home = arguments.home.absolute()
    if arguments.seconds:
        measure_seconds(home, arguments.table)
    else:
        make_table(home, arguments.table, arguments.pack, train=not arguments.collect)
    print(f"{arguments.table}: {len(read_table(arguments.table))} trainings")


if __name__ == "__main__":
    main()
