"""The sampler `netadapt`: from a network down to the latency target, one change a step.

NetAdapt (Yang et al. 2018) as MobileNetV3 uses it (Howard et al. 2019, section 4.2). A step proposes networks that
differ from the current one in one choice and are measured to be faster by at least a part of the latency of the
starting network. Each is trained, and the one with the largest change of accuracy over change of latency is the next
current network. The path ends within the limits, or where no change is fast enough.

What differs from the papers: without another `start`, the starting network is the largest of the space; a step tries a
random part of the choices (`proposals`); and each network is trained from scratch for the search's fidelity, without
the weights of the network that it was derived from.

The path is computed again from the recorded trials for each proposal, so that a killed search resumes unchanged.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nasspace.samplers.known_figures import KnownFigures
from nasspace.samplers.observation import Bounds, Observation

if TYPE_CHECKING:
    from nasspace.architecture import Architecture

SIZES = ("latency", "flops", "params", "memory_access")  # the first known one orders the options of a choice


@dataclass(frozen=True)
class Step:
    """The current step: the networks that it still needs, `most` milliseconds of its proposals, why the path ended."""

    needed: Sequence[Architecture] = ()
    most: float | None = None
    end: str = ""


class NetAdaptSampler:
    """Proposes the networks of the current step.

    `start` has the choices of the first network; without it, that is the largest of the space. A proposal must be
    faster than the current network by `reduction` of the latency of the first. `proposals` is how many choices a step
    changes, each in a network of its own.
    """

    ignores_limits = True
    accepts_rejections = True

    def __init__(
        self,
        space: Any,
        objectives: Sequence[str],
        limits: Mapping[str, float],
        known: Mapping[str, Callable[[Architecture], float]],
        seed: int,
        reduction: float = 0.01,
        proposals: int = 8,
        start: Mapping[str, Any] | None = None,
    ):
        self.space = space
        self.limits = dict(limits)
        self.seed = seed
        self.reduction = reduction
        self.proposals = proposals
        self.start = start
        self._known = KnownFigures(known, {})
        self._memo: dict[tuple[str, str], list[Architecture]] = {}
        self._size = next((name for name in SIZES if name in known), None)

    def propose(self, observations: Sequence[Observation], number: int) -> Architecture | None:
        """A network of the current step; None while the others are running, and at the end."""
        return next(iter(self._step(observations).needed), None)

    def bounds(self, observations: Sequence[Observation]) -> Bounds:
        """A proposal that is not fast enough for its step is not trained."""
        most = self._step(observations).most
        return Bounds({} if most is None else {"latency": most}, "the step's bound")

    def end(self, observations: Sequence[Observation]) -> str:
        """Why `propose` has nothing more."""
        return self._step(observations).end

    def _step(self, observations: Sequence[Observation]) -> Step:
        """Follow the path through the evaluated networks to its first unfinished step."""
        seen = {trial.architecture.digest: trial for trial in observations}
        current = seen.get(self.first.digest)
        if current is None:
            return Step([self.first])
        if not current.values and not current.failed:
            return Step()
        if "accuracy" not in current.values:
            return Step(end="the network to start from could not be evaluated")
        part, steps = self.reduction * current.values["latency"], 0
        while not self._meets_limits(current):
            most = current.values["latency"] - part
            needed, found, running = self._proposed(current.architecture, seen, most)
            if needed or running:
                return Step(needed, most)
            if not found:
                fast_enough = f"lowers latency by another {part:.3g} ms"
                return Step(end=f"after {steps} steps, no change of one choice {fast_enough}")
            current, steps = max(found, key=_tradeoff(current)), steps + 1
        return Step(end=f"a network within the limits was reached in {steps} steps")

    def _meets_limits(self, trial: Observation) -> bool:
        """Whether a network is within all limits; never without limits."""
        over = [trial.limited_value(name) > limit for name, limit in self.limits.items()]
        return bool(over) and not any(over)

    def _proposed(
        self, current: Architecture, seen: Mapping[str, Observation], most: float
    ) -> tuple[list[Architecture], list[Observation], int]:
        """The networks to evaluate, the proposals evaluated, and the number of running ones.

        Of each choice, the first option that is fast enough counts. A choice without one is replaced by the next.
        """
        needed: list[Architecture] = []
        found: list[Observation] = []
        running = 0
        names = list(current.choices or {})
        for name in random.Random(f"{self.seed}/{current.digest}").sample(names, len(names)):
            if len(needed) + len(found) + running >= self.proposals:
                break
            for architecture in self._smaller(current, name):
                trial = seen.get(architecture.digest)
                if trial is None:
                    needed.append(architecture)
                    break
                if not trial.values and not trial.failed:
                    running += 1
                    break
                if trial.values.get("latency", most) <= most and "accuracy" in trial.values:
                    if trial not in found:
                        found.append(trial)
                    break
        return needed, found, running

    def _smaller(self, current: Architecture, name: str) -> list[Architecture]:
        """The networks with another option of a choice that are not larger, the largest first; memoized."""
        key = (current.digest, name)
        if key not in self._memo:
            self._memo[key] = self._ordered(current, name)
        return self._memo[key]

    def _ordered(self, current: Architecture, name: str) -> list[Architecture]:
        choices = current.choices or {}
        options = list(self.space.options[name])
        position = options.index(choices[name])
        near = sorted((i for i in range(len(options)) if i != position), key=lambda i: abs(i - position))
        made = [self.space.replay({**choices, name: options[i]}) for i in near]
        if self._size is None:
            return made
        sizes = {one.digest: size for one in made if (size := self._size_of(one)) is not None}
        largest = self._size_of(current)
        fitting = [one for one in made if one.digest in sizes and (largest is None or sizes[one.digest] <= largest)]
        return sorted(fitting, key=lambda one: -sizes[one.digest])

    def _size_of(self, architecture: Architecture) -> float | None:
        """The known figure that stands for a network's size; None if it does not run."""
        figures = self._known.of(architecture)
        return None if figures is None or self._size is None else figures[self._size]

    @cached_property
    def first(self) -> Architecture:
        """The network that the path starts from."""
        return self.largest if self.start is None else self.space.replay(dict(self.start))

    @cached_property
    def largest(self) -> Architecture:
        """A largest network: the largest options, then changes of one choice while these make it larger."""
        current = self.space.architecture(_largest_option)
        if self._size is None:
            return current
        size = self._size_of(current) or 0.0
        while larger := [(other, one) for other, one in self._sized(self._changed(current)) if other > size]:
            size, current = max(larger, key=lambda pair: pair[0])
        return current

    def _changed(self, current: Architecture) -> Iterator[Architecture]:
        """The networks with one other option, and the largest options of choices that only they reach."""
        for name, chosen in (current.choices or {}).items():
            for option in self.space.options[name]:
                if option != chosen:
                    kept = {**(current.choices or {}), name: option}
                    yield self.space.architecture(
                        lambda at, options, kept=kept: kept[at] if at in kept else _largest_option(at, options)
                    )

    def _sized(self, architectures: Iterator[Architecture]) -> Iterator[tuple[float, Architecture]]:
        """The networks that run, each with its size."""
        for architecture in architectures:
            if (size := self._size_of(architecture)) is not None:
                yield size, architecture


def _largest_option(name: str, options: Sequence[Any]) -> Any:
    """The largest number; the first option of a choice among blocks or words."""
    is_number = all(isinstance(option, int | float) for option in options) and not name.endswith(".block")
    return max(options) if is_number else options[0]


def _tradeoff(current: Observation) -> Callable[[Observation], float]:
    """MobileNetV3's criterion: change of accuracy over the absolute change of latency."""

    def ratio(trial: Observation) -> float:
        change = {name: trial.values[name] - current.values[name] for name in ("accuracy", "latency")}
        return change["accuracy"] / abs(change["latency"])

    return ratio
