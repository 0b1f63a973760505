"""The private parts of the Optuna dashboard and of MLflow's server are as our modules for them say."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import optuna
import pytest

from dashboards import optuna_dashboard_private as private

DASHBOARD = (
    f"optuna-dashboard {version('optuna-dashboard')} has changed what dashboards/optuna_dashboard_private.py"
    " relies on: read its source, and correct that module"
)
SERVER = (
    f"MLflow {version('mlflow')} has changed what dashboards/mlflow_server.py relies on: read its source, and"
    " correct that module"
)


@pytest.mark.parametrize("of_trial", [False, True])
def test_the_dashboard_reads_the_notes_that_we_write(of_trial: bool) -> None:
    notes, study = private.part("_note"), optuna.create_study()
    trial = study.ask()
    storage, study_id = study._storage, study._study_id
    shown, owner = (trial, trial._trial_id) if of_trial else (study, None)
    for body in ("long " * 1000, "short"):
        mine = private.note_attributes(storage.get_study_system_attrs(study_id)).get(owner, {})
        for key, value in private.changed_note(mine, owner, body).items():
            storage.set_study_system_attr(study_id, key, value)
        assert notes.get_note(shown) == body, DASHBOARD
        mine = private.note_attributes(storage.get_study_system_attrs(study_id))[owner]
        assert private.note_body(mine, owner) == body, DASHBOARD


def test_the_dashboard_reads_the_figures_that_we_write() -> None:
    plots, study = private.part("_custom_plot_data"), optuna.create_study()
    private.save_figure(study._storage, study._study_id, "cost", "{}" * 3000)
    attributes = study._storage.get_study_system_attrs(study._study_id)
    assert plots.get_plotly_graph_objects(attributes) == {"cost": "{}" * 3000}, DASHBOARD
    assert private.figure_json(attributes, "cost") == "{}" * 3000, DASHBOARD
    assert private.figure_json(attributes, "other") is None, DASHBOARD


def test_mlflow_starts_its_server_with_the_parts_that_we_use() -> None:
    look = """
import inspect
from mlflow.server import constants, handlers
from mlflow.server.fastapi_app import app
stores = ("BACKEND_STORE_URI", "REGISTRY_STORE_URI")
files = ("ARTIFACT_ROOT", "ARTIFACTS_DESTINATION", "SERVE_ARTIFACTS")
for name in stores + files:
    assert isinstance(getattr(constants, f"{name}_ENV_VAR"), str), name
parameters = list(inspect.signature(handlers.initialize_backend_stores).parameters)
assert parameters[:3] == ["backend_store_uri", "registry_store_uri", "default_artifact_root"], parameters
assert callable(app)
"""
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{SERVER}\n{done.stderr}"
