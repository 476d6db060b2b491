"""Latency benchmark: interleaved rounds, normalized by a reference network, with detection of contention.

A latency is the median time of one batch at the usual speed of the machine; a later measurement of the exported file
should find the same. A machine's speed drifts by several percent from minute to minute, and more under other load. A
small reference network therefore runs every few rounds, and the time of each round is divided by the reference's.
Seven networks (0.5 to 4 ms) were measured in 14 processes on two shared cores under changing load: normalization
reduced the spread of the medians from 3.3 to 1.5 %.
"""

from __future__ import annotations

import contextlib
import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from nasspace.errors import InputError
from nasspace.latency import runtimes
from nasspace.latency.cache import LatencyCache, is_measurement
from nasspace.latency.conditions import Conditions, machine, network_digest
from nasspace.latency.reference import Reference, load_reference, machine_history, record_rounds, reference_conditions
from nasspace.latency.runtimes import CLOCKS, Clocks, Round
from nasspace.latency.statistics import History, UsualSpeed, bootstrap_median, quartile_interval, reference_interval

if TYPE_CHECKING:
    from torch import nn

    from nasspace.architecture import Architecture

SECONDS = 1.0  # duration of the runs of each network
PRECISION = 0.02  # stop when the interval within the session is narrower than this share of the median
MIN_ROUNDS = 12
LARGEST_COUNT = 4096  # limit of threads, batch size and resolution
THREADS_PER_CORE = 4  # limit of threads: with many more, a run takes minutes
ROUNDS_PER_REFERENCE = 4  # largest number of rounds between two rounds of the reference
LOADS = 4  # of each network in `measure_in_turn`
STUDENT = 3.182  # quantile of Student's distribution for as many loads
STEAL_LIMIT = 0.05  # share of steal time (taken by a virtual machine's host) above which a session is contended


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one batch: the median at the machine's usual speed and its 95 % interval (see `statistics`).

    `samples_ms` holds the raw value of each round that counts, in order; `reference_ms` holds the reference network's
    time next to each of them, and `reference_usual_ms` its time at the machine's usual speed (None without a
    reference). `contended` is true if the virtual machine's host took more than 5 % of the time, or if too few rounds
    were undisturbed. In the latter case all rounds count: with one thread, the CPU time of each disturbed run; with
    several threads, the fastest run of each disturbed round. `input` is (C, H, W); `measured_at` is ISO time, UTC.
    """

    runtime: str
    device: str
    threads: int
    batch_size: int
    input: tuple[int, int, int]
    median_ms: float
    low_ms: float
    high_ms: float
    rounds: int
    contended: bool
    samples_ms: tuple[float, ...]
    reference_ms: tuple[float, ...]
    reference_usual_ms: float | None
    machine: dict[str, Any]
    versions: dict[str, str]
    measured_at: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as in the `latency` document of the command line."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, document: Any) -> Latency:
        """Read a measurement; an `InputError` names the field that is missing or invalid."""
        _check_document(document)
        values = {name: document[name] for name in cls.__dataclass_fields__}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    @property
    def ratio(self) -> float | None:
        """The network's time divided by the reference's; the machine's speed cancels."""
        if not self.reference_ms:
            return None
        return statistics.median(a / b for a, b in zip(self.samples_ms, self.reference_ms, strict=True))

    @property
    def reading(self) -> tuple[float, float] | None:
        """The reference's (seconds since 1970, median in milliseconds); None without a reference."""
        if not self.reference_ms:
            return None
        return datetime.fromisoformat(self.measured_at).timestamp(), statistics.median(self.reference_ms)

    def normalized(self, known: History) -> Latency:
        """Return the measurement normalized to the machine's usual speed, estimated from the history `known`.

        If the history has no readings, the measurement's own is used. Without a reference, nothing changes.
        """
        if not self.reference_ms:
            return self
        speed = UsualSpeed.of(known if known.readings else known.with_readings([self.reading]))
        ratios = [a / b for a, b in zip(self.samples_ms, self.reference_ms, strict=True)]
        median, low, high = reference_interval(ratios, speed)
        return replace(self, median_ms=median, low_ms=low, high_ms=high, reference_usual_ms=speed.usual_ms)

    @property
    def speed(self) -> float | None:
        """The machine's speed during the measurement, relative to its usual speed; None without a reference."""
        if self.reference_usual_ms is None:
            return None
        return self.reference_usual_ms / statistics.median(self.reference_ms)


_COUNTS = ("threads", "batch_size", "rounds")
_TIMES = ("median_ms", "low_ms", "high_ms")
_LISTS = ("samples_ms", "reference_ms")
_TABLES = ("machine", "versions")


def _check_document(document: Any) -> None:
    """Raise `InputError` for a document that is not a measurement; caches and studies can be edited by hand."""
    if not isinstance(document, Mapping):
        raise InputError("a measurement must be a JSON object")
    if missing := [name for name in Latency.__dataclass_fields__ if name not in document]:
        raise InputError(f"{missing[0]}: missing in the measurement")
    rounds, shape = document["rounds"], document["input"]
    valid = {name: isinstance(document[name], str) for name in ("runtime", "device")}
    valid |= {name: _is_count(document[name]) for name in _COUNTS}
    valid |= {name: is_measurement(document[name]) for name in _TIMES}
    valid |= {name: isinstance(document[name], list | tuple) for name in _LISTS}
    valid |= {name: isinstance(document[name], Mapping) and _is_flat(document[name]) for name in _TABLES}
    valid["input"] = isinstance(shape, list | tuple) and len(shape) == 3 and all(map(_is_count, shape))
    valid["contended"] = isinstance(document["contended"], bool)
    valid["measured_at"] = _is_timestamp(document["measured_at"])
    _refuse(valid, document)
    for name in _LISTS:
        valid[name] = all(map(is_measurement, document[name]))
    references = len(document["reference_ms"])
    valid["samples_ms"] &= len(document["samples_ms"]) == rounds
    valid["reference_ms"] &= references in (0, rounds)
    usual = document["reference_usual_ms"]
    valid["reference_usual_ms"] = is_measurement(usual) if references else usual is None
    valid["median_ms"] = document["low_ms"] <= document["median_ms"] <= document["high_ms"]
    _refuse(valid, document)


def _refuse(valid: Mapping[str, bool], document: Mapping[str, Any]) -> None:
    """Raise `InputError` for the first field that is not valid."""
    if wrong := [name for name, is_valid in valid.items() if not is_valid]:
        raise InputError(f"{wrong[0]}: {str(document[wrong[0]])[:40]!r} is not valid in a measurement; measure again")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31


def _is_flat(table: Mapping[Any, Any]) -> bool:
    plain = (str, int, float, bool, type(None))
    return all(isinstance(key, str) and isinstance(value, plain) for key, value in table.items())


def _is_timestamp(value: Any) -> bool:
    with contextlib.suppress(TypeError, ValueError, OverflowError, OSError):
        return datetime.fromisoformat(value).timestamp() > 0
    return False


@dataclass(frozen=True)
class _PairedRound:
    """One round of a network and the reference's time next to it (1 without a reference)."""

    value_ms: float
    reference_ms: float
    contended: bool

    @classmethod
    def of(cls, one: Round, references: list[Round]) -> _PairedRound:
        """Pair a round with the reference's rounds before and after it; one undisturbed reference is enough."""
        clean = [other.value_ms for other in references if not other.contended]
        values = clean or [other.value_ms for other in references] or [1.0]
        return cls(one.value_ms, statistics.mean(values), one.contended or bool(references and not clean))


def _usable(pairs: list[_PairedRound]) -> tuple[list[_PairedRound], bool]:
    """Return the rounds that count, and whether too few are undisturbed (then all count)."""
    clean = [pair for pair in pairs if not pair.contended]
    return (clean, False) if len(clean) >= MIN_ROUNDS else (pairs, True)


def _finished(pairs: list[_PairedRound], spent: float, seconds: float, precision: float) -> bool:
    """Whether the interval is narrow enough or the time is up; contention allows up to twice the time."""
    if len(pairs) < MIN_ROUNDS:
        return False
    usable, contended = _usable(pairs)
    if contended:
        return spent >= 2 * seconds and len(pairs) >= 2 * MIN_ROUNDS
    if spent >= seconds:
        return True
    if len(usable) % 4:  # computing the interval takes a few milliseconds
        return False
    _, half = bootstrap_median([pair.value_ms / pair.reference_ms for pair in usable])
    return 2 * half < precision


def measure(
    networks: Mapping[str, Any],
    *,
    reference: Reference | None = None,
    seconds: float = SECONDS,
    precision: float = PRECISION,
    seed: int = 0,
    clocks: Clocks = CLOCKS,
) -> dict[str, Latency]:
    """Measure loaded networks in turn: rounds of about 20 ms, in a new random order each time.

    A network is any object with `run()` and the attributes `name`, `libraries`, `device`, `threads`, `batch_size` and
    `input`, such as the classes of `runtimes`. Each runs for at least 12 rounds, until its interval within this session
    is narrower than `precision` times its median, or for `seconds`; contention at most doubles that time. The
    `reference` runs after at most four rounds of the networks.
    """
    if not seconds > 0:
        raise InputError(f"seconds: {seconds!r} is not greater than 0")
    order, shuffle = list(networks), random.Random(seed).shuffle
    pairs: dict[str, list[_PairedRound]] = {name: [] for name in networks}
    spent = dict.fromkeys(networks, 0.0)
    loaded = [*networks.values(), *([reference.network] if reference else [])]
    with _measurement_setup(loaded):
        for network in loaded:
            runtimes.warm_up(network, clocks)
        last = _reference_rounds(reference, clocks)
        start, stolen = clocks.wall(), clocks.stolen()
        while order:
            shuffle(order)
            for first in range(0, len(order), ROUNDS_PER_REFERENCE):
                taken = [
                    (name, _timed_round(networks[name], clocks)) for name in order[first : first + ROUNDS_PER_REFERENCE]
                ]
                last, before = _reference_rounds(reference, clocks), last
                for name, (one, took) in taken:
                    pairs[name].append(_PairedRound.of(one, [*before, *last]))
                    spent[name] += took
            order = [name for name in order if not _finished(pairs[name], spent[name], seconds, precision)]
        steal = clocks.stolen() - stolen > STEAL_LIMIT * (clocks.wall() - start)
    found = {name: _summarize(network, pairs[name], reference, steal) for name, network in networks.items()}
    return _normalize(found, reference) if reference else found


def _normalize(found: dict[str, Latency], reference: Reference) -> dict[str, Latency]:
    """Normalize the session's measurements by one usual speed, from the history and the session's median reading."""
    undisturbed = [one for one in found.values() if not one.contended] or list(found.values())
    values = [value for one in undisturbed for value in one.reference_ms]
    at, _ = undisturbed[0].reading
    known = reference.history.with_readings([(at, statistics.median(values))])
    return {name: one.normalized(known) for name, one in found.items()}


def _timed_round(network: Any, clocks: Clocks) -> tuple[Round, float]:
    """Return one round and its duration in seconds."""
    start = clocks.wall()
    return runtimes.time_round(network, clocks), clocks.wall() - start


def _reference_rounds(reference: Reference | None, clocks: Clocks) -> list[Round]:
    """Return one round of the reference in a list, which is empty without a reference."""
    return [runtimes.time_round(reference.network, clocks)] if reference else []


@contextlib.contextmanager
def _measurement_setup(networks: Iterable[Any]) -> Iterator[None]:
    """Configure the runtimes and disable garbage collection."""
    collecting = gc.isenabled()
    with contextlib.ExitStack() as stack:
        for network in networks:
            if hasattr(network, "configured"):
                stack.enter_context(network.configured())
        gc.collect()
        gc.disable()
        try:
            yield
        finally:
            if collecting:
                gc.enable()


def _summarize(network: Any, pairs: list[_PairedRound], reference: Reference | None, steal: bool) -> Latency:
    """Summarize the rounds of a network without normalization; `steal` marks the session as contended."""
    usable, contended = _usable(pairs)
    values = [pair.value_ms for pair in usable]
    references = [pair.reference_ms for pair in usable] if reference else []
    median, low, high = quartile_interval(values)
    return Latency(
        runtime=network.name,
        device=network.device,
        threads=network.threads,
        batch_size=network.batch_size,
        input=tuple(network.input),
        median_ms=median,
        low_ms=low,
        high_ms=high,
        rounds=len(values),
        contended=contended or steal,
        samples_ms=tuple(values),
        reference_ms=tuple(references),
        reference_usual_ms=statistics.median(references) if references else None,
        machine=machine(),
        versions=runtimes.library_versions(network.libraries),
        measured_at=datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds"),
    )


def measure_latency(
    architecture: Architecture,
    runtime: str = "onnxruntime",
    threads: int = 1,
    batch_size: int = 1,
    resolution: int | None = None,
    *,
    model: nn.Module | None = None,
    seconds: float = SECONDS,
    fresh: bool = False,
    cache: LatencyCache | None = None,
    device: str = "cpu",
    alone: Callable[[], AbstractContextManager] = contextlib.nullcontext,
) -> Latency:
    """Measure the latency of an architecture, or read it from the cache if it was measured under equal conditions.

    The network is built with seeded weights unless `model` is given, and converted for `runtime`, whose outputs must
    equal PyTorch's. `resolution` replaces the height and width of the architecture's input. `fresh` measures again and
    replaces the cached value. `alone` returns a context manager that locks the machine for the measurement. Median and
    interval are normalized by the machine's current history, also for a cached measurement. Raises
    `InputError` for arguments that cannot be measured, and if the runtime's outputs differ from PyTorch's.
    """
    from nasspace.counting import cost

    check_counts(threads=threads, batch_size=batch_size)
    if not hasattr(architecture, "digest"):
        raise InputError(f"{type(architecture).__name__}: is not an architecture; pass your own network as `model`")
    if resolution is not None:
        check_counts(resolution=resolution)
        architecture = architecture.with_resolution(resolution)
    cost(architecture)  # raises for layers that do not run at this resolution
    cache = LatencyCache() if cache is None else cache
    settings = {"device": device, "threads": threads, "batch_size": batch_size, "input": architecture.input}
    runtimes.get(runtime)  # raises for an unknown runtime
    digest = network_digest(architecture, runtimes.module_of(model, runtime) if model is not None else None)
    key = Conditions.on_this_machine(digest, runtime, **settings) if digest else None
    reference_key = reference_conditions(threads, device)
    if key and not fresh and (known := known_latency(key, reference_key, cache)):
        return known
    if model is None:
        from nasspace.network import build

        model = build(architecture)
    network = runtimes.get(runtime)(threads, batch_size, device).load(model, architecture.input)
    runtimes.check_outputs(network, model)
    reference = load_reference(threads, device, cache, runtime)
    with alone():
        latency = measure({"network": network}, reference=reference, seconds=seconds)["network"]
    if not latency.contended:
        record_rounds(latency.reference_ms, threads, device, cache)
    return store_latency(latency, key, reference_key, runtime, cache)


def measure_in_turn(
    networks: Mapping[str, tuple[nn.Module, tuple[int, int, int]]],
    runtime: str = "onnxruntime",
    threads: int = 1,
    batch_size: int = 1,
    *,
    cache: LatencyCache | None = None,
    device: str = "cpu",
    alone: Callable[[], AbstractContextManager] = contextlib.nullcontext,
) -> dict[str, list[Latency]]:
    """Measure networks with their own weights, (model, (C, H, W)) by name, in one session in which they take turns.

    Each is loaded `LOADS` times, since the same network differs by 2 or 3 % from load to load, as its buffers lie
    elsewhere in memory. Returns the measurements of the loads. The other arguments are those of `measure_latency`;
    nothing is read from the cache but the reference's history.
    """
    check_counts(threads=threads, batch_size=batch_size)
    cache = LatencyCache() if cache is None else cache
    loaded = {}
    for name, (model, shape) in networks.items():
        for load in range(LOADS):
            network = runtimes.get(runtime)(threads, batch_size, device).load(model, shape)
            runtimes.check_outputs(network, model)
            loaded[f"{name} {load}"] = network
    reference = load_reference(threads, device, cache, runtime)
    with alone():
        found = measure(loaded, reference=reference)
    return {name: [found[f"{name} {load}"] for load in range(LOADS)] for name in networks}


def middle(loads: Sequence[Latency]) -> Latency:
    """The measurement with the median latency of several."""
    return sorted(loads, key=lambda one: one.median_ms)[len(loads) // 2]


def change_between(before: Sequence[Latency], after: Sequence[Latency]) -> tuple[float, float, float]:
    """The relative change of latency between two networks measured in turn, and its 95 % interval (Student's).

    The machine's speed cancels, so that a change shows that is far smaller than the intervals of both latencies.
    """
    pairs = zip(before, after, strict=True)
    logs = [math.log((b.ratio or b.median_ms) / (a.ratio or a.median_ms)) for a, b in pairs]
    mean, half = statistics.mean(logs), STUDENT * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.expm1(mean), math.expm1(mean - half), math.expm1(mean + half)


def known_latency(key: Conditions, reference_key: Conditions, cache: LatencyCache) -> Latency | None:
    """Return `cached_latency`, normalized by the history of the reference network under `reference_key`."""
    found = cached_latency(key, cache)
    return found and found.normalized(machine_history(reference_key, key.runtime, cache))


def cached_latency(key: Conditions, cache: LatencyCache) -> Latency | None:
    """Return an earlier measurement under these conditions; None if it was contended or is not valid."""
    with contextlib.suppress(InputError):
        found = Latency.from_json(cache.get(key))
        settings = (found.runtime, found.threads, found.batch_size, tuple(found.input))
        if not found.contended and settings == (key.runtime, key.threads, key.batch_size, tuple(key.input)):
            return found
    return None


def store_latency(
    latency: Latency, key: Conditions | None, reference_key: Conditions, runtime: str, cache: LatencyCache
) -> Latency:
    """Store a measurement (unless `key` is None) and return it normalized by the machine's history."""
    if key:
        cache.put(key, latency.to_json())
        if latency.ratio and not latency.contended:
            cache.add_ratio(reference_key, key, latency.ratio)
    return latency.normalized(machine_history(reference_key, runtime, cache))


def check_counts(on: Mapping[str, Any] | None = None, **counts: int) -> None:
    """Raise `InputError` for a value that is not a whole number from 1 to 4096, and for too many `threads`.

    At most four threads for each logical core are allowed, of this machine or of `on`, as `conditions.machine` returns
    it.
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST_COUNT:
            raise InputError(f"{name}: {value!r} is not a whole number from 1 to {LARGEST_COUNT}")
    cores = (on or machine())["cores"]
    if counts.get("threads", 1) > THREADS_PER_CORE * cores:
        raise InputError(
            f"threads: {counts['threads']} are too many for a machine with {cores} logical cores; give at most "
            f"{THREADS_PER_CORE * cores}"
        )
