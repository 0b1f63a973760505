"""The study file: what is searched, on which data, with which methods and limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from search.dimensions import (
    ElementChoices,
    ElementRange,
    Space,
    TrainSettings,
    default_dimensions,
)
from search.documents import read_document, resolve_path
from search.methods import PRUNERS, SAMPLERS
from storage.addresses import has_password, storage_address, tracking_address
from storage.errors import SettingsError
from storage.objectives import ERROR, OBJECTIVES
from trainer.config import (
    STRICT,
    Choices,
    DataConfig,
    FeatureConfig,
    Range,
    SplitConfig,
    TaskConfig,
    TrainConfig,
    Unit,
    default_settings,
    either,
    load_config,
)
from trainer.config_faults import KeyPath
from trainer.data.shipped import SAMPLE
from trainer.errors import ConfigError
from trainer.networks.widths import other_elements, widths_text

# These settings name an entry of a mapping, and an entry there is all that a new choice needs.
if TYPE_CHECKING:
    SamplerName: TypeAlias = str
    PrunerName: TypeAlias = str
    ObjectiveName: TypeAlias = str
else:
    SamplerName = Literal[tuple(SAMPLERS)]
    PrunerName = Literal[tuple(PRUNERS)]
    ObjectiveName = Literal[tuple(OBJECTIVES)]

_LEARN = " and ".join(name for name, sampler in SAMPLERS.items() if sampler.learns)


def _storage(url: str) -> str:
    return _address(url, storage_address)


def _tracking(url: str) -> str:
    return _address(url, tracking_address)


def _address(url: str, checked: Callable[[str, str], str]) -> str:
    if has_password(url):
        raise ValueError(
            "do not put a password in a study file: use the environment (ANITUNE_STORAGE_URL,"
            " ANITUNE_TRACKING_URI, PGPASSWORD) or ~/.pgpass"
        )
    try:
        checked(url, "the address")
    except SettingsError as error:
        raise ValueError(str(error)) from None
    return url


def _no_word(value: object) -> object:
    if isinstance(value, str):
        raise PydanticCustomError(
            "form", "a single word is not a section: write {form}", {"form": f"{{kind: {value:.40}}}"}
        )
    return value


@dataclass(frozen=True, config=STRICT)
class SamplerConfig:
    """How the next configuration is chosen."""

    kind: Annotated[SamplerName, Field(description=either(SAMPLERS))] = "tpe"
    startup_trials: Annotated[
        int | None, Field(ge=1, description=f"random trials before {_LEARN} begin to learn; null: 10")
    ] = None

    def __post_init__(self) -> None:
        if self.startup_trials is not None and not SAMPLERS[self.kind].learns:
            raise ValueError(f"startup_trials is for {_LEARN}; {self.kind} does not learn")

    @property
    def has_points(self) -> bool:
        """Whether each trial has the point of a grid with its number."""
        return SAMPLERS[self.kind].make is None


@dataclass(frozen=True, config=STRICT)
class PrunerConfig:
    """When a trial stops early: by comparison at rungs, after min_epochs x reduction_factor^k epochs."""

    kind: Annotated[PrunerName, Field(description=either(PRUNERS))] = "asha"
    min_epochs: Annotated[
        int | None,
        Field(
            ge=1,
            description="the first rung; null: epochs / 27 if trials are paused, else epochs /"
            " reduction_factor^2",
        ),
        Unit("epochs"),
    ] = None
    reduction_factor: Annotated[
        int, Field(ge=2, description="one of this many trials continues (hyperband, asha)")
    ] = 4
    startup_trials: Annotated[int, Field(ge=1, description="complete trials before median prunes")] = 5
    stop: Annotated[
        bool,
        Field(
            description="asha stops a trial that is not among the best for good; false: it pauses the trial,"
            " and resumes it when later results put it there"
        ),
    ] = False
    max_paused: Annotated[
        int,
        Field(ge=1, description="maximum number of paused trials; the least promising ones end as pruned"),
    ] = 100
    finish: Annotated[
        int,
        Field(
            ge=1,
            description="asha: once all trials have started, this many of the best are trained in full; if"
            " hours or epochs are used up, only one",
        ),
    ] = 3

    def __post_init__(self) -> None:
        if self.stop and not PRUNERS[self.kind].halves:
            raise ValueError(f"stop is only for asha; {self.kind} never pauses trials")

    @property
    def pauses(self) -> bool:
        """Whether a trial that stops at a rung may be resumed."""
        return PRUNERS[self.kind].halves and not self.stop

    def first_rung(self, epochs: int) -> int:
        """Return the first rung of trials of so many epochs."""
        # It is early if trials are paused, as pausing loses nothing. It is rounded up, so that no rung falls
        # just before the end.
        return self.min_epochs or -(-epochs // (27 if self.pauses else self.reduction_factor**2))


@dataclass(frozen=True, config=STRICT)
class Bound:
    """A limit of a number that is known before a training."""

    at_most: Annotated[int, Field(ge=1, description="largest number that is allowed")]


@dataclass(frozen=True, config=STRICT)
class Constraints:
    """What every trained configuration obeys: one that does not is neither proposed nor trained."""

    parameters: Annotated[Bound | None, Field(description="weights and biases of all networks")] = None


@dataclass(frozen=True, config=STRICT)
class Limits:
    """When a study begins no more trials: at the limit that is reached first."""

    trials: Annotated[int | None, Field(ge=1, description="trials that start; not for rows")] = None
    hours: Annotated[
        float | None, Field(gt=0, description="time spent on all trials together"), Unit("h")
    ] = None
    epochs: Annotated[
        int | None, Field(ge=1, description="trained in all trials together"), Unit("epochs")
    ] = None
    until_no_gain: Annotated[
        bool,
        Field(
            description="the study ends when the expected gain of going on is within the noise of the error;"
            " it needs another limit beside it, as the gain may stay above"
        ),
    ] = False


@dataclass(frozen=True, config=STRICT)
class FinalistsConfig:
    """Further seeds for the best configurations, once nothing else is left to train."""

    seeds: Annotated[
        int, Field(ge=2, le=20, description="trainings of each finalist, with the one that it has")
    ] = 3
    most: Annotated[
        int,
        Field(
            ge=2,
            le=20,
            description="maximum number of finalists: the best two, and others within the noise of the best",
        ),
    ] = 3


@dataclass(frozen=True, config=STRICT)
class Row:
    """A configuration that is trained as given."""

    label: Annotated[
        str,
        Field(min_length=1, max_length=40, coerce_numbers_to_str=True, description="name of the row"),
    ]
    training: Annotated[
        TrainSettings, Field(description="settings of this row; they override those of the study")
    ] = dataclasses.field(default_factory=dict)
    start_from: Annotated[
        str | None,
        Field(coerce_numbers_to_str=True, description="label of the row whose weights are the initial ones"),
    ] = None
    reported_mae: Annotated[float | None, Field(ge=0, description="as published"), Unit("kcal/mol")] = None
    note: Annotated[str, Field(description="why the published figure differs")] = ""


@dataclass(frozen=True, config=STRICT)
class StudyConfig:
    """One study: a search of a space, or a list of rows."""

    name: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
            max_length=100,
            description="letters, digits, dots, dashes and underscores",
        ),
    ]
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    split: SplitConfig = dataclasses.field(default_factory=SplitConfig)
    features: FeatureConfig = dataclasses.field(default_factory=FeatureConfig)
    training: Annotated[TrainSettings, Field(description="settings that all trials share")] = (
        dataclasses.field(default_factory=dict)
    )
    space: Annotated[Space | None, Field(description="search space")] = None
    rows: Annotated[
        tuple[Row, ...] | None,
        Field(min_length=1, description="configurations that are trained as given, instead of a search"),
    ] = None
    scale_batch_from: Annotated[
        int | None,
        Field(
            ge=1,
            description="training structures that the batch sizes are meant for: steps per epoch are kept",
        ),
        Unit("structures"),
    ] = None
    objectives: Annotated[
        tuple[ObjectiveName, ...],
        Field(
            min_length=1,
            description=f"what is minimized, {ERROR} first. "
            + "; ".join(f"{name}: {each.meaning}" for name, each in OBJECTIVES.items()),
        ),
    ] = (ERROR,)
    constraints: Constraints = dataclasses.field(default_factory=Constraints)
    sampler: Annotated[SamplerConfig | None, BeforeValidator(_no_word)] = None
    pruner: Annotated[PrunerConfig | None, BeforeValidator(_no_word)] = None
    finalists: Annotated[FinalistsConfig | None, BeforeValidator(_no_word)] = None
    repeats: Annotated[
        Literal["take", "replicate"],
        Field(
            description="a trial with the settings of an earlier one: takes its result, or is trained with"
            " another seed (replicate)"
        ),
    ] = "take"
    learn_from: Annotated[
        tuple[str, ...] | None,
        Field(
            min_length=1,
            max_length=10,
            description="names of earlier studies: their best configurations are tried first, and the sampler"
            " learns from their trials",
        ),
    ] = None
    priority: Annotated[
        int, Field(exclude=True, description="workers of all studies serve the highest first")
    ] = 0
    limits: Annotated[Limits, Field(exclude=True)] = dataclasses.field(default_factory=Limits)
    seed: Annotated[int, Field(ge=0, lt=2**32, description="of proposals, and of the seeds of trials")] = 0
    reference: Annotated[
        StudyConfig | None,
        Field(description="in a file: path of the file of a study of rows that runs before this one"),
    ] = None
    storage: Annotated[
        Annotated[str, AfterValidator(_storage)] | None,
        Field(exclude=True, description="database URL of the records"),
    ] = None
    tracking: Annotated[
        Annotated[str, AfterValidator(_tracking)] | None,
        Field(exclude=True, description="MLflow tracking URI"),
    ] = None

    def __post_init__(self) -> None:
        if self.split.folds is None and self.split.fractions[1] == 0:
            raise ValueError(
                "split.fractions: trials are judged on the validation set, so its share must be above 0"
            )
        if self.repeats == "replicate" and "seed" in self.training:
            raise ValueError(
                "repeats: replicate and training.seed exclude each other: replicates have seeds of their own"
            )
        if self.objectives[0] != ERROR:
            raise ValueError(f"objectives: {ERROR} must be the first")
        if twice := [name for name in OBJECTIVES if self.objectives.count(name) > 1]:
            raise ValueError(f"objectives: {twice[0]} is given twice")
        _check_widths(self)
        _check_features(self)
        if self.rows is not None:
            _check_rows(self)
        else:
            _check_search(self)

    @property
    def elements_with_widths(self) -> tuple[str, ...]:
        """Elements for whose networks widths are searched one by one; none if all share the same widths."""
        by_element = isinstance((self.space or {}).get("width"), ElementRange | ElementChoices)
        return self.features.aev.elements if by_element else ()

    @property
    def task(self) -> TaskConfig:
        """The settings of the data and features that all trials share."""
        return TaskConfig(self.data, self.split, self.features)

    @property
    def pauses(self) -> bool:
        """Whether a trial that the pruner stops may be resumed."""
        return self.pruner is not None and self.pruner.pauses

    @property
    def epochs(self) -> int:
        """Number of epochs of a trial that is not pruned."""
        return int(self.training.get("epochs", TrainConfig.epochs))


def _check_widths(config: StudyConfig) -> None:
    given = {"training.hidden": config.training.get("hidden", TrainConfig.hidden)}
    given |= {
        f"rows: {row.label}: hidden": row.training["hidden"]
        for row in config.rows or ()
        if "hidden" in row.training
    }
    if isinstance(listed := (config.space or {}).get("hidden"), Choices):
        given |= {f"space.hidden: {widths_text(each)}": each for each in listed.choices}
    for where, hidden in given.items():
        if fault := other_elements(hidden, config.features.aev.elements):
            raise ValueError(f"{where}: {fault}")


def _check_features(config: StudyConfig) -> None:
    searched = (config.space or {}).get("features")
    if config.rows is not None:
        shared = config.training.get("features")
        given = [
            (f"rows: {row.label}: features", row.training.get("features", shared)) for row in config.rows
        ]
    elif isinstance(searched, Choices):
        given = [("space.features", name) for name in searched.choices]
    elif searched is not None:
        given = [("space.features", searched)]
    else:
        given = [("training.features", config.training.get("features"))]
    for where, name in given:
        if fault := config.features.fault(name):
            raise ValueError(f"{where}: {fault}")


def _check_rows(config: StudyConfig) -> None:
    assert config.rows is not None
    for name in ("space", "sampler", "pruner", "reference", "learn_from", "finalists"):
        if getattr(config, name) is not None:
            raise ValueError(f"{name} and rows exclude each other: all rows are trained as given")
    if config.limits.trials is not None:
        raise ValueError("limits.trials and rows exclude each other: each row is one trial")
    if config.limits.until_no_gain:
        raise ValueError("limits.until_no_gain and rows exclude each other: all rows are trained")
    widths: dict[str, Any] = {}
    for row in config.rows:
        if row.label in widths:
            raise ValueError(f"rows: two have the label {row.label}")
        widths[row.label] = (config.training | row.training).get("hidden", TrainConfig.hidden)
        if row.start_from is None:
            continue
        if row.start_from not in widths or row.start_from == row.label:
            raise ValueError(f"rows: {row.label} starts from {row.start_from}, which is not a row above it")
        if widths[row.start_from] != widths[row.label]:
            raise ValueError(f"rows: {row.label} starts from {row.start_from}, which has other hidden widths")


def _check_search(config: StudyConfig) -> None:
    if config.scale_batch_from is not None:
        raise ValueError("scale_batch_from is for studies of rows")
    if config.reference is not None and config.reference.rows is None:
        raise ValueError(f"reference: {config.reference.name} is not a study of rows")
    if config.space is None or config.sampler is None or config.pruner is None:
        raise ValueError("give a space (with a sampler and a pruner), or rows")
    if spanned := sorted({"layers", "width"} & set(config.space) if "hidden" in config.space else ()):
        raise ValueError(
            f"space.hidden and space.{spanned[0]} exclude each other: list whole architectures, or span them"
        )
    for name in config.space:
        setting = "hidden" if name in ("layers", "width") else name
        if setting in config.training:
            raise ValueError(f"space.{name} and training.{setting} exclude each other")
    if len(config.objectives) > 1:
        _refuse_ranking_by_error(config)
    stops = PRUNERS[config.pruner.kind].stops
    if stops and len(config.objectives) > 1:
        raise ValueError(
            f"pruner {config.pruner.kind} compares trials by {ERROR} alone: with several objectives set"
            " pruner: {kind: none}"
        )
    if SAMPLERS[config.sampler.kind].needs_values and stops and not config.pruner.pauses:
        raise ValueError(
            f"sampler {config.sampler.kind} learns nothing from pruned trials: set pruner: {{kind: asha}}, or"
            " sampler: {kind: tpe}"
        )
    if stops and config.pruner.min_epochs is not None and config.pruner.min_epochs >= config.epochs:
        raise ValueError(f"pruner.min_epochs must be below training.epochs = {config.epochs}")
    if config.learn_from is not None:
        _check_earlier(config.name, config.learn_from, config.sampler)
    if config.finalists is not None:
        _check_finalists(config, config.sampler)
    if config.sampler.has_points:
        endless = [name for name, d in config.space.items() if isinstance(d, Range) and d.step is None]
        if endless:
            raise ValueError(
                f"sampler {config.sampler.kind} needs choices, or a range with a step, for:"
                f" {', '.join(endless)}"
            )


def _refuse_ranking_by_error(config: StudyConfig) -> None:
    """Raise if a study with several objectives has a setting that compares trials by their error alone."""
    given = {
        "learn_from": config.learn_from is not None,
        "finalists": config.finalists is not None,
        "limits.until_no_gain": config.limits.until_no_gain,
    }
    for name in (name for name, is_given in given.items() if is_given):
        raise ValueError(
            f"{name}: trials are compared by {ERROR} alone; leave it out with several objectives"
        )


def _check_finalists(config: StudyConfig, sampler: SamplerConfig) -> None:
    if "seed" in config.training:
        raise ValueError("finalists and training.seed exclude each other: finalists get seeds of their own")
    if sampler.has_points:
        raise ValueError(f"finalists: each trial of sampler {sampler.kind} is a point of the space")


def _check_earlier(name: str, earlier: tuple[str, ...], sampler: SamplerConfig) -> None:
    if sampler.has_points:
        raise ValueError(f"learn_from: the trials of sampler {sampler.kind} are given by the space")
    if name in earlier:
        raise ValueError(f"learn_from: {name} is this study itself; name earlier ones")
    if len({*earlier}) < len(earlier):
        raise ValueError("learn_from: a study is named twice")


@dataclasses.dataclass(frozen=True)
class StudyFile:
    """The settings of a study as a person gives them; :meth:`config` fills in what they leave open.

    Attributes
    ----------
    where : the file, for messages
    folder : folder to which paths are relative
    lines : line number of each key in the file, by the path to the key
    """

    settings: Mapping[str, Any]
    where: str
    folder: Path
    lines: Mapping[KeyPath, int] | None = None

    def config(self, record_of: Callable[[str], Mapping[str, Any] | None] = lambda name: None) -> StudyConfig:
        """Return the study with all its settings, and with the reference study whose file it names.

        What the file leaves open is as the record of the study says; a study without a record gets the
        defaults.

        Parameters
        ----------
        record_of : returns the record of the study with a name, or None if there is none

        Raises
        ------
        StudyFileError, ConfigError
            with one line that names the key, and its line in a file.
        """
        values = dict(self.settings)
        reference = values.pop("reference", None)
        config = self._config(values, record_of)
        if config.rows is None and config.limits in (Limits(), Limits(until_no_gain=True)):
            raise ConfigError(f"{self.where}: limits: set trials, hours or epochs, so that the study ends")
        if reference is None:
            return config
        if isinstance(reference, str):
            file = _reference_file(resolve_path(reference, self.folder), config)
            reference = file._config(file.settings, record_of)
        return self._config(values | {"reference": reference}, record_of)

    def _config(
        self, values: Mapping[str, Any], record_of: Callable[[str], Mapping[str, Any] | None]
    ) -> StudyConfig:
        # The paths of a record, and those of the main study in its reference, are absolute.
        data = values.get("data")
        folder = self.folder if isinstance(data, Mapping) and "files" in data else None
        name = values.get("name")
        if isinstance(name, str) and (record := record_of(name)) is not None:
            with suppress(ConfigError):  # the file may contradict the record, or be wrong by itself
                return _study(_over_record(values, record), self.where, self.lines, folder)
        return study_from_values(values, self.where, self.lines, folder)


def read_study(path: Path) -> StudyFile:
    """Read a study file. Its paths are relative to its folder, or start with ``~`` or ``$VARIABLE``.

    Raises
    ------
    StudyFileError
        with one line that names the file and the line.
    """
    document = read_document(path)
    return StudyFile(document.values, str(path), path.parent, document.lines)


def load_study(path: Path) -> StudyConfig:
    """Read and check the file of a new study, and the reference study file that it names.

    Defaults are filled in, so that the record of a study is complete. The record omits limits and addresses,
    which may change.

    Raises
    ------
    StudyFileError, ConfigError
        with one line that names the file, the key and its line.
    """
    return read_study(path).config()


def _reference_file(path: Path, main: StudyConfig) -> StudyFile:
    """Read the file of a study of rows, with the data, split and features of the main study."""
    file = read_study(path)
    values = {**file.settings, **{key: getattr(main, key) for key in ("data", "split", "features")}}
    if "name" in values:
        values["name"] = f"{main.name}-{values['name']}"
    return dataclasses.replace(file, settings=values)


#: Sections whose settings a file may leave open one by one.
_SECTIONS: Final = ("data", "split", "features", "aev", "training", "space", "sampler", "pruner", "finalists")

#: Values that leave a section open as a whole.
_OPEN: Final[Mapping[str, tuple[Any, ...]]] = {
    "space": (None, "default"),
    "sampler": (None,),
    "pruner": (None,),
}


def _over_record(values: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what the values of a file leave open from the valid record of the study.

    Whether a study is one of rows, and which reference it has, are not left open: the file says it.
    """
    said = {name: value for name, value in values.items() if value not in _OPEN.get(name, ())}
    known = {name: value for name, value in record.items() if name not in ("rows", "reference")}
    space = known.get("space") or {}
    if isinstance(said.get("space"), Mapping):
        said["space"] = {
            name: value
            for name, value in said["space"].items()
            if name not in space or not _leaves_range_open(value, space[name])
        }
    given = named_settings(said)
    for section in ("training", "space"):
        known[section] = {k: v for k, v in (known.get(section) or {}).items() if k not in given} or None
    if isinstance(said.get("reference"), Mapping) and record.get("reference"):
        said["reference"] = _over_record(said["reference"], record["reference"])
    return _merged(known, said)


def _leaves_range_open(value: Any, recorded: Any) -> bool:
    """Whether a dimension of a file gives no range, so that it has the recorded one."""
    by_element = {"per_element": True}
    return value == "default" or (value == by_element and dict(recorded).items() >= by_element.items())


def _merged(known: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(known)
    for name, value in said.items():
        section = name in _SECTIONS and isinstance(value, Mapping) and isinstance(known.get(name), Mapping)
        merged[name] = _merged(known[name], value) if section else value
    return merged


def named_settings(values: Mapping[str, Any]) -> set[str]:
    """Return the settings of a training that a study fixes or searches, and those that these exclude."""
    sections = (values.get("training"), values.get("space"))
    names = {name for section in sections if isinstance(section, Mapping) for name in section}
    if "hidden" in names:
        return names | {"layers", "width"}
    return names | ({"hidden"} if names & {"layers", "width"} else set())


def study_from_record(record: Mapping[str, Any], name: str) -> StudyConfig:
    """Return the study of a record, also of one that an earlier version made.

    Settings that the record lacks have their defaults, and none of them is searched.
    """
    return _study(record, f"the record of study {name}")


def study_from_values(
    values: Mapping[str, Any],
    where: str,
    lines: Mapping[KeyPath, int] | None = None,
    folder: Path | None = None,
) -> StudyConfig:
    """Check plain values of a new study, and fill in the defaults.

    Parameters
    ----------
    where : the file, for messages
    folder : folder of the file, to which paths of data files are relative; None: paths are absolute
    """
    filled = dict(values)
    space = filled.get("space")
    if filled.get("rows") is None and (space in (None, "default") or isinstance(space, Mapping)):
        taken = named_settings(filled)
        free: dict[str, Any] = {name: "default" for name in default_dimensions() if name not in taken}
        if "features" not in taken and (names := _named_features(filled)):
            free["features"] = {"choices": names}
        filled["space"] = free | dict(space if isinstance(space, Mapping) else {})
    return _study(filled, where, lines, folder)


def _named_features(values: Mapping[str, Any]) -> list[str]:
    """Return the names of the AEV constants that a study chooses among, in unchecked values."""
    features = values.get("features")
    choices = features.choices if isinstance(features, FeatureConfig) else None
    if isinstance(features, Mapping):
        choices = features.get("choices")
    return [*choices] if isinstance(choices, Mapping) else []


def _study(
    values: Mapping[str, Any],
    where: str,
    lines: Mapping[KeyPath, int] | None = None,
    folder: Path | None = None,
) -> StudyConfig:
    config = load_config(StudyConfig, _completed(values), where, lines)
    return dataclasses.replace(config, data=with_absolute_paths(config.data, folder))


def _completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the defaults of all settings except those that are searched, so that a record has them all."""
    completed = dict(values)
    if completed.get("rows") is None:
        completed["sampler"] = completed.get("sampler") or {}
        # No pruner by default if there are several objectives: rungs show the error only.
        several = isinstance(named := completed.get("objectives"), list | tuple) and len(named) > 1
        completed["pruner"] = completed.get("pruner") or ({"kind": "none"} if several else {})
    if isinstance(training := completed.get("training") or {}, Mapping):
        taken = named_settings(completed) | {"seed"}  # the seed of a training follows from that of the study
        fixed = {name: value for name, value in default_settings().items() if name not in taken}
        completed["training"] = fixed | dict(training)
    if isinstance(reference := completed.get("reference"), Mapping):
        completed["reference"] = _completed(reference)
    return completed


def with_absolute_paths(data: DataConfig, folder: Path | None) -> DataConfig:
    """Resolve the paths of data files in a folder. Those of a record (None) are taken literally."""
    files = tuple(
        f if f == SAMPLE else str(Path(f).absolute() if folder is None else resolve_path(f, folder))
        for f in data.files
    )
    return dataclasses.replace(data, files=files)
