"""MLflow's model registry: a promoted model becomes the next version of the model of its study.

MLflow takes seconds to import, so the functions that need it do so.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.settings import Settings
from storage.tracking.mlflow_runs import MlflowRuns, open_runs
from storage.tracking.outbox import MetricRow

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "_promoted-models"
"""Experiment of the runs with model files. No study can have this name, and models outlast studies."""

CHAMPION = "champion"
"""The alias of the version that was promoted last."""

KEY = "anitune.promotion"
"""The tag that names the promotion of a version, by which the version is found again."""

_MODEL = "model"
"""The folder of the model among the artifacts of its run."""

_NOTE = "mlflow.note.content"


@dataclass(frozen=True)
class ModelFiles:
    """A model for MLflow's pyfunc flavor, defined by code, so that nothing is unpickled.

    Attributes
    ----------
    script
        Python file that calls ``mlflow.models.set_model``.
    artifacts
        Files and folders that the script finds in ``context.artifacts``, by name.
    inputs, outputs
        Columns of the signature, as in MLflow's JSON.
    example
        An example input.
    requirements
        Packages that the model needs, as requirements for pip.
    """

    script: Path
    artifacts: Mapping[str, Path]
    inputs: Sequence[Mapping[str, Any]]
    outputs: Sequence[Mapping[str, Any]]
    example: Sequence[Mapping[str, Any]]
    requirements: Sequence[str]


@dataclass(frozen=True)
class RegisteredModel:
    """A version in the registry."""

    name: str
    version: str
    run_id: str

    @property
    def uri(self) -> str:
        """URI of this version for ``mlflow.pyfunc.load_model``."""
        return f"models:/{self.name}/{self.version}"


def register_model(
    settings: Settings,
    name: str,
    key: str,
    files: ModelFiles,
    *,
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    description: str,
) -> RegisteredModel:
    """Create the next version of the model of this name, and make it the champion.

    If a version with this ``key`` exists, it is used instead of a new one.

    Parameters
    ----------
    key
        Identifies the promotion of the version.
    tags
        Tags of the version and of its run, which say where it comes from.
    metrics
        Metrics of the run.
    description
        Description of the version and note of its run, in Markdown.

    Raises
    ------
    TrackingUnavailableError, TrackingRefusedError
        if MLflow does not answer, or refuses the model.
    """
    os.environ["MLFLOW_UV_AUTO_DETECT"] = "false"  # the requirements are given, not detected
    runs = open_runs(settings)
    known = runs.ask(lambda client: _version_of(client, name, key))
    if known is None:
        run = _log(runs, name, key, files, tags, metrics, description)
        known = runs.ask(lambda client: _create_version(client, name, run, {**tags, KEY: key}, description))
    version = known
    runs.ask(lambda client: client.set_registered_model_alias(name, CHAMPION, version.version))
    return version


def _log(
    runs: MlflowRuns,
    name: str,
    key: str,
    files: ModelFiles,
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    description: str,
) -> str:
    """Upload the model to its own run; return the id of the run."""
    now_ms = round(time.time() * 1000)
    experiment = runs.experiment(EXPERIMENT, {})
    run = runs.find_or_create(experiment, key, name, now_ms, {**tags, _NOTE: description})
    runs.log(run, [MetricRow(metric, 0, value, now_ms) for metric, value in metrics.items()])
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / _MODEL
        runs.ask(lambda _: _save(saved, files))
        runs.upload(
            run,
            {
                f"{_MODEL}/{file.relative_to(saved).as_posix()}": file
                for file in saved.rglob("*")
                if file.is_file()
            },
        )
    runs.set_status(run, "FINISHED", now_ms)
    return run


def _save(folder: Path, files: ModelFiles) -> None:
    import mlflow.pyfunc
    from mlflow.models import ModelSignature

    mlflow.pyfunc.save_model(
        str(folder),
        python_model=str(files.script),
        artifacts={name: str(path) for name, path in files.artifacts.items()},
        signature=ModelSignature.from_dict(
            {"inputs": json.dumps(list(files.inputs)), "outputs": json.dumps(list(files.outputs))}
        ),
        input_example=list(files.example),
        pip_requirements=list(files.requirements),
    )


def _version_of(client: MlflowClient, name: str, key: str) -> RegisteredModel | None:
    for each in client.search_model_versions(f"name='{name}'"):
        if each.tags.get(KEY) == key:
            return RegisteredModel(name, str(each.version), str(each.run_id))
    return None


def _create_version(
    client: MlflowClient, name: str, run: str, tags: Mapping[str, str], description: str
) -> RegisteredModel:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run).info.artifact_uri}/{_MODEL}"
    made = client.create_model_version(name, source, run, tags=dict(tags), description=description)
    return RegisteredModel(name, str(made.version), run)
