"""A configuration that a person wants tried: it becomes the next trial that begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from search.documents import read_value
from search.propose.rows import WIDTH, architecture, flat_settings
from search.propose.space import distributions, extreme_configs
from search.study import StudyConfig
from storage.studies import Study
from trainer.config import TrainConfig, load_config
from trainer.config_faults import KeyPath
from trainer.errors import ConfigError


def wished_params(
    config: StudyConfig,
    values: Mapping[str, Any],
    where: str,
    lines: Mapping[KeyPath, int] | None = None,
) -> dict[str, Any]:
    """The parameters of a study that some settings of a training stand for.

    Parameters
    ----------
    values : settings of :class:`TrainConfig`; the sampler proposes those that are left out
    where, lines : where the settings come from, for messages

    Raises
    ------
    ConfigError
        if they are no settings, or none that a trial of this study can have.
    """
    if config.rows is not None or (config.sampler is not None and config.sampler.kind == "grid"):
        what = "rows" if config.rows is not None else "points of a grid"
        raise ConfigError(f"{where}: the trials of study {config.name!r} are {what}, each of them once")
    if not values:
        raise ConfigError(f"{where}: sets nothing")
    flat = flat_settings(load_config(TrainConfig, values, where, lines))
    named = {name for name in flat if name in values}
    if "hidden" in values:
        named |= {name for name in flat if name == "layers" or name.startswith(WIDTH)}
    space, fixed = distributions(config), flat_settings(extreme_configs(config)[0])
    if "hidden" in values and "hidden" in space:
        flat, named = flat | {"hidden": architecture(values["hidden"])}, {*values}
    params = {}
    for name, value in flat.items():
        if name not in named:
            continue
        if name in space:
            if not _holds(space[name], value):
                searched = _words(space[name])
                raise ConfigError(f"{where}: {name}: the study searches {searched} (got {value!r})")
            params[name] = value
        elif name == "seed" or name not in fixed:
            raise ConfigError(f"{where}: {name}: is no parameter of study {config.name!r}")
        elif fixed[name] != value:
            raise ConfigError(
                f"{where}: {name}: is {fixed[name]!r} in all trials of study {config.name!r} (got {value!r})"
            )
    return params


def setting_value(name: str, text: str) -> Any:
    """The value of a setting of :class:`TrainConfig` in words; of a list the brackets may be left out.

    Raises
    ------
    StudyFileError
        if it is none.
    """
    is_list = isinstance(getattr(TrainConfig, name, None), tuple)
    return read_value(f"[{text}]" if is_list and not text.lstrip().startswith("[") else text)


def wish(study: Study, params: Mapping[str, Any]) -> None:
    """Put a trial with these parameters into the queue of the study; it counts like any other."""
    with study.database.plain_errors():
        study.optuna.enqueue_trial(dict(params))


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    try:
        create_trial(
            state=TrialState.COMPLETE, value=0.0, params={"x": value}, distributions={"x": distribution}
        )
    except ValueError:
        return False
    return True


def _words(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(str, distribution.choices))
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    step = f" in steps of {distribution.step}" if distribution.step not in (None, 1) else ""
    return f"{distribution.low} to {distribution.high}{step}"
