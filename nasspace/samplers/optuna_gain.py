"""The sampler `gain` for any Optuna study of categorical parameters.

    study = optuna.create_study(directions=["maximize", "minimize"], sampler=GainSampler(seed=0))
    study.optimize(objective, n_trials=50)

The space is learned from the trials, since Optuna's is defined by running the objective: which parameters there are,
their options, and on which earlier choice it depends whether a parameter is suggested. Like Optuna itself, this module
is imported late.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nasspace.samplers import gain_sampler
from nasspace.samplers.observation import Observation
from nasspace.space.tree import all_walks

STARTUP = 5  # random trials from which the space is first learned
STEEPEST = 20.0  # largest constraint value in the model, in standard deviations

Known = Mapping[int, Callable[[Mapping[str, Any]], float]]


class GainSampler(optuna.samplers.BaseSampler):
    """Proposes the parameters with the highest expected hypervolume improvement.

    The first objective is uncertain, like an accuracy; the others are costs, predicted from the trials or given:
    `known` maps an objective's index to a function of the parameters. Constraints are those of `Trial.set_constraint`;
    a trial that violates one may be pruned without values. Proposals depend on the seed, the trials, and the trial's
    number only. Numeric parameters, and all parameters of the first five trials, are drawn at random.
    """

    def __init__(self, seed: int = 0, known: Known | None = None):
        self.seed = seed
        self.known = dict(known or {})

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
        space, figures = LearnedSpace.of(trials), _Figures(trials, study.directions)
        known = {figures.names[i]: self._known(function, figures, i) for i, function in self.known.items()}
        sampler = gain_sampler.GainSampler(space, figures.names, figures.limits, known, self.seed)
        seen = [Observation(space.replay(each.params), figures.values(each)) for each in trials]  # type: ignore[arg-type]
        proposal = sampler.propose(seen, trial.number)
        return dict(proposal.choices or {}) if proposal else {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A random value."""
        seed = zlib.crc32(f"{self.seed}/{trial.number}/{param_name}".encode())
        return optuna.samplers.RandomSampler(seed).sample_independent(study, trial, param_name, param_distribution)

    @staticmethod
    def _known(
        function: Callable[[Mapping[str, Any]], float], figures: _Figures, objective: int
    ) -> Callable[[Any], float]:
        return lambda point: figures.scaled(objective, function(point.choices))


class Point(NamedTuple):
    """Parameters as an architecture of `LearnedSpace`."""

    choices: dict[str, Any]
    digest: str


class Condition(NamedTuple):
    """A parameter is suggested if an earlier one has one of these options."""

    name: str
    options: frozenset[Any]


class LearnedSpace:
    """The space that trials were drawn from, as `gain_sampler` sees it.

    `options`: every parameter's options, in the order of suggestion. `conditions`: when a parameter is suggested;
    always, if it is not in there.
    """

    def __init__(self, options: Mapping[str, tuple[Any, ...]], conditions: Mapping[str, Condition]):
        self.options = dict(options)
        self.conditions = dict(conditions)

    @classmethod
    def of(cls, trials: Sequence[FrozenTrial]) -> LearnedSpace:
        """Learn the space from the trials."""
        options: dict[str, tuple[Any, ...]] = {}
        for trial in trials:
            for name, each in trial.distributions.items():
                if isinstance(each, CategoricalDistribution):
                    options.setdefault(name, tuple(each.choices))
        finished = [trial.params for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        names = list(options)
        found = {name: _condition(name, names, finished) for name in names}
        return cls(options, {name: condition for name, condition in found.items() if condition})

    @cached_property
    def size(self) -> int:
        """An upper bound on the number of points."""
        return math.prod(len(options) for options in self.options.values())

    def architecture(self, choose: Callable[[str, Sequence[Any]], Any]) -> Point:
        """The point for which `choose(name, options)` returns an option of every parameter that is suggested."""
        choices: dict[str, Any] = {}
        missing = list(self.options)
        while ready := next((name for name in missing if self._is_reached(name, choices)), None):
            missing.remove(ready)
            choices[ready] = choose(ready, self.options[ready])
        return Point(choices, repr(sorted(choices.items())))

    def _is_reached(self, name: str, choices: Mapping[str, Any]) -> bool:
        condition = self.conditions.get(name)
        return condition is None or (condition.name in choices and choices[condition.name] in condition.options)

    def replay(self, params: Mapping[str, Any]) -> Point:
        """The point of recorded parameters."""
        choices = {name: option for name, option in params.items() if name in self.options}
        return Point(choices, repr(sorted(choices.items())))

    def sample(self, rng: random.Random) -> Point:
        """A random point."""
        return self.architecture(lambda _, options: rng.choice(options))

    def enumerate(self) -> Iterator[Point]:
        """Every point once."""
        yield from all_walks(self.architecture)

    def neighbors(self, point: Point) -> Iterator[Point]:
        """The points that differ in one choice; parameters that only they reach have the first option."""
        for name, option in point.choices.items():
            for other in self.options[name]:
                if other != option:
                    changed = {**point.choices, name: other}
                    yield self.architecture(lambda at, options, changed=changed: changed.get(at, options[0]))


def _condition(name: str, names: Sequence[str], trials: Sequence[Mapping[str, Any]]) -> Condition | None:
    """The parameter whose option decides in all trials whether `name` is suggested; None if it always is.

    Of several such parameters it is the one that is itself suggested most rarely: a layer's kernel depends on the
    layer's block, which depends on the depth.
    """
    if all(name in params for params in trials):
        return None
    candidates = []
    for other in names:
        present = {params.get(other) for params in trials if name in params}
        absent = {params.get(other) for params in trials if name not in params}
        suggested_after = all(list(params).index(other) < list(params).index(name) for params in trials
                              if other in params and name in params)  # fmt: skip
        if other != name and present and suggested_after and not present & absent:
            rarity = sum(other in params for params in trials)
            candidates.append((rarity, Condition(other, frozenset(present))))
    return min(candidates, key=lambda pair: pair[0])[1] if candidates else None


class _Figures:
    """Trials' objectives and constraints as the positive, minimized figures of `gain_sampler`.

    The first objective keeps its scale, since only its order counts there. Maximized costs change their sign; costs
    that are then not positive are shifted, which changes no hypervolume. A constraint's figure is the exponential of
    its value, in standard deviations.
    """

    def __init__(self, trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]):
        self.signs = [-1.0 if direction == StudyDirection.MAXIMIZE else 1.0 for direction in directions]
        self.names = ["accuracy", *(f"objective {i}" for i in range(1, len(directions)))]
        complete = [each.values for each in trials if each.state == TrialState.COMPLETE]
        columns = np.array(complete, float).reshape(len(complete), len(directions)) * self.signs
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
