"""Complete the records of studies, so that no setting follows from the defaults of the program that reads it.

Settings that were added after a study was recorded get the behavior of that time. Settings of a training that
the study file left open get the defaults of this version, which its trials had.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_SECTIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "data": {
        "high_energy": False,
        "self_energies": None,
        "duplicates": "keep",
        "links_outside": False,
        "energy": None,
        "unit": None,
        "length_unit": None,
        "molecule": None,
        "leave_out": [],
        "drop_outliers": False,
        "unusual": "keep",
    },
    "split": {"folds": None, "molecules": "names", "fold": 0},
    "sampler": {"startup_trials": None},
    "pruner": {"min_epochs": None, "startup_trials": 5, "max_paused": 100, "finish": 1},
}

_TRAINING: Final[Mapping[str, Any]] = {
    "hidden": [128],
    "activation": "celu",
    "dropout": 0.0,
    "activate_output": False,
    "learning_rate": 1e-3,
    "batch_size": 256,
    "weight_decay": 0.0,
    "optimizer": "adamw",
    "schedule": "cosine",
    "epochs": 100,
    "patience": None,
    "loss": "mse",
    "ema_decay": None,
    "device": "auto",
    "threads": 1,
    "precision": "auto",
    "checkpoint_seconds": 30.0,
}

_studies = sa.table("anitune_studies", sa.column("id", sa.Integer), sa.column("config", sa.Text))


def upgrade() -> None:
    connection = op.get_bind()
    for row in connection.execute(sa.select(_studies)).all():
        config = json.dumps(_completed(json.loads(row.config)))
        connection.execute(sa.update(_studies).where(_studies.c.id == row.id).values(config=config))


def downgrade() -> None:
    """Change nothing: an earlier version reads the complete records."""


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    completed = {"repeats": "take", "scale_batch_from": None, **config}
    for section, added in _SECTIONS.items():
        if isinstance(known := config.get(section), dict):
            completed[section] = {**added, **known}
    if isinstance(pruner := completed.get("pruner"), dict):
        pruner.setdefault("stop", pruner.get("kind") == "asha")  # at that time asha did not pause trials
    searched = config.get("space") or {}
    taken = {"hidden" if name in ("layers", "width") else name for name in searched}
    fixed = {name: value for name, value in _TRAINING.items() if name not in taken}
    completed["training"] = {**fixed, **(config.get("training") or {})}
    if isinstance(reference := config.get("reference"), dict):
        completed["reference"] = _completed(reference)
    return completed
