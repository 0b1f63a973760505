"""Enqueued configurations: a configuration that a person adds, with any program, becomes the next trial."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from search.documents import read_value
from search.propose.constraints import refuse_enqueued
from search.propose.rows import flat_settings, layer_of
from search.propose.space import distributions, extreme_configs
from search.study import StudyConfig
from storage.studies import Study
from trainer.config import TrainConfig, load_config
from trainer.config_faults import KeyPath
from trainer.errors import ConfigError
from trainer.networks.widths import by_element, other_elements, widths_text


def params_from_settings(
    config: StudyConfig,
    values: Mapping[str, Any],
    where: str,
    lines: Mapping[KeyPath, int] | None = None,
) -> dict[str, Any]:
    """Convert settings of a training to parameters of the study.

    Parameters
    ----------
    values : settings of :class:`TrainConfig`; the sampler proposes those that are left out
    where, lines : where the settings come from, for messages

    Raises
    ------
    ConfigError
        if they are not valid settings, or no trial of this study can have them.
    """
    _refuse_points(config, where)
    if not values:
        raise ConfigError(f"{where}: sets nothing")
    training = load_config(TrainConfig, values, where, lines)
    if elements := config.elements_with_widths:
        if fault := other_elements(training.hidden, elements):
            raise ConfigError(f"{where}: hidden: {fault}")
        training = dataclasses.replace(training, hidden=by_element(training.hidden, elements))
    flat = flat_settings(training)
    named = {name for name in flat if name in values}
    if "hidden" in values:
        named |= {name for name in flat if name == "layers" or layer_of(name) is not None}
    if "hidden" in values and "hidden" in distributions(config):
        flat, named = flat | {"hidden": widths_text(training.hidden)}, {*values}
    return _in_space(config, {name: flat[name] for name in flat if name in named}, where)


def params_from_queue(config: StudyConfig, asked_for: Any) -> dict[str, Any]:
    """Check parameters that some program has put into Optuna's queue.

    Parameters
    ----------
    asked_for : parameters by name; unchecked, so possibly not even a mapping

    Raises
    ------
    ConfigError
        if no trial of this study can have them, as in :func:`params_from_settings`.
    """
    where = "Optuna's queue"
    if not isinstance(asked_for, Mapping):
        raise ConfigError(f"{where}: asks for {reprlib.repr(asked_for)} instead of parameters")
    if asked_for:
        _refuse_points(config, where)
    return _in_space(config, asked_for, where)


def _refuse_points(config: StudyConfig, where: str) -> None:
    if config.rows is not None or (config.sampler is not None and config.sampler.has_points):
        what = "rows" if config.rows is not None else "points of a grid"
        raise ConfigError(f"{where}: the trials of study {config.name!r} are {what}, each of them once")


def _in_space(config: StudyConfig, flat: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return those parameters that the study searches; the others must have the value of all its trials."""
    space = distributions(config)
    fixed = flat_settings(extreme_configs(config)[0]) if flat else {}
    params = {}
    for name, value in flat.items():
        got = f"(got {reprlib.repr(value)})"
        if name in space:
            if (held := _held(space[name], value)) is None:
                raise ConfigError(f"{where}: {name}: the study searches {_describe_range(space[name])} {got}")
            params[name] = held
        elif name == "seed" or name not in fixed:
            raise ConfigError(f"{where}: {name[:100]}: is not a parameter of study {config.name!r}")
        elif not _equal(fixed[name], value):
            raise ConfigError(
                f"{where}: {name}: is {fixed[name]!r} in all trials of study {config.name!r} {got}"
            )
    refuse_enqueued(config, params, where)
    return params


def setting_value(name: str, text: str) -> Any:
    """Parse the value of a setting of :class:`TrainConfig`; a list may be written without brackets.

    Raises
    ------
    StudyFileError
        if the text is not a value.
    """
    is_list = isinstance(getattr(TrainConfig, name, None), tuple)
    return read_value(f"[{text}]" if is_list and not text.lstrip().startswith(("[", "{")) else text)


def enqueued(study: Study, params: Mapping[str, Any]) -> None:
    """Enqueue a trial with these parameters; it counts towards the limits like any other."""
    with study.database.plain_errors():
        study.optuna.enqueue_trial(dict(params))


def _held(distribution: BaseDistribution, value: Any) -> Any:
    """Return the value as the distribution represents it; None if the distribution does not contain it."""
    if isinstance(distribution, CategoricalDistribution):
        return next((choice for choice in distribution.choices if _equal(choice, value)), None)
    kinds = (int, float) if isinstance(distribution, FloatDistribution) else (int,)
    if type(value) not in kinds:  # bool is a subclass of int
        return None
    try:
        create_trial(
            state=TrialState.COMPLETE, value=0.0, params={"x": value}, distributions={"x": distribution}
        )
    except (ValueError, OverflowError):
        return None
    return float(value) if isinstance(distribution, FloatDistribution) else value


def _equal(known: Any, value: Any) -> bool:
    """Whether a value equals a known one and has its type; JSON may write a float without a point."""
    same_kind = type(value) is type(known) or (type(known) is float and type(value) is int)
    return same_kind and bool(known == value)


def _describe_range(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(str, distribution.choices))
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    step = f" in steps of {distribution.step}" if distribution.step not in (None, 1) else ""
    return f"{distribution.low} to {distribution.high}{step}"
