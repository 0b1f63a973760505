"""Generates the page about study files from their schema."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from search.dimensions import MAX_LAYERS, default_dimensions
from search.study import (
    Limits,
    PrunerConfig,
    Row,
    SamplerConfig,
    StudyConfig,
)
from tools.markdown import anchor, as_yaml, paragraphs, table
from trainer.config import (
    AEVConfig,
    DataConfig,
    FeatureConfig,
    FoldConfig,
    RunConfig,
    SplitConfig,
    TrainConfig,
    Unit,
)

SECTIONS: Mapping[str, type] = {
    "data": DataConfig,
    "split": SplitConfig,
    "features": FeatureConfig,
    "features.aev": AEVConfig,
    "training": TrainConfig,
    "rows": Row,
    "sampler": SamplerConfig,
    "pruner": PrunerConfig,
    "limits": Limits,
}
"""Sections of a study file, in the order of the page; ``space`` is described separately."""

LINKS: Mapping[str, str] = {name: name for name in (*SECTIONS, "space")} | {"rows.training": "training"}
"""The section that describes what a setting may hold."""

KINDS: Mapping[Any, str] = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "`true` or `false`",
    StudyConfig: "path",
}

INTRODUCTION = """\
# The study file

Made by `python -m tools.reference` from the schema in `search/study.py`, `search/dimensions.py` and
`trainer/config.py`.

A study file is YAML: what is searched, on which data, how, and for how long. It needs a `name`, and one of
the `limits` unless it has `rows`. All else has a default. A key that is not known, or a value that cannot be,
is refused with one line that names the file, the key and its line.
[examples/quickstart.yaml](../examples/quickstart.yaml) is a commented start.

Plain words mean what YAML 1.2 says: `true` and `false` alone stand for these (`yes` and `on` are text), `010`
is ten, and `1:30` is no number. A text that looks like a number is put in quotes. Paths start from the folder
of the file; `~` and `$VARIABLES` mean what they do in a shell. A study that has begun keeps its settings: its
file may change only in what is marked *may change later*. For anything else, give the study another
name.

## All sections"""

OF_TRAINING = """\
In a study, what stands under `training` is the same for all trials. What does not is searched over its
default range ([`space`](#space)) or, if it has none there, keeps the default of this table. `seed` follows
from the seed of the study and the number of the trial."""

SPACE = """\
## `space`

Where to look. A setting has one of these forms. One that stands neither here nor under `training` is searched
as the second table says."""

FORMS = (
    ("`{low: 1.0e-4, high: 1.0e-2, log: true}`", "from low to high; `log`: evenly by the logarithm"),
    ("`{low: 32, high: 256, step: 32}`", "the same in steps, the last of which is `high`; not with `log`"),
    ("`{choices: [silu, celu]}`", "one of these"),
    ("`0.0`", "this value, in all trials"),
    ("`default`", "as the second table says"),
)

LAYERS = f"""\
`layers` and `width` stand for `training.hidden`: the number of hidden layers, {MAX_LAYERS} at most, and their
widths. Each layer has a width of its own. To choose among whole architectures instead, list them:
`hidden: {{choices: [[128], [256, 128], [160, 128, 96]]}}`."""

OF_TRAIN = """\
One training without a search. The file has these sections, with the same settings; any may be left out:
{sections}. The `config.json` that each training writes is such a file."""


def study_file_page() -> str:
    """Generate the page about study files, and about the file of ``anitune train``."""
    parts = [INTRODUCTION, _fields_table(StudyConfig, "")]
    for name, kind in SECTIONS.items():
        if name == "rows":
            parts += [SPACE, table(("form", "meaning"), FORMS), LAYERS, _space_table()]
        parts += [f"## `{name}`", _first_sentence(kind), _fields_table(kind, f"{name}.")]
        if name == "training":
            parts.append(OF_TRAINING)
    shared = ", ".join(f"[`{field.name}`](#{anchor(field.name)})" for field in dataclasses.fields(RunConfig))
    parts += ["## The file of `anitune train`", OF_TRAIN.format(sections=shared)]
    parts += ["### `fold`", _first_sentence(FoldConfig), _fields_table(FoldConfig, "fold.")]
    return "\n\n".join(parts) + "\n"


def _fields_table(kind: type, prefix: str) -> str:
    rows = [_field_row(f"{prefix}{name}", name, field) for name, field in _fields(kind).items()]
    return table(("setting", "value", "default", "unit", "meaning"), rows)


def _field_row(path: str, name: str, field: FieldInfo) -> tuple[str, ...]:
    if path in LINKS:
        values, default = f"[its settings](#{anchor(LINKS[path])})", "" if path != "rows" else "`null`"
    else:
        values, default = _values(field.annotation, field.metadata), _default(field)
    meaning = field.description or (_first_sentence(SECTIONS[path]) if path in SECTIONS else None)
    if meaning is None:
        raise ValueError(f"{path} has no description: say in its Field what it means")
    meaning = meaning[:1].lower() + meaning[1:].rstrip(".") if path in SECTIONS else meaning
    later = "; *may change later*" if field.exclude else ""
    return f"`{name}`", values, default, _unit(field), meaning + later


def _fields(kind: Any) -> dict[str, FieldInfo]:
    fields: dict[str, FieldInfo] = kind.__pydantic_fields__
    return fields


def _first_sentence(kind: type) -> str:
    return paragraphs(kind.__doc__)[0]


def _unit(field: FieldInfo) -> str:
    return next((note.name for note in field.metadata if isinstance(note, Unit)), "")


def _default(field: FieldInfo) -> str:
    return "must be given" if field.default is PydanticUndefined else f"`{as_yaml(field.default)}`"


def _values(annotation: Any, notes: list[Any]) -> str:
    """The values that a setting may have, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [
            n for note in arguments[1:] for n in (note.metadata if isinstance(note, FieldInfo) else [note])
        ]
        return _values(arguments[0], [*inner, *notes])
    if origin in (Union, UnionType):
        return ", or ".join("`null`" if each is NoneType else _values(each, notes) for each in arguments)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return f"list of {_plural(_values(arguments[0], []))}, {_count(arguments, notes)}"
    if origin is dict:
        return f"mapping of {' to '.join(_values(each, []) for each in arguments)}"
    return f"{KINDS[annotation]}{_bounds(annotation, notes)}"


def _plural(words: str) -> str:
    if words.startswith("`"):  # words to choose from
        return words
    kind = next(kind for kind in KINDS.values() if words.startswith(kind))
    return kind + ("" if kind == KINDS[str] else "s") + words.removeprefix(kind)


def _count(arguments: tuple[Any, ...], notes: list[Any]) -> str:
    if arguments[-1] is not Ellipsis:
        return f"{len(arguments)} of them"
    low = next((note.min_length for note in notes if isinstance(note, MinLen)), 0)
    high = next((note.max_length for note in notes if isinstance(note, MaxLen)), None)
    return f"{low} or more" if high is None else f"{low} to {high} of them"


def _bounds(kind: type, notes: list[Any]) -> str:
    low = high = None
    for note in notes:
        if isinstance(note, Ge):
            low = f"from {as_yaml(note.ge)}"
        elif isinstance(note, Gt):
            low = f"above {as_yaml(note.gt)}"
        elif isinstance(note, Le):
            high = f"to {as_yaml(note.le)}"
        elif isinstance(note, Lt):
            below: Any = note.lt
            high = f"to {below - 1}" if kind is int else f"below {as_yaml(below)}"
        elif isinstance(note, MaxLen):
            high = f"of {note.max_length} characters at most"
    if low is not None and high is None and low.startswith("from"):
        high = "on"
    if low is not None and high is not None and (low.startswith("above") or high.startswith("below")):
        low, high = f"{low},", high.replace("to ", "at most ")
    return "".join(f" {word}" for word in (low, high) if word is not None)


def _space_table() -> str:
    fields = _fields(TrainConfig)
    rows: list[tuple[str, ...]] = []
    for name, dimension in default_dimensions().items():
        values = dataclasses.asdict(dimension)
        default = as_yaml(
            {key: value for key, value in values.items() if value is not None and value is not False}
        )
        rows.append((f"`{name}`", f"`{default}`", *_of_space(name, fields)))
    return table(("setting", "where a study looks by default", "unit", "meaning"), rows)


def _of_space(name: str, fields: Mapping[str, FieldInfo]) -> Iterator[str]:
    if name in fields:
        yield from (_unit(fields[name]), fields[name].description or "")
    else:
        yield from {"layers": ("", "hidden layers"), "width": ("neurons", "width of a hidden layer")}[name]
