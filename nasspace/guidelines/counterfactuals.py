"""Predicted savings of a change: parts of a network before and after it, as ONNX files that are measured in turn.

There are five kinds of parts. `LayerReplacement`: layers with other options or widths, with the same input and output.
`GraphEdit`: a layer without some of its operations; `FileEdit`: the same in a whole file of another program.
`FileNarrowing`: such a file with one group in place of several, and narrower maps.
`OperatorReplacement`: isolated operators, for changes that would alter the shapes around them, which cannot be applied
to the whole network. Before a file is measured, its outputs in ONNX Runtime are compared with PyTorch's, those of an
edited graph with ONNX Runtime's without optimizations.
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
from nasspace.guidelines.graph_narrowing import FileNarrowing
from nasspace.latency import benchmark, runtimes
from nasspace.latency.cache import LatencyCache, is_measurement
from nasspace.latency.conditions import Conditions
from nasspace.latency.convert import to_onnx
from nasspace.latency.graph import Graph
from nasspace.network import build

if TYPE_CHECKING:
    from torch import nn

    from nasspace.latency.benchmark import Latency
Shape = tuple[int, int, int]
ESTIMATE_SAMPLE = 4  # parts that `estimate_saving` measures
REPEATS = 4  # consecutive copies of operators in one file
MOST_LOADS = 4  # how often a network is loaded


@dataclass(frozen=True)
class MeasurementSettings:
    """How parts are measured, and the cache of their times."""

    threads: int = 1
    batch_size: int = 1
    cache: LatencyCache | None = None
    fresh: bool = False
    seconds: float = 0.3  # of runs for each side of a part


@dataclass(frozen=True)
class Saving:
    """Milliseconds that a change saves, and their uncertainty (from the scatter of both sides)."""

    ms: float
    plus_minus: float = 0.0


def write_checked(network: nn.Module, shape: Shape, path: Path, batch_size: int) -> Path:
    """Write a network as ONNX; `InputError` if ONNX Runtime's outputs differ from PyTorch's."""
    to_onnx(network, shape, path, batch_size=batch_size)
    runtimes.check_outputs(runtimes.get("onnxruntime")(1, batch_size).load(path), network)
    return path


def edit_checked(path: Path, changed: Path, kind: str, layers: set[int] | range, batch_size: int) -> Path:
    """Write an edited graph; `InputError` if ONNX Runtime's optimizations change its outputs."""
    write_edited(Graph(path), changed, kind, layers)
    runtimes.check_optimized(changed, batch_size)
    return changed


@dataclass(frozen=True)
class Surroundings:
    """The unchanged layers before and after a part, and the input shape (C, H, W) of the first one."""

    lead: tuple[Mapping[str, Any], ...]
    tail: tuple[Mapping[str, Any], ...]
    in_shape: Shape

    def write(self, layers: Iterable[Mapping[str, Any]], path: Path, batch_size: int) -> Path:
        """Write an ONNX file of layers between their surroundings."""
        network = build(Architecture.of([*self.lead, *layers, *self.tail], input=self.in_shape))
        return write_checked(network, self.in_shape, path, batch_size)

    def values(self) -> list[Any]:
        """Return plain values for the key of the cache."""
        return [list(map(dict, self.lead)), list(map(dict, self.tail)), self.in_shape]


@dataclass(frozen=True)
class LayerReplacement:
    """Layers from `start` on, as dictionaries, and their replacements."""

    start: int
    before: tuple[Mapping[str, Any], ...]
    after: tuple[Mapping[str, Any], ...]
    surroundings: Surroundings

    def text(self) -> str:
        """Return the text that identifies the part in the cache."""
        return json.dumps([self.before, self.after, self.surroundings.values()], default=dict)

    def write(self, folder: Path, batch_size: int) -> tuple[Path, Path]:
        """Write the ONNX files before and after the change."""
        before = self.surroundings.write(self.before, folder / "before.onnx", batch_size)
        return before, self.surroundings.write(self.after, folder / "after.onnx", batch_size)

    def saved(self, before_ms: float, after_ms: float) -> float:
        """Return the milliseconds saved in the network."""
        return before_ms - after_ms


@dataclass(frozen=True)
class GraphEdit:
    """Consecutive layers without one kind of element-wise work, or with merged parallel convolutions ("parallel")."""

    layers: tuple[Mapping[str, Any], ...]
    kind: str
    surroundings: Surroundings

    def text(self) -> str:
        """Return the text that identifies the part in the cache."""
        return json.dumps([self.layers, self.kind, self.surroundings.values()])

    def write(self, folder: Path, batch_size: int) -> tuple[Path, Path]:
        """Write the ONNX files before and after the change."""
        before = self.surroundings.write(self.layers, folder / "before.onnx", batch_size)
        first = len(self.surroundings.lead)
        changed = range(first, first + len(self.layers))
        return before, edit_checked(before, folder / "after.onnx", self.kind, changed, batch_size)

    def saved(self, before_ms: float, after_ms: float) -> float:
        """Return the milliseconds saved in the network."""
        return before_ms - after_ms


@dataclass(frozen=True)
class FileEdit:
    """A whole ONNX file without one kind of element-wise work in some layers, or with merged convolutions there."""

    path: Path
    kind: str
    layers: tuple[int, ...]

    def text(self) -> str:
        """Return the text that identifies the part in the cache."""
        return json.dumps([hashlib.sha256(self.path.read_bytes()).hexdigest(), self.kind, self.layers])

    def write(self, folder: Path, batch_size: int) -> tuple[Path, Path]:
        """Write the ONNX file after the change; the one before it is the file itself."""
        return self.path, edit_checked(self.path, folder / "after.onnx", self.kind, set(self.layers), batch_size)

    def saved(self, before_ms: float, after_ms: float) -> float:
        """Return the milliseconds saved in the network."""
        return before_ms - after_ms


@dataclass(frozen=True)
class Operators:
    """Convolutions without anything else: (c_in, c_out, kernel, groups) of each, and how they are connected.

    `form` is "chain", or "Concat" or "Add" of convolutions that all read the input. `activated` means that a ReLU
    follows each of them: it takes no time itself, but prevents ONNX Runtime from fusing an addition into a convolution.
    """

    convolutions: tuple[tuple[int, int, int, int], ...]
    form: str = "chain"
    activated: bool = False

    def module(self, times: int = 1) -> nn.Module:
        """Return a module of `times` consecutive copies of the operators."""
        from torch import nn

        return nn.Sequential(*(self._once() for _ in range(times)))

    def _once(self) -> nn.Module:
        """Return a module of one copy."""
        from torch import nn

        parts: list[nn.Module] = [nn.Conv2d(i, o, k, padding=k // 2, groups=g) for i, o, k, g in self.convolutions]
        if self.activated:
            parts = [nn.Sequential(part, nn.ReLU()) for part in parts]
        return nn.Sequential(*parts) if self.form == "chain" else _join(self.form, parts)

    @property
    def returns(self) -> bool:
        """Whether the output is as wide as the input, so that a copy can follow."""
        outs = [one[1] for one in self.convolutions]
        return self.convolutions[0][0] == (sum(outs) if self.form == "Concat" else outs[-1])

    @property
    def flops(self) -> int:
        """Multiply-adds for one position of the map."""
        return sum(i * o * k * k // g for i, o, k, g in self.convolutions)


def _join(form: str, parts: Sequence[nn.Module]) -> nn.Module:
    """Return a module that concatenates or adds the outputs of its parts."""
    import torch
    from torch import nn

    class Joined(nn.ModuleList):
        """Parallel modules."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Concatenate or add the outputs."""
            outputs = [part(x) for part in self]
            return torch.cat(outputs, 1) if form == "Concat" else sum(outputs[1:], outputs[0])

    return Joined(parts)


@dataclass(frozen=True)
class OperatorReplacement:
    """Operators before and after a change, on maps of `map_size`; `time_ms` is their present time in the network.

    ONNX Runtime reorders the input and output of a file, which does not happen around each operator in a network.
    Therefore several consecutive copies are measured if the operators allow it.
    """

    before: Operators
    after: Operators
    map_size: tuple[int, int]
    time_ms: float

    def text(self) -> str:
        """Return the text that identifies the part in the cache."""
        return json.dumps([asdict(self.before), asdict(self.after), self.map_size, REPEATS])

    def write(self, folder: Path, batch_size: int) -> tuple[Path, Path]:
        """Write the ONNX files before and after the change."""
        paths = folder / "before.onnx", folder / "after.onnx"
        times = REPEATS if self.before.returns and self.after.returns else 1
        for operators, path in zip((self.before, self.after), paths, strict=True):
            shape = (operators.convolutions[0][0], *self.map_size)
            write_checked(operators.module(times), shape, path, batch_size)
        return paths

    def saved(self, before_ms: float, after_ms: float) -> float:
        """Return the milliseconds saved in the network, if the operators' time there shrinks by the same factor."""
        return self.time_ms * (1 - after_ms / before_ms)


Part = LayerReplacement | GraphEdit | FileEdit | FileNarrowing | OperatorReplacement


def measure_saving(parts: Iterable[Part], folder: Path, settings: MeasurementSettings) -> Saving:
    """Return the total saving of parts; equal parts are measured once, different ones have independent errors."""
    sides: dict[str, list[dict[str, float]]] = {}
    saved: dict[str, float] = defaultdict(float)
    errors: dict[str, float] = defaultdict(float)
    for part in parts:
        text = part.text()
        if text not in sides:
            sides[text] = _measure_part(part, folder, settings)
        one = saving_between(sides[text], part.saved)
        saved[text] += one.ms
        errors[text] += one.plus_minus
    return Saving(sum(saved.values()), math.hypot(*errors.values()))


def estimate_saving(parts: Sequence[Part], folder: Path, settings: MeasurementSettings) -> float:
    """Estimate the total saving optimistically from brief measurements of the heaviest `ESTIMATE_SAMPLE` parts."""
    weights: dict[str, float] = defaultdict(float)
    for part in parts:
        weights[part.text()] += _weight(part)
    heavy = sorted(weights, key=weights.__getitem__, reverse=True)[:ESTIMATE_SAMPLE]
    chosen = [part for part in parts if part.text() in heavy]
    saved = measure_saving(chosen, folder, replace(settings, seconds=settings.seconds / 4))
    return (saved.ms + saved.plus_minus) * sum(weights.values()) / sum(weights[text] for text in heavy)


def _weight(part: Part) -> float:
    """Return the weight of a part: the time of its operators, or its number of layers."""
    if isinstance(part, OperatorReplacement):
        return part.time_ms
    return len(part.before if isinstance(part, LayerReplacement) else part.layers)


def saving_between(sides: Sequence[Mapping[str, float]], saved: Callable[[float, float], float]) -> Saving:
    """Return the saving between two measured sides, with the uncertainty from the scatter of each side."""
    before, after = sides
    saving = saved(before["ms"], after["ms"])
    first = saved(before["ms"] + before["scatter"], after["ms"]) - saving
    second = saved(before["ms"], after["ms"] + after["scatter"]) - saving
    return Saving(saving, math.hypot(first, second))


def _measure_part(part: Part, folder: Path, settings: MeasurementSettings) -> list[dict[str, float]]:
    """Return milliseconds and scatter of a part before and after its change, from the cache if possible."""
    cache = settings.cache or LatencyCache()
    loads = _loads(part)
    digest = hashlib.sha256(f"{part.text()} {settings.seconds!r} {loads}".encode()).hexdigest()[:24]
    key = Conditions.on_this_machine(
        f"what-if {digest}", "onnxruntime", threads=settings.threads, batch_size=settings.batch_size
    )
    entry = None if settings.fresh else cache.get(key)
    if entry is None or not _are_sides(entry.get("sides")):
        entry = {"sides": measure_in_turn(part.write(folder, settings.batch_size), settings, loads)}
        cache.put(key, entry)
    return entry["sides"]


def _are_sides(sides: Any) -> bool:
    """Whether a value from the cache holds two measured sides."""
    if not (isinstance(sides, list) and len(sides) == 2 and all(isinstance(side, dict) for side in sides)):
        return False
    return all(
        is_measurement(side.get("ms")) and (side.get("scatter") == 0 or is_measurement(side.get("scatter")))
        for side in sides
    )


def _loads(part: Part) -> int:
    """Return how often a part is loaded: more often, the more of the network it is, and so the more of its saving."""
    return 1 if isinstance(part, OperatorReplacement) else max(1, min(MOST_LOADS, round(_weight(part) / 4)))


def measure_in_turn(
    paths: Sequence[Path], settings: MeasurementSettings, loads: int = MOST_LOADS
) -> list[dict[str, float]]:
    """Measure ONNX files in turn and return milliseconds and scatter of each.

    Each file is loaded `loads` times, and each time measured for the seconds of the settings: the same network may
    differ by 2 or 3 % from load to load, as its buffers lie elsewhere in memory.
    """
    runtime = runtimes.get("onnxruntime")
    networks = {
        f"{i} {j}": runtime(settings.threads, settings.batch_size).load(path)
        for j in range(loads)
        for i, path in enumerate(paths)
    }
    found = benchmark.measure(networks, seconds=settings.seconds)
    return [_one_side([found[f"{i} {j}"] for j in range(loads)]) for i in range(len(paths))]


def _one_side(found: Sequence[Latency]) -> dict[str, float]:
    """Return the mean time of the loads of a network, and twice its standard error."""
    times = [one.median_ms for one in found]
    within = math.hypot(*(_scatter(one.samples_ms) for one in found)) / len(found)
    between = 2 * statistics.stdev(times) / math.sqrt(len(found)) if len(found) > 1 else 0.0
    return {"ms": statistics.mean(times), "scatter": max(within, between)}


def _scatter(rounds: Sequence[float]) -> float:
    """Return twice the standard error of a quantile of the rounds (without what slows both sides equally)."""
    first, _, third = statistics.quantiles(rounds, n=4)
    return 2 * (third - first) / math.sqrt(len(rounds))


def write_changed_network(
    path: Path, parts: Iterable[Part], layers: Iterable[int], folder: Path, architecture: Architecture, batch_size: int
) -> Path | None:
    """Write the whole network (its ONNX file is `path`) with the applicable changes; None if none is applicable."""
    kinds = [part.kind for part in parts if isinstance(part, GraphEdit)]
    if kinds:
        return edit_checked(path, folder / "changed.onnx", kinds[0], set(layers), batch_size)
    changed = changed_architecture(architecture, parts)
    return (
        None if changed is None else write_checked(build(changed), changed.input, folder / "changed.onnx", batch_size)
    )


def changed_architecture(architecture: Architecture, parts: Iterable[Part]) -> Architecture | None:
    """Return the network with the replaced layers; None if no part replaces layers."""
    dictionaries = layer_dicts(architecture)
    replacements = [part for part in parts if isinstance(part, LayerReplacement)]
    for part in sorted(replacements, key=lambda part: part.start, reverse=True):  # one may change the number of layers
        dictionaries[part.start : part.start + len(part.before)] = map(dict, part.after)
    return Architecture.of(dictionaries, input=architecture.input) if replacements else None


def layer_dicts(architecture: Architecture) -> list[dict[str, Any]]:
    """Return the layers as dictionaries with explicit widths, so that changing one does not affect the next."""
    found = []
    for layer in architecture.layers:
        out = {} if layer.out is None else {"out": layer.out}
        found.append({**layer.to_dict(), **out})
    return found
