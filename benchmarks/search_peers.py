"""Syne Tune's schedulers on the table, in its own simulator: the extra ``peers`` of this project."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from typing import Any, Final

import numpy as np

from benchmarks.search_replay import Course, Trainings
from benchmarks.search_table import EPOCHS, Cell

SCHEDULERS: Final = ("ASHA", "ASHACQR", "ASHABORE", "BOHB", "CQR")
FULL_LENGTH: Final = ("CQR",)
"""Those that train each configuration in full."""


def replay_syne_tune(
    trainings: Trainings, scheduler: str, seed: int, epochs: int, workers: int, first_rung: int
) -> Course:
    """A search by Syne Tune until it has spent its epochs.

    Parameters
    ----------
    first_rung
        Epochs of the first rung; there the others have a reduction factor of 3, as ours.
    """
    os.environ.setdefault("SYNETUNE_FOLDER", tempfile.mkdtemp(prefix="syne-tune-"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from syne_tune import StoppingCriterion, Tuner
        from syne_tune.backend.simulator_backend.simulator_callback import SimulatorCallback
        from syne_tune.blackbox_repository.simulated_tabular_backend import UserBlackboxBackend
        from syne_tune.optimizer import baselines

        course = Course(trainings)
        space = _space(trainings)
        settings: dict[str, Any] = {"config_space": space | {"epochs": EPOCHS}, "metric": "mae"}
        if scheduler not in FULL_LENGTH:
            settings |= {"time_attr": "epoch", "max_t": EPOCHS, "grace_period": first_rung}
            settings |= {"reduction_factor": 3}
        tuner = Tuner(
            trial_backend=UserBlackboxBackend(
                _blackbox(trainings, space),
                elapsed_time_attr="elapsed",
                max_resource_attr="epochs",
                seed=seed,
            ),
            scheduler=getattr(baselines, scheduler)(**settings, random_seed=seed, do_minimize=True),
            stop_criterion=StoppingCriterion(max_num_evaluations=epochs),
            n_workers=workers,
            sleep_time=0,
            callbacks=[SimulatorCallback(), _reporting(course)],
            print_update_interval=1e9,
            results_update_interval=1e9,
            save_tuner=False,
        )
        logging.disable(logging.CRITICAL)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                tuner.run()
        finally:
            logging.disable(logging.NOTSET)
    return course


def _space(trainings: Trainings) -> dict[str, Any]:
    from syne_tune.config_space import choice, ordinal

    choices = trainings.choices
    return {
        "hidden": choice(["-".join(map(str, widths)) for widths in choices["hidden"]]),
        "activation": choice(choices["activation"]),
        **{
            name: ordinal(choices[name], kind="nn-log")
            for name in ("learning_rate", "batch_size", "weight_decay")
        },
    }


def _blackbox(trainings: Trainings, space: dict[str, Any]) -> Any:
    import pandas as pd
    from syne_tune.blackbox_repository.blackbox_tabular import BlackboxTabular
    from syne_tune.config_space import randint

    cells = [Cell(*settings) for _, settings in trainings.ranked()]
    seeds = 3
    values = np.array(
        [
            [
                [[mae, epoch * (row.seconds or 1.0)] for epoch, mae in enumerate(row.val_mae, start=1)]
                for row in (trainings.find(cell, seed) for seed in range(seeds))
            ]
            for cell in cells
        ]
    )
    columns = [{name: getattr(cell, name) for name in space} for cell in cells]
    for row in columns:
        row["hidden"] = "-".join(map(str, row["hidden"]))
    return BlackboxTabular(
        pd.DataFrame(columns),
        space,
        {"epoch": randint(1, EPOCHS)},
        values,
        objectives_names=["mae", "elapsed"],
    )


def _reporting(course: Course) -> Any:
    from syne_tune.tuner_callback import TunerCallback

    class Reporting(TunerCallback):  # type: ignore[misc]
        """Tells the course of each epoch."""

        def __init__(self) -> None:
            self.best: dict[int, float] = {}

        def on_trial_result(self, trial: Any, status: str, result: dict[str, Any], decision: str) -> None:
            number, values = trial.trial_id, trial.config
            self.best[number] = min(self.best.get(number, float("inf")), result["mae"])
            cell = Cell(
                tuple(map(int, values["hidden"].split("-"))),
                *(values[name] for name in ("activation", "learning_rate", "batch_size", "weight_decay")),
            )
            course.report(
                cell, number, int(result["epoch"]), self.best[number], result.get("st_tuner_time", 0.0)
            )

    return Reporting()
