"""One training with all its artifacts: metrics, curves, plots and the network."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from trainer.config import TrainConfig, dump_config
from trainer.csv_text import csv_text
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.inference_time import inference_time
from trainer.evaluation.metrics import measure
from trainer.files import MODEL, write_by_rename
from trainer.fitting.devices import (
    current_device,
    device_errors_explained,
    find_device,
    memory_errors_explained,
    peak_memory_mib,
    reset_peak_memory,
    resolve_precision,
)
from trainer.fitting.loop import FitResult, Outcome, fit
from trainer.fitting.scheduler import PackScheduler
from trainer.networks.files import save_model
from trainer.networks.model import ElementNetworks
from trainer.progress import Progress, no_progress
from trainer.reporting import EpochRecord, Reporter, epoch_metrics
from trainer.task import Task

logger = logging.getLogger("anitune")

HISTORY: Final = "history.csv"
"""Name of the file of the metrics of each epoch."""


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training.

    Attributes
    ----------
    outcome : finished, pruned at a rung, or stopped by the reporter (then it may be resumed)
    best_val_mae : least validation MAE of the epochs, kcal/mol: the objective; NaN if stopped in the first
    best_epoch : the epoch that reached it, whose weights are kept; 0 if stopped in the first
    epochs : epochs trained
    metrics : by name, of the best weights on the validation set and of the run; empty if stopped
    history : every epoch
    artifacts : the files written; empty if stopped
    """

    outcome: Outcome
    best_val_mae: float
    best_epoch: int
    epochs: int
    metrics: dict[str, float]
    history: tuple[EpochRecord, ...]
    artifacts: tuple[Path, ...]


def run_training(
    task: Task,
    config: TrainConfig,
    folder: Path,
    reporter: Reporter,
    *,
    rungs: tuple[int, ...] = (),
    warm_start: Path | None = None,
    scheduler: PackScheduler | None = None,
    progress: Progress = no_progress,
) -> TrainingResult:
    """Train, evaluate the best weights on the validation set, and write all results into ``folder``.

    The files are ``config.json`` (which ``anitune train`` reads), ``metrics.json``, ``history.csv``,
    ``model.safetensors`` and ``plots/``. The checkpoint stays beside them: a call after the end returns the
    same result without training.

    Parameters and errors are those of :func:`trainer.fitting.loop.fit`.
    """
    task = task.of(config)
    asked_for, config = config.precision, resolve_precision(config)
    device = find_device(config.device)
    if asked_for not in ("auto", config.precision):
        logger.warning("there is no %s on %s: training in %s", asked_for, device, config.precision)
    scheduler = scheduler or PackScheduler()
    evaluation = None
    with device_errors_explained(device), current_device(device):
        reset_peak_memory(device)
        result = fit(
            task,
            config,
            folder,
            reporter,
            rungs=rungs,
            warm_start=warm_start,
            scheduler=scheduler,
            progress=progress,
        )
        if (model := result.model) is not None and result.outcome != "stopped":
            with memory_errors_explained(config):
                evaluation = scheduler.with_room(
                    device, partial(evaluate, model, task, task.split.validation), reporter.should_stop
                )
            # The rest runs on the CPU, so it does not depend on the device any more.
            peak, model = peak_memory_mib(device), model.cpu()
    metrics: dict[str, float] = {}
    artifacts: tuple[Path, ...] = ()
    if model is not None and evaluation is not None:
        # Imported late: the import takes a second, which a worker that trains need not wait for.
        from trainer.evaluation.plots import draw_plots

        metrics = measure(evaluation, "val") | _run_metrics(task, config, model, result, peak)
        summary = {
            "outcome": result.outcome,
            "epochs": len(result.history),
            "best_epoch": result.best.epoch,
            "best_val_mae_kcalmol": result.best.val_mae,
            "device": str(device),
            "self_energies_hartree": task.self_energies,
            "fingerprints": task.fingerprints,
            "metrics": metrics,
        }
        files = {
            "config.json": _json({**dump_config(task.config), "training": dump_config(config)}),
            "metrics.json": _json(summary),
            HISTORY: _csv(result.history),
        } | {f"plots/{name}": png for name, png in draw_plots(result.history, evaluation).items()}
        for name, content in files.items():
            write_by_rename(folder / name, content)
        save_model(folder / MODEL, model, task.aev, task.self_energies, task.balances)
        artifacts = (folder / MODEL, *(folder / name for name in files))
    return TrainingResult(
        outcome=result.outcome if evaluation is not None else "stopped",
        best_val_mae=result.best.val_mae if result.history else math.nan,
        best_epoch=result.best.epoch if result.history else 0,
        epochs=len(result.history),
        metrics=metrics,
        history=result.history,
        artifacts=artifacts,
    )


def _run_metrics(
    task: Task, config: TrainConfig, model: ElementNetworks, result: FitResult, peak: float
) -> dict[str, float]:
    seconds = sum(record.seconds for record in result.history)
    return {
        "parameters": model.parameter_count,
        "inference_us_per_atom": inference_time(model, task),
        "structures_per_second": len(result.history) * len(task.split.train) / seconds,
        "seconds": seconds,
        "peak_memory_mib": peak,
        "threads": config.threads,
    }


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def _csv(history: Sequence[EpochRecord]) -> bytes:
    empty = dict.fromkeys(epoch_metrics(history[-1]), "")  # an older version may have measured less
    rows = [
        {
            "epoch": record.epoch,
            "order": record.order,
            **empty,
            **epoch_metrics(record),
            "finished_at": record.finished_at,
        }
        for record in history
    ]
    return csv_text(rows).encode()
