"""The search space: the section ``space`` of a study file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, Generic, TypeVar, get_args, get_type_hints

from pydantic import BeforeValidator, Discriminator, Field, GetPydanticSchema, Tag
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError, core_schema

from trainer.config import (
    STRICT,
    SearchChoices,
    SearchRange,
    SearchWidths,
    TrainConfig,
    searchable_fields,
)

MAX_LAYERS = 4
"""Maximum number of hidden layers in a search."""

N = TypeVar("N")


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
        if len(set(self.choices)) < len(self.choices):
            raise ValueError("a choice is listed twice")


Dimension = Range[Any] | Choices[Any] | int | float | str | bool
"""Search range of a setting: a range, choices, or a single value, which is then not searched."""


def default_dimensions() -> dict[str, Range[Any] | Choices[Any]]:
    """Return the default search space; ``hidden`` is searched as ``layers`` and ``width``."""
    found: dict[str, Range[Any] | Choices[Any]] = {}
    for name, default in searchable_fields().items():
        if isinstance(default, SearchWidths):
            found["layers"] = _range(default.layers)
            found["width"] = _range(default.width)
        elif isinstance(default, SearchChoices):
            found[name] = Choices(default.values)
        else:
            found[name] = _range(default)
    return found


def _range(default: SearchRange) -> Range[Any]:
    return Range(default.low, default.high, default.log, default.step)


def _form(value: object) -> str:
    if isinstance(value, Range) or (isinstance(value, Mapping) and "choices" not in value):
        return "<range>"
    return "<choices>" if isinstance(value, Choices | Mapping) else "<value>"


def _dimension_type(name: str) -> Any:
    """Return the type of the dimension of a setting; its values obey the bounds of the setting itself."""
    hints = get_type_hints(TrainConfig, include_extras=True)
    if name == "layers":
        of: Any = Annotated[int, Field(ge=1, le=MAX_LAYERS)]
    elif name == "width":
        of = get_args(get_args(hints["hidden"])[0])[0]
    else:
        of = hints[name]
    default = default_dimensions()[name]
    forms: Any = Annotated[Choices[of], Tag("<choices>")] | Annotated[of, Tag("<value>")]
    if get_args(of)[0] in (int, float):
        forms = Annotated[Range[of], Tag("<range>")] | forms
    return Annotated[
        forms,
        Discriminator(_form, custom_error_type="form", custom_error_message="give choices, or one value"),
        BeforeValidator(lambda value: dataclasses.asdict(default) if value == "default" else _no_list(value)),
    ]


def _no_list(value: object) -> object:
    if not isinstance(value, list | tuple):
        return value
    form = f"{{choices: [{', '.join(map(str, value)):.80}]}}"
    if len(value) == 2 and all(isinstance(each, int | float) for each in value):
        form += f", or {{low: {value[0]}, high: {value[1]}}} for all values between"
    raise PydanticCustomError("form", "a list alone is not a search range: write {form}", {"form": form})


def _no_architecture(value: object) -> object:
    if isinstance(value, list | tuple) and all(isinstance(width, int) for width in value):
        value = [value]  # a single architecture where a list of architectures is expected
    return _no_list(value)


def _settings_schema(types: Mapping[str, Any]) -> GetPydanticSchema:
    """Make the schema of a mapping in which these keys, and no others, are allowed."""
    return GetPydanticSchema(
        lambda _, handler: core_schema.typed_dict_schema(
            {
                key: core_schema.typed_dict_field(handler.generate_schema(kind), required=False)
                for key, kind in types.items()
            },
            extra_behavior="forbid",
        )
    )


TrainSettings = Annotated[dict[str, Any], _settings_schema(get_type_hints(TrainConfig, include_extras=True))]
"""A subset of the settings of :class:`TrainConfig`."""


def _space_types() -> dict[str, Any]:
    architectures: Any = get_type_hints(TrainConfig, include_extras=True)["hidden"]
    listed = {"hidden": Annotated[Choices[architectures], BeforeValidator(_no_architecture)]}
    return listed | {name: _dimension_type(name) for name in default_dimensions()}


Space = Annotated[dict[str, Dimension], _settings_schema(_space_types())]
"""Search space. ``hidden`` lists whole architectures; ``layers`` and ``width`` span all up to some size."""
