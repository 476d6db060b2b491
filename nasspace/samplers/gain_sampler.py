"""The sampler `gain`: proposes the candidate with the highest acquisition value.

Candidates are random networks and mutants of the front's members; `acquisition` scores them.
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
from nasspace.samplers.acquisition import Acquisition
from nasspace.samplers.features import Features
from nasspace.samplers.observation import Bounds, Observation

if TYPE_CHECKING:
    from nasspace.architecture import Architecture

LISTED = 2_000  # in spaces up to this size every architecture is a candidate of every proposal
SEARCHED = 20_000  # spaces up to this size are searched exhaustively
TRIES = 5_000  # random architectures of a larger space before giving up
SAMPLE, FRESH, MUTANTS = 256, 32, 64  # candidates: random for the whole study, random, mutants of the front
CLIMBS, PARENTS, CHILDREN = 10, 4, 5  # hill climbing: rounds, parents in a round, mutants of each parent
INITIAL = 64  # random candidates for each proposal of the initial design
FEW, STEPS = 32, 40  # with fewer candidates inside the known limits, this many rounds of mutants towards them
MORE = 0.3  # probability that a mutant differs in one more choice


class GainSampler:
    """Proposes architectures of a space, one at a time.

    `objectives`: accuracy is maximized, all others are minimized. `limits`: the largest allowed value of a figure.
    `known`: functions that compute a figure of any candidate exactly; other figures are predicted.
    """

    ignores_limits = False
    accepts_rejections = False

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
        self._broken: set[str] = set()  # digests of architectures that do not run
        self._first_failure = ""

    def propose(self, observations: Sequence[Observation], number: int) -> Architecture | None:
        """The architecture of trial `number`: new and inside the known limits; None if there is none.

        It depends on the seed, `observations` and `number` only, so that a killed search resumes unchanged.
        """
        rng = random.Random(f"{self.seed}/{number}")
        self.features.forget(trial.architecture.digest for trial in observations)
        usable = [trial for trial in observations if self.runs(trial.architecture)]
        acquisition = Acquisition(self.features, self.objectives, self.limits, usable)
        pool = _Pool(self, {trial.architecture.digest for trial in observations})
        pool.add(self._sample)
        if not self._is_listed:
            pool.add(self.space.sample(rng) for _ in range(FRESH))
            pool.mutate(acquisition.front, MUTANTS, rng)
            pool.approach_limits(rng)
        if not pool.inside:
            return self._any_left(pool, observations, rng)
        return self._best(pool, acquisition, rng)

    def bounds(self, observations: Sequence[Observation]) -> Bounds | None:
        """None: the limits of the search."""
        return None

    def end(self, observations: Sequence[Observation]) -> str:
        """Why `propose` has nothing more."""
        return "no new network within the limits is left"

    @cached_property
    def features(self) -> Features:
        """The features of this space's architectures; memoized, without effect on proposals."""
        return Features(self.space.options, self.known, self._sample)

    @cached_property
    def _is_listed(self) -> bool:
        """Whether every architecture of the space is a candidate."""
        return self.space.size <= LISTED

    @cached_property
    def _sample(self) -> list[Architecture]:
        """Architectures that set the scales; an `InputError` if none of them runs."""
        if self._is_listed:
            sample = list(self.space.enumerate())
        else:
            rng = random.Random(f"{self.seed}/space")
            sample = [self.space.sample(rng) for _ in range(SAMPLE)]
        running = [architecture for architecture in sample if self.runs(architecture)]
        if not running and self._first_failure:
            raise InputError(f"no network of this space runs; the first one: {self._first_failure}")
        return running

    def runs(self, architecture: Architecture) -> bool:
        """Whether the known figures of an architecture can be computed; not if one of its blocks raises."""
        if architecture.digest in self._broken:
            return False
        try:
            with failures.as_candidate_failures():
                if "features" in self.__dict__:  # memoizes the figures
                    self.features.figures(architecture)
                else:
                    for figure in self.known.values():
                        figure(architecture)
        except failures.CandidateFailed as error:
            self._first_failure = self._first_failure or str(error)
            self._broken.add(architecture.digest)
            return False
        return True

    def excess(self, architecture: Architecture) -> float:
        """The excess over the known limits, a sum of logarithms; 0 within them."""
        figures = self.features.figures(architecture)
        over = [math.log(max(figures[name], 1e-9) / most) for name, most in self.limits.items() if name in figures]
        return float(sum(max(part, 0.0) for part in over))

    def _best(self, pool: _Pool, acquisition: Acquisition, rng: random.Random) -> Architecture:
        """The candidate with the highest score, after hill climbing from the best of the pool."""
        if not (acquisition.is_modeled or acquisition.rejected):  # initial design: few random candidates
            return acquisition.ranked(rng.sample(pool.inside, min(len(pool.inside), INITIAL)))[0][1]
        best = acquisition.ranked(pool.inside)
        for _ in range(0 if self._is_listed else CLIMBS):
            children = pool.mutate([architecture for _, architecture in best[:PARENTS]], PARENTS * CHILDREN, rng)
            best = sorted(best[:PARENTS] + acquisition.ranked(children), key=lambda pair: -pair[0])
        return best[0][1]

    def _any_left(self, pool: _Pool, observations: Sequence[Observation], rng: random.Random) -> Architecture | None:
        """Any new architecture within the known limits: from the whole space if small, else random or neighbors."""
        if self.space.size <= SEARCHED:
            left: Iterable[Architecture] = self.space.enumerate()
        else:
            near = (neighbor for trial in observations for neighbor in self.space.neighbors(trial.architecture))
            left = chain((self.space.sample(rng) for _ in range(TRIES)), near)
        return next((found for architecture in left for found in pool.add([architecture])), None)


class _Pool:
    """The candidates of one proposal: new, and `inside` or `outside` the known limits."""

    def __init__(self, sampler: GainSampler, taken: set[str]):
        self.sampler = sampler
        self.known = set(taken)  # digests
        self.inside: list[Architecture] = []
        self.outside: list[tuple[float, Architecture]] = []

    def add(self, architectures: Iterable[Architecture]) -> list[Architecture]:
        """Add the new architectures that run; return those inside the limits."""
        before = len(self.inside)
        for architecture in architectures:
            if architecture.digest in self.known:
                continue
            self.known.add(architecture.digest)
            if not self.sampler.runs(architecture):
                continue
            excess = self.sampler.excess(architecture)
            if excess:
                self.outside.append((excess, architecture))
            else:
                self.inside.append(architecture)
        return self.inside[before:]

    def mutate(self, parents: Sequence[Architecture], count: int, rng: random.Random) -> list[Architecture]:
        """Add `count` mutants of the parents; return the new ones inside the limits."""
        space = self.sampler.space
        return self.add(_mutant(space, parents[i % len(parents)], rng) for i in range(count if parents else 0))

    def approach_limits(self, rng: random.Random) -> None:
        """While few candidates meet the known limits, add mutants of those that exceed them least."""
        for _ in range(STEPS):
            if len(self.inside) >= FEW:
                return
            self.outside.sort(key=lambda pair: pair[0])
            del self.outside[FEW:]
            parents = [architecture for _, architecture in self.outside[:PARENTS]]
            self.mutate(self.inside[-PARENTS:] + parents, MUTANTS, rng)


def _mutant(space: Any, parent: Architecture, rng: random.Random) -> Architecture:
    """The parent with one other choice, sometimes more; choices that it did not reach are random."""
    count = 1
    while rng.random() < MORE:
        count += 1
    choices = parent.choices or {}
    names = list(choices)
    changed = set(rng.sample(names, min(count, len(names))))

    def choose(name: str, options: Sequence[Any]) -> Any:
        old = choices.get(name)
        if name in choices and name not in changed:
            return old
        return rng.choice([option for option in options if option != old])

    return space.architecture(choose)
