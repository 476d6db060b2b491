"""Regularized evolution (Real et al. 2019, algorithm 1) as an Optuna sampler.

The population is the latest trials, so that every trial dies of age. The parent is the best of a random tournament,
and its child differs in one choice. With several objectives, the best is a random member of the tournament's Pareto
front. Like Optuna itself, this module is imported late.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nasspace.samplers import pareto
from nasspace.samplers.optuna_proposer import random_value

POPULATION, TOURNAMENT = 20, 5  # the paper's 100 and 25 would be larger than most searches here


class EvolutionSampler(optuna.samplers.BaseSampler):
    """Regularized evolution of categorical choices; the first population is random."""

    def __init__(self, seed: int = 0):
        self.seed = seed

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parent's choices; none in the first population."""
        parent = self._parent(study, trial)
        return dict(parent.distributions) if parent else {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parent's options, with another one for a random choice."""
        parent = self._parent(study, trial)
        inherited = {name: option for name, option in parent.params.items() if name in search_space} if parent else {}
        return mutated(inherited, {name: search_space[name] for name in inherited}, self._rng(trial, "mutation"))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A random option: in the first population, and for choices that the parent did not reach."""
        return random_value(self.seed, study, trial, param_name, param_distribution)

    def _rng(self, trial: FrozenTrial, purpose: str) -> random.Random:
        return random.Random(f"{self.seed}/{trial.number}/{purpose}")

    def _parent(self, study: optuna.Study, trial: FrozenTrial) -> FrozenTrial | None:
        """The parent of a trial; None while there are too few complete trials."""
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(complete) < POPULATION:
            return None
        rng = self._rng(trial, "parent")
        tournament = rng.sample(complete[-POPULATION:], TOURNAMENT)
        signs = [-1 if direction == StudyDirection.MAXIMIZE else 1 for direction in study.directions]
        best = pareto.front(np.array([other.values for other in tournament]) * signs)
        return rng.choice([other for other, on_front in zip(tournament, best, strict=True) if on_front])


def mutated(params: Mapping[str, Any], distributions: Mapping[str, Any], rng: random.Random) -> dict[str, Any]:
    """The parameters with another option for one of the categorical ones."""
    names = [name for name, each in distributions.items() if any(each != params[name] for each in _options(each))]
    if not names:
        return dict(params)
    name = rng.choice(names)
    return {**params, name: rng.choice([each for each in _options(distributions[name]) if each != params[name]])}


def _options(distribution: Any) -> Sequence[Any]:
    """The options of a categorical distribution; none of others."""
    return getattr(distribution, "choices", ())
