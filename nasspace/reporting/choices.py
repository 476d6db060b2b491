"""The choices of a search as the report shows them: their names, which options the front prefers, and in one figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PARTS = {"stages": "stage", "stem": "stem layer", "head": "head layer"}
Choices = Mapping[str, Any]


def readable(name: str) -> str:
    """The name of a choice for people; stages and layers count from 1.

    >>> readable("stages.0.1.shuffle_v1.groups"), readable("stages.2.depth"), readable("width")
    ('stage 1 layer 2 shuffle_v1 groups', 'stage 3 depth', 'width')
    """
    return " ".join(_words(name))


def _words(name: str) -> Iterator[str]:
    first, *rest = name.split(".")
    if first in PARTS and rest and rest[0].isdigit():
        yield f"{PARTS[first]} {int(rest.pop(0)) + 1}"
        if rest and rest[0].isdigit():
            yield f"layer {int(rest.pop(0)) + 1}"
    else:
        yield first
    yield from rest


def stage_of(name: str) -> tuple[str, str]:
    """The part of the network that a choice is of, and what is chosen, equal for all layers of a stage.

    >>> stage_of("stages.0.1.shuffle_v1.groups"), stage_of("stages.0.depth"), stage_of("width")
    (('stage 1', 'shuffle_v1 groups'), ('stage 1', 'depth'), ('network', 'width'))
    """
    part, *rest = _words(name)
    if not rest:
        return "network", part
    what = rest[1:] if rest[0].startswith("layer ") and len(rest) > 1 else rest
    return part, " ".join(what)


def in_order(options: Iterable[Any]) -> list[Any]:
    """Options in their order: null, numbers by size, text.

    >>> in_order(["paper", 2, None, 1])
    [None, 1, 2, 'paper']
    """
    return sorted(options, key=lambda option: (0, 0) if option is None else (1 + isinstance(option, str), option))


@dataclass(frozen=True)
class Preference:
    """How often each option of a choice occurs on the front and in all evaluated networks, as shares.

    `difference` is half the sum of the shares' differences: 0 if the front chooses as all networks do, at most 1.
    """

    part: str
    what: str
    options: Mapping[Any, tuple[float, float]]

    @property
    def difference(self) -> float:
        """The total variation distance of the two distributions."""
        return sum(abs(front - every) for front, every in self.options.values()) / 2

    @property
    def preferred(self) -> Any:
        """The option whose share grows most from all networks to the front."""
        return max(self.options, key=lambda option: self.options[option][0] - self.options[option][1])


def preferences(front: Sequence[Choices], every: Sequence[Choices]) -> list[Preference]:
    """The preferences of the front among the evaluated networks, part by part, the clearest of a part first.

    Choices of which all networks have the same option are left out.
    """
    counted = [_counts(networks) for networks in (front, every)]
    found = []
    for (part, what), options in counted[1].items():
        of_front = counted[0].get((part, what), Counter())
        if len(options) > 1 and of_front:
            shares = {
                option: (of_front[option] / of_front.total(), options[option] / options.total())
                for option in in_order(options)
            }
            found.append(Preference(part, what, shares))
    return sorted(found, key=lambda one: (_rank(one.part), -one.difference))


def _counts(networks: Iterable[Choices]) -> dict[tuple[str, str], Counter[Any]]:
    """How often each option was chosen, over all layers of a stage."""
    counts: dict[tuple[str, str], Counter[Any]] = {}
    for choices in networks:
        for name, option in choices.items():
            counts.setdefault(stage_of(name), Counter())[option] += 1
    return counts


def _rank(part: str) -> tuple[int, int]:
    """The place of a part: the network's own choices, the stem, the stages, the head."""
    name, _, number = part.partition(" ")
    order = ("network", "stem", "stage", "head")
    digits = "".join(filter(str.isdigit, number))
    return order.index(name) if name in order else len(order), int(digits or 0)


def ranked(front: Sequence[Choices], every: Sequence[Choices], importances: Mapping[str, float] | None) -> list[str]:
    """The names of the choices with more than one option, those that matter most first.

    That is by importance, if it is known, else by how clearly the front prefers an option.
    """
    options: dict[str, Counter[Any]] = {}
    for choices in every:
        for name, option in choices.items():
            options.setdefault(name, Counter())[option] += 1
    names = [name for name, counted in options.items() if len(counted) > 1]
    if importances:
        return sorted(names, key=lambda name: (-importances.get(name, 0.0), _rank(stage_of(name)[0]), name))

    def clarity(name: str) -> float:
        counts = Counter(choices[name] for choices in front if name in choices)
        total = counts.total()
        shares = [(counts[one] / total if total else 0.0, options[name][one] / len(every)) for one in options[name]]
        reached = total / len(front) if front else 0.0
        return reached * sum(abs(one - other) for one, other in shares) / 2

    return sorted(names, key=lambda name: (-clarity(name), _rank(stage_of(name)[0]), name))
