"""Sizes of the measurements. By default all but the full set take less than 15 minutes on two cores."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.make_big import FULL_SIZE


@dataclass(frozen=True)
class BenchmarkPlan:
    """The sizes of a benchmark; each field is an option of the command line, with its metadata as help."""

    repeats: int = field(
        default=2, metadata={"help": "repeats of both sides of each comparison except the study"}
    )
    threads: int = field(default=2, metadata={"help": "CPU threads of both sides of each comparison"})
    device: str = field(default="cpu", metadata={"help": "where both sides train: cpu or cuda"})
    train_structures: int = field(
        default=40_000, metadata={"help": "structures of the generated data set to train on"}
    )
    train_epochs: int = field(default=10, metadata={"help": "epochs of our training, one per repeat"})
    capped_gib: float = field(
        default=4.0,
        metadata={"help": "memory of a GPU left to the training whose features are streamed, GiB"},
    )
    pack_trials: int = field(default=8, metadata={"help": "networks that are trained together"})
    pack_epochs: int = field(default=10, metadata={"help": "epochs of each of them"})
    precision_seeds: int = field(
        default=5, metadata={"help": "seeds of each precision whose errors are compared"}
    )
    precision_epochs: int = field(default=60, metadata={"help": "epochs of each of them"})
    feature_structures: int = field(default=20_000, metadata={"help": "structures to compute AEVs of"})
    load_structures: int = field(default=100_000, metadata={"help": "structures to load"})
    study_trials: int = field(default=2, metadata={"help": "trials of the study"})
    study_epochs: int = field(default=60, metadata={"help": "epochs of each trial of the study"})
    full_structures: int = field(default=FULL_SIZE, metadata={"help": "structures of the full set"})
    full_epochs: int = field(default=2, metadata={"help": "epochs of the training on the full set"})
    scale_trials: int = field(default=10_000, metadata={"help": "trials of a study without trainings"})
    scale_processes: int = field(default=16, metadata={"help": "processes that work on it"})
