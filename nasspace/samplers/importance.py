"""Importance of the choices of a search: how much they matter for reaching its Pareto front (PED-ANOVA)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LEAST = 10  # networks below which importances would be noise
TOP_SHARE, TOP_LEAST = 0.1, 5  # of the networks, the best of which are compared with all


def choice_importances(
    choices: Sequence[Mapping[str, Any]], points: Sequence[Sequence[float]]
) -> dict[str, float] | None:
    """The importance of each choice, the largest first; together they are 1. None with fewer than ten networks.

    `choices` are those of each network, which may differ in what they reach, `points` its objectives, all minimized.
    A choice matters as far as the options of the best networks differ from those of all. The best are the first tenth
    by nondomination, at least five (PED-ANOVA, Watanabe et al. 2023; conditional choices as in Optuna).
    """
    options = _options(choices)
    if len(choices) < LEAST or not options:
        return None
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # nasspace prints its own progress
    columns = len(points[0])
    study = optuna.create_study(directions=["minimize"] * columns, storage=optuna.storages.InMemoryStorage())
    distributions = {name: optuna.distributions.CategoricalDistribution(given) for name, given in options.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of choices that few networks reach
        study.add_trials(
            optuna.trial.create_trial(
                params={name: option for name, option in one.items() if name in options},
                distributions={name: distributions[name] for name in one if name in options},
                values=list(point),
            )
            for one, point in zip(choices, points, strict=True)
        )
        share = max(TOP_SHARE, TOP_LEAST / len(choices))
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=min(share, 0.5))
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    # Equal importances are what Optuna returns where it finds none.
    return None if len(set(found.values())) == 1 and len(found) > 1 else found


def _options(choices: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The options of each choice that occur, without choices that always have the same one."""
    options: dict[str, dict[str, Any]] = {}
    for one in choices:
        for name, option in one.items():
            options.setdefault(name, {})[repr(option)] = option
    return {name: [found[key] for key in sorted(found)] for name, found in options.items() if len(found) > 1}
