"""What a change would save: the parts of a network before and after it, as ONNX files that are measured side by side.

Three kinds of parts. `Layers`: layers in other options or widths, from the same input to the same output. `Surgery`: a
layer without some of its operations. `Pattern`: operators on their own, where the change would alter the shapes around
them. The first two can be made in the whole network, too. Before a file is measured, its outputs in ONNX Runtime are
compared with PyTorch's, those of a surgery with ONNX Runtime's own without optimizations.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace.architecture import Architecture
from nasspace.guidelines.graph_edits import write_edited
from nasspace.latency import benchmark, runtimes
from nasspace.latency.cache import LatencyCache, is_measurement
from nasspace.latency.conditions import Conditions
from nasspace.latency.convert import to_onnx
from nasspace.latency.graph import Graph
from nasspace.network import build

if TYPE_CHECKING:
    from torch import nn
Shape = tuple[int, int, int]
ESTIMATE_SAMPLE = 4
REPEATS = 4  # times that operators are measured one behind the other


@dataclass(frozen=True)
class MeasurementSettings:
    """How parts are run and where their figures are kept."""

    threads: int = 1
    batch_size: int = 1
    cache: LatencyCache | None = None
    fresh: bool = False
    seconds: float = 0.3  # of runs, for each side of a part


@dataclass(frozen=True)
class Saving:
    """Milliseconds that a change saves, and by how much that may be wrong (from the scatter of both sides)."""

    ms: float
    plus_minus: float = 0.0


def write_checked(network: nn.Module, shape: Shape, path: Path, batch_size: int) -> Path:
    """An ONNX file of a network, whose outputs in ONNX Runtime are PyTorch's; others are an `InputError`."""
    to_onnx(network, shape, path, batch_size=batch_size)
    runtimes.check_outputs(runtimes.get("onnxruntime")(1, batch_size).load(path), network)
    return path


def edit_checked(path: Path, changed: Path, kind: str, layers: set[int] | range, batch_size: int) -> Path:
    """A file changed as a graph: no PyTorch network is like it, so that ONNX Runtime's optimizations are checked."""
    write_edited(Graph(path), changed, kind, layers)
    runtimes.check_optimized(changed, batch_size)
    return changed


@dataclass(frozen=True)
class Surroundings:
    """The layers before and behind a part, unchanged, and the shape (C, H, W) that enters the first of all."""

    lead: tuple[Mapping[str, Any], ...]
    tail: tuple[Mapping[str, Any], ...]
    in_shape: Shape

    def write(self, layers: Iterable[Mapping[str, Any]], path: Path, batch_size: int) -> Path:
        """An ONNX file of these layers in their context."""
        network = build(Architecture.of([*self.lead, *layers, *self.tail], input=self.in_shape))
        return write_checked(network, self.in_shape, path, batch_size)

    def values(self) -> list[Any]:
        return [list(map(dict, self.lead)), list(map(dict, self.tail)), self.in_shape]


@dataclass(frozen=True)
class LayerReplacement:
    """Layers `start` and following, as dictionaries, and what replaces them."""

    start: int
    before: tuple[Mapping[str, Any], ...]
    after: tuple[Mapping[str, Any], ...]
    context: Surroundings

    def text(self) -> str:
        return json.dumps([self.before, self.after, self.context.values()], default=dict)

    def write(self, folder: Path, batch_size: int) -> tuple[Path, Path]:
        """The two ONNX files."""
        before = self.context.write(self.before, folder / "before.onnx", batch_size)
        return before, self.context.write(self.after, folder / "after.onnx", batch_size)

    def saved(self, before_ms: float, after_ms: float) -> float:
        return before_ms - after_ms


@dataclass(frozen=True)
class GraphEdit:
    """Layers on end, their element-wise work of a kind left out, or their parallel convolutions merged ("parallel")."""

    layers: tuple[Mapping[str, Any], ...]
    kind: str
    context: Surroundings

    def text(self) -> str:
        return json.dumps([self.layers, self.kind, self.context.values()])

    def write(self, folder: Path, batch_size: int) -> tuple[Path, Path]:
        """The two ONNX files."""
        before = self.context.write(self.layers, folder / "before.onnx", batch_size)
        first = len(self.context.lead)
        changed = range(first, first + len(self.layers))
        return before, edit_checked(before, folder / "after.onnx", self.kind, changed, batch_size)

    def saved(self, before_ms: float, after_ms: float) -> float:
        return before_ms - after_ms


@dataclass(frozen=True)
class Operators:
    """Convolutions without anything else: (c_in, c_out, kernel, groups) each, and how they are put together.

    `form` is "chain", or "Concat" or "Add" of convolutions that all read the input. `activated` says that a ReLU
    follows each: it takes no time itself, but ONNX Runtime joins an addition only to a convolution without one.
    """

    convolutions: tuple[tuple[int, int, int, int], ...]
    form: str = "chain"
    activated: bool = False

    def module(self, times: int = 1) -> nn.Module:
        """The operators, so many times on end."""
        from torch import nn

        return nn.Sequential(*(self._once() for _ in range(times)))

    def _once(self) -> nn.Module:
        from torch import nn

        parts: list[nn.Module] = [nn.Conv2d(i, o, k, padding=k // 2, groups=g) for i, o, k, g in self.convolutions]
        if self.activated:
            parts = [nn.Sequential(part, nn.ReLU()) for part in parts]
        return nn.Sequential(*parts) if self.form == "chain" else _join(self.form, parts)

    @property
    def returns(self) -> bool:
        """Whether the output is as wide as the input, so that the same can follow."""
        outs = [one[1] for one in self.convolutions]
        return self.convolutions[0][0] == (sum(outs) if self.form == "Concat" else outs[-1])

    @property
    def flops(self) -> int:
        """Multiply-adds for one place of the map."""
        return sum(i * o * k * k // g for i, o, k, g in self.convolutions)


def _join(form: str, parts: Sequence[nn.Module]) -> nn.Module:
    import torch
    from torch import nn

    class Joined(nn.ModuleList):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = [part(x) for part in self]
            return torch.cat(found, 1) if form == "Concat" else sum(found[1:], found[0])

    return Joined(parts)


@dataclass(frozen=True)
class OperatorReplacement:
    """Operators before and after a change, on maps of `map_size`; in the network they take `time_ms` now.

    ONNX Runtime reorders what enters and leaves a file, which the network does not do around each of them; so several
    of them are measured on end where both can follow themselves.
    """

    before: Operators
    after: Operators
    map_size: tuple[int, int]
    time_ms: float

    def text(self) -> str:
        return json.dumps([asdict(self.before), asdict(self.after), self.map_size, REPEATS])

    def write(self, folder: Path, batch_size: int) -> tuple[Path, Path]:
        """The two ONNX files."""
        paths = folder / "before.onnx", folder / "after.onnx"
        times = REPEATS if self.before.returns and self.after.returns else 1
        for operators, path in zip((self.before, self.after), paths, strict=True):
            shape = (operators.convolutions[0][0], *self.map_size)
            write_checked(operators.module(times), shape, path, batch_size)
        return paths

    def saved(self, before_ms: float, after_ms: float) -> float:
        """The same share of the time that the operators take in the network."""
        return self.time_ms * (1 - after_ms / before_ms)


Part = LayerReplacement | GraphEdit | OperatorReplacement


def measure_saving(parts: Iterable[Part], folder: Path, how: MeasurementSettings) -> Saving:
    """What the parts save together; each distinct one is measured once, and is in doubt by itself."""
    sides: dict[str, list[dict[str, float]]] = {}
    saved: dict[str, float] = defaultdict(float)
    doubts: dict[str, float] = defaultdict(float)
    for part in parts:
        text = part.text()
        if text not in sides:
            sides[text] = _measured(part, folder, how)
        one = saving_between(sides[text], part.saved)
        saved[text] += one.ms
        doubts[text] += one.plus_minus
    return Saving(sum(saved.values()), math.hypot(*doubts.values()))


def estimate_saving(parts: Sequence[Part], folder: Path, how: MeasurementSettings) -> float:
    """About what the parts save together, from the `SAMPLE` distinct ones that weigh most, measured briefly."""
    weights: dict[str, float] = defaultdict(float)
    for part in parts:
        weights[part.text()] += _weight(part)
    heavy = sorted(weights, key=weights.__getitem__, reverse=True)[:ESTIMATE_SAMPLE]
    chosen = [part for part in parts if part.text() in heavy]
    saved = measure_saving(chosen, folder, replace(how, seconds=how.seconds / 4))
    return (saved.ms + saved.plus_minus) * sum(weights.values()) / sum(weights[text] for text in heavy)


def _weight(part: Part) -> float:
    """What a part counts for among those of its kind: the time of operators, the number of layers."""
    if isinstance(part, OperatorReplacement):
        return part.time_ms
    return len(part.before if isinstance(part, LayerReplacement) else part.layers)


def saving_between(sides: Sequence[Mapping[str, float]], saved: Callable[[float, float], float]) -> Saving:
    """What is saved from before to after, and how far the scatter of each side's rounds can move it."""
    before, after = sides
    middle = saved(before["ms"], after["ms"])
    first = saved(before["ms"] + before["scatter"], after["ms"]) - middle
    second = saved(before["ms"], after["ms"] + after["scatter"]) - middle
    return Saving(middle, math.hypot(first, second))


def _measured(part: Part, folder: Path, how: MeasurementSettings) -> list[dict[str, float]]:
    """Milliseconds of a part before and after its change, with their scatter; from the cache if they are there."""
    cache = how.cache or LatencyCache()
    digest = hashlib.sha256(f"{part.text()} {how.seconds!r}".encode()).hexdigest()[:24]
    key = Conditions.on_this_machine(f"what-if {digest}", "onnxruntime", threads=how.threads, batch_size=how.batch_size)
    known = None if how.fresh else cache.get(key)
    if known is None or not _are_sides(known.get("sides")):
        known = {"sides": measure_side_by_side(part.write(folder, how.batch_size), how)}
        cache.put(key, known)
    return known["sides"]


def _are_sides(sides: Any) -> bool:
    """Whether these are two measured sides; the cache may hold anything."""
    if not (isinstance(sides, list) and len(sides) == 2 and all(isinstance(side, dict) for side in sides)):
        return False
    return all(
        is_measurement(side.get("ms")) and (side.get("scatter") == 0 or is_measurement(side.get("scatter")))
        for side in sides
    )


def measure_side_by_side(paths: Sequence[Path], how: MeasurementSettings) -> list[dict[str, float]]:
    """Milliseconds of ONNX files measured in turn, and the scatter of each."""
    networks = {str(i): runtimes.get("onnxruntime")(how.threads, how.batch_size).load(p) for i, p in enumerate(paths)}
    found = benchmark.measure(networks, seconds=how.seconds)
    return [{"ms": one.median_ms, "scatter": _scatter(one.samples_ms)} for one in found.values()]


def _scatter(rounds: Sequence[float]) -> float:
    """Twice the standard error of a quantile of rounds; what slows both sides alike is not in it, nor need it be."""
    first, _, third = statistics.quantiles(rounds, n=4)
    return 2 * (third - first) / math.sqrt(len(rounds))


def write_changed_network(
    path: Path, parts: Iterable[Part], layers: Iterable[int], folder: Path, architecture: Architecture, batch_size: int
) -> Path | None:
    """The whole network, whose ONNX file is `path`, with the changes that can be made in it; None where none can."""
    kinds = [part.kind for part in parts if isinstance(part, GraphEdit)]
    if kinds:
        return edit_checked(path, folder / "changed.onnx", kinds[0], set(layers), batch_size)
    dictionaries = layer_dicts(architecture)
    for part in (runs := [part for part in parts if isinstance(part, LayerReplacement)]):
        dictionaries[part.start : part.start + len(part.before)] = map(dict, part.after)
    if not runs:
        return None
    changed = build(Architecture.of(dictionaries, input=architecture.input))
    return write_checked(changed, architecture.input, folder / "changed.onnx", batch_size)


def layer_dicts(architecture: Architecture) -> list[dict[str, Any]]:
    """The layers as dictionaries, each with its own width: a change of one does not reach the next."""
    found = []
    for layer in architecture.layers:
        out = {} if layer.out is None else {"out": layer.out}
        found.append({**layer.to_dict(), **out})
    return found
