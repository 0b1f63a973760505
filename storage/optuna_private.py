"""The private parts of Optuna that anitune relies on, as they are in Optuna 5.0.0.

Other modules import them from here. ``tests/storage/test_private_parts.py`` fails first when they change.

- The models of the tables (``optuna.storages._rdb.models``), and two keys of attributes: our transactions
  write to Optuna's tables, because Optuna commits every call separately.
- ``Study._get_trials`` and ``Study._storage``, through which samplers read trials and write attributes.
- ``FrozenTrial._trial_id``, the key of a trial in all tables.
- ``optuna.study._multi_objective._fast_non_domination_rank``, by which samplers sort trials.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Final, cast

import numpy as np
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.storages._rdb import models
from optuna.study import Study
from optuna.study._multi_objective import _fast_non_domination_rank
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Table

STUDIES: Final[Table] = models.StudyModel.__table__
TRIALS: Final[Table] = models.TrialModel.__table__
SYSTEM_ATTRIBUTES: Final[Table] = models.TrialSystemAttributeModel.__table__
USER_ATTRIBUTES: Final[Table] = models.TrialUserAttributeModel.__table__
INTERMEDIATE_VALUES: Final[Table] = models.TrialIntermediateValueModel.__table__
RESULTS: Final[Table] = models.TrialValueModel.__table__
PARAMS: Final[Table] = models.TrialParamModel.__table__

stored_result = models.TrialValueModel.value_to_stored_repr
"""Convert an objective to the two columns of :data:`RESULTS` that represent it."""

read_result = models.TrialValueModel.stored_repr_to_value
"""Convert the two columns of :data:`RESULTS` to the objective."""

ENQUEUED_KEY: Final = "fixed_params"
"""System attribute of an enqueued trial: the values that it must have."""

RUNG_PREFIX: Final = "completed_rung_"
"""Prefix of the system attributes in which asha and hyperband record the rungs that a trial has passed."""


def non_domination_ranks(values: Sequence[Sequence[float]]) -> list[int]:
    """Return the rank of each point: 0 on the Pareto front, 1 on that of the others, and so on."""
    return [int(rank) for rank in _fast_non_domination_rank(np.asarray(values, dtype=float))]


def trial_id(trial: FrozenTrial) -> int:
    """Return the key of a trial in Optuna's tables."""
    return trial._trial_id


class SamplerStudy(Study):
    """A study whose samplers read chosen trials, and write to a storage of our own.

    Parameters
    ----------
    storage : the storage of the study
    written : where samplers read and write attributes
    """

    def __init__(self, name: str, storage: BaseStorage, sampler: BaseSampler, written: object) -> None:
        super().__init__(study_name=name, storage=storage, sampler=sampler)
        self._storage = cast(BaseStorage, written)

    def trials_for_samplers(self) -> Sequence[FrozenTrial]:
        """Return the trials that samplers see."""
        raise NotImplementedError

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [trial for trial in self.trials_for_samplers() if states is None or trial.state in states]
