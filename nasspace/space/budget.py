"""Networks of a space within a budget of their cost, drawn uniformly without listing the space.

Every complete sequence of choices whose network is within the budget is equally likely, as if one were drawn from a
list of all of them. Costs add up along the chain of layers, and a layer's cost depends on the earlier layers only
through the shape of its input. So the sequences are counted layer by layer, from the last to the first, for every input
shape and every cost, with costs rounded down to a step. That numbers all sequences near the budget; a random number
gives a sequence, and one outside of the exact budget is passed over.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from nasspace import failures
from nasspace.architecture import Architecture, checked_layer
from nasspace.counting import layer_cost
from nasspace.errors import InputError, cut
from nasspace.space.bounds import COUNTS
from nasspace.space.space import Space
from nasspace.space.tree import Choose, Stage, all_walks

STEPS = 64  # rounded costs in the width of a budget
CELLS = 2_000_000  # counts that are held: of every node for every rounded cost up to the upper end
MOST_WAYS = 1_000_000  # layers visited before a space is refused
LISTED = 5_000  # sequences that are drawn without repetition
MOST_PASSED = 50_000  # draws in a row without a new network within the budget, after which no more are expected
Budget = Mapping[str, tuple[float, float]]  # smallest and largest value by objective
Choices = dict[str, Any]


class WithinBudget:
    """The networks of `space` within `budget`.

    `counts` are functions of an architecture that count what the budget names; budgets of other names, such as latency,
    are left to the caller. With `vary`, a pattern of choices such as `stages.*.kernel`, a draw is one network for each
    of `options`: all choices that match the pattern have that option, and the networks are equal otherwise.
    """

    def __init__(
        self,
        space: Space,
        budget: Budget,
        counts: Mapping[str, Callable[[Architecture], float]],
        vary: str = "",
    ):
        self.space = space
        self.budget = {name: ends for name, ends in budget.items() if name in counts}
        self.counts = counts
        self.varied, self.options = varied_options(space, vary) if vary else ((), ())

    @cached_property
    def numbered(self) -> Numbered:
        """The sequences that the draws choose among: the fewest that one part of the budget leaves."""
        fixed = dict.fromkeys(self.varied, next(iter(self.options), None))
        parts = [(name, *ends) for name, ends in self.budget.items() if name in COUNTS] or [("", 0.0, 0.0)]
        return min((numbered(self.space, *part, fixed) for part in parts), key=lambda found: found.count)

    def draws(self, seed: int) -> Iterator[tuple[Architecture, ...]]:
        """Yield draws in random order until no new one is found: one network, or one for each of `options`."""
        rng, count = random.Random(seed), self.numbered.count
        if count <= LISTED:
            numbers: Iterator[int] = iter(rng.sample(range(count), count))
        else:
            numbers = (rng.randrange(count) for _ in itertools.count())
        seen: set[str] = set()
        passed = 0
        for number in numbers:
            networks = self._networks(self.numbered.choices(number))
            if networks and networks[0].digest not in seen and all(map(self.includes, networks)):
                seen.add(networks[0].digest)
                passed = 0
                yield networks
            else:
                passed += 1
                if passed == MOST_PASSED:
                    return

    def includes(self, architecture: Architecture) -> bool:
        """Whether an architecture is within the budget; False if one of its blocks raises."""
        try:
            with failures.as_candidate_failures():
                values = {name: self.counts[name](architecture) for name in self.budget}
        except failures.CandidateFailed:
            return False
        return all(low <= values[name] <= high for name, (low, high) in self.budget.items())

    def _networks(self, choices: Choices) -> tuple[Architecture, ...]:
        """The network of these choices, or one for each option; empty if the options make no difference."""
        if not self.varied:
            return (self.space.replay(choices),)
        reached = [name for name in self.varied if name in choices]
        networks = tuple(self.space.replay(choices | dict.fromkeys(reached, option)) for option in self.options)
        return networks if len({network.digest for network in networks}) == len(networks) else ()


_NUMBERED: WeakKeyDictionary[Space, dict[tuple[Any, ...], Numbered]] = WeakKeyDictionary()


def numbered(space: Space, name: str, low: float, high: float, fixed: Mapping[str, Any]) -> Numbered:
    """`Numbered`, computed once for each space: a comparison asks for the same one for each of its options."""
    known = _NUMBERED.setdefault(space, {})
    key = (name, low, high, repr(fixed))
    if key not in known:
        known[key] = Numbered(space, name, low, high, fixed)
    return known[key]


def varied_options(space: Space, pattern: str) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """The choices that match a pattern, in which `*` stands for any text, and the options that all of them have."""
    names = tuple(name for name in space.options if fnmatchcase(name, pattern))
    if not names:
        known = sorted({_without_numbers(name) for name in space.options})
        raise InputError(f"'{pattern}' matches no choice of the space '{space.name}'; it has {cut(', '.join(known))}")
    if blocks := [name for name in names if name.endswith(".block")]:
        raise InputError(
            f"{blocks[0]}: the other choices of a network depend on its block; compare spaces of one block each"
        )
    options = tuple(one for one in space.options[names[0]] if all(one in space.options[name] for name in names))
    if len(options) < 2:
        raise InputError(f"'{pattern}': the choices {names[0]} and {names[-1]} do not have two options in common")
    return names, options


def _without_numbers(name: str) -> str:
    """A choice's name as a pattern: stages.*.kernel for stages.0.1.shuffle_v2.kernel."""
    first, _, rest = name.partition(".")
    return f"{first}.*.{rest.rpartition('.')[2]}" if rest else first


@dataclass(frozen=True)
class _Node:
    """What is left of a walk: the parts from number `part` on, within a stage from a layer on, and the shape there.

    `once` is the number of the options that were chosen once for the stage; None before that choice.
    """

    width: float
    shape: tuple[int, ...]
    part: int = 0
    once: int | None = None
    layer: int = 0

    def place(self) -> tuple[int, bool, int]:
        """The place in the chain: every way leads to a later one."""
        return self.part, self.once is not None, self.layer


@dataclass(frozen=True)
class _Way:
    """Choices at a node, their exact cost, and the node that they lead to."""

    choices: Choices
    cost: int
    node: _Node


class Numbered:
    """The sequences of choices whose cost `name`, rounded down layer by layer, can lie between two values, numbered.

    They include every sequence whose exact cost does, and a few outside. An empty `name`: all sequences. `fixed` are
    options of choices that have no other.
    """

    def __init__(self, space: Space, name: str, low: float, high: float, fixed: Mapping[str, Any]):
        self.plan = space.plan
        self.name = name
        self.fixed = fixed
        self.parts: list[tuple[str, Any]] = [("stem", None)]  # as a whole: which strides it keeps depends on all layers
        for key in ("stages", "head"):
            self.parts += [(f"{key}.{i}", part) for i, part in enumerate(self.plan.parts[key])]
        self.once = {
            number: list(self._recorded(lambda choose, place=place, stage=part: stage.direct.walk(place, choose)))
            for number, (place, part) in enumerate(self.parts)
            if isinstance(part, Stage)
        }  # what is chosen once for each stage
        self.top = list(self._top())
        self.ways = self._all_ways(space)  # does not keep the space, which would keep its entry in `_NUMBERED`
        self.step = max(1, math.ceil((high - low) / STEPS), math.ceil(high * len(self.ways) / CELLS))
        most_layers = sum(max(part.depths) if isinstance(part, Stage) else 1 for _, part in self.parts)
        self.first = max(0, math.ceil(low / self.step) - most_layers)  # every layer loses less than a step
        self.last = math.floor(high / self.step)
        self.below: dict[_Node, np.ndarray[Any, Any]] = {}
        for node in sorted(self.ways, key=_Node.place, reverse=True):
            self.below[node] = self._below(node)

    @cached_property
    def count(self) -> int:
        """The number of sequences."""
        return sum(self._inside(way.node, 0) for way in self.top)

    def choices(self, number: int) -> Choices:
        """The choices of a sequence by its number, from 0 to `count` - 1."""
        choices: Choices = {}
        spent, ways = 0, self.top
        while ways:
            for way in ways:
                inside = self._inside(way.node, spent + way.cost // self.step)
                if number < inside:
                    break
                number -= inside
            choices |= way.choices
            spent += way.cost // self.step
            ways = self.ways[way.node]
        return choices

    def _inside(self, node: _Node, spent: int) -> int:
        """The number of ways to the end from a node with a whole cost from `first` to `last`."""
        below, last = self.below[node], self.last + 1 - spent
        return int(below[last] - below[max(0, self.first - spent)]) if last > 0 else 0

    def _below(self, node: _Node) -> np.ndarray[Any, Any]:
        """The number of ways from a node to the end with a rounded cost below 0, 1, ..., `last` + 1, exact."""
        total = np.full(self.last + 2, 0, object)
        if node.part == len(self.parts):
            total[1:] = 1
            return total
        for way in self.ways[node]:
            cost = way.cost // self.step
            if cost <= self.last:
                total[cost:] += self.below[way.node][: len(total) - cost]
        return total

    def _all_ways(self, space: Space) -> dict[_Node, list[_Way]]:
        """The ways from every node that is reached; a space with too many raises `InputError`."""
        found: dict[_Node, list[_Way]] = {}
        left, seen = [way.node for way in self.top], 0
        while left:
            node = left.pop()
            if node not in found:
                found[node] = list(self._ways(space, node))
                left += [way.node for way in found[node]]
                seen += len(found[node])
                if seen > MOST_WAYS:
                    remedy = "choose `out` once for a stage instead of under `each`, or give fewer options"
                    raise InputError(f"{space.name}: more than {MOST_WAYS:,} different layers; {remedy}")
        return found

    def _recorded(self, walk: Callable[[Choose], Any]) -> Iterator[tuple[Choices, Any]]:
        """Every sequence of choices without those that contradict `fixed`, and what `walk` returns for it."""

        def recording(choose: Choose) -> tuple[Choices, Any]:
            choices: Choices = {}

            def record(name: str, options: Any) -> Any:
                choices[name] = choose(name, (self.fixed[name],) if name in self.fixed else options)
                return choices[name]

            return choices, walk(record)

        return all_walks(recording)

    def _top(self) -> Iterator[_Way]:
        """The choices of resolution and width."""
        walks = self._recorded(lambda choose: {key: value.walk(key, choose) for key, value in self.plan.top.items()})
        for choices, top in walks:
            height, width = (top["resolution"],) * 2 if top.get("resolution") else self.plan.input[1:]
            yield _Way(choices, 0, _Node(top.get("width", 1.0), (self.plan.input[0], height, width)))

    def _ways(self, space: Space, node: _Node) -> Iterator[_Way]:
        """The choices at a node that give layers which run."""
        if node.part == len(self.parts):
            return
        place, part = self.parts[node.part]
        after = _Node(node.width, (), node.part + 1)
        if part is None:
            walks = self._recorded(
                lambda choose: [one.walk(f"stem.{i}", choose) for i, one in enumerate(self.plan.parts.get("stem", ()))]
            )
            side = min(node.shape[1:])
            for choices, stem in walks:
                yield from self._way(choices, space.scaled_stem(stem, side, node.width), node, after)
        elif not isinstance(part, Stage):
            for choices, layer in self._recorded(lambda choose: part.walk(place, choose)):
                yield from self._way(choices, [layer], node, after)
        elif node.once is None:
            for i, (choices, _) in enumerate(self.once[node.part]):
                yield _Way(choices, 0, replace(node, once=i))
        else:
            layer = dict(self.once[node.part][node.once][1])
            depth, stride = layer.pop("depth"), layer.pop("stride", 1)
            if node.layer + 1 < depth:
                after = replace(node, shape=(), layer=node.layer + 1)
            for choices, each in self._recorded(lambda choose: part.each.walk(f"{place}.{node.layer}", choose)):
                own = {**layer, **each, "stride": 1 if node.layer else stride}
                yield from self._way(choices, [space.scaled_layer(own, node.width)], node, after)

    def _way(self, choices: Choices, layers: list[dict[str, Any]], node: _Node, after: _Node) -> Iterator[_Way]:
        """The way over some layers; none if one of them does not run."""
        shape, total = node.shape, 0
        try:
            with failures.as_candidate_failures():
                for layer in layers:
                    counted = layer_cost(checked_layer(layer, shape[0]), shape)
                    shape = counted.out_shape
                    total += getattr(counted, self.name) if self.name else 0
        except (failures.CandidateFailed, InputError):
            return
        yield _Way(choices, total, replace(after, shape=shape))
