"""The result of a comparison: networks of several spaces, or with several options of a choice, at equal budget."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nasspace.samplers import pareto
from nasspace.studies import differences
from nasspace.studies.differences import LEVEL, Difference, Estimate
from nasspace.studies.objectives import OBJECTIVES

if TYPE_CHECKING:
    import pandas

VERSION = 1
Budget = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Network:
    """An evaluated network: the trial of its study, its error as a fraction, and its costs by objective.

    `pair` is the number of its draw, if it is one of several networks that differ in one choice only.
    """

    id: int
    digest: str
    error: float
    costs: Mapping[str, float]
    pair: int | None = None


@dataclass(frozen=True)
class Group:
    """The networks of one space, or with one option; `study` is the folder of their study.

    `failed` could not be trained, `rejected` were outside of a measured budget.
    """

    name: str
    study: Path
    networks: tuple[Network, ...]
    failed: int = 0
    rejected: int = 0

    @cached_property
    def errors(self) -> np.ndarray:
        """The errors of the networks."""
        return np.array([network.error for network in self.networks])

    @property
    def median(self) -> float:
        """The median error."""
        return float(np.median(self.errors))

    def median_cost(self, name: str) -> float:
        """The median of a cost."""
        return float(np.median([network.costs[name] for network in self.networks]))


@dataclass(frozen=True)
class Comparison:
    """The groups of networks that were drawn within `settings["budget"]`, and what they say.

    Intervals are of 95 %. Tests between several groups are adjusted so that all of them together find a difference
    that is not there with a probability of 5 % (Holm 1979).
    """

    folder: Path
    settings: Mapping[str, Any]
    groups: tuple[Group, ...]

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name

    @property
    def budget(self) -> Budget:
        """The smallest and largest cost by objective."""
        return {name: (low, high) for name, (low, high) in self.settings["budget"].items()}

    @property
    def is_paired(self) -> bool:
        """Whether the networks of the groups are equal but for one choice."""
        return bool(self.settings["vary"])

    @cached_property
    def pairs(self) -> tuple[int, ...]:
        """The numbers of the draws whose networks were evaluated in all groups."""
        numbers = [{network.pair for network in group.networks} for group in self.groups]
        return tuple(sorted(set.intersection(*numbers) - {None})) if self.is_paired else ()

    def compared(self, group: Group) -> np.ndarray:
        """The errors that the tests compare: all, or those of the pairs in their order."""
        if not self.is_paired:
            return group.errors
        by_pair = {network.pair: network.error for network in group.networks}
        return np.array([by_pair[pair] for pair in self.pairs])

    @cached_property
    def differences(self) -> dict[tuple[str, str], Difference]:
        """The difference of every two groups by their names."""
        level = LEVEL / max(1, len(list(itertools.combinations(self.groups, 2))))
        how = differences.paired if self.is_paired else differences.unpaired
        return {
            (a.name, b.name): how(self.compared(a), self.compared(b), self._rng(), level)
            for a, b in itertools.combinations(self.groups, 2)
        }

    @cached_property
    def p_values(self) -> dict[tuple[str, str], float]:
        """The adjusted p-value of every two groups."""
        found = self.differences
        return dict(zip(found, differences.holm([one.p_value for one in found.values()]), strict=True))

    @cached_property
    def leader(self) -> str:
        """The group whose networks are most likely to be better than one of another group."""
        wins = dict.fromkeys((group.name for group in self.groups), 0.0)
        for (a, b), found in self.differences.items():
            wins[a] += found.superiority.value
            wins[b] += 1 - found.superiority.value
        return max(wins, key=lambda name: wins[name])

    @property
    def p_value(self) -> float:
        """The largest adjusted p-value of the leader against another group."""
        return max(p_value for pair, p_value in self.p_values.items() if self.leader in pair)

    @property
    def winner(self) -> str | None:
        """The group that is better than every other one; None if the networks cannot tell."""
        return self.leader if self.p_value < LEVEL else None

    def against_next(self) -> tuple[str, Difference]:
        """The group that is hardest to tell from the leader, and the leader's difference from it.

        Permutations have a smallest p-value, which several groups may share: then the one whose networks are better
        than the leader's most often.
        """
        others = {
            second if first == self.leader else first: (p_value, found if first == self.leader else _reversed(found))
            for (first, second), p_value in self.p_values.items()
            if self.leader in (first, second)
            for found in [self.differences[first, second]]
        }
        name = max(others, key=lambda one: (others[one][0], -others[one][1].superiority.value))
        return name, others[name][1]

    @property
    def needed(self) -> int | None:
        """Networks of each group that would find a difference as large as the one seen; None for too many."""
        return self.against_next()[1].needed

    @property
    def needed_for_a_point(self) -> int | None:
        """Networks of each group that would find a difference of one point of error; None for too many."""
        level = LEVEL / len(self.differences)
        groups = [self.compared(group) for group in self.groups]
        if self.is_paired:
            return differences.needed_pairs_for_a_point(groups[0] - groups[1], level)
        return differences.needed_for_a_point(groups, level)

    @cached_property
    def bands(self) -> dict[str, float]:
        """Half the height of the band around each group's distribution function."""
        return {group.name: differences.band(group.errors, self._rng()) for group in self.groups}

    @cached_property
    def hypervolumes(self) -> dict[str, Estimate]:
        """The hypervolume of each group's front: its part of the box of the budget and of errors up to the median.

        The median is that of all networks.
        """
        middle = float(np.median(np.concatenate([group.errors for group in self.groups]))) or 1.0
        return {group.name: differences.hypervolume(self._scaled(group, middle), self._rng()) for group in self.groups}

    def _scaled(self, group: Group, middle: float) -> list[list[float]]:
        """Errors and costs with 1 at the reference point."""
        return [
            [
                network.error / middle,
                *((network.costs[name] - low) / max(high - low, 1e-9) for name, (low, high) in self.budget.items()),
            ]
            for network in group.networks
        ]

    def front(self, group: Group) -> list[Network]:
        """The nondominated networks of a group in error and the costs of the budget."""
        points = [[network.error, *(network.costs[name] for name in self.budget)] for network in group.networks]
        return [network for network, member in zip(group.networks, pareto.front(points), strict=True) if member]

    @property
    def budget_text(self) -> str:
        """'FLOPs of 1.00 M to 3.00 M'."""
        return " and ".join(
            f"{OBJECTIVES[name].label} of {OBJECTIVES[name].format(low)} to {OBJECTIVES[name].format(high)}"
            for name, (low, high) in self.budget.items()
        )

    @property
    def count_text(self) -> str:
        """'20 networks of each', '20 and 18 networks', '19 pairs'."""
        if self.is_paired:
            return f"{len(self.pairs)} {'pairs' if len(self.groups) == 2 else 'sets'} of networks"
        counts = [len(group.networks) for group in self.groups]
        if len(set(counts)) == 1:
            return f"{counts[0]} networks of each"
        return f"{', '.join(map(str, counts[:-1]))} and {counts[-1]} networks"

    @property
    def sentence(self) -> str:
        """Which group wins within the budget, or that the networks cannot tell and how many could."""
        other, found = self.against_next()
        p_value = f"p = {self.p_value:.2g}, {self.count_text}"
        if self.winner:
            chance = _percent(found.superiority)
            better = (
                f"it is better in {chance[0]} of the pairs ({chance[1]}; {p_value})"
                if self.is_paired
                else f"a network of it beats one of {other} with a probability of {chance[0]} ({chance[1]}; {p_value})"
            )
            return f"{self.winner} wins within {self.budget_text}: {self._gap(other, found)}, and {better}."
        names = [group.name for group in self.groups]
        listed = f"{', '.join(names[:-1])} and {names[-1]}"
        told = f"tell {listed} apart" if len(names) == 2 else f"tell which of {listed} is best"
        seen = f"About {self.needed:,}" if self.needed else "More than 100,000"
        point = f"about {self.needed_for_a_point:,}" if self.needed_for_a_point else "more than 100,000"
        unit = "pairs" if self.is_paired else "networks of each"
        return (
            f"Within {self.budget_text}, {self.count_text} cannot {told} "
            f"(p = {self.p_value:.2g}): {self._gap(other, found)}. {seen} {unit} would tell a difference as large as "
            f"it looks, {point} one of a point, four times out of five."
        )

    def _gap(self, other: str, found: Difference) -> str:
        """How the leader's error differs from another group's."""
        value, low, high = (-100 * one for one in (found.error.value, found.error.high, found.error.low))
        interval = f"{low:.1f} to {high:.1f}" if low >= 0 else f"{low:+.1f} to {high:+.1f}"
        amount = f"{abs(value):.1f} points {'below' if value >= 0 else 'above'} that"
        if self.is_paired:
            return f"in the median pair, the error with {self.leader} is {amount} with {other} ({interval})"
        return f"the median error of {self.leader} is {amount} of {other} ({interval})"

    def document(self) -> dict[str, Any]:
        """The JSON document of `compare`."""
        return {
            "comparison": self.name,
            "budget": {name: list(ends) for name, ends in self.budget.items()},
            "vary": self.settings["vary"] or None,
            "spaces": [self._group_document(group) for group in self.groups],
            "winner": self.winner,
            "p_value": self.p_value,
            "sentence": self.sentence,
            "differences": [
                {
                    "first": a,
                    "second": b,
                    "superiority": vars(one.superiority),
                    "error": vars(one.error),
                    "p_value": self.p_values[a, b],
                    "needed": one.needed,
                }
                for (a, b), one in self.differences.items()
            ],
            "needed": self.needed,
            "needed_for_a_point": self.needed_for_a_point,
        }

    def _group_document(self, group: Group) -> dict[str, Any]:
        volume = self.hypervolumes[group.name]
        return {
            "name": group.name,
            "study": str(group.study),
            "evaluated": len(group.networks),
            "failed": group.failed,
            "rejected": group.rejected,
            "median_error": group.median,
            "best_error": float(group.errors.min()),
            "median_costs": {name: group.median_cost(name) for name in self.budget},
            "hypervolume": volume.value,
            "hypervolume_low": volume.low,
            "hypervolume_high": volume.high,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Every network: its space (or option), trial, digest, error, costs, whether it is on its group's front."""
        return [
            {
                "space": group.name,
                "id": network.id,
                "digest": network.digest,
                "error": network.error,
                **{OBJECTIVES[name].column: network.costs[name] for name in OBJECTIVES if name in network.costs},
                "front": network in front,
                **({"pair": network.pair} if self.is_paired else {}),
            }
            for group in self.groups
            for front in [self.front(group)]
            for network in group.networks
        ]

    def frame(self) -> pandas.DataFrame:
        """Every network, one per row."""
        import pandas

        return pandas.DataFrame(self.rows())

    def _rng(self) -> np.random.Generator:
        """The same random numbers for every question, so that answers do not depend on their order."""
        return np.random.default_rng(self.settings["recipe"]["seed"])


def _reversed(found: Difference) -> Difference:
    """The difference of the second group from the first."""
    return Difference(
        Estimate(1 - found.superiority.value, 1 - found.superiority.high, 1 - found.superiority.low),
        Estimate(-found.error.value, -found.error.high, -found.error.low),
        found.p_value,
        found.needed,
    )


def _percent(estimate: Estimate) -> tuple[str, str]:
    """A share and its interval in percent."""
    return f"{estimate.value:.0%}", f"{estimate.low:.0%} to {estimate.high:.0%}"
