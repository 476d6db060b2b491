"""The project's own sampler: the candidate whose expected gain in hypervolume is largest.

A Gaussian process on accuracy alone, with the costs known or predicted (`acquisition`), asked about random networks and
mutants of the front's members.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from nasspace import failures
from nasspace.errors import InputError
from nasspace.samplers.acquisition import Belief, Seen
from nasspace.samplers.features import Features

if TYPE_CHECKING:
    from nasspace.architecture import Architecture

LISTED = 2_000  # spaces up to this size are listed whole, and every architecture is a candidate each time
SEARCHED = 20_000  # spaces up to this size are searched to the last architecture
TRIES = 5_000  # random architectures of a larger space before it is given up
LOOKED_AT, FRESH, BRED = 256, 32, 64  # candidates: random for the whole study, random, mutants of the front
CLIMBS, PARENTS, CHILDREN = 48, 4, 4  # rounds uphill from the best candidates, and the mutants of a round
DRAWN = 64  # candidates of which one of the first proposals is the nearest to its quantile of cost
FEW, STEPS = 32, 40  # with fewer inside the known limits, so many rounds are bred towards them
MORE = 0.3  # probability that a mutant differs in one choice more


class ExpectedGain:
    """Proposes architectures of a space, one at a time.

    `objectives`: accuracy is raised, all others are lowered. `limits`: the most that a figure may be. `known`:
    functions that give a figure of any candidate exactly; other objectives and limits are predicted.
    """

    def __init__(
        self,
        space: Any,
        objectives: Sequence[str],
        limits: Mapping[str, float],
        known: Mapping[str, Callable[[Architecture], float]],
        seed: int,
    ):
        self.space = space
        self.objectives = tuple(objectives)
        self.limits = dict(limits)
        self.known = dict(known)
        self.seed = seed
        self._broken: set[str] = set()  # digests of those that do not run
        self._why_not = ""  # the first of them, in words

    def propose(self, seen: Sequence[Seen], number: int) -> Architecture | None:
        """The architecture to try as trial `number`: new, and inside the known limits; None if none was found.

        A function of the seed, `seen` and `number` alone, so that a search that was killed goes on unchanged.
        """
        rng = random.Random(f"{self.seed}/{number}")
        self.features.forget()
        belief = Belief(
            self.features, self.objectives, self.limits, [one for one in seen if self.runs(one.architecture)]
        )
        pool = _Pool(self, {trial.architecture.digest for trial in seen})
        pool.add(self._looked_at)
        if not self._listed:
            pool.add(self.space.sample(rng) for _ in range(FRESH))
            pool.breed(belief.front, BRED, rng)
            pool.walk_inside(rng)
        if not pool.inside:
            return self._last(pool, seen, rng)
        return self._best(pool, belief, rng)

    @cached_property
    def features(self) -> Features:
        """Of this space's architectures; memoised, with no effect on what is proposed."""
        return Features(self.space.options, self.known, self._looked_at)

    @cached_property
    def _listed(self) -> bool:
        return self.space.size <= LISTED

    @cached_property
    def _looked_at(self) -> list[Architecture]:
        """Architectures that set the scales; an `InputError` if none of them runs."""
        if self._listed:
            sample = list(self.space.enumerate())
        else:
            rng = random.Random(f"{self.seed}/space")
            sample = [self.space.sample(rng) for _ in range(LOOKED_AT)]
        running = [architecture for architecture in sample if self.runs(architecture)]
        if not running and self._why_not:
            raise InputError(f"no network of this space runs; the first one: {self._why_not}")
        return running

    def runs(self, architecture: Architecture) -> bool:
        """Whether the known figures of an architecture can be had; not so where one of its blocks raises."""
        if architecture.digest in self._broken:
            return False
        try:
            with failures.as_candidate_failures():
                if "features" in self.__dict__:  # which remember the figures
                    self.features.figures(architecture)
                else:
                    for figure in self.known.values():
                        figure(architecture)
        except failures.CandidateFailed as error:
            self._why_not = self._why_not or str(error)
            self._broken.add(architecture.digest)
            return False
        return True

    def excess(self, architecture: Architecture) -> float:
        """By how much the known limits are broken, in logarithms; 0 inside."""
        figures = self.features.figures(architecture)
        over = [math.log(max(figures[name], 1e-9) / most) for name, most in self.limits.items() if name in figures]
        return float(sum(max(part, 0.0) for part in over))

    def _best(self, pool: _Pool, belief: Belief, rng: random.Random) -> Architecture:
        """The candidate of the largest expected gain, after some rounds uphill from the best of the pool."""
        if not (belief.formed or belief.rejected):  # nothing to aim at yet: a quantile of cost, and chance
            return belief.ranked(rng.sample(pool.inside, min(len(pool.inside), DRAWN)))[0][1]
        best = belief.ranked(pool.inside)
        for _ in range(0 if self._listed else CLIMBS):
            children = pool.breed([architecture for _, architecture in best[:PARENTS]], PARENTS * CHILDREN, rng)
            best = sorted(best[:PARENTS] + belief.ranked(children), key=lambda pair: -pair[0])
        return best[0][1]

    def _last(self, pool: _Pool, seen: Sequence[Seen], rng: random.Random) -> Architecture | None:
        """Whatever is left: of the whole space if it is small, else of many random ones and all neighbors."""
        if self.space.size <= SEARCHED:
            left: Iterable[Architecture] = self.space.enumerate()
        else:
            near = (neighbor for trial in seen for neighbor in self.space.neighbors(trial.architecture))
            left = chain((self.space.sample(rng) for _ in range(TRIES)), near)
        return next((found for architecture in left for found in pool.add([architecture])), None)


class _Pool:
    """The candidates of one proposal: not seen before, and inside the limits that are known."""

    def __init__(self, sampler: ExpectedGain, taken: set[str]):
        self.sampler = sampler
        self.met = set(taken)
        self.inside: list[Architecture] = []
        self.outside: list[tuple[float, Architecture]] = []

    def add(self, architectures: Iterable[Architecture]) -> list[Architecture]:
        """Take in what is new; returned are those inside the limits."""
        before = len(self.inside)
        for architecture in architectures:
            if architecture.digest in self.met:
                continue
            self.met.add(architecture.digest)
            if not self.sampler.runs(architecture):
                continue
            excess = self.sampler.excess(architecture)
            if excess:
                self.outside.append((excess, architecture))
            else:
                self.inside.append(architecture)
        return self.inside[before:]

    def breed(self, parents: Sequence[Architecture], count: int, rng: random.Random) -> list[Architecture]:
        """Take in `count` mutants of the parents; returned are those that are new and inside the limits."""
        space = self.sampler.space
        return self.add(_mutant(space, parents[i % len(parents)], rng) for i in range(count if parents else 0))

    def walk_inside(self, rng: random.Random) -> None:
        """Where few random networks keep the known limits: breed from those that break them least."""
        for _ in range(STEPS):
            if len(self.inside) >= FEW:
                return
            self.outside.sort(key=lambda pair: pair[0])
            del self.outside[FEW:]
            parents = [architecture for _, architecture in self.outside[:PARENTS]]
            self.breed(self.inside[-PARENTS:] + parents, BRED, rng)


def _mutant(space: Any, parent: Architecture, rng: random.Random) -> Architecture:
    """The parent with one choice made anew, sometimes more; choices newly reached are random."""
    flips = 1
    while rng.random() < MORE:
        flips += 1
    names = list(parent.choices)
    changed = set(rng.sample(names, min(flips, len(names))))

    def choose(name: str, options: Sequence[Any]) -> Any:
        old = parent.choices.get(name)
        if name in parent.choices and name not in changed:
            return old
        return rng.choice([option for option in options if option != old])

    return space.architecture(choose)
