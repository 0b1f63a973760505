"""The study file: what is searched, on which data, with which methods and limits."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from search.dimensions import Range, Space, TrainSettings, default_dimensions
from search.documents import read_document, resolve_path
from storage.addresses import has_password, storage_address, tracking_address
from storage.errors import SettingsError, StudyExistsError
from trainer.config import (
    STRICT,
    DataConfig,
    FeatureConfig,
    SplitConfig,
    TrainConfig,
    Unit,
    dump_config,
    load_config,
)
from trainer.config_faults import KeyPath
from trainer.data.shipped import SAMPLE
from trainer.errors import ConfigError


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

    kind: Annotated[
        Literal["tpe", "gp", "random", "qmc", "grid"], Field(description="tpe, gp, random, qmc or grid")
    ] = "tpe"
    startup_trials: Annotated[
        int | None, Field(ge=1, description="random trials before tpe and gp begin to learn; null: 10")
    ] = None

    def __post_init__(self) -> None:
        if self.startup_trials is not None and self.kind not in ("tpe", "gp"):
            raise ValueError(f"startup_trials is for tpe and gp; {self.kind} does not learn")


@dataclass(frozen=True, config=STRICT)
class PrunerConfig:
    """When a trial stops early: by comparison at rungs, after min_epochs x reduction_factor^k epochs."""

    kind: Annotated[
        Literal["hyperband", "asha", "median", "none"], Field(description="hyperband, asha, median or none")
    ] = "asha"
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
        if self.stop and self.kind != "asha":
            raise ValueError(f"stop is only for asha; {self.kind} never pauses trials")

    @property
    def pauses(self) -> bool:
        """Whether a trial that stops at a rung may be resumed."""
        return self.kind == "asha" and not self.stop


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
    sampler: Annotated[SamplerConfig | None, BeforeValidator(_no_word)] = None
    pruner: Annotated[PrunerConfig | None, BeforeValidator(_no_word)] = None
    repeats: Annotated[
        Literal["take", "replicate"],
        Field(
            description="a trial with the settings of an earlier one: takes its result, or is trained with"
            " another seed (replicate)"
        ),
    ] = "take"
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
        if self.rows is not None:
            _check_rows(self)
        else:
            _check_search(self)

    @property
    def epochs(self) -> int:
        """Number of epochs of a trial that is not pruned."""
        return int(self.training.get("epochs", TrainConfig.epochs))


def _check_rows(config: StudyConfig) -> None:
    assert config.rows is not None
    for name in ("space", "sampler", "pruner", "reference"):
        if getattr(config, name) is not None:
            raise ValueError(f"{name} and rows exclude each other: all rows are trained as given")
    if config.limits.trials is not None:
        raise ValueError("limits.trials and rows exclude each other: each row is one trial")
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
    stops = config.pruner.kind != "none"
    if config.sampler.kind == "gp" and stops:
        raise ValueError(
            "sampler gp learns nothing from pruned trials: set pruner: {kind: none}, or sampler: {kind: tpe}"
        )
    if stops and config.pruner.min_epochs is not None and config.pruner.min_epochs >= config.epochs:
        raise ValueError(f"pruner.min_epochs must be below training.epochs = {config.epochs}")
    if config.sampler.kind == "grid":
        endless = [name for name, d in config.space.items() if isinstance(d, Range) and d.step is None]
        if endless:
            raise ValueError(f"sampler grid needs choices, or a range with a step, for: {', '.join(endless)}")


def load_study(path: Path) -> StudyConfig:
    """Read and check a study file, and the reference study file that it names.

    Paths in a study file are relative to its folder, or start with ``~`` or ``$VARIABLE``. Defaults are
    filled in, so that the record of a study is complete. It omits limits and addresses, which may change.

    Raises
    ------
    StudyFileError, ConfigError
        with one line that names the file, the key and its line.
    """
    document = read_document(path)
    return study_from_settings(document.values, str(path), path.parent, document.lines)


def study_from_settings(
    settings: Mapping[str, Any], where: str, folder: Path, lines: Mapping[KeyPath, int] | None = None
) -> StudyConfig:
    """Check the settings of a study file, and read the reference study file that they name.

    Parameters
    ----------
    where : the file, for messages
    folder : folder to which paths are relative

    Raises
    ------
    StudyFileError, ConfigError
        with one line that names the key, and its line in a file.
    """
    values = dict(settings)
    reference = values.pop("reference", None)
    config = study_from_values(values, where, lines, folder)
    if config.rows is None and config.limits == Limits():
        raise ConfigError(f"{where}: limits: set trials, hours or epochs, so that the study ends")
    if reference is None:
        return config
    if isinstance(reference, str):
        reference = _load_reference(resolve_path(reference, folder), config)
    return study_from_values(values | {"reference": reference}, where, lines, folder)


def _load_reference(path: Path, main: StudyConfig) -> StudyConfig:
    """Load a study of rows from a file, with the data, split and features of the main study."""
    document = read_document(path)
    values = document.values | {key: getattr(main, key) for key in ("data", "split", "features")}
    if "name" in values:
        values["name"] = f"{main.name}-{values['name']}"
    return study_from_values(values, str(path), document.lines)


#: Former fixed behavior of settings that were added later, by section. Older records lack these settings.
BEFORE: Mapping[str, Mapping[str, Any]] = {
    "data": {"duplicates": "keep", "links_outside": False, "unusual": "keep"},
    "split": {"molecules": "names"},
}

#: Former defaults, which an existing study keeps while its file leaves the setting out.
DEFAULTS_BEFORE: Mapping[str, Mapping[str, Any]] = {"pruner": {"kind": "hyperband", "reduction_factor": 3}}


def _meant_before(record: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """Return the former behavior of those settings of a section that an older record may lack."""
    pruner = record.get("pruner")
    if section == "pruner":
        return {"stop": True} if isinstance(pruner, Mapping) and pruner.get("kind") == "asha" else {}
    return BEFORE.get(section, {})


def recorded_values(record: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the record of a study: settings that it lacks get their behavior at that time."""
    values = dict(record)
    for section in ("data", "split", "pruner"):
        if isinstance(values.get(section), Mapping) or section in BEFORE:
            values[section] = {**_meant_before(record, section), **values.get(section, {})}
    if values.get("reference") is not None:
        values["reference"] = recorded_values(values["reference"])
    return values


def in_terms_of(
    record: Mapping[str, Any], values: Mapping[str, Any], name: str
) -> tuple[dict[str, Any], list[str]]:
    """Convert the values of a study for comparison with its record, which an earlier version may have made.

    Returns
    -------
    The values of the settings that the record has, and a list of settings that keep their former behavior or
    default although the default has changed.

    Raises
    ------
    StudyExistsError
        if a setting that the record lacks has neither its former behavior nor the default.
    """
    comparable, older = dict(values), []
    sections = (
        ("data", DataConfig),
        ("split", SplitConfig),
        ("features", FeatureConfig),
        ("pruner", PrunerConfig),
    )
    for section, kind in sections:
        if not isinstance(record.get(section), Mapping) or not isinstance(values.get(section), Mapping):
            continue  # the section is damaged or missing on one side, so it differs as a whole
        defaults = dump_config(kind())
        comparable[section] = {key: value for key, value in values[section].items() if key in record[section]}
        for key, then in DEFAULTS_BEFORE.get(section, {}).items():
            if record[section].get(key) == then and values[section][key] == defaults[key]:
                comparable[section][key] = then
                older.append(f"{section}.{key}: {json.dumps(then)}")
        for key in values[section].keys() - record[section].keys():
            then = _meant_before(record, section).get(key, defaults[key])
            if values[section][key] == then:
                continue
            stays = f"{section}.{key}: {json.dumps(then)}"
            if values[section][key] != defaults[key]:
                raise StudyExistsError(
                    f"study {name!r} exists, created by an earlier version that had only {stays}:"
                    " give this one another name, or leave this setting out"
                )
            older.append(stays)
    if record.get("reference") and values.get("reference"):
        # The reference study shares the study's data and split, so there is nothing more to list.
        comparable["reference"], _ = in_terms_of(record["reference"], values["reference"], name)
    return comparable, sorted(older)


def study_from_record(record: Mapping[str, Any], name: str) -> StudyConfig:
    """Return the study of a record, also of one that an earlier version made."""
    return study_from_values(recorded_values(record), f"the record of study {name}")


def study_from_values(
    values: Mapping[str, Any],
    where: str,
    lines: Mapping[KeyPath, int] | None = None,
    folder: Path | None = None,
) -> StudyConfig:
    """Check plain values of a study, from a file or a record, and fill in the defaults.

    Parameters
    ----------
    where : the file, for messages
    folder : folder of the file, to which paths of data files are relative; None: the values are of a record,
        whose paths are absolute
    """
    filled = dict(values)
    if filled.get("rows") is None:
        training, space = filled.get("training") or {}, filled.get("space")
        if isinstance(training, Mapping) and (space in (None, "default") or isinstance(space, Mapping)):
            taken = {*training, *(space if isinstance(space, Mapping) else ())}
            taken |= {"layers", "width"} if "hidden" in taken else set()
            free = {name: "default" for name in default_dimensions() if name not in taken}
            filled["space"] = free | dict(space if isinstance(space, Mapping) else {})
        filled["sampler"] = filled.get("sampler") or {}
        filled["pruner"] = filled.get("pruner") or {}
    config = load_config(StudyConfig, filled, where, lines)
    return dataclasses.replace(config, data=with_absolute_paths(config.data, folder))


def with_absolute_paths(data: DataConfig, folder: Path | None) -> DataConfig:
    """Resolve the paths of data files in a folder. Those of a record (None) are taken literally."""
    files = tuple(
        f if f == SAMPLE else str(Path(f).absolute() if folder is None else resolve_path(f, folder))
        for f in data.files
    )
    return dataclasses.replace(data, files=files)
