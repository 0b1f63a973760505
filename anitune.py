"""Find the network architecture of an ANI-type potential for a data set: the commands as functions.

    import anitune

    study = anitune.run("my-study", data="water.extxyz", trials=20)
    study.leaderboard()
    study.best.model.predict(atoms)

These functions and the commands work on the same studies: a study that was begun in a notebook continues with
``anitune worker my-study``, and vice versa.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.api.models import Model, predict
    from search.api.studies import (
        BestTrial,
        LearningCurve,
        PromotedModel,
        Study,
        create,
        learning_curve,
        open,
        promote,
        run,
    )
    from search.api.training import TrainedNetwork, train

# tqdm, which optuna and mlflow import, warns in a notebook without ipywidgets. We show progress without them.
warnings.filterwarnings("ignore", message="IProgress not found")

__all__ = [
    "BestTrial",
    "LearningCurve",
    "Model",
    "PromotedModel",
    "Study",
    "TrainedNetwork",
    "create",
    "learning_curve",
    "open",
    "predict",
    "promote",
    "run",
    "train",
]

_MODULES = {
    "search.api.models": ("Model", "predict"),
    "search.api.studies": (
        "BestTrial",
        "LearningCurve",
        "PromotedModel",
        "Study",
        "create",
        "learning_curve",
        "open",
        "promote",
        "run",
    ),
    "search.api.training": ("TrainedNetwork", "train"),
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used, so that ``import anitune`` is fast."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
