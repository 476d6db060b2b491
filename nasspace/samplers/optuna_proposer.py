"""What nasspace's samplers have in common in Optuna studies of other programs.

Like Optuna itself, this module is imported late.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nasspace.samplers.learned_space import LearnedSpace
from nasspace.samplers.observation import Observation
from nasspace.samplers.proposers import Proposer

STARTUP = 5  # random trials from which the space is first learned
STEEPEST = 20.0  # largest constraint value in the model, in standard deviations

Known = Mapping[int, Callable[[Mapping[str, Any]], float]]


class ProposerSampler(optuna.samplers.BaseSampler):
    """Proposes categorical parameters as a sampler of `nasspace.samplers.proposers` does.

    Proposals depend on the seed, the trials, and the trial's number only. Numeric parameters, and all parameters of the
    first five trials, are drawn at random. `known` maps an objective's index to a function of the parameters.
    """

    def __init__(self, seed: int = 0, known: Known | None = None):
        self.seed = seed
        self.known = dict(known or {})

    def proposer(self, space: LearnedSpace, figures: Figures) -> Proposer:
        """The sampler that proposes, on what the trials say about the space and the objectives."""
        raise NotImplementedError

    def values(self, figures: Figures, trial: FrozenTrial) -> dict[str, float]:
        """What the sampler sees of a trial."""
        return figures.values(trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The categorical parameters of all finished trials."""
        trials = study.get_trials(deepcopy=False)
        if sum(each.state.is_finished() for each in trials) < STARTUP:
            return {}
        return {name: CategoricalDistribution(options) for name, options in LearnedSpace.of(trials).options.items()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters of the proposal; none, which makes them random, if every combination was tried."""
        if not search_space:
            return {}
        trials = [each for each in study.get_trials(deepcopy=False) if each.number != trial.number and each.params]
        space, figures = LearnedSpace.of(trials), Figures(trials, study.directions)
        seen = [Observation(space.replay(each.params), self.values(figures, each)) for each in trials]  # type: ignore[arg-type]
        proposal = self.proposer(space, figures).propose(seen, trial.number)
        return dict(proposal.choices or {}) if proposal else {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A random value."""
        seed = zlib.crc32(f"{self.seed}/{trial.number}/{param_name}".encode())
        return optuna.samplers.RandomSampler(seed).sample_independent(study, trial, param_name, param_distribution)

    def known_figures(self, figures: Figures) -> dict[str, Callable[[Any], float]]:
        """The known objectives as figures of a point, by name."""

        def figure(objective: int, function: Callable[[Mapping[str, Any]], float]) -> Callable[[Any], float]:
            return lambda point: figures.scaled(objective, function(point.choices))

        return {figures.names[i]: figure(i, function) for i, function in self.known.items()}


class Figures:
    """Trials' objectives and constraints as the positive, minimized figures of nasspace's samplers.

    The first objective keeps its scale, since only its order counts there. Maximized costs change their sign; costs
    that are then not positive are shifted, which changes no hypervolume. A constraint's figure is the exponential of
    its value, in standard deviations.
    """

    def __init__(self, trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]):
        self.signs = [-1.0 if direction == StudyDirection.MAXIMIZE else 1.0 for direction in directions]
        self.names = ["accuracy", *(f"objective {i}" for i in range(1, len(directions)))]
        complete = [each.values for each in trials if each.state == TrialState.COMPLETE]
        values = np.array(complete, float).reshape(len(complete), len(directions))
        self.lowest = values.min(axis=0, initial=np.inf).tolist()  # of each objective
        columns = values * self.signs
        self.shifts = [_shift(column) for column in columns.T]
        constraints = sorted({name for each in trials for name in each.constraints})
        self.scales = {
            name: float(np.std([each.constraints[name] for each in trials if name in each.constraints])) or 1.0
            for name in constraints
        }
        self.limits = {f"constraint {name}": 1.0 for name in constraints}

    def scaled(self, objective: int, value: float) -> float:
        """A value of a cost as a figure."""
        return self.signs[objective] * value + self.shifts[objective]

    def values(self, trial: FrozenTrial) -> dict[str, float]:
        """A trial's figures; none if it failed or is running, no objectives if it was pruned."""
        if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
            return {}
        figures = {f"constraint {name}": self._excess(name, value) for name, value in trial.constraints.items()}
        if trial.state == TrialState.COMPLETE:
            first, *costs = trial.values
            figures["accuracy"] = -self.signs[0] * first
            figures |= {self.names[i]: self.scaled(i, value) for i, value in enumerate(costs, start=1)}
        return figures

    def _excess(self, name: str, value: float) -> float:
        return math.exp(min(max(value / self.scales[name], -STEEPEST), STEEPEST))


def _shift(column: np.ndarray) -> float:
    """What makes all values of a column positive; 0 if they are."""
    if not len(column) or column.min() > 0:
        return 0.0
    return float(0.1 * (np.ptp(column) or 1.0) - column.min())
