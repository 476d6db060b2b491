"""The sampler `spos`: the evolution of Single Path One-Shot (Guo et al. 2019, algorithm 1).

The first generation is random. Each later one is made from the most accurate networks of all generations before:
half of it by crossover of two of them, half by mutation of one. What differs from the paper: a generation has 20
networks instead of 50, since searches here are shorter; a child that is over a known limit or was tried before is drawn
again, and replaced by a random network if that happens too often; a network over the latency limit is found by its
measurement, and is no parent.

A proposal depends on the recorded trials and their number only, so that a killed search resumes unchanged.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nasspace.samplers.known_figures import KnownFigures
from nasspace.samplers.observation import Bounds, Observation
from nasspace.space.tree import Choose

if TYPE_CHECKING:
    from nasspace.architecture import Architecture

GENERATION = 20  # networks
PARENTS = 10  # the paper's
MUTATED = 0.1  # probability that a choice is drawn again, the paper's
TRIES = 100  # children that are drawn before a random network takes their place
RANDOM_TRIES = 2_000


class SposSampler:
    """Proposes the networks of one generation after the other."""

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
        self.seed = seed
        self._known = KnownFigures(known, limits)

    def propose(self, observations: Sequence[Observation], number: int) -> Architecture | None:
        """A new network within the known limits; None if none is found."""
        generation, position = divmod(len(observations), GENERATION)
        rng = random.Random(f"{self.seed}/{number}")
        parents = self.parents(observations[: generation * GENERATION])
        taken = {trial.architecture.digest for trial in observations}
        for i in range(TRIES + RANDOM_TRIES):
            architecture = self.space.architecture(_option_chooser(parents if i < TRIES else [], position, rng))
            if architecture.digest not in taken and self._known.meets_limits(architecture):
                return architecture
            taken.add(architecture.digest)
        return None

    def parents(self, observations: Sequence[Observation]) -> list[Architecture]:
        """The most accurate networks, the best first; equal ones in the order of the trials."""
        trained = [trial for trial in observations if "accuracy" in trial.values]
        ranked = sorted(trained, key=lambda trial: -trial.values["accuracy"])
        return [trial.architecture for trial in ranked[:PARENTS]]

    def bounds(self, observations: Sequence[Observation]) -> Bounds | None:
        """None: the limits of the search."""
        return None

    def end(self, observations: Sequence[Observation]) -> str:
        """Why `propose` has nothing more."""
        return "no new network within the limits is left"


def _option_chooser(parents: Sequence[Architecture], position: int, rng: random.Random) -> Choose:
    """How the choices of a child are made, by its position in the generation; at random without parents."""
    if not parents:
        return lambda name, options: rng.choice(options)
    if position < GENERATION // 2 and len(parents) > 1:
        return _crossed([one.choices or {} for one in rng.sample(parents, 2)], rng)
    return _mutated(rng.choice(parents).choices or {}, rng)


def _crossed(parents: Sequence[Mapping[str, Any]], rng: random.Random) -> Choose:
    """Each choice of one of the parents that have it, at random; a random option if none has it."""

    def choose(name: str, options: Sequence[Any]) -> Any:
        return rng.choice([choices[name] for choices in parents if name in choices] or options)

    return choose


def _mutated(parent: Mapping[str, Any], rng: random.Random) -> Choose:
    """The choices of a parent, some of them drawn again; a random option for those that it does not have."""

    def choose(name: str, options: Sequence[Any]) -> Any:
        return rng.choice(options) if name not in parent or rng.random() < MUTATED else parent[name]

    return choose
