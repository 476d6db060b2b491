"""The sampler `uniform`: networks drawn at random from all within a budget, each sequence of choices equally likely.

See `nasspace.space.budget` for the distribution. The draws depend on the space, the budget and the seed, not on the
results, so that they are a sample of the space: what `nas compare` needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nasspace.samplers.known_figures import KnownFigures
from nasspace.samplers.observation import Bounds, Observation

if TYPE_CHECKING:
    from nasspace.architecture import Architecture

MAX_REJECTED = 200  # networks in a row outside of a measured budget, after which no more are expected


class UniformSampler:
    """Proposes the first draw that no trial has.

    `budget` has the smallest and the largest value by objective. With `vary`, a pattern of choices, the draws are those
    of `WithinBudget` whose matching choices all have `option`.
    """

    ignores_limits = False
    accepts_rejections = True  # of a measured budget, which most networks may be outside of

    def __init__(
        self,
        space: Any,
        objectives: Sequence[str],
        limits: Mapping[str, float],
        known: Mapping[str, Callable[[Architecture], float]],
        seed: int,
        budget: Mapping[str, tuple[float, float]] | None = None,
        vary: str = "",
        option: Any = None,
    ):
        from nasspace.space.budget import WithinBudget  # imports PyTorch

        self._known = KnownFigures(known, limits)
        self._within = WithinBudget(space, budget or {}, known, vary)
        self._index = self._within.options.index(option) if vary else 0
        self._seed = seed
        self._drawn: list[Architecture] = []
        self._more: Iterator[Architecture] | None = None

    def propose(self, observations: Sequence[Observation], number: int) -> Architecture | None:
        """The next draw; None if there is none, or the last 200 networks were all outside of a measured budget."""
        if self._rejects(observations):
            return None
        taken = {trial.architecture.digest for trial in observations}
        if self._more is None:
            self._more = self._draws()
        for one in self._drawn:
            if one.digest not in taken:
                return one
        for one in self._more:
            self._drawn.append(one)
            if one.digest not in taken:
                return one
        return None

    def _draws(self) -> Iterator[Architecture]:
        draws = self._within.draws(self._seed)
        return (one[self._index] for one in draws if all(map(self._known.meets_limits, one)))

    def _rejects(self, observations: Sequence[Observation]) -> bool:
        last = observations[-MAX_REJECTED:]
        return len(last) == MAX_REJECTED and all(trial.values and "accuracy" not in trial.values for trial in last)

    def bounds(self, observations: Sequence[Observation]) -> Bounds | None:
        """None: the limits of the search."""
        return None

    def end(self, observations: Sequence[Observation]) -> str:
        """Why `propose` has nothing more."""
        if self._rejects(observations):
            return f"the last {MAX_REJECTED} networks were all outside of the budget or over a limit"
        return "no other network of the space within the budget was found"
