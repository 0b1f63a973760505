"""The settings of one training run, each declared once with its default, range, unit and meaning.

The search space, the schema of the study file, the help of the command line and the table in the docs are
generated from these declarations (see :func:`searchable_fields`).
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from functools import cache
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    Generic,
    Literal,
    TypeAlias,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass

from trainer.config_faults import KeyPath, faults_of, in_one_line, mistaken_kinds
from trainer.data.elements import ATOMIC_NUMBERS
from trainer.errors import ConfigError
from trainer.fitting.losses import LOSSES
from trainer.fitting.optimizers import OPTIMIZERS
from trainer.fitting.schedules import SCHEDULES
from trainer.networks.activations import ACTIVATIONS
from trainer.networks.widths import other_elements

T = TypeVar("T")
N = TypeVar("N")

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

# These settings name an entry of a mapping, and an entry there is all that a new choice needs.
if TYPE_CHECKING:
    Activation: TypeAlias = str
    Optimizer: TypeAlias = str
    Schedule: TypeAlias = str
    Loss: TypeAlias = str
else:
    Activation = Literal[tuple(ACTIVATIONS)]
    Optimizer = Literal[tuple(OPTIMIZERS)]
    Schedule = Literal[tuple(SCHEDULES)]
    Loss = Literal[tuple(LOSSES)]

Precision = Literal["auto", "float32", "float64", "tf32", "bfloat16"]
EnergyUnit = Literal["hartree", "eV", "kcal/mol", "kJ/mol"]
LengthUnit = Literal["angstrom", "bohr"]
Unusable = Literal["without_energy", "periodic", "charged", "open_shell"]

#: Value of ``data.self_energies``: those of the structures of one atom.
ISOLATED_ATOMS: Final = "isolated_atoms"

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")

# The tags make a message name the key alone, and only the form that was meant.
SelfEnergies = Annotated[
    Annotated[dict[str, float], Tag("<by element>")] | Annotated[Literal["isolated_atoms"], Tag("<word>")],
    Discriminator(lambda value: "<word>" if isinstance(value, str) else "<by element>"),
]

Width = Annotated[int, Field(ge=1, le=4096)]
"""Number of neurons of a hidden layer."""

_Widths = Annotated[tuple[Width, ...], Field(min_length=1, max_length=8)]


def _of_elements(hidden: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    if not hidden:
        raise ValueError("give the widths of each element, or one list for all of them")
    if unknown := [element for element in hidden if element not in ATOMIC_NUMBERS]:
        raise ValueError(f"{', '.join(unknown):.80} is not the symbol of an element")
    layers = {element: len(widths) for element, widths in hidden.items()}
    if len({*layers.values()}) > 1:
        counts = ", ".join(f"{element} {count}" for element, count in layers.items())
        raise ValueError(f"all elements need the same number of layers (got {counts})")
    return dict(sorted(hidden.items(), key=lambda item: ATOMIC_NUMBERS[item[0]]))


_Hidden = Annotated[
    Annotated[_Widths, Tag("<widths>")]
    | Annotated[dict[str, _Widths], AfterValidator(_of_elements), Tag("<by element>")],
    Discriminator(lambda value: "<by element>" if isinstance(value, Mapping) else "<widths>"),
]


def either(names: Iterable[str]) -> str:
    """List names in a sentence: ``tpe, gp or random``."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


@dataclasses.dataclass(frozen=True)
class Unit:
    """The unit of a setting, as shown to people."""

    name: str


@dataclass(frozen=True, config=STRICT)
class Range(Generic[N]):
    """Numbers from ``low`` to ``high``, both included."""

    low: N
    high: N
    log: bool = False
    step: N | None = None

    def __post_init__(self) -> None:
        low, high, step = (float(x) if x is not None else None for x in (self.low, self.high, self.step))  # type: ignore[arg-type]
        assert low is not None
        assert high is not None
        if low > high:
            raise ValueError(f"low must not be above high ({self.low} > {self.high})")
        if self.log and low <= 0:
            raise ValueError("log needs low above 0")
        if self.log and step is not None:
            raise ValueError("log and step exclude each other")
        if step is not None and step <= 0:
            raise ValueError("step must be above 0")
        if step is not None and not math.isclose(round((high - low) / step) * step, high - low, rel_tol=1e-9):
            raise ValueError("high must be low plus a multiple of step")


@dataclass(frozen=True, config=STRICT)
class Choices(Generic[N]):
    """A list of values to choose from."""

    choices: Annotated[tuple[N, ...], Field(min_length=1)]

    def __post_init__(self) -> None:
        if any(choice in self.choices[:place] for place, choice in enumerate(self.choices)):
            raise ValueError("a choice is listed twice")


@dataclasses.dataclass(frozen=True)
class SearchWidths:
    """The range of depths and widths of the hidden layers that a study searches by default."""

    layers: Range[Any]
    width: Range[Any]


SearchDefault = Range[Any] | Choices[Any] | SearchWidths
"""What a study searches for a setting by default."""


class Role(enum.Enum):
    """What a setting of a training decides. A setting that does not say its role decides the result."""

    RESULT = "what is trained, and so the result"
    RUN = "which run of a configuration it is: chance and rounding"
    PLACE = "where it runs; a training may go on elsewhere, and then its numbers are rounded differently"
    PACE = "how often something is done that changes no number"


SAME_CONFIGURATION: Final = frozenset({Role.RESULT})
"""Trainings that share these settings differ only by chance: their errors are averaged and compared."""

SAME_TRAINING: Final = SAME_CONFIGURATION | {Role.RUN}
"""A training that shares these settings with a checkpoint continues it."""

SAME_NUMBERS: Final = SAME_TRAINING | {Role.PLACE}
"""Trainings that share these settings have the same result, which is used again and not trained twice."""


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """All settings of a training on given data, split and features."""

    hidden: Annotated[
        _Hidden,
        Field(
            description="widths of the hidden layers of each element's network: a list, or a list for each"
            " element"
        ),
        Unit("neurons"),
        SearchWidths(layers=Range(1, 4, step=1), width=Range(32, 256, step=32)),
    ] = (128,)
    activation: Annotated[
        Activation,
        Field(description="function after each hidden layer"),
        # Those with a kink are searched only where a study names them: the forces of such a network jump.
        Choices(tuple(name for name, each in ACTIVATIONS.items() if not each.kinked)),
    ] = "celu"
    dropout: Annotated[
        float,
        Field(ge=0, lt=1, description="probability that a hidden neuron is dropped in training"),
        Range(0.0, 0.3),
    ] = 0.0
    activate_output: Annotated[
        bool,
        Field(description="dropout and activation also after the output layer: bounds the energy of an atom"),
    ] = False
    learning_rate: Annotated[
        float,
        Field(gt=0, le=1, description="step size of the optimizer at the start"),
        Range(1e-4, 1e-2, log=True),
    ] = 1e-3
    batch_size: Annotated[
        int,
        Field(ge=1, description="structures per step"),
        Unit("structures"),
        Choices((64, 128, 256, 512, 1024)),
    ] = 256
    weight_decay: Annotated[
        float,
        Field(ge=0, le=1, description="coupled L2 with adam, decoupled with adamw"),
        Range(1e-8, 1e-3, log=True),
    ] = 0.0
    optimizer: Annotated[Optimizer, Field(description=either(OPTIMIZERS))] = "adamw"
    schedule: Annotated[
        Schedule,
        Field(description=f"learning rate over the epochs: {either(s.summary for s in SCHEDULES.values())}"),
    ] = "cosine"
    epochs: Annotated[
        int, Field(ge=1, description="maximum number of passes over the training set"), Unit("epochs")
    ] = 100
    patience: Annotated[
        int | None,
        Field(ge=1, description="stop after this many epochs without a better validation MAE; null: never"),
        Unit("epochs"),
    ] = None
    loss: Annotated[
        Loss,
        Field(description=either(loss.summary for loss in LOSSES.values())),
        Unit("hartree^2"),
    ] = "mse"
    ema_decay: Annotated[
        float | None,
        Field(
            gt=0,
            lt=1,
            description="decay per step of the average of the weights that is evaluated; null: no average",
        ),
    ] = None
    features: Annotated[
        str | None,
        Field(description="name of the AEV constants, one of features.choices; null: those of features.aev"),
    ] = None
    seed: Annotated[
        int, Field(ge=0, lt=2**32, description="initial weights, dropout and order of the data"), Role.RUN
    ] = 0
    device: Annotated[
        str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu or cuda[:N]"), Role.PLACE
    ] = "auto"
    threads: Annotated[
        int,
        Field(
            ge=1,
            description="CPU threads; more than one pays off for batches of about 1,000 structures or more",
        ),
        Role.RUN,
    ] = 1
    precision: Annotated[
        Precision,
        Field(
            description="of weights and products: float32, float64, or float32 with tf32 or bfloat16 "
            "operands in the products; auto: the fastest on the device that is as accurate as float32; tf32 "
            "means float32 on devices without it"
        ),
    ] = "auto"
    checkpoint_seconds: Annotated[
        float,
        Field(ge=0, description="minimum time between two checkpoints outside rungs"),
        Unit("s"),
        Role.PACE,
    ] = 30.0


@dataclass(frozen=True, config=STRICT)
class AEVConfig:
    """Constants of the atomic environment vectors (default: those of ANI-1x, with 384 numbers per atom).

    Smith, Isayev, Roitberg, Chem. Sci. 8, 3192 (2017), equations 3 and 4.
    """

    elements: Annotated[tuple[str, ...], Field(min_length=1, description="in the order of the networks")] = (
        "H",
        "C",
        "N",
        "O",
    )
    radial_cutoff: Annotated[
        float, Field(gt=0, description="neighbors farther away are ignored in radial terms"), Unit("Å")
    ] = 5.2
    radial_eta: Annotated[float, Field(gt=0, description="how narrow a radial shell is"), Unit("1/Å^2")] = (
        16.0
    )
    radial_shifts: Annotated[
        tuple[float, ...], Field(min_length=1, description="radii of the radial shells"), Unit("Å")
    ] = tuple(0.9 + 0.26875 * i for i in range(16))
    angular_cutoff: Annotated[
        float, Field(gt=0, description="neighbors farther away are ignored in angular terms"), Unit("Å")
    ] = 3.5
    angular_eta: Annotated[
        float, Field(gt=0, description="how narrow an angular shell is"), Unit("1/Å^2")
    ] = 8.0
    zeta: Annotated[float, Field(gt=0, description="how narrow a section of angles is")] = 32.0
    angular_shifts: Annotated[
        tuple[float, ...], Field(min_length=1, description="radii of the angular shells"), Unit("Å")
    ] = (0.90, 1.55, 2.20, 2.85)
    angle_sections: Annotated[
        int, Field(ge=1, description="sections that the angles from 0 to pi are divided into")
    ] = 8

    def __post_init__(self) -> None:
        if unknown := [e for e in self.elements if e not in ATOMIC_NUMBERS]:
            raise ValueError(f"elements: {', '.join(unknown)} is not the symbol of an element")
        if len(set(self.elements)) < len(self.elements):
            raise ValueError("elements must name each element once")
        if self.angular_cutoff >= self.radial_cutoff:
            raise ValueError(f"angular_cutoff must be below radial_cutoff = {self.radial_cutoff}")


@dataclass(frozen=True, config=STRICT)
class FeatureConfig:
    """How features are computed and stored."""

    aev: AEVConfig = dataclasses.field(default_factory=AEVConfig)
    choices: Annotated[
        dict[str, AEVConfig] | None,
        Field(
            description="AEV constants by name, each with what differs from features.aev: a search chooses"
            " among them; null: all trainings use features.aev"
        ),
    ] = None
    store_limit_gib: Annotated[
        float,
        Field(ge=0, description="a larger feature store is not built: AEVs are computed batch by batch"),
        Unit("GiB"),
    ] = 32.0
    build_memory_gib: Annotated[
        float,
        Field(gt=0, description="memory that building the store may take; it bounds the number of threads"),
        Unit("GiB"),
    ] = 0.5

    @model_validator(mode="before")
    @classmethod
    def _complete_choices(cls, values: Any) -> Any:
        """Fill in the constants that a choice leaves open from ``aev``."""
        if not isinstance(values, Mapping) or not isinstance(choices := values.get("choices"), Mapping):
            return values
        aev = values.get("aev") or {}
        shared = aev if isinstance(aev, Mapping) else dump_config(aev)
        completed = {
            name: {**shared, **each} if isinstance(each, Mapping) else each for name, each in choices.items()
        }
        return {**values, "choices": completed}

    def __post_init__(self) -> None:
        if self.choices is None:
            return
        if not self.choices:
            raise ValueError("choices: name AEV constants, or leave the setting out")
        if wrong := [name for name in self.choices if not _NAME.fullmatch(name)]:
            said = "is no name: up to 40 letters, digits, dots, dashes and underscores are"
            raise ValueError(f"choices: {wrong[0]!r:.50} {said}")
        for name, aev in self.choices.items():
            if aev.elements != self.aev.elements:
                raise ValueError(f"choices.{name}.elements: set the elements of all choices in features.aev")
            for kind in ("radial", "angular"):
                cutoff, shifts = getattr(aev, f"{kind}_cutoff"), getattr(aev, f"{kind}_shifts")
                if max(shifts) >= cutoff:
                    far = f"{max(shifts):g} is not below {kind}_cutoff = {cutoff:g}"
                    raise ValueError(f"choices.{name}.{kind}_shifts: {far}")
        names = list(self.choices)
        for place, name in enumerate(names):
            if same := [other for other in names[:place] if self.choices[other] == self.choices[name]]:
                raise ValueError(f"choices.{name}: has the same constants as {same[0]}")

    def named(self, name: str | None) -> AEVConfig:
        """Return the constants of a name, as in ``training.features``."""
        return self.choices[name] if self.choices is not None and name is not None else self.aev

    def fault(self, name: str | None) -> str | None:
        """Return what is wrong with a value of ``training.features``; None if nothing is."""
        if name in (self.choices or (None,)):
            return None
        if self.choices is None:
            return f"{name!r:.50} needs features.choices, which names AEV constants"
        return f"must be one of features.choices: {', '.join(self.choices)} (got {json.dumps(name):.50})"


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Which structures are used; the file name ``sample`` means the data set that ships with the package."""

    files: Annotated[
        tuple[str, ...],
        Field(
            min_length=1,
            description="extended XYZ, HDF5, npz, ASE databases or trajectories; sample: the shipped sample",
        ),
    ] = ("sample",)
    high_energy: Annotated[
        bool, Field(description="include the high-energy structures of the ANI-1 layout")
    ] = False
    self_energies: Annotated[
        SelfEnergies | None,
        Field(
            description="energy of a single atom by element; isolated_atoms: those of the structures of one "
            "atom, which are then not trained on; null: fitted on the training set"
        ),
        Unit("hartree"),
    ] = None
    duplicates: Annotated[
        Literal["refuse", "drop", "keep"],
        Field(
            description="structures that occur more than once: an error, left out except for the first, or "
            "used as they are"
        ),
    ] = "drop"
    links_outside: Annotated[
        bool, Field(description="follow links to HDF5 files outside the folder of a data file")
    ] = False
    energy: Annotated[
        str | None, Field(description="key of the energies in the files; null: the usual one of their format")
    ] = None
    unit: Annotated[
        EnergyUnit | None,
        Field(
            description="unit of the energies; null: eV in ASE's formats, hartree in HDF5, as stated in npz"
        ),
    ] = None
    length_unit: Annotated[
        LengthUnit | None,
        Field(description="unit of the coordinates; null: bohr in SPICE, as stated in npz, else angstrom"),
    ] = None
    molecule: Annotated[
        str | None,
        Field(
            description="key of the frames that names their molecule; null: found from bonds; for files "
            "without groups"
        ),
    ] = None
    leave_out: Annotated[
        tuple[Unusable, ...],
        Field(description="kinds of structures that are left out; otherwise they are an error"),
    ] = ()
    drop_outliers: Annotated[
        bool,
        Field(
            description="leave out structures whose energy is more than 10 robust standard deviations from "
            "the median of their molecule"
        ),
    ] = False
    unusual: Annotated[
        Literal["refuse", "keep"],
        Field(
            description="energies or distances that look like another unit, energies with another zero than "
            "free nuclei and electrons, charged and open-shell structures: an error, or used as they are"
        ),
    ] = "refuse"


@dataclass(frozen=True, config=STRICT)
class SplitConfig:
    """How the data is divided into training, validation and test set."""

    by: Annotated[Literal["structure", "molecule"], Field(description="what is kept whole in one subset")] = (
        "structure"
    )
    fractions: Annotated[
        tuple[float, float, float], Field(description="training, validation and test share; they sum to 1")
    ] = (0.8, 0.1, 0.1)
    folds: Annotated[
        int | None,
        Field(
            ge=2,
            description="number of folds of the data outside the test set; null: one fixed validation set",
        ),
    ] = None
    molecules: Annotated[
        Literal["bonds", "names"],
        Field(description="what distinguishes molecules without SMILES: their bonds, or the names of groups"),
    ] = "bonds"
    fold: Annotated[int, Field(ge=0, description="the fold that validates")] = 0
    seed: Annotated[
        int, Field(ge=0, lt=2**32, description="the same seed always divides the same data in the same way")
    ] = 0

    def __post_init__(self) -> None:
        if (
            any(f < 0 for f in self.fractions)
            or abs(sum(self.fractions) - 1.0) > 1e-9
            or self.fractions[0] <= 0
        ):
            raise ValueError("split.fractions must be three shares that sum to 1, the first above 0")
        if self.folds is None and self.fold != 0:
            raise ValueError("split.fold needs split.folds")
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"split.fold must be below split.folds = {self.folds}")


@dataclass(frozen=True, config=STRICT)
class FoldConfig:
    """One fold of the structures outside the test set validates, and the others are trained on."""

    by: Annotated[Literal["structure", "molecule"], Field(description="what is kept whole in one fold")]
    folds: Annotated[int, Field(ge=2, description="number of folds")]
    fold: Annotated[int, Field(ge=0, description="the fold that validates")]
    seed: Annotated[int, Field(ge=0, lt=2**32, description="of the division into folds")] = 0

    def __post_init__(self) -> None:
        if self.fold >= self.folds:
            raise ValueError(f"fold.fold must be below fold.folds = {self.folds}")


@dataclass(frozen=True, config=STRICT)
class TaskConfig:
    """Settings of the data and features that networks are trained on."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    split: SplitConfig = dataclasses.field(default_factory=SplitConfig)
    features: FeatureConfig = dataclasses.field(default_factory=FeatureConfig)
    fold: Annotated[
        FoldConfig | None,
        Field(
            description="train and validate on a fold of the data outside the test set; null: as split says"
        ),
    ] = None
    train_share: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="share of the training set to train on; larger shares contain smaller ones",
        ),
    ] = 1.0


@dataclass(frozen=True, config=STRICT)
class RunConfig(TaskConfig):
    """Settings of one training without a search: the file of ``anitune train``."""

    training: TrainConfig = dataclasses.field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if fault := other_elements(self.training.hidden, self.features.aev.elements):
            raise ValueError(f"training.hidden: {fault}")
        if fault := self.features.fault(self.training.features):
            raise ValueError(f"training.features: {fault}")


def load_config(
    kind: type[T],
    values: Mapping[str, Any],
    where: str,
    lines: Mapping[KeyPath, int] | None = None,
) -> T:
    """Check ``values`` against the schema of ``kind``.

    Parameters
    ----------
    where : name of the file that the values come from, for messages
    lines : line number of each key in that file, by the path to the key

    Raises
    ------
    ConfigError
        with one line that names ``where``, each offending key and its allowed values.
    """
    try:
        found = TypeAdapter(kind).validate_python(values)
        faults = list(mistaken_kinds(values, found))
    except ValidationError as error:
        faults = faults_of(error)
    if faults:
        raise ConfigError(f"{where}: {in_one_line(faults, lines or {})}")
    return found


def dump_config(config: Any) -> dict[str, Any]:
    """Return all settings as plain JSON values, in the order of their declaration."""
    return dict(TypeAdapter(type(config)).dump_python(config, mode="json"))


@cache
def default_settings() -> Mapping[str, Any]:
    """Return the defaults of :class:`TrainConfig`: what a record means that lacks a setting added later."""
    return dump_config(TrainConfig())


def searchable_fields() -> dict[str, SearchDefault]:
    """Return the default search range of each setting of :class:`TrainConfig` that a study may search."""
    return {name: note for name, note in _notes() if isinstance(note, Range | Choices | SearchWidths)}


def compared_settings(settings: Mapping[str, Any], roles: Set[Role]) -> dict[str, Any]:
    """Return those settings of a training that have one of these roles.

    Parameters
    ----------
    settings : plain values, also of a record that another version made
    roles : one of :data:`SAME_CONFIGURATION`, :data:`SAME_TRAINING` and :data:`SAME_NUMBERS`
    """
    return {name: value for name, value in settings.items() if _roles().get(name, Role.RESULT) in roles}


@cache
def _roles() -> Mapping[str, Role]:
    return {name: note for name, note in _notes() if isinstance(note, Role)}


def _notes() -> Iterator[tuple[str, Any]]:
    """Yield what the declaration of each setting of :class:`TrainConfig` says, by the name of the setting."""
    for name, hint in get_type_hints(TrainConfig, include_extras=True).items():
        if get_origin(hint) is Annotated:
            yield from ((name, note) for note in get_args(hint)[1:])
