"""Studies in notebooks and programs: ``anitune study`` and ``anitune promote`` as functions.

What imports torch is imported where it is used, because :func:`run` first starts the fork server, which
imports torch at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from dashboards import figures
from dashboards.learning_curve import curve_sentences
from dashboards.notebook import NotebookStudy
from dashboards.record import architecture_of
from search.api.display import Shown
from search.api.figure import Figure
from search.api.stopping import said_if_stopped
from search.cli.opening import load_settings_for, open_home, opened_study
from search.cli.output import leaderboard, summary_lines
from search.recorded import config_of_file, with_reference
from search.study import StudyFile, read_study
from search.work.forkserver import start_forkserver
from storage.evaluations import evaluations_on_test_set
from storage.learning_curves import RecordedCurve
from storage.promotions import Promotion
from storage.settings import Settings, load_settings
from storage.trials.views import TrialRow
from trainer.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from search.api.models import Model


def run(study: str | Path, /, *, pack: int | None = None, **settings: Any) -> Study:
    """Create or continue a study, train all its trials in this process, and report them to MLflow.

    After an interrupt (Ctrl-C, the stop button of a notebook) the running trials are handed back, and the
    study is returned as it is then. Another call continues from there. A second interrupt stops at once.

    Parameters
    ----------
    study
        A study file, or the name of a study. A name without settings continues that study.
    pack
        Number of trials to train at once; None: as many as suit the machine.
    **settings
        The keys of a study file, see docs/study-file.md. Two short forms are accepted: ``data`` may be one or
        several paths, and ``trials`` and ``hours`` are those of ``limits``.

    Examples
    --------
    >>> study = anitune.run("my-study", data="water.extxyz", trials=20)
    >>> study = anitune.run("study.yaml")

    Raises
    ------
    ConfigError, StudyFileError, DataError, StudyExistsError
        with a line that says what is wrong.
    """
    if pack != 1:
        start_forkserver()
    from search.cli.work import run_study

    if not settings and not _is_file(study):
        return open(str(study)).run(pack=pack)
    file = _study_file(study, settings)
    places = load_settings_for(file.config())
    with open_home(places) as database, said_if_stopped():
        config = config_of_file(database, file)
        run_study(database, config, pack)
    return Study(config.name, places)


def create(study: str | Path, /, **settings: Any) -> Study:
    """Create a study, so that workers can train its trials. See :func:`run` for parameters and errors."""
    from search.cli.create import create_studies

    file = _study_file(study, settings)
    places = load_settings_for(file.config())
    with open_home(places) as database:
        config = config_of_file(database, file)
        create_studies(database, config)
    return Study(config.name, places)


def open(study: str, *, storage: str | None = None, tracking: str | None = None) -> Study:
    """Open an existing study.

    Parameters
    ----------
    storage, tracking
        Addresses of the database and of MLflow; None: from the environment, see docs/study-file.md.

    Raises
    ------
    StudyNotFoundError
        if there is no study of that name.
    """
    return Study(study, load_settings(storage, tracking))


def promote(
    study: Study | str,
    *,
    top: int = 5,
    seeds: int = 5,
    folds: int = 5,
    ensemble: int = 8,
    at_most_parameters: int | None = None,
    again: bool = False,
) -> PromotedModel:
    """Compare the best configurations on folds, choose one, test it once, and register an ensemble of it.

    After an interrupt, another call continues the promotion.

    Parameters
    ----------
    top
        Number of candidates, which are the best configurations.
    seeds
        Number of seeds. Run i of a candidate uses fold i and seed i, both counted cyclically.
    folds
        Number of folds by structure, and of folds by molecule, of all data except the test set.
    ensemble
        Number of networks in the registered ensemble.
    at_most_parameters
        Maximum number of weights and biases of a candidate; None: with several objectives as many as the knee
        of the Pareto front has, else any.
    again
        Evaluate on the test set even if it was evaluated on before.

    Raises
    ------
    AlreadyEvaluatedError
        if another promotion has evaluated on the test set, and ``again`` is not set.
    SearchError
        if there is nothing to promote.
    """
    start_forkserver()
    from search.cli.promote import promote_study, result_lines, results_table
    from search.promote.plan import Options

    opened = study if isinstance(study, Study) else open(study)
    with opened_study(opened.name, opened.settings) as record, said_if_stopped(raises=True):
        options = Options(top, seeds, folds, ensemble, at_most_parameters)
        promoter, promotion = promote_study(record, options, again, quiet=True)
        table = results_table(promotion, promoter.plan, promoter.decisive)
        lines = result_lines(
            promotion,
            promoter.plan,
            evaluations_on_test_set(record.database, record),
            opened.settings.tracking_uri,
        )
    return PromotedModel(promotion, opened.settings, Shown(table, *lines))


def learning_curve(study: Study | str, *, top: int = 3, seeds: int = 3) -> LearningCurve:
    """Train the best configurations on shares of the data, to tell what more data or a larger network gives.

    After an interrupt, another call continues.

    Parameters
    ----------
    top
        Number of configurations, which are the best ones.
    seeds
        Number of seeds of each configuration on 1/8, 1/4, 1/2 and all of the training set; 2 or more.

    Raises
    ------
    SearchError
        if no trial is complete, or the training set is too small to be divided.
    """
    start_forkserver()
    from search.cli.learning_curve import measure_learning_curve
    from search.curve.learning_curve import Options

    opened = study if isinstance(study, Study) else open(study)
    with opened_study(opened.name, opened.settings) as record, said_if_stopped(raises=True):
        return LearningCurve(measure_learning_curve(record, Options(top, seeds), quiet=True))


class Study:
    """A study, as :func:`run` and :func:`open` return it. Each call reads its current records.

    Attributes
    ----------
    name
    settings
        Addresses of the stores that hold its records.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self.settings = settings
        self._records: NotebookStudy = NotebookStudy(name, settings)

    def __repr__(self) -> str:
        return repr(self._records)

    def _repr_html_(self) -> str:
        lines = map(escape, summary_lines(self._records.record().summary))
        head = Shown(f"[bold]{self.name}[/]", *lines)
        return f"{head._repr_html_()}{self.leaderboard()._repr_html_()}"

    def run(self, *, pack: int | None = None) -> Study:
        """Train the remaining trials of the study in this process. See :func:`run`."""
        from search.cli.work import train_studies

        with opened_study(self.name, self.settings) as study, said_if_stopped():
            train_studies(study.database, with_reference(study), pack)
        return self

    def promote(self, **options: Any) -> PromotedModel:
        """Promote the study to a model. The parameters are those of :func:`promote`."""
        return promote(self, **options)

    def learning_curve(self, **options: Any) -> LearningCurve:
        """Tell what more data or a larger network gives. For parameters see :func:`learning_curve`."""
        return learning_curve(self, **options)

    def leaderboard(self) -> Shown:
        """Rank the trials, the best first, with those of the reference study among them; in kcal/mol."""
        record = self._records.record()
        return Shown(leaderboard(record.trials, record.rows, record.summary.objectives))

    def frame(self, reference: bool = False) -> pd.DataFrame:
        """Return a DataFrame with one row per trial, the best first; errors in kcal/mol, times in seconds.

        Parameters
        ----------
        reference
            Whether to include the rows of the reference study, sorted among the trials.
        """
        return self._records.trials(reference)

    def figure(self, name: str = "history") -> Figure:
        """A plotly figure of the report, such as ``history``, ``cost``, ``importance`` or ``curves``.

        Raises
        ------
        NoResultError
            if there is no figure of that name; the message lists the names.
        """
        return Figure(self._records.chart(name))

    def noise(self) -> str:
        """Say by how much two trials must differ to be distinguishable, and how that was measured."""
        return self._records.noise()

    @property
    def best(self) -> BestTrial:
        """The complete trial with the lowest validation MAE.

        Raises
        ------
        NoResultError
            if no trial is complete.
        """
        return BestTrial(self._records)


class BestTrial:
    """The best trial of a study.

    Attributes
    ----------
    number
    value
        Best validation MAE, kcal/mol.
    architecture
        Layer sizes and activation, such as ``384-128-64-1 silu``.
    params
        The hyperparameters that were searched, as Optuna stores them.
    config
        All settings of the training.
    metrics
        Measurements of the trial, by name.
    mlflow_run_id
    """

    def __init__(self, records: NotebookStudy) -> None:
        trial: TrialRow = records.best_trial()
        self._records = records
        self.number = trial.number
        self.value = trial.value
        self.architecture = architecture_of(trial)
        self.params = trial.params
        self.config = trial.config
        self.metrics = trial.summary
        self.mlflow_run_id = trial.mlflow_run_id

    def __repr__(self) -> str:
        return f"trial {self.number}: {self.architecture}, validation MAE {self.value:.3f} kcal/mol"

    @property
    def model_file(self) -> Path:
        """The path of its weights, a safetensors file.

        Raises
        ------
        BlobMissingError
            if the file is not in this home folder: the trial was trained with another one.
        """
        return self._records.model_file()

    @property
    def model(self) -> Model:
        """The network, which predicts energies of structures."""
        from search.api.models import Model

        return Model(self._records.load_model())


class PromotedModel:
    """The result of a promotion: an ensemble in MLflow's registry.

    Attributes
    ----------
    name, version
        Name and version of the ensemble in the registry.
    trial
        Number of the trial whose settings were chosen.
    reason
        Why that trial was chosen.
    test_mae
        Error of the ensemble on the test set, kcal/mol.
    """

    def __init__(self, promotion: Promotion, settings: Settings, shown: Shown) -> None:
        self.name = promotion.model_name
        self.version = promotion.model_version
        self.trial = promotion.choice
        self.reason = promotion.reason
        self.test_mae = (promotion.test or {})["mae_kcalmol"]
        self._settings = settings
        self._shown = shown

    def __repr__(self) -> str:
        return repr(self._shown)

    def _repr_html_(self) -> str:
        return self._shown._repr_html_()

    @property
    def model(self) -> Model:
        """The ensemble, which predicts energies of structures with uncertainties."""
        from search.api.models import Model
        from search.cli.models import open_model

        return Model(open_model(f"models:/{self.name}/{self.version}", self._settings))


class LearningCurve:
    """The result of a learning curve.

    Attributes
    ----------
    values
        Sizes, errors, power laws, and their predictions, as ``anitune learning-curve --json`` prints them.
    """

    def __init__(self, curve: RecordedCurve) -> None:
        from search.cli.learning_curve import curve_table

        self.values = curve.values
        self._shown = Shown(curve_table(curve), *map(escape, curve_sentences(curve.values)))

    def __repr__(self) -> str:
        return repr(self._shown)

    def _repr_html_(self) -> str:
        return self._shown._repr_html_()

    @property
    def figure(self) -> Figure:
        """The errors against the size of the training set, with the power laws."""
        return Figure(figures.learning_curve(self.values))


def _is_file(study: str | Path) -> bool:
    return isinstance(study, Path) or study.endswith((".yaml", ".yml"))


def _study_file(study: str | Path, settings: Mapping[str, Any]) -> StudyFile:
    """Read a study file, or make one of a name and the keys of a study file."""
    if not _is_file(study):
        values = {"name": study, **plain_settings(settings)}
        return StudyFile(values, f"study {study!r}", Path.cwd())
    if settings:
        raise ConfigError(f"{study}: give either a file, or a name with settings")
    return read_study(Path(study))


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Expand the short forms of settings into the keys of a study file."""
    values = dict(settings)
    if "data" in values and not isinstance(values["data"], Mapping):
        files = values["data"]
        values["data"] = {"files": [files] if isinstance(files, str | Path) else list(files)}
    if isinstance(values.get("data"), Mapping) and "files" in values["data"]:
        values["data"] = {**values["data"], "files": [str(file) for file in values["data"]["files"]]}
    limits = {key: values.pop(key) for key in ("trials", "hours") if key in values}
    return values | ({"limits": {**values.get("limits", {}), **limits}} if limits else {})
