"""The space of an Optuna study, learned from its trials, since it is defined by running the objective.

Which parameters there are, their options, and on which earlier choice it depends whether a parameter is suggested. Like
Optuna itself, this module is imported late.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from nasspace.space.tree import all_walks

PLAIN = (type(None), bool, int, float, str)  # types that every storage of Optuna returns as they were


class Point(NamedTuple):
    """Parameters as an architecture of `LearnedSpace`."""

    choices: dict[str, Any]
    digest: str


class Condition(NamedTuple):
    """A parameter is suggested if an earlier one has one of these options."""

    name: str
    options: frozenset[Any]


def learned_parameters(trials: Sequence[FrozenTrial]) -> dict[str, CategoricalDistribution]:
    """The parameters that are learned, in the order of suggestion: categorical ones with several plain options."""
    found: dict[str, CategoricalDistribution] = {}
    for trial in trials:
        for name, each in trial.distributions.items():
            if isinstance(each, CategoricalDistribution) and name not in found and len(_distinct(each)) > 1:
                found[name] = each
    return found


def _distinct(distribution: CategoricalDistribution) -> tuple[Any, ...]:
    """The different options; none if one is not plain, or not equal to itself."""
    is_plain = all(isinstance(option, PLAIN) and option == option for option in distribution.choices)
    return tuple(dict.fromkeys(distribution.choices)) if is_plain else ()


class LearnedSpace:
    """The space that trials were drawn from, as nasspace's samplers see it.

    `options`: every parameter's options, in the order of suggestion. `conditions`: when a parameter is suggested;
    always, if it is not in there.
    """

    def __init__(self, options: Mapping[str, tuple[Any, ...]], conditions: Mapping[str, Condition]):
        self.options = dict(options)
        self.conditions = dict(conditions)

    @classmethod
    def of(cls, trials: Sequence[FrozenTrial], among: Container[str] | None = None) -> LearnedSpace:
        """Learn the space from the trials, with the parameters `among` these only."""
        learned = learned_parameters(trials)
        options = {name: _distinct(each) for name, each in learned.items() if among is None or name in among}
        finished = [trial.params for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        return cls(options, _conditions(options, finished) if finished else {})

    @cached_property
    def size(self) -> int:
        """An upper bound on the number of points."""
        return math.prod(len(options) for options in self.options.values())

    @cached_property
    def _parents_first(self) -> list[str]:
        """All parameters, each after the one that it depends on."""
        ordered: dict[str, None] = {}

        def place(name: str) -> None:
            if name not in ordered:
                if name in self.conditions:
                    place(self.conditions[name].name)
                ordered[name] = None

        for name in self.options:
            place(name)
        return list(ordered)

    def architecture(self, choose: Callable[[str, Sequence[Any]], Any]) -> Point:
        """The point for which `choose(name, options)` returns an option of every parameter that is suggested."""
        choices: dict[str, Any] = {}
        for name in self._parents_first:
            if self._is_reached(name, choices):
                choices[name] = choose(name, self.options[name])
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


def _conditions(options: Mapping[str, tuple[Any, ...]], trials: Sequence[Mapping[str, Any]]) -> dict[str, Condition]:
    """The conditions that hold in all trials, by parameter; `trials` are parameters in the order of suggestion.

    A parameter depends on one that is suggested before it whenever it is suggested, and never has the same option
    otherwise. Of several such parameters it is the one that is itself suggested most rarely: a layer's kernel depends
    on the layer's block, which depends on the depth.
    """
    names = list(options)
    places = [{name: place for place, name in enumerate(params)} for params in trials]
    place = np.array([[each.get(name, -1) for name in names] for each in places])  # -1: not suggested
    chosen = np.array(
        [[options[name].index(params[name]) if name in params else -1 for name in names] for params in trials]
    )
    count = (place >= 0).sum(axis=0)
    found = {}
    for i, name in enumerate(names):
        has = place[:, i] >= 0
        if has.all() or not has.any():
            continue
        is_before = ((place[has] >= 0) & (place[has] < place[has][:, [i]])).all(axis=0)
        for other in sorted(np.flatnonzero(is_before), key=lambda other: count[other]):
            present = np.unique(chosen[has, other])
            if not np.isin(chosen[~has, other], present).any():
                known = options[names[other]]
                found[name] = Condition(names[other], frozenset(known[index] for index in present))
                break
    return found
