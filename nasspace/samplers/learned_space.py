"""The space of an Optuna study, learned from its trials, since it is defined by running the objective.

Which parameters there are, their options, and on which earlier choice it depends whether a parameter is suggested. Like
Optuna itself, this module is imported late.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from nasspace.space.tree import all_walks


class Point(NamedTuple):
    """Parameters as an architecture of `LearnedSpace`."""

    choices: dict[str, Any]
    digest: str


class Condition(NamedTuple):
    """A parameter is suggested if an earlier one has one of these options."""

    name: str
    options: frozenset[Any]


class LearnedSpace:
    """The space that trials were drawn from, as nasspace's samplers see it.

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
