"""Why a network is slow: where its time goes, and what ShuffleNet V2's guidelines G1 to G4 would save in it."""

from __future__ import annotations

import contextlib
import logging
import math
import operator
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from nasspace import temporary
from nasspace.architecture import Architecture
from nasspace.counting import cost
from nasspace.errors import InputError
from nasspace.guidelines import elementwise, fragments, widths
from nasspace.guidelines.context import NetworkContext, Violation
from nasspace.guidelines.counterfactuals import (
    MeasurementSettings,
    OperatorReplacement,
    Saving,
    estimate_saving,
    measure_saving,
    measure_side_by_side,
    saving_between,
    write_changed_network,
    write_checked,
)
from nasspace.latency import benchmark, profile, runtimes
from nasspace.latency.benchmark import Latency, check_counts
from nasspace.latency.cache import LatencyCache
from nasspace.latency.conditions import machine
from nasspace.latency.graph import Graph
from nasspace.latency.reference import load_reference, record_rounds
from nasspace.network import build

GUIDELINES = (widths.find_unequal_widths, widths.find_grouped, fragments.find_fragments, elementwise.find_elementwise)
NOTICEABLE = 0.02  # of the network's time: operators that take less are not looked at
PART_SECONDS = 0.3  # of the time for the whole network: the time to measure each side of a part
MIN_SAVING = 0.03  # of the network's time: what a change must save to be spoken of
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """A guideline that a network goes against, and what it costs.

    `layer` is the one of `layers` that takes most time. `share` is that of the operators concerned in the network's
    time; what is joined to a convolution takes at least what leaving it out saves. `saving_ms` is predicted from the
    parts that change; `measured_ms` is of the whole networks side by side (`measured_on` "network"), or where the
    change would alter the shapes around it of its operators, measured anew.
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


@dataclass(frozen=True)
class LayerTime:
    """The time of one layer beside what it costs; intensity is FLOPs for each element read or written.

    The last one has no layer: the time between the operators. Shares add up to one.
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
    """Where the time of a network goes, and the findings, the largest predicted saving first."""

    latency_ms: float
    low_ms: float
    high_ms: float
    contended: bool
    runs: int
    time: tuple[LayerTime, ...]
    findings: tuple[Finding, ...]
    threads: int = 1
    batch_size: int = 1
    machine: dict[str, Any] = field(default_factory=machine)
    versions: dict[str, str] = field(default_factory=lambda: runtimes.versions("onnxruntime"))

    def to_json(self) -> dict[str, Any]:
        """Plain values, as in the `explain` document of the command line."""
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
    """Profile a network in ONNX Runtime, and predict what each guideline would save; `measure` also measures it.

    Predictions are made of measurements of the layers or operators that change, before and after, which are kept in the
    cache; `fresh` measures them again. Every network is compared with PyTorch before it is measured, as in
    `measure_latency`. Raises `InputError` for a number of threads or images that cannot be, and for outputs that are
    not PyTorch's.
    """
    check_counts(threads=threads, batch_size=batch_size)
    cache = LatencyCache() if cache is None else cache
    how = MeasurementSettings(threads, batch_size, cache, fresh, PART_SECONDS * seconds)
    counted = cost(architecture)
    with temporary.private() as name:
        folder = Path(name)
        path = write_checked(build(architecture), architecture.input, folder / "network.onnx", batch_size)
        latency = _latency(path, seconds, how)
        now = statistics.median(latency.samples_ms)  # as fast as the machine is while the profile is taken
        taken = profile.profile_onnx(path, len(counted.layers), now, threads=threads, seconds=seconds)
        taken = taken.scaled(latency.median_ms / now)
        subject = NetworkContext(architecture, Graph(path), taken)
        found = _predict(subject, folder, how)
        longer = replace(how, seconds=max(how.seconds, seconds))
        findings = []
        for violation, finding in found:
            with _skip_unmeasurable(violation):
                findings.append(_measured(finding, violation, path, subject, longer) if measure else finding)
    times = _times(counted.layers, taken)
    return Explanation(
        latency.median_ms,
        latency.low_ms,
        latency.high_ms,
        latency.contended,
        taken.runs,
        times,
        tuple(findings),
        threads,
        batch_size,
    )


def _latency(path: Path, seconds: float, how: MeasurementSettings) -> Latency:
    """The latency of an exported file as `nas latency` gives it: beside the reference network, at the usual speed."""
    network = runtimes.get("onnxruntime")(how.threads, how.batch_size).load(path)
    reference = load_reference(how.threads, "cpu", how.cache)
    latency = benchmark.measure({"": network}, reference=reference, seconds=seconds)[""]
    if not latency.contended:
        record_rounds(latency.reference_ms, how.threads, "cpu", how.cache)
    return latency


def _times(layers: Sequence[Any], taken: profile.Profile) -> tuple[LayerTime, ...]:
    rows = []
    for i, layer in enumerate(layers):
        ms, access = taken.of_layer(i), layer.memory_access
        intensity = layer.flops / access if access else None
        rows.append(LayerTime(i, layer.block, ms, taken.share(ms), layer.flops, access, intensity))
    return (*rows, LayerTime(None, "rest", taken.rest_ms, taken.share(taken.rest_ms)))


def _predict(subject: NetworkContext, folder: Path, how: MeasurementSettings) -> list[tuple[Violation, Finding]]:
    """What is worth speaking of, the largest saving first; of several changes of one thing the best."""
    found: dict[tuple[str, str], tuple[Violation, Finding]] = {}
    for violation in chain.from_iterable(guideline(subject) for guideline in GUIDELINES):
        if subject.profile.share(max(violation.time_ms, violation.at_most_ms)) < NOTICEABLE:
            continue
        with _skip_unmeasurable(violation):
            least = MIN_SAVING / 2 * subject.profile.total_ms
            if not violation.parts or estimate_saving(violation.parts, folder, how) < least:
                continue
            saved = measure_saving(violation.parts, folder, how)
            key = violation.guideline, violation.kind
            better = key not in found or saved.ms > found[key][1].saving_ms
            if better and is_noticeable(saved, subject.profile.total_ms):
                found[key] = violation, _finding(violation, saved, subject)
    return sorted(found.values(), key=lambda pair: -pair[1].saving_ms)


@contextlib.contextmanager
def _skip_unmeasurable(violation: Violation) -> Iterator[None]:
    """Leave out a change that the runtime computes differently from PyTorch; the network itself was compared before."""
    try:
        yield
    except InputError as error:
        log.warning("the change '%s' cannot be measured and is left out: %s", violation.change, error)


def is_noticeable(saved: Saving, total_ms: float) -> bool:
    """Whether a saving is a thirtieth of the network's time, and above the doubt of its measurement."""
    return saved.ms >= MIN_SAVING * total_ms and saved.ms > saved.plus_minus


def _finding(violation: Violation, saved: Saving, subject: NetworkContext) -> Finding:
    return Finding(
        guideline=violation.guideline,
        kind=violation.kind,
        layer=violation.layers[0],
        layers=tuple(sorted(violation.layers)),
        text=violation.text,
        change=violation.change,
        share=subject.profile.share(max(violation.time_ms, min(saved.ms, violation.at_most_ms))),
        saving_ms=saved.ms,
        plus_minus_ms=saved.plus_minus,
    )


def _measured(
    finding: Finding, violation: Violation, path: Path, subject: NetworkContext, how: MeasurementSettings
) -> Finding:
    """The finding with its saving measured: of the whole network, and of what can only be changed on its own."""
    alone = [part for part in violation.parts if isinstance(part, OperatorReplacement)]
    saved = measure_saving(alone, path.parent, replace(how, fresh=True)) if alone else Saving(0.0)
    changed = write_changed_network(
        path, violation.parts, violation.layers, path.parent, subject.architecture, how.batch_size
    )
    if changed is not None:
        whole = saving_between(measure_side_by_side((path, changed), how), operator.sub)
        saved = Saving(saved.ms + whole.ms, math.hypot(saved.plus_minus, whole.plus_minus))
    where = "operators" if changed is None else "network and operators" if alone else "network"
    return replace(finding, measured_ms=saved.ms, measured_plus_minus_ms=saved.plus_minus, measured_on=where)
