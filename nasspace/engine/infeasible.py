"""Errors of searches that found no network within the limits: they name the nearest one."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from nasspace.architecture import Architecture
from nasspace.errors import NothingFound
from nasspace.space.space import Space
from nasspace.studies.objectives import OBJECTIVES
from nasspace.studies.study import Study

if TYPE_CHECKING:
    from nasspace.engine.problem import Problem

RANDOM_NETWORKS = 200  # samples from which the descent to the cheapest network starts
DESCENT_STEPS = 100


def empty_front(study: Study) -> NothingFound:
    """The error of a study with an empty front: it names the measured network nearest to the limits."""
    measured = study.frozen("COMPLETE", "PRUNED")
    limits = _limits(study)
    if study.settings["recipe"]["sampler"] == "uniform":
        why = f"; the search ended early: {study.ended_early}" if study.ended_early else ""
        return NothingFound(f"no network within the budget was found among {len(measured)} measured{why}")
    if not measured:
        return NothingFound(f"no network within the limits ({limits}) was found; nothing was measured")
    nearest = min(measured, key=study.over_limit)
    if study.over_limit(nearest) <= 0 and (failed := study.undeployable()):
        number, why = next(iter(failed.items()))
        return NothingFound(
            f"no network is left: {len(failed)} failed at the deployment resolution, the first one, {study.name}:"
            f"{number}: {why}; lower the recipe's training.learning_rate"
        )
    if study.over_limit(nearest) <= 0 and (again := study.remeasured().get(str(nearest.number))):
        return NothingFound(
            f"no network stayed within the limits ({limits}): the nearest, {study.name}:{nearest.number}, took "
            f"{again['median_ms']:.4g} ms when its exported file was measured again; search on with more --trials"
        )
    values = nearest.user_attrs["values"]
    figures = [f"{name} {OBJECTIVES[name].describe(values[name])}" for name in study.limits if name in values]
    if interval := study.latency(nearest):
        figures.append(f"the latency's interval reaching {interval['high_ms']:.4g} ms")
    return NothingFound(
        f"no network within the limits ({limits}) was found among {len(measured)} measured; the nearest is "
        f"{study.name}:{nearest.number} (digest {nearest.user_attrs['digest']}) with {', '.join(figures)}"
    )


def unreachable_limits(study: Study, problem: Problem) -> NothingFound:
    """The error of a search in which nothing was measured: it names one of the cheapest networks of the space."""
    limits = _limits(study)
    for name in study.limits.keys() & problem.evaluator.known.keys():
        architecture, value = cheapest(problem.space, problem.evaluator.known[name], problem.recipe.seed)
        if value > study.limits[name]:
            return NothingFound(
                f"no network within the limits ({limits}) was found; the nearest of '{problem.space.name}' is "
                f"{architecture.digest} with {name} {OBJECTIVES[name].describe(value)}"
            )
    return NothingFound(f"no network within the limits ({limits}) was found; nothing was measured")


def cheapest(space: Space, count: Callable[[Architecture], float], seed: int) -> tuple[Architecture, float]:
    """Approximately the cheapest network by `count`, with its value: descent from the best of 200 random networks."""
    rng = random.Random(seed)
    best = min((space.sample(rng) for _ in range(RANDOM_NETWORKS)), key=count)
    for _ in range(DESCENT_STEPS):
        better = min(space.neighbors(best), key=count, default=best)
        if count(better) >= count(best):
            break
        best = better
    return best, count(best)


def _limits(study: Study) -> str:
    return ", ".join(f"{name} {OBJECTIVES[name].describe(limit)}" for name, limit in study.limits.items()) or "none"
