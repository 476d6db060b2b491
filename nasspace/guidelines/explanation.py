"""Explanation of a network's latency: times of its layers, and what ShuffleNet V2's guidelines would save."""

from __future__ import annotations

import contextlib
import logging
import math
import operator
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from nasspace import temporary
from nasspace.architecture import Architecture
from nasspace.counting import cost
from nasspace.errors import InputError
from nasspace.guidelines import elementwise, fragments, groups, widths
from nasspace.guidelines.context import Context, FileContext, NetworkContext, Violation
from nasspace.guidelines.counterfactuals import (
    MeasurementSettings,
    OperatorReplacement,
    Saving,
    estimate_saving,
    measure_in_turn,
    measure_saving,
    saving_between,
    write_checked,
)
from nasspace.latency import benchmark, profile, runtimes
from nasspace.latency.benchmark import Latency, check_counts
from nasspace.latency.cache import LatencyCache
from nasspace.latency.conditions import machine
from nasspace.latency.graph import Graph
from nasspace.latency.numbered import write_numbered
from nasspace.latency.reference import load_reference, record_rounds
from nasspace.network import build

GUIDELINES = (widths.find_unequal_widths, groups.find_grouped, fragments.find_fragments, elementwise.find_elementwise)
NOTICEABLE = 0.02  # share of the network's time below which operators are ignored
PART_SECONDS = 0.3  # seconds to measure each side of a part, relative to those for the whole network
MIN_SAVING = 0.03  # share of the network's time that a change must save to be reported
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """A violated guideline and its cost.

    `layer` is the slowest of `layers`. `share` is the operators' share of the network's time; operators fused into a
    convolution count with at least what their removal saves. `saving_ms` is predicted from the parts that change.
    `measured_ms` compares the whole networks (`measured_on` "network") or, if the change would alter the shapes around
    it, its operators measured again. `architecture` is the changed network as in its JSON file, if layers of an
    architecture change.
    """

    guideline: str
    kind: str
    layer: int
    layers: tuple[int, ...]
    text: str
    change: str
    share: float
    saving_ms: float
    plus_minus_ms: float
    measured_ms: float | None = None
    measured_plus_minus_ms: float | None = None
    measured_on: str | None = None
    architecture: dict[str, Any] | None = None


@dataclass(frozen=True)
class LayerTime:
    """The time of one layer with its cost; intensity is FLOPs per element read or written.

    The last entry has no layer and holds the time between operators. Shares add up to one.
    """

    layer: int | None
    block: str
    ms: float
    share: float
    flops: int = 0
    memory_access: int = 0
    intensity: float | None = None


@dataclass(frozen=True)
class Explanation:
    """The times of a network's layers, and the findings, sorted by predicted saving; `input` is (C, H, W)."""

    latency_ms: float
    low_ms: float
    high_ms: float
    contended: bool
    runs: int
    time: tuple[LayerTime, ...]
    findings: tuple[Finding, ...]
    threads: int = 1
    batch_size: int = 1
    input: tuple[int, ...] = ()
    machine: dict[str, Any] = field(default_factory=machine)
    versions: dict[str, str] = field(default_factory=lambda: runtimes.versions("onnxruntime"))

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as in the `explain` document of the command line."""
        return asdict(self)


def explain(
    architecture: Architecture,
    *,
    threads: int = 1,
    batch_size: int = 1,
    seconds: float = 1.0,
    measure: bool = False,
    fresh: bool = False,
    cache: LatencyCache | None = None,
) -> Explanation:
    """Profile a network in ONNX Runtime and predict what following each guideline would save.

    Predictions come from cached measurements of the layers or operators before and after the change; `fresh` repeats
    them. `measure` also measures each change in the whole network. Outputs are compared with PyTorch's before a
    measurement, as in `measure_latency`. Raises `InputError` for an invalid number of threads or images, and if the
    outputs differ from PyTorch's.
    """
    settings = _settings(threads, batch_size, seconds, fresh, cache)
    counted = cost(architecture)
    with temporary.private() as name:
        path = write_checked(build(architecture), architecture.input, Path(name) / "network.onnx", batch_size)

        def context_of(profiled: profile.Profile) -> NetworkContext:
            return NetworkContext(path, Graph(path), profiled, architecture)

        return _explained(path, counted.layers, context_of, settings, seconds, measure)


def explain_file(
    source: str | Path,
    *,
    threads: int = 1,
    batch_size: int = 1,
    seconds: float = 1.0,
    measure: bool = False,
    fresh: bool = False,
    cache: LatencyCache | None = None,
) -> Explanation:
    """As `explain`, for an ONNX file of any program with one input of images of a fixed size.

    Its operators are shown by the module that they come from, if the exporter named it, else by chains of operators.
    Convolutions are measured alone, all other changes in the whole file. Raises `InputError` for a file that ONNX
    Runtime cannot run.
    """
    settings = _settings(threads, batch_size, seconds, fresh, cache)
    with temporary.private() as name:
        path, layers = write_numbered(Path(source), Path(name) / "network.onnx", batch_size)

        def context_of(profiled: profile.Profile) -> FileContext:
            return FileContext(path, Graph(path), profiled, len(layers))

        return _explained(path, layers, context_of, settings, seconds, measure)


def _settings(
    threads: int, batch_size: int, seconds: float, fresh: bool, cache: LatencyCache | None
) -> MeasurementSettings:
    """How the parts of an explanation are measured; an `InputError` for an invalid number of threads or images."""
    check_counts(threads=threads, batch_size=batch_size)
    cache = LatencyCache() if cache is None else cache
    return MeasurementSettings(threads, batch_size, cache, fresh, PART_SECONDS * seconds)


def _explained(
    path: Path,
    layers: Sequence[Any],
    context_of: Callable[[profile.Profile], Context],
    settings: MeasurementSettings,
    seconds: float,
    measure: bool,
) -> Explanation:
    """Profile a file whose nodes are named by their layers, and find what could be saved."""
    latency = _latency(path, seconds, settings)
    current = statistics.median(latency.samples_ms)  # at the machine's speed during the profile
    profiled = profile.profile_onnx(path, len(layers), current, threads=settings.threads, seconds=seconds)
    profiled = profiled.scaled(latency.median_ms / current)
    context = context_of(profiled)
    found = _predict(context, path.parent, settings)
    longer = replace(settings, seconds=max(settings.seconds, seconds / 2))  # for each load of a network
    findings = []
    for violation, finding in found:
        with _skip_unmeasurable(violation):
            findings.append(_measure_finding(finding, violation, context, longer) if measure else finding)
    return Explanation(
        latency.median_ms,
        latency.low_ms,
        latency.high_ms,
        latency.contended,
        profiled.runs,
        _times(layers, profiled),
        tuple(findings),
        settings.threads,
        settings.batch_size,
        latency.input,
    )


def _latency(path: Path, seconds: float, settings: MeasurementSettings) -> Latency:
    """Measure the latency of an exported file as `nas latency` does, next to the reference network."""
    network = runtimes.get("onnxruntime")(settings.threads, settings.batch_size).load(path)
    reference = load_reference(settings.threads, "cpu", settings.cache)
    latency = benchmark.measure({"": network}, reference=reference, seconds=seconds)[""]
    if not latency.contended:
        record_rounds(latency.reference_ms, settings.threads, "cpu", settings.cache)
    return latency


def _times(layers: Sequence[Any], profiled: profile.Profile) -> tuple[LayerTime, ...]:
    """Return the time of each layer, and of the rest."""
    rows = []
    for i, layer in enumerate(layers):
        ms, access = profiled.of_layer(i), layer.memory_access
        intensity = layer.flops / access if access else None
        rows.append(LayerTime(i, layer.block, ms, profiled.share(ms), layer.flops, access, intensity))
    return (*rows, LayerTime(None, "rest", profiled.rest_ms, profiled.share(profiled.rest_ms)))


def _predict(context: Context, folder: Path, settings: MeasurementSettings) -> list[tuple[Violation, Finding]]:
    """Return noticeable findings sorted by saving, with the best change for each guideline and kind."""
    found: dict[tuple[str, str], tuple[Violation, Finding]] = {}
    for violation in chain.from_iterable(guideline(context) for guideline in GUIDELINES):
        if context.profile.share(max(violation.time_ms, violation.at_most_ms)) < NOTICEABLE:
            continue
        with _skip_unmeasurable(violation):
            least = MIN_SAVING / 2 * context.profile.total_ms
            if not violation.parts or estimate_saving(violation.parts, folder, settings) < least:
                continue
            saved = measure_saving(violation.parts, folder, settings)
            key = violation.guideline, violation.kind
            better = key not in found or saved.ms > found[key][1].saving_ms
            if better and is_noticeable(saved, context.profile.total_ms):
                found[key] = violation, _finding(violation, saved, context)
    return sorted(found.values(), key=lambda pair: -pair[1].saving_ms)


@contextlib.contextmanager
def _skip_unmeasurable(violation: Violation) -> Iterator[None]:
    """Skip a change for which the runtime's outputs differ from PyTorch's."""
    try:
        yield
    except InputError as error:
        log.warning("the change '%s' cannot be measured and is skipped: %s", violation.change, error)


def is_noticeable(saved: Saving, total_ms: float) -> bool:
    """Whether a saving is at least 3 % of the network's time and exceeds its uncertainty."""
    return saved.ms >= MIN_SAVING * total_ms and saved.ms > saved.plus_minus


def _finding(violation: Violation, saved: Saving, context: Context) -> Finding:
    """Return the finding for a violation and its predicted saving."""
    changed = context.changed_architecture(violation.parts)
    return Finding(
        guideline=violation.guideline,
        kind=violation.kind,
        layer=violation.layers[0],
        layers=tuple(sorted(violation.layers)),
        text=violation.text,
        change=violation.change,
        share=context.profile.share(max(violation.time_ms, min(saved.ms, violation.at_most_ms))),
        saving_ms=saved.ms,
        plus_minus_ms=saved.plus_minus,
        architecture=None if changed is None else changed.to_dict(),
    )


def _measure_finding(
    finding: Finding, violation: Violation, context: Context, settings: MeasurementSettings
) -> Finding:
    """Measure the saving of a finding in the whole network, and of parts that can only be measured separately."""
    isolated = [part for part in violation.parts if isinstance(part, OperatorReplacement)]
    folder = context.path.parent
    saved = measure_saving(isolated, folder, replace(settings, fresh=True)) if isolated else Saving(0.0)
    changed = context.changed(violation.parts, violation.layers, folder, settings.batch_size)
    if changed is not None:
        whole = saving_between(measure_in_turn((context.path, changed), settings), operator.sub)
        saved = Saving(saved.ms + whole.ms, math.hypot(saved.plus_minus, whole.plus_minus))
    where = "operators" if changed is None else "network and operators" if isolated else "network"
    return replace(finding, measured_ms=saved.ms, measured_plus_minus_ms=saved.plus_minus, measured_on=where)
