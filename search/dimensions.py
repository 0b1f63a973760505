"""The search space: the section ``space`` of a study file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import BeforeValidator, Discriminator, Field, GetPydanticSchema, Tag
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError, core_schema

from trainer.config import STRICT, Choices, Range, SearchWidths, TrainConfig, Width, searchable_fields

MAX_LAYERS = 4
"""Maximum number of hidden layers in a search."""


@dataclass(frozen=True, config=STRICT)
class ElementRange(Range[int]):
    """A range of widths, from which each layer of each element's network has its own."""

    low: Width
    high: Width
    per_element: Literal[True] = True


@dataclass(frozen=True, config=STRICT)
class ElementChoices(Choices[int]):
    """Choices of widths, from which each layer of each element's network has its own."""

    choices: Annotated[tuple[Width, ...], Field(min_length=1)]
    per_element: Literal[True] = True


Dimension = Range[Any] | Choices[Any] | int | float | str | bool
"""Search range of a setting: a range, choices, or a single value, which is then not searched."""


def default_dimensions() -> dict[str, Range[Any] | Choices[Any]]:
    """Return the default search space; ``hidden`` is searched as ``layers`` and ``width``."""
    found: dict[str, Range[Any] | Choices[Any]] = {}
    for name, default in searchable_fields().items():
        if isinstance(default, SearchWidths):
            found |= {"layers": default.layers, "width": default.width}
        else:
            found[name] = default
    return found


def _form(value: object) -> str:
    if isinstance(value, Range) or (isinstance(value, Mapping) and "choices" not in value):
        return "<range>"
    return "<choices>" if isinstance(value, Choices | Mapping) else "<value>"


def _form_of_width(value: object) -> str:
    by_element = isinstance(value, ElementRange | ElementChoices) or (
        isinstance(value, Mapping) and "per_element" in value
    )
    return f"<element {_form(value)[1:]}" if by_element else _form(value)


def _dimension_type(name: str) -> Any:
    """Return the type of the dimension of a setting; its values obey the bounds of the setting itself."""
    hints = get_type_hints(TrainConfig, include_extras=True)
    of: Any = {"layers": Annotated[int, Field(ge=1, le=MAX_LAYERS)], "width": Width}.get(name) or hints[name]
    default = default_dimensions()[name]
    forms: Any = Annotated[Choices[of], Tag("<choices>")] | Annotated[of, Tag("<value>")]
    if get_args(of)[0] in (int, float):
        forms = Annotated[Range[of], Tag("<range>")] | forms
    form = _form
    if name == "width":
        forms |= Annotated[ElementRange, Tag("<element range>")]
        forms |= Annotated[ElementChoices, Tag("<element choices>")]
        form = _form_of_width
    return Annotated[
        forms,
        Discriminator(form, custom_error_type="form", custom_error_message="give choices, or one value"),
        BeforeValidator(lambda value: _no_list(_with_default(value, dataclasses.asdict(default)))),
    ]


def _with_default(value: object, default: Mapping[str, Any]) -> object:
    """Fill in the default range of a dimension that leaves its range open."""
    if value == "default":
        return default
    if isinstance(value, Mapping) and "per_element" in value:
        if not isinstance(value["per_element"], bool):
            raise PydanticCustomError("form", "per_element is true or false")
        said = {name: each for name, each in value.items() if name != "per_element" or each}
        return said if said.keys() - {"per_element"} else {**default, **said}
    return value


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
    names = Annotated[
        Annotated[Choices[str], Tag("<choices>")] | Annotated[str, Tag("<value>")],
        Discriminator(_form, custom_error_type="form", custom_error_message="give choices, or one value"),
        BeforeValidator(_no_list),
    ]
    return listed | {"features": names} | {name: _dimension_type(name) for name in default_dimensions()}


Space = Annotated[dict[str, Dimension], _settings_schema(_space_types())]
"""Search space. ``hidden`` lists whole architectures; ``layers`` and ``width`` span all up to some size."""
