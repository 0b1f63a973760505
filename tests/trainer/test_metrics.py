from __future__ import annotations

import numpy as np
import pytest

from trainer.evaluation.evaluate import Evaluation
from trainer.evaluation.metrics import METRICS, measure


@pytest.fixture
def evaluation() -> Evaluation:
    """Methane, methane, water and methanol with errors of 1, -3, 0 and 2 kcal/mol."""
    target = np.array([-400.0, -390.0, -220.0, -480.0])
    return Evaluation(
        predicted=target + np.array([1.0, -3.0, 0.0, 2.0]),
        target=target,
        heavy_atoms=np.array([1, 1, 1, 2]),
        element_sets=np.array(["CH", "CH", "HO", "CHO"]),
    )


def test_errors_of_all_structures(evaluation: Evaluation) -> None:
    measured = measure(evaluation, "val")
    assert measured["val/mae_kcalmol"] == pytest.approx(1.5)
    assert measured["val/rmse_kcalmol"] == pytest.approx(np.sqrt(14 / 4))
    assert measured["val/max_error_kcalmol"] == pytest.approx(3.0)


def test_errors_by_number_of_heavy_atoms_and_by_element_set(evaluation: Evaluation) -> None:
    measured = measure(evaluation, "val")
    assert measured["val/mae_kcalmol_heavy_1"] == pytest.approx(4 / 3)
    assert measured["val/mae_kcalmol_heavy_2"] == pytest.approx(2.0)
    assert measured["val/max_error_kcalmol_elements_CH"] == pytest.approx(3.0)
    assert measured["val/rmse_kcalmol_elements_HO"] == 0.0
    # Every metric for all, for both numbers of heavy atoms and for the three element sets; nothing else.
    assert len(measured) == len(METRICS) * (1 + 2 + 3)
