"""The next point of a sweep by what the others gave: Optuna's tree-structured Parzen estimator, one or more goals.

Nothing of Optuna's is kept on disk: the study is made anew from the runs' own results each time, so that a sweep
that was killed, or whose points run on other hosts, goes on as if nothing had been.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from .sweep_points import Axis
from .sweep_report import less_is_better, metrics_of


def suggest(
    axes: Sequence[Axis], lines: Sequence[Mapping[str, Any]], goals: Sequence[str] = ()
) -> dict[str, str]:
    """The settings to try next.

    lines: as of `sweep.results`; failed points count as such, those without a result yet as under way.
    goals: metrics, each to be made larger or smaller by its name; (): the main metric, and bytes where there are any.
    source: Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization; Ozaki et al. 2020 for several goals.
    raises: ConfigError where Optuna is not installed, or a finished point does not have a goal's metric.
    """
    optuna = import_optuna()
    goals = goals or metrics_of(lines)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=len(lines), constant_liar=True)
    directions = ["minimize" if less_is_better(goal) else "maximize" for goal in goals] or ["maximize"]
    study = optuna.create_study(directions=directions, sampler=sampler)
    room = {axis.key: _distribution(optuna, axis) for axis in axes}
    for line in lines:
        study.add_trial(_trial(optuna, axes, room, line, goals))
    asked = study.ask(room).params
    return {axis.key: _setting(axis, asked[axis.key]) for axis in axes}


def import_optuna() -> Any:
    """The library. raises: ConfigError that says how to get it."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            f"--search tpe needs Optuna ({error}); run: pip install 'forgepress[search]'"
        ) from None
    return optuna


def _trial(
    optuna: Any, axes: Sequence[Axis], room: dict[str, Any], line: Mapping[str, Any], goals: Sequence[str]
) -> Any:
    params = {axis.key: _param(axis, line[axis.key]) for axis in axes}
    states, state, values = optuna.trial.TrialState, line["state"], None
    if state == "finished":
        missing = [goal for goal in goals if not isinstance(line.get(goal), int | float)]
        if missing:
            raise ConfigError(
                f"--goal {missing[0]}: point {line['point']} has no such metric; it has {_names(line)}"
            )
        values = [float(line[goal]) for goal in goals]
    kind = states.COMPLETE if values else states.FAIL if state == "failed" else states.RUNNING
    return optuna.trial.create_trial(state=kind, params=params, distributions=room, values=values)


def _names(line: Mapping[str, Any]) -> str:
    keys = list(line)
    return ", ".join(keys[keys.index("state") + 1 :]) or "none"


def _distribution(optuna: Any, axis: Axis) -> Any:
    """Numbers in rising order keep their order, by their place; other values are names."""
    if axis.continuous:
        return optuna.distributions.FloatDistribution(axis.low, axis.high, log=axis.log)
    if axis.ordered:
        return optuna.distributions.IntDistribution(0, len(axis.values) - 1)
    return optuna.distributions.CategoricalDistribution(axis.values)


def _param(axis: Axis, setting: str) -> Any:
    if axis.continuous:
        return min(max(float(setting), axis.low), axis.high)  # it was rounded when it was written
    return axis.values.index(setting) if axis.ordered else setting


def _setting(axis: Axis, param: Any) -> str:
    if axis.continuous:
        return f"{param:.6g}"
    return axis.values[param] if axis.ordered else str(param)
