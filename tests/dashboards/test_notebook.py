"""Studies in a notebook."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import update

from dashboards.notebook import NoResultError, open_study
from storage.blobs.place import open_blobs
from storage.errors import StudyNotFoundError
from storage.records.tables import artifacts
from storage.studies import Study
from trainer.inference.structures import Structure


def test_trials_are_a_table_with_the_best_first(study: Study) -> None:
    opened = open_study("widths")
    assert repr(opened) == "study widths: 1 running, 4 complete, 1 pruned, 1 failed, best 0.800 kcal/mol"
    trials = opened.trials()
    assert list(trials.index) == [1, 2, 3, 0, 4, 6, 5]
    assert trials.loc[1, "architecture"] == "384-64-32-1 silu"
    assert trials["val_mae_kcalmol"].min() == 0.8
    with_rows = opened.trials(reference=True)
    assert list(with_rows["row"].dropna()) == ["2", "1"]
    assert len(with_rows) == 9


def test_the_best_trial_has_settings_metrics_and_weights(study: Study) -> None:
    opened = open_study("widths")
    best = opened.best()
    assert (best["trial"], best["architecture"]) == (1, "384-64-32-1 silu")
    assert best["settings"]["hidden"] == [64, 32]
    assert best["metrics"]["parameters"] == 147_840
    assert opened.model_file().read_bytes() == b"weights of 1"


def test_what_is_noise_is_said_as_on_the_page(promoted: Study) -> None:
    opened = open_study("widths")
    assert "from 1 set of replicates near the best" in opened.noise()
    assert opened.trials().loc[2, "seeds"] == 4, "two trials, and the two members of the ensemble"


def test_figures_are_those_of_the_report(study: Study) -> None:
    opened = open_study("widths")
    assert opened.figure("cost").layout.xaxis.title.text == "parameters"
    assert opened.figure("curves").data[1].name == "trial 1: 384-64-32-1 silu"
    with pytest.raises(NoResultError, match="there is no figure 'costs'; there are: cost, "):
        opened.figure("costs")


def test_what_is_not_there_is_said_at_once(study: Study) -> None:
    with pytest.raises(StudyNotFoundError, match="there is no study 'nosuch'"):
        open_study("nosuch")


def test_the_network_of_the_best_trial_predicts(study: Study, tmp_path: Path) -> None:
    with_weights(study, tmp_path / "model.safetensors")
    water = Structure(("O", "H", "H"), np.array([[0, 0, 0.12], [0, 0.76, -0.47], [0, -0.76, -0.47]]))
    (energy,) = open_study("widths").load_model().predict([water]).energies
    assert -3.0 < energy < 0.0, "three self-energies, and what the network adds"


def with_weights(study: Study, file: Path) -> None:
    """Give the best trial the file of a real network."""
    from trainer.config import AEVConfig, TrainConfig
    from trainer.networks.files import CPU, save_model
    from trainer.networks.model import ElementNetworks

    aev = AEVConfig()
    model = ElementNetworks(TrainConfig(hidden=(64, 32), precision="float32"), aev.elements, 384, CPU)
    save_model(file, model, aev, dict.fromkeys(aev.elements, -0.5))
    digest = open_blobs(study.database).put(file)
    this = (artifacts.c.study_id == study.id, artifacts.c.number == 1)
    with study.database.writing() as connection:
        connection.execute(update(artifacts).where(*this).values(digest=digest))
