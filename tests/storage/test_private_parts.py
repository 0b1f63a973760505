"""The private parts of Optuna and MLflow are as storage/optuna_private.py and mlflow_private.py say."""

from __future__ import annotations

import ast
import inspect
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from sqlalchemy import Table

from storage import optuna_private
from storage.optuna_private import SamplerStudy, read_result, stored_result, trial_id
from storage.tracking import saved_view

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
]

ROOT = Path(__file__).resolve().parents[2]

READ_AGAIN = "another version of {0} has changed what {1} relies on: read its source, and correct that module"
OPTUNA = READ_AGAIN.format("Optuna", "storage/optuna_private.py")
CLIENT = READ_AGAIN.format("MLflow", "storage/tracking/mlflow_private.py")
VIEW = READ_AGAIN.format("MLflow", "storage/tracking/saved_view.py")

COLUMNS = {
    "STUDIES": {"study_id", "study_name"},
    "TRIALS": {"trial_id", "number", "study_id", "state", "datetime_start", "datetime_complete"},
    "SYSTEM_ATTRIBUTES": {"trial_system_attribute_id", "trial_id", "key", "value_json"},
    "USER_ATTRIBUTES": {"trial_user_attribute_id", "trial_id", "key", "value_json"},
    "INTERMEDIATE_VALUES": {
        "trial_intermediate_value_id",
        "trial_id",
        "step",
        "intermediate_value",
        "intermediate_value_type",
    },
    "RESULTS": {"trial_value_id", "trial_id", "objective", "value", "value_type"},
    "PARAMS": {"param_id", "trial_id", "param_name", "param_value", "distribution_json"},
}


@pytest.mark.parametrize("name", COLUMNS)
def test_the_tables_of_optuna_have_the_columns_that_we_fill(name: str) -> None:
    table: Table = getattr(optuna_private, name)
    assert set(table.columns.keys()) == COLUMNS[name], OPTUNA


@pytest.mark.parametrize("value", [0.0, -1.5, float("inf"), float("-inf")])
def test_results_are_stored_as_a_value_and_its_type(value: float) -> None:
    assert read_result(*stored_result(value)) == value, OPTUNA


def test_optuna_enqueues_by_the_attribute_that_we_read() -> None:
    study = optuna.create_study()
    study.enqueue_trial({"x": 1.0})
    (trial,) = study.get_trials()
    assert trial.system_attrs[optuna_private.ENQUEUED_KEY] == {"x": 1.0}, OPTUNA
    assert trial_id(trial) == study.ask()._trial_id, OPTUNA


@pytest.mark.parametrize(
    "pruner",
    [
        optuna.pruners.SuccessiveHalvingPruner(min_resource=1),
        optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9),
    ],
)
def test_pruners_mark_rungs_by_the_attributes_that_we_drop(pruner: optuna.pruners.BasePruner) -> None:
    study = optuna.create_study(pruner=pruner)
    trial = study.ask()
    for step in range(1, 10):  # the first rung of a bracket of hyperband may be a later one
        trial.report(1.0, step)
        trial.should_prune()
    (frozen,) = study.get_trials()
    marks = [key for key in frozen.system_attrs if key.startswith(optuna_private.RUNG_PREFIX)]
    assert marks, OPTUNA


@pytest.mark.parametrize("kind", [RandomSampler, TPESampler])
def test_samplers_read_and_write_through_the_study_that_we_give_them(kind: type[Any]) -> None:
    def parameters(method: Any) -> list[str]:
        return list(inspect.signature(method).parameters)

    assert parameters(SamplerStudy._get_trials) == parameters(optuna.Study._get_trials), OPTUNA
    storage, asked = InMemoryStorage(), []

    class Storage:
        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            return getattr(storage, name)

    class Watched(SamplerStudy):
        def trials_for_samplers(self) -> list[optuna.trial.FrozenTrial]:
            asked.append("trials")
            return optuna.load_study(study_name="widths", storage=storage).get_trials()

    known = optuna.create_study(study_name="widths", storage=storage)
    distribution = optuna.distributions.FloatDistribution(0, 1)
    for n in range(12):
        known.add_trial(
            optuna.trial.create_trial(params={"x": n / 12}, distributions={"x": distribution}, value=n)
        )
    study = Watched("widths", storage, kind(seed=0), Storage())
    trial = known.ask()
    frozen = storage.get_trial(trial._trial_id)
    study.sampler.infer_relative_search_space(study, frozen)
    study.sampler.sample_independent(study, frozen, "x", distribution)
    assert asked or kind is RandomSampler, OPTUNA


def test_a_database_answers_for_many_runs_at_once(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    from storage.tracking.mlflow_private import metric_points

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.create_experiment("widths")
    runs = [client.create_run(experiment).info.run_id for _ in range(2)]
    for number, run in enumerate(runs):
        client.log_metric(run, "loss", number, timestamp=5, step=3)
    points = metric_points(client, runs, "loss", 10)
    assert sorted((runs.index(p["run_id"]), p["step"], p["value"], p["timestamp"]) for p in points) == [
        (0, 3, 0.0, 5),
        (1, 3, 1.0, 5),
    ], CLIENT


def test_requests_to_a_server_are_signed_and_many_runs_are_asked_for_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow import MlflowClient
    from mlflow.server import app

    from storage.tracking import mlflow_private

    store: Any = MlflowClient("http://127.0.0.1:9")._tracking_client.store
    assert not hasattr(store, "get_metric_history_bulk"), CLIENT
    assert store.get_host_creds().host == "http://127.0.0.1:9", CLIENT
    routes = {rule.rule for rule in app.url_map.iter_rules()}
    assert mlflow_private._BULK in routes, CLIENT
    mlflow_private.sign_requests("anitune-test", lambda request: request)
    signed = mlflow_private.registry.fetch_auth("anitune-test")
    assert signed is not None, CLIENT
    assert signed("request") == "request", CLIENT


def test_the_stores_of_files_and_the_migration_take_what_we_give_them(tmp_path: Path) -> None:
    from storage.tracking import mlflow_private

    local = mlflow_private.LocalArtifactRepository(tmp_path.as_uri())
    assert Path(local.artifact_dir) == tmp_path, CLIENT
    asked = inspect.signature(mlflow_private.MlflowArtifactsRepository).parameters
    assert {"artifact_uri", "tracking_uri"} <= set(asked), CLIENT
    assert list(inspect.signature(mlflow_private.upgrade.callback).parameters) == ["url"], CLIENT


def test_mlflows_page_of_runs_knows_each_key_of_the_saved_view() -> None:
    package = find_spec("mlflow")
    assert package is not None
    assert package.origin is not None
    scripts = (Path(package.origin).parent / "server" / "js" / "build" / "static" / "js").glob("*.js")
    said = "".join(file.read_text() for file in scripts)
    ((tag, value),) = saved_view.view_tags(0, ["val_mae", "parameters"]).items()
    view = json.loads(value)
    state = json.loads(view["state"])
    keys = {*view, *state, *state["compareRunCharts"][0], *state["compareRunSections"][0]}
    unknown = [key for key in (tag.rpartition(".")[0], *sorted(keys)) if key not in said]
    assert unknown == [], VIEW


def test_only_these_modules_import_private_modules_of_optuna_and_mlflow() -> None:
    allowed = {
        "storage/optuna_private.py",
        "storage/tracking/mlflow_private.py",
        "dashboards/optuna_dashboard_private.py",
        "dashboards/mlflow_server.py",
    }
    found = {
        str(file.relative_to(ROOT))
        for package in ("trainer", "storage", "search", "dashboards")
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if is_private(node)
    }
    assert found <= allowed


def is_private(node: ast.AST) -> bool:
    """Whether a statement imports what Optuna, its dashboard or MLflow do not document."""
    if isinstance(node, ast.ImportFrom):
        modules = [f"{node.module}.{each.name}" for each in node.names]
    elif isinstance(node, ast.Import):
        modules = [each.name for each in node.names]
    elif isinstance(node, ast.Attribute):  # of one of their objects
        return node.attr in ("_trial_id", "_study_id", "_get_trials", "_tracking_client")
    else:
        return False
    private = (
        "mlflow.server.",
        "mlflow.store.",
        "mlflow.utils.",
        "mlflow.db.",
        "mlflow.tracking.request_auth",
    )
    return any(
        name.startswith(private)
        or (name.startswith(("optuna", "mlflow")) and any(part.startswith("_") for part in name.split(".")))
        for name in modules
    )
