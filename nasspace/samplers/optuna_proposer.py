"""What nasspace's samplers have in common in Optuna studies of other programs.

Like Optuna itself, this module is imported late.
"""

from __future__ import annotations

import abc
import math
import threading
import zlib
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nasspace.errors import InputError
from nasspace.samplers.learned_space import LearnedSpace, Point, learned_parameters
from nasspace.samplers.observation import Observation
from nasspace.samplers.proposers import Proposer

STARTUP = 5  # random trials from which the space is first learned
STEEPEST = 20.0  # largest constraint value in the model, in standard deviations
MEMOIZED = 200_000  # known costs
ONE_AT_A_TIME = threading.RLock()  # proposals in threads of one process, which would otherwise be the same

Known = Mapping[int, Callable[[Mapping[str, Any]], float]]


class ProposerSampler(optuna.samplers.BaseSampler):
    """Proposes categorical parameters as a sampler of `nasspace.samplers.proposers` does.

    Proposals depend only on the seed, the trial's number, the other trials, and what was proposed for those that run in
    this process. All parameters of the first five trials are drawn at random, and always those that are numeric or have
    an option other than None, bool, int, float and strings. `known` maps the index of a cost to a function of all other
    parameters. Those that a sampler around this one fixes are left to it.
    """

    shifts_costs = True  # so that they are positive

    def __init__(self, seed: int = 0, known: Known | None = None):
        self.seed = seed
        self.known = dict(known or {})
        self._costs: dict[tuple[int, str], float | str] = {}  # known ones, by objective and digest, or why not known
        self._constants: dict[str, Any] = {}  # parameters with one option
        self._proposed: dict[tuple[str, int], Point] = {}  # by study and number of trials that run in this process

    @abc.abstractmethod
    def proposer(self, space: LearnedSpace, figures: Figures) -> Proposer:
        """The sampler that proposes, on what the trials say about the space and the objectives."""

    def values(self, figures: Figures, trial: FrozenTrial) -> dict[str, float]:
        """What the sampler sees of a trial."""
        return figures.values(trial)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Raise `ValueError` for a known objective that the study does not have as a cost."""
        for i in self.known:
            if not 1 <= i < len(study.directions):
                raise ValueError(f"known: {i} is no cost of the study; costs are its objectives from 1 on")

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        """Forget the proposal, whose parameters are now recorded."""
        self._proposed.pop((study.study_name, trial.number), None)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The categorical parameters of all trials."""
        trials = study.get_trials(deepcopy=False)
        if sum(each.state.is_finished() for each in trials) < STARTUP:
            return {}
        return dict(learned_parameters(trials))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters of the proposal; none, which makes them random, if every combination was tried."""
        if not search_space:
            return {}
        with ONE_AT_A_TIME:
            others = [each for each in study.get_trials(deepcopy=False) if each.number != trial.number]
            others = [each for each in others if each.params or (study.study_name, each.number) in self._proposed]
            space = LearnedSpace.of(others, among=search_space)
            figures = Figures(others, study.directions, self.shifts_costs)
            self._constants = _constants(others) if self.known else {}
            learned = learned_parameters(others)
            observations = [self._observation(study, space, learned, figures, each) for each in others]
            try:
                proposal: Any = self.proposer(space, figures).propose(observations, trial.number)
            except InputError:  # of `gain`, which says it in other words
                self._check_known()
                raise
            if proposal is None:
                self._check_known()
                return {}
            self._proposed[study.study_name, trial.number] = proposal
        return {name: option for name, option in proposal.choices.items() if name in search_space}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A random value."""
        return random_value(self.seed, study, trial, param_name, param_distribution)

    def known_figures(self, figures: Figures) -> dict[str, Callable[[Any], float]]:
        """The known costs as figures of a point, by name."""
        return {figures.names[i]: partial(self._known_figure, figures, i) for i in self.known}

    def _known_figure(self, figures: Figures, objective: int, point: Point) -> float:
        """A known cost as a figure; a `RuntimeError` where there is none, which leaves the point out."""
        key = objective, point.digest
        if key not in self._costs:
            if len(self._costs) >= MEMOIZED:
                self._costs.clear()
            self._costs[key] = self._known_cost(objective, point)
        cost = self._costs[key]
        if isinstance(cost, str):
            raise RuntimeError(cost)
        return figures.scaled(objective, cost)

    def _known_cost(self, objective: int, point: Point) -> float | str:
        """A known cost, or why there is none: after few trials, the learned space has points that do not exist."""
        where = f"known: the function of objective {objective}"
        try:
            cost = float(self.known[objective]({**self._constants, **point.choices}))
        except Exception as error:
            return f"{where} raises {type(error).__name__}: {error}, for {point.choices}"
        return cost if math.isfinite(cost) else f"{where} returns {cost}, for {point.choices}"

    def _check_known(self) -> None:
        """Raise `InputError` if every call of a known cost failed."""
        if self._costs and all(isinstance(cost, str) for cost in self._costs.values()):
            raise InputError(str(next(iter(self._costs.values()))))

    def _observation(
        self, study: optuna.Study, space: LearnedSpace, learned: Container[str], figures: Figures, trial: FrozenTrial
    ) -> Observation:
        """A trial as the proposer sees it; one that runs in this process has the parameters of its proposal.

        `learned` are the parameters that are learned, also those that a sampler around this one fixes.
        """
        is_running = trial.state == TrialState.RUNNING
        proposed = self._proposed.get((study.study_name, trial.number)) if is_running else None
        point = proposed or space.replay(trial.params)
        unlearned = [name for name, each in trial.distributions.items() if name not in learned and not _is_single(each)]
        if unlearned:  # the same choices with another learning rate are a different trial
            values = [(name, trial.params[name]) for name in sorted(unlearned)]
            point = point._replace(digest=f"{point.digest} {values!r}")
        return Observation(point, self.values(figures, trial))  # type: ignore[arg-type]


def random_value(seed: int, study: optuna.Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
    """A random value of a parameter, which depends on the seed, the trial's number, and the name only."""
    sampler = optuna.samplers.RandomSampler(zlib.crc32(f"{seed}/{trial.number}/{name}".encode()))
    return sampler.sample_independent(study, trial, name, distribution)


def _constants(trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """The values of parameters with one option."""
    return {
        name: trial.params[name] for trial in trials for name, each in trial.distributions.items() if _is_single(each)
    }


def _is_single(distribution: BaseDistribution) -> bool:
    """Whether a parameter can have one value only."""
    if isinstance(distribution, CategoricalDistribution):
        return len(set(map(repr, distribution.choices))) == 1
    return distribution.single()


class Figures:
    """Trials' objectives and constraints as the minimized figures of nasspace's samplers.

    The first objective keeps its scale. Maximized costs change their sign. If `shifted`, costs that are then not
    positive are shifted, which changes no hypervolume. A constraint's figure is the exponential of its value, in
    standard deviations. A trial with an infinite objective has none.
    """

    def __init__(self, trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection], shifted: bool = True):
        self.signs = [-1.0 if direction == StudyDirection.MAXIMIZE else 1.0 for direction in directions]
        self.names = ["accuracy", *(f"objective {i}" for i in range(1, len(directions)))]
        complete = [each.values for each in trials if _is_complete(each)]
        columns = np.array(complete, float).reshape(len(complete), len(directions)) * self.signs
        self.shifts = [_shift(column) if shifted else 0.0 for column in columns.T]
        constraints = sorted({name for each in trials for name in each.constraints})
        self.scales = {name: _scale([each.constraints.get(name, math.nan) for each in trials]) for name in constraints}
        self.limits = {f"constraint {name}": 1.0 for name in constraints}

    def scaled(self, objective: int, value: float) -> float:
        """A value of a cost as a figure."""
        return self.signs[objective] * value + self.shifts[objective]

    def values(self, trial: FrozenTrial) -> dict[str, float]:
        """A trial's figures; none if it failed or is running, no objectives if it was pruned."""
        is_complete = _is_complete(trial)
        if not is_complete and trial.state != TrialState.PRUNED:
            return {}
        figures = {
            f"constraint {name}": self._constraint_figure(name, value) for name, value in trial.constraints.items()
        }
        if is_complete:
            first, *costs = trial.values
            figures["accuracy"] = -self.signs[0] * first
            figures |= {self.names[i]: self.scaled(i, value) for i, value in enumerate(costs, start=1)}
        return figures

    def _constraint_figure(self, name: str, value: float) -> float:
        if math.isnan(value):
            return math.exp(STEEPEST)
        return math.exp(min(max(value / self.scales[name], -STEEPEST), STEEPEST))


def _is_complete(trial: FrozenTrial) -> bool:
    """Whether a trial has finite values of all objectives."""
    return trial.state == TrialState.COMPLETE and all(map(math.isfinite, trial.values))


def _scale(values: Sequence[float]) -> float:
    """The standard deviation of the finite values; 1 if there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return float(np.std(finite)) or 1.0 if finite else 1.0


def _shift(column: np.ndarray) -> float:
    """What makes all values of a column positive; 0 if they are."""
    if not len(column) or column.min() > 0:
        return 0.0
    return float(0.1 * (np.ptp(column) or 1.0) - column.min())
