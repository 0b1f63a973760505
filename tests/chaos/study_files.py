"""The studies that chaos breaks. Together they use what a study does beyond the training of single trials."""

from __future__ import annotations

from typing import Any, Final, Literal

StudyName = Literal["finalists", "front"]

SEARCHED: Final[dict[str, Any]] = {
    "layers": {"low": 1, "high": 2},
    "width": {"low": 8, "high": 16, "step": 8},
    "activation": {"choices": ["celu", "silu"]},
    "dropout": {"low": 0.0, "high": 0.2},
    "learning_rate": {"low": 1e-3, "high": 3e-3, "log": True},
    "batch_size": {"choices": [64, 128]},
    "weight_decay": 1e-6,
}

STUDIES: Final[dict[StudyName, dict[str, Any]]] = {
    "finalists": {
        "learn_from": ["earlier"],
        "pruner": {"kind": "asha", "min_epochs": 8, "reduction_factor": 3},
    },
    "front": {
        "objectives": ["val_mae", "parameters"],
        "space": SEARCHED | {"width": SEARCHED["width"] | {"per_element": True}},
        "features": {
            "choices": {
                "ani": {},
                "near": {
                    "radial_cutoff": 4.2,
                    "radial_shifts": [0.9, 1.6, 2.3, 3.0],
                    "angular_cutoff": 3.1,
                },
            }
        },
    },
}
"""What each study has of its own. One ends with the seeds of its finalists, the other with a Pareto front."""


def study_file(name: StudyName, trials: int, epochs: int, seeds: int) -> dict[str, Any]:
    """Return the contents of a study file.

    Parameters
    ----------
    seeds : trainings of each finalist
    """
    return {
        "name": "chaos",
        "data": {"files": ["sample"]},
        "space": SEARCHED,
        "training": {"epochs": epochs, "device": "cpu", "ema_decay": 0.9, "checkpoint_seconds": 1},
        "sampler": {"kind": "tpe", "startup_trials": 8},
        "limits": {"trials": trials},
        **STUDIES[name],
        **({"finalists": {"seeds": seeds, "most": 2}} if name == "finalists" else {}),
    }


def earlier_study_file() -> dict[str, Any]:
    """Return the contents of the file of a short study that the others can learn from."""
    return {
        "name": "earlier",
        "data": {"files": ["sample"]},
        "space": SEARCHED,
        "training": {"epochs": 1, "device": "cpu", "ema_decay": 0.9},
        "sampler": {"kind": "random"},
        "pruner": {"kind": "none"},
        "limits": {"trials": 2},
    }
