"""Studies in a notebook: ``open_study("widths").trials()`` and so on.

It reads the same records as the commands, which the environment names (``ANITUNE_HOME``,
``ANITUNE_STORAGE_URL``), and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dashboards import figures
from dashboards.errors import DashboardError
from dashboards.formatting import format_noise
from dashboards.ranking import leaderboard
from dashboards.record import StudyRecord, architecture_of, read_curves, read_study
from dashboards.report.trial_table import trials_table
from storage.blobs.place import open_blobs
from storage.database import Database, open_database
from storage.settings import Settings, load_settings
from storage.trials.views import TrialRow
from trainer.files import MODEL

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from dashboards.chart import Chart
    from trainer.inference.ensemble import Ensemble

T = TypeVar("T")


class NoResultError(DashboardError):
    """The study has no complete trial yet, or no figure of that name."""


class NotebookStudy:
    """A study in a notebook, made by :func:`open_study`; each call reads the records again."""

    def __init__(self, name: str, settings: Settings | None = None) -> None:
        self.name = name
        self._settings = settings
        self.record()  # raises at once if there is no such study

    def __repr__(self) -> str:
        summary = self.record().summary
        states = ", ".join(f"{count} {state}" for state, count in summary.trials.items() if count)
        best = f", best {summary.best_value:.3f} kcal/mol" if summary.best_value is not None else ""
        return f"study {self.name}: {states or 'no trial yet'}{best}"

    def record(self) -> StudyRecord:
        """All records of the study, for the other functions of :mod:`dashboards`."""
        return self._read(lambda database: read_study(database, self.name))

    def trials(self, reference: bool = False) -> pd.DataFrame:
        """One row for each trial, the best first; errors in kcal/mol, times in seconds.

        Parameters
        ----------
        reference
            Whether to include the rows of the reference study, in their places.
        """
        import pandas as pd  # takes half a second, and the other methods do not need it

        return pd.DataFrame(trials_table([self.record()], reference)).set_index("trial")

    def noise(self) -> str:
        """What difference between two trials is more than chance, and how that is known, as text."""
        return format_noise(leaderboard(self.record()))

    def best(self) -> dict[str, Any]:
        """The complete trial of the least validation MAE: number, architecture, error, settings and metrics.

        Raises
        ------
        NoResultError
            if no trial is complete.
        """
        trial = self.best_trial()
        return {
            "trial": trial.number,
            "architecture": architecture_of(trial),
            "val_mae_kcalmol": trial.value,
            "settings": trial.config,
            "metrics": trial.summary,
            "mlflow_run_id": trial.mlflow_run_id,
        }

    def model_file(self) -> Path:
        """The weights of the best trial, as safetensors.

        Raises
        ------
        NoResultError
            if no trial is complete.
        BlobMissingError
            if the file is in another home.
        """
        digest = next(file.digest for file in self.best_trial().artifacts if file.path == MODEL)
        return self._read(lambda database: open_blobs(database).path(digest))

    def load_model(self) -> Ensemble:
        """The network of the best trial as an ensemble of one member, which predicts energies of structures.

        Load the result of ``anitune promote`` with ``mlflow.pyfunc.load_model`` instead.

        Raises
        ------
        NoResultError, BlobMissingError, ModelFileError
            if there is no complete trial, or its file is not here or cannot be read.
        """
        from trainer.inference.ensemble import Ensemble  # torch takes seconds

        return Ensemble.open(self.model_file())

    def figure(self, name: str = "history") -> go.Figure:
        """A figure of the report by its name, such as ``cost``, ``importance`` or ``curves``.

        Raises
        ------
        NoResultError
            if there is none of that name; the message lists the names.
        """
        return self.chart(name).figure

    def chart(self, name: str) -> Chart:
        """The same figure with its title and its alternative text."""
        if name == "curves":
            curves = self._read(lambda database: read_curves(database, read_study(database, self.name)))
            return figures.curves(self.record(), curves)
        if name not in figures.FIGURES:
            names = ", ".join(sorted([*figures.FIGURES, "curves"]))
            raise NoResultError(f"there is no figure {name!r}; there are: {names}")
        return figures.FIGURES[name](self.record())

    def best_trial(self) -> TrialRow:
        """The record of the best trial."""
        complete = self.record().complete
        if not complete:
            raise NoResultError(f"study {self.name}: no trial is complete yet")
        return complete[0]

    def _read(self, read: Callable[[Database], T]) -> T:
        with open_database(self._settings or load_settings()) as database:
            return read(database)


def open_study(name: str) -> NotebookStudy:
    """The study of that name.

    Raises
    ------
    StudyNotFoundError
        if there is none.
    """
    return NotebookStudy(name)
