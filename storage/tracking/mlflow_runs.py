"""Client of MLflow with idempotent calls: a repeated call has the same result as a single one.

The first :class:`MlflowRuns` imports MLflow, which takes seconds; make it in a process that does not train.
The functions that need MLflow import it.
"""

from __future__ import annotations

import gc
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from filelock import FileLock

from storage.addresses import redacted, without_secrets
from storage.blobs.names import checked_name
from storage.confined import child
from storage.errors import (
    ArtifactNameError,
    DatabaseError,
    OutsideFolderError,
    TrackingRefusedError,
    TrackingUnavailableError,
)
from storage.settings import Settings
from storage.tracking import artifact_stores
from storage.tracking.credentials import use_tokens
from storage.tracking.mlflow_tables import QUIET, check_tables, follow_folder
from storage.tracking.outbox import MetricRow

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

    from storage.tracking.mlflow_private import ArtifactRepository

R = TypeVar("R")

RunStatus = Literal["SCHEDULED", "RUNNING", "FINISHED", "FAILED", "KILLED"]

KEY_TAG = "anitune.key"
"""Tag with the key of a run, by which the run is found again, since MLflow chooses run ids itself."""

_ENVIRONMENT = {
    **QUIET,
    # MLflow's own retries would repeat a create whose answer was lost, and so make a second run.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Transfer files only with the server itself, not with addresses that it names.
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
}

_ALL = 3
"""MLflow's ViewType.ALL, which includes deleted runs."""

_RUNS_IN_BULK, _ROWS_IN_BULK = 100, 25_000
"""The server's own limits: it returns no more rows, and does not say that it left some out."""

# Temporary statuses, which do not judge the request itself: sign in, not allowed (yet), too slow, too many.
_PASSING_STATUS = frozenset({401, 403, 407, 408, 425, 429, 499})
_USER_INFO = re.compile(r"://[^/\s]*@")
_MESSAGE_LENGTH = 500  # characters


@dataclass(frozen=True)
class FoundRun:
    """A run in MLflow; ``metrics`` are the names of its metrics."""

    id: str
    key: str
    deleted: bool
    status: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: frozenset[str]


def alone_with(artifact_root: Path | None) -> AbstractContextManager[object]:
    """Lock for one process at a time: MLflow creates the tables of an embedded database on first use."""
    if artifact_root is None:
        return nullcontext()
    artifact_root.mkdir(parents=True, exist_ok=True)
    return FileLock(artifact_root / ".opening.lock")


class MlflowRuns:
    """The experiments and runs of one tracking server or database.

    Every method raises :class:`TrackingUnavailableError` if a later retry may succeed, and
    :class:`TrackingRefusedError` if not.

    Parameters
    ----------
    tracking_uri
        URI of a server (http, https) or of a database. It may hold a password, and is never shown.
    artifact_root
        Our own folder for the files of runs, used if there is no server.
    """

    def __init__(self, tracking_uri: str, artifact_root: Path) -> None:
        os.environ.update(_ENVIRONMENT)
        from mlflow import MlflowClient

        self._uri = tracking_uri
        self._shown_uri = redacted(tracking_uri)
        self._artifact_root = artifact_root
        self._served = tracking_uri.startswith(("http://", "https://"))
        try:
            with _translated(), alone_with(None if self._served else artifact_root):
                check_tables(tracking_uri)
                if not self._served:
                    follow_folder(tracking_uri, self._artifact_root)
                use_tokens(tracking_uri)
                self._client = MlflowClient(tracking_uri)
                self._client.search_experiments(max_results=1)
        except (TrackingRefusedError, DatabaseError) as error:
            # A refused first request says nothing about the messages to be delivered.
            raise TrackingUnavailableError(str(error)) from None
        # Exclude the imported modules from garbage collection: each scan of them would take half a second.
        gc.freeze()

    def ask(self, question: Callable[[MlflowClient], R]) -> R:
        """Call MLflow's own client, for requests without a method in this class."""
        with _translated():
            return question(self._client)

    def experiment(self, name: str, tags: Mapping[str, str]) -> str:
        """The id of the experiment of that name; creates it with these tags if necessary."""
        with _translated():
            found = self._client.get_experiment_by_name(name) or self._create_experiment(name, tags)
        if found.lifecycle_stage != "active":
            raise TrackingRefusedError(
                f"the MLflow experiment {name!r} was deleted, and MLflow reserves its name: restore it with"
                f" `MLFLOW_TRACKING_URI={shlex.quote(self._shown_uri)} mlflow experiments restore"
                f" --experiment-id {found.experiment_id}`"
            )
        return str(found.experiment_id)

    def _create_experiment(self, name: str, tags: Mapping[str, str]) -> Experiment:
        location = None if self._served else child(self._artifact_root, name).as_uri()
        made = self._client.create_experiment(name, location, tags=dict(tags))
        return self._client.get_experiment(made)

    def find_or_create(
        self, experiment: str, key: str, name: str, start_ms: int, tags: Mapping[str, str]
    ) -> str:
        """The id of the run with this key; creates it if necessary.

        If repeated requests created several, the run with the lowest id stays and the others are deleted.

        Parameters
        ----------
        start_ms
            Milliseconds since 1970-01-01 UTC.
        """
        with _translated():
            found = sorted(run.info.run_id for run in self._with_key(experiment, key))
            if not found:
                run = self._client.create_run(
                    experiment, start_time=start_ms, tags={**tags, KEY_TAG: key}, run_name=name
                )
                found = [run.info.run_id]
        self._delete(found[1:])
        return str(found[0])

    def delete_doubles(self, experiment: str, key: str, keep: str) -> None:
        """Delete the runs with this key except one; a slow server may have created others late."""
        with _translated():
            found = [run.info.run_id for run in self._with_key(experiment, key)]
        self._delete(run for run in found if run != keep)

    def forget(self, experiment: str, key: str) -> None:
        """Delete the runs of ``key`` and of the keys below it, and the experiment if it has no other runs.

        Their files are not touched, since MLflow's addresses of files are not trusted. The name of a deleted
        experiment becomes free. MLflow keeps deleted runs and experiments until ``mlflow gc``.
        """
        from mlflow.exceptions import MlflowException

        with _translated():
            try:
                found = self._client.get_experiment(experiment)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return
                raise
            if found.lifecycle_stage != "active":
                return
            ours, others = [], 0
            for run in self._all_runs(experiment):
                named = run.data.tags.get(KEY_TAG, "")
                if named == key or named.startswith(f"{key}/"):
                    ours.append(run.info.run_id)
                else:
                    others += 1
            if others:  # they belong to a study of the same name in another database, or to a person
                for each in ours:
                    self._client.delete_run(each)
                return
            if found.name != (deleted := f"{key} (deleted)"):
                self._client.rename_experiment(experiment, deleted)
            self._client.delete_experiment(experiment)

    def _all_runs(self, experiment: str) -> Iterator[Run]:
        page = None
        while True:
            runs = self._client.search_runs([experiment], page_token=page)
            yield from runs
            page = runs.token
            if not page:
                return

    def delete(self, run: str) -> None:
        """Delete a run; MLflow keeps it among the deleted ones."""
        self._delete([run])

    def restore(self, run: str) -> None:
        """Restore a deleted run."""
        with _translated():
            self._client.restore_run(run)

    def deleted_experiment(self, name: str) -> str | None:
        """The id of the deleted experiment of that name, if there is one; it blocks the name."""
        with _translated():
            found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id) if found is not None and found.lifecycle_stage != "active" else None

    def free_name(self, experiment: str) -> None:
        """Rename a deleted experiment, so that another can take its name; it stays deleted."""
        with _translated():
            self._client.restore_experiment(experiment)  # MLflow does not rename deleted experiments
            name = self._client.get_experiment(experiment).name
            self._client.rename_experiment(experiment, f"{name} (deleted {experiment})")
            self._client.delete_experiment(experiment)

    def restore_experiment(self, experiment: str) -> None:
        """Restore a deleted experiment with all its runs."""
        with _translated():
            self._client.restore_experiment(experiment)

    def _with_key(self, experiment: str, key: str) -> Sequence[Run]:
        runs: Sequence[Run] = self._client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'")
        return runs

    def _delete(self, runs: Iterable[str]) -> None:
        with _translated():
            for run in runs:
                self._client.delete_run(run)

    def log(
        self,
        run: str,
        metrics: Sequence[MetricRow] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Write metrics with their own steps and times, parameters and tags.

        A metric that exists is not duplicated, a tag is overwritten, and another value of a parameter is
        refused. The client splits data beyond MLflow's limits into several requests.
        """
        from mlflow.entities import Metric, Param, RunTag

        with _translated():
            self._client.log_batch(
                run,
                [Metric(row.key, row.value, row.time_ms, row.step) for row in metrics],
                [Param(key, value) for key, value in (params or {}).items()],
                [RunTag(key, value) for key, value in (tags or {}).items()],
            )

    def upload(self, run: str, files: Mapping[str, Path]) -> None:
        """Upload files as artifacts of a run, given by their paths in the run (such as plots/loss.png)."""
        _refuse_names(files)
        with _translated():
            artifact_stores.upload(self._store(run), files)

    def _store(self, run: str) -> ArtifactRepository:
        # Use one answer about the run: MLflow's client would ask again, and might get another place.
        return artifact_stores.open_store(self._client.get_run(run).info, self._uri, self._artifact_root)

    def set_status(self, run: str, status: RunStatus, end_ms: int | None = None) -> None:
        """Set the status of a run; ``end_ms`` is in milliseconds since 1970-01-01 UTC, if it ended."""
        with _translated():
            if end_ms is None:
                self._client.update_run(run, status)
            else:
                self._client.set_terminated(run, status, end_ms)

    def is_deleted(self, experiment: str) -> bool | None:
        """Whether an experiment was deleted; None if MLflow does not know it."""
        try:
            with _translated():
                return str(self._client.get_experiment(experiment).lifecycle_stage) == "deleted"
        except TrackingRefusedError:
            return None

    def find(self, experiment: str, key: str) -> list[FoundRun]:
        """The runs with the key ``key`` or ``key/...``, also deleted ones."""
        found: list[FoundRun] = []
        token = None
        # An underscore in the key matches any letter, so foreign runs are filtered out below.
        words = f"tags.`{KEY_TAG}` LIKE '{key}%'"
        with _translated():
            while True:
                page = self._client.search_runs([experiment], words, _ALL, 1000, page_token=token)
                found += [
                    FoundRun(
                        id=run.info.run_id,
                        key=run.data.tags[KEY_TAG],
                        deleted=run.info.lifecycle_stage == "deleted",
                        status=run.info.status,
                        params=run.data.params,
                        tags=run.data.tags,
                        metrics=frozenset(run.data.metrics),
                    )
                    for run in page
                ]
                token = page.token
                if not token:
                    return [run for run in found if run.key == key or run.key.startswith(f"{key}/")]

    def histories(self, runs: Sequence[str], metric: str) -> list[tuple[str, MetricRow]]:
        """All values of a metric in these runs, each with the run's id."""
        with _translated():
            return [
                row
                for first in range(0, len(runs), _RUNS_IN_BULK)
                for row in self._histories(runs[first : first + _RUNS_IN_BULK], metric)
            ]

    def _histories(self, runs: Sequence[str], metric: str) -> list[tuple[str, MetricRow]]:
        rows = self._bulk(runs, metric)
        if len(rows) < _ROWS_IN_BULK:
            return rows
        if len(runs) == 1:
            points = self._client.get_metric_history(runs[0], metric)
            return [(runs[0], MetricRow(metric, p.step, p.value, p.timestamp)) for p in points]
        half = len(runs) // 2
        return self._histories(runs[:half], metric) + self._histories(runs[half:], metric)

    def _bulk(self, runs: Sequence[str], metric: str) -> list[tuple[str, MetricRow]]:
        from storage.tracking.mlflow_private import metric_points

        points = metric_points(self._client, runs, metric, _ROWS_IN_BULK)
        return [
            (point["run_id"], MetricRow(metric, point["step"], point["value"], point["timestamp"]))
            for point in points
        ]

    def artifact_digests(self, run: str) -> dict[str, str]:
        """The SHA-256 digest of each file among the artifacts of a run, by its path; all bytes are read."""
        with _translated():
            return artifact_stores.digests(self._store(run))

    def fetch(self, run: str, path: str, folder: Path) -> Path:
        """Copy an artifact of a run, or a folder of them, into a folder."""
        _refuse_names([path])
        with _translated():
            store = self._store(run)
            return Path(store.download_artifacts(path, str(folder)))  # type: ignore[no-untyped-call]


def open_runs(settings: Settings) -> MlflowRuns:
    """Open the tracking server or database of these settings."""
    return MlflowRuns(settings.tracking_uri, artifact_root=settings.mlflow_artifacts)


def _refuse_names(paths: Iterable[str]) -> None:
    """Refuse invalid artifact names, which come from records that others can write."""
    try:
        for path in paths:
            checked_name(path)
    except ArtifactNameError as error:
        raise TrackingRefusedError(str(error)) from None


@contextmanager
def _translated() -> Iterator[None]:
    """Turn MLflow's exceptions into our errors, with one line and no password."""
    try:
        yield
    except (DatabaseError, TrackingRefusedError):
        raise
    except OutsideFolderError as error:
        raise TrackingRefusedError(str(error)) from None
    except Exception as error:  # the stores for databases, HTTP and clouds share no base class of errors
        line = " ".join(_USER_INFO.sub("://***@", without_secrets(str(error))).split())[:_MESSAGE_LENGTH]
        kind = TrackingRefusedError if _is_final(error) else TrackingUnavailableError
        # Not "from error": its text and those of its causes may hold the URL.
        raise kind(f"MLflow: {line or type(error).__name__}") from None


def _is_final(error: Exception) -> bool:
    """Whether the server will refuse a repetition too, since it answered with its own 4xx status."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
        # An unknown path may be the answer of a proxy without MLflow behind it.
        return error.error_code != "ENDPOINT_NOT_FOUND" and _is_final_status(status)
    answer: Any = getattr(error, "response", None)  # as in the errors of requests, which uploads raise
    return _is_final_status(getattr(answer, "status_code", None))


def _is_final_status(status: int | None) -> bool:
    return status is not None and 400 <= status < 500 and status not in _PASSING_STATUS
