"""Replay Syne Tune's schedulers on the table, in Syne Tune's own simulator (extra ``peers``)."""

from __future__ import annotations

import contextlib
import io
import logging
import random
import tempfile
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, Final
from unittest.mock import patch

import numpy as np

from benchmarks.search_replay import SearchHistory, Trainings
from benchmarks.search_table import EPOCHS, SEARCHED, Cell

SYNE_TUNE: Final = "Syne Tune, "
"""Prefix of the names of these searches."""

SCHEDULERS: Final = ("ASHA", "ASHACQR", "ASHABORE", "BOHB", "CQR")
FULL_LENGTH: Final = ("CQR",)
"""Schedulers that train each configuration in full."""

FAILED: Final = 1e6
"""Error that a failed training reports from then on, kcal/mol, as the simulator has no failures."""


def has_syne_tune() -> bool:
    """Whether the extra ``peers`` is installed."""
    return find_spec("syne_tune") is not None


def replay_syne_tune(
    trainings: Trainings, scheduler: str, seed: int, epochs: int, workers: int, first_rung: int
) -> SearchHistory:
    """Run a Syne Tune search until it has spent its epochs.

    Parameters
    ----------
    first_rung
        Epochs of the first rung; further rungs follow with a reduction factor of 3, as in our searches.
    """
    with _quiet():
        from syne_tune import StoppingCriterion, Tuner
        from syne_tune.backend.simulator_backend.simulator_callback import SimulatorCallback
        from syne_tune.blackbox_repository.simulated_tabular_backend import UserBlackboxBackend
        from syne_tune.optimizer import baselines

        # The training seeds and the draws of surrogate models come from the global generators.
        random.seed(seed)
        np.random.seed(seed)
        history = SearchHistory(trainings)
        space = _space(trainings)
        settings: dict[str, Any] = {"config_space": space | {"epochs": EPOCHS}, "metric": "mae"}
        if scheduler not in FULL_LENGTH:
            settings |= {"time_attr": "epoch", "max_t": EPOCHS, "grace_period": first_rung}
            settings |= {"reduction_factor": 3}
        backend = UserBlackboxBackend(
            _blackbox(trainings, space),
            elapsed_time_attr="elapsed",
            max_resource_attr="epochs",
            tuner_sleep_time=trainings.shortest_epoch,
        )
        # Its clock would advance by the time of decisions on this machine, which is never the same twice.
        backend.time_keeper.real_time_since_last_recent_exit = lambda: 0.0
        Tuner(
            trial_backend=backend,
            scheduler=getattr(baselines, scheduler)(**settings, random_seed=seed, do_minimize=True),
            stop_criterion=StoppingCriterion(max_num_evaluations=epochs),
            n_workers=workers,
            sleep_time=0,
            callbacks=[SimulatorCallback(), _reporting(history)],
            print_update_interval=1e9,
            results_update_interval=1e9,
            save_tuner=False,
        ).run()
    return history


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Syne Tune's output and warnings, and remove its files at the end."""
    disabled = logging.root.manager.disable
    with (
        tempfile.TemporaryDirectory(prefix="syne-tune-") as folder,
        patch.dict("os.environ", SYNETUNE_FOLDER=folder),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


def _space(trainings: Trainings) -> dict[str, Any]:
    """Settings with more than one value in the table, as Syne Tune accepts no others."""
    from syne_tune.config_space import choice, ordinal

    return {
        name: choice([_plain(each) for each in values])
        if name in ("hidden", "activation")
        else ordinal(values, kind="nn-log")
        for name, values in trainings.choices.items()
        if len(values) > 1
    }


def _plain(value: Any) -> Any:
    """A value in the form of Syne Tune's tables, where widths are text."""
    return "-".join(map(str, value)) if isinstance(value, tuple) else value


def _blackbox(trainings: Trainings, space: dict[str, Any]) -> Any:
    import pandas as pd
    from syne_tune.blackbox_repository.blackbox_tabular import BlackboxTabular
    from syne_tune.config_space import randint

    cells = [Cell(*settings) for _, settings in trainings.ranked()]
    seconds = np.arange(1, EPOCHS + 1)[:, None]
    # Every number of trainings of a cell (1 to 3) divides 6, so none is drawn more often than another.
    evaluations = np.array(
        [
            [
                np.column_stack([_padded(row.val_mae), seconds * (row.seconds or 1.0)])
                for row in (trainings.find(cell, seed) for seed in range(6))
            ]
            for cell in cells
        ]
    )
    columns = [{name: _plain(getattr(cell, name)) for name in space} for cell in cells]
    return BlackboxTabular(
        pd.DataFrame(columns),
        space,
        {"epoch": randint(1, EPOCHS)},
        evaluations,
        objectives_names=["mae", "elapsed"],
    )


def _padded(val_mae: tuple[float, ...]) -> list[float]:
    return [*val_mae, *[FAILED] * (EPOCHS - len(val_mae))]


def _reporting(history: SearchHistory) -> Any:
    from syne_tune.tuner_callback import TunerCallback

    choices = history.trainings.choices

    class Reporting(TunerCallback):  # type: ignore[misc]
        """Reports each epoch to the history of the search."""

        def __init__(self) -> None:
            self.best: dict[int, float] = {}

        def on_trial_result(self, trial: Any, status: str, result: dict[str, Any], decision: str) -> None:
            number, values = trial.trial_id, trial.config
            self.best[number] = min(self.best.get(number, float("inf")), result["mae"])
            cell = Cell(
                *(
                    next(each for each in choices[name] if values.get(name, _plain(each)) == _plain(each))
                    for name in SEARCHED
                )
            )
            history.report(
                cell, number, int(result["epoch"]), self.best[number], result.get("st_tuner_time", 0.0)
            )

    return Reporting()
