"""Measure latency so that it can be believed: steady, interleaved, against a reference, with an alarm for contention.

What a number means: the median of many runs of one batch at the usual speed of the machine, which is what a
re-measurement of the exported file finds. A machine's speed wanders by several percent from minute to minute, and more
beside other work; so a small reference network is run every few rounds, and a network's rounds are taken relative to
it. On two shared cores, seven networks of 0.5 to 4 ms measured in fourteen fresh processes under changing load, the
medians' spread fell from 3.3 to 1.5 % so.
"""

from __future__ import annotations

import contextlib
import gc
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
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

SECONDS = 1.0  # of runs, for each network
PRECISION = 0.02  # width of the interval within a sitting, over the median, at which measuring stops
MIN_ROUNDS = 12
LARGEST_COUNT = 4096  # number of threads or images, and side
ROUNDS_PER_REFERENCE = 4  # rounds at most between two of the reference
STEAL_LIMIT = 0.05  # share of the time that a virtual machine's host may take before a sitting counts as contended


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one batch: the median at the machine's usual speed, and its 95 % interval (see `statistics`).

    `samples_ms` holds the value of each round that counts, in order and as the clock said; `reference_ms` that of the
    reference network beside each, `reference_usual_ms` what it takes at the machine's usual speed (None where there
    was no reference). `contended` says that the machine's host took more than 5 % of the time, or that too few rounds
    were undisturbed: then all count, with one thread by the CPU time of the disturbed runs, with more by the fastest
    run of a round. `input` is (C, H, W); `measured_at` is ISO time, UTC.
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
        """Plain values, as in the `latency` document of the command line."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, document: Any) -> Latency:
        """The same measurement back; an `InputError` names what in the document is not of a measurement."""
        _check_document(document)
        values = {name: document[name] for name in cls.__dataclass_fields__}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    @property
    def ratio(self) -> float | None:
        """The network's time over the reference's, in which the machine's speed cancels."""
        if not self.reference_ms:
            return None
        return statistics.median(a / b for a, b in zip(self.samples_ms, self.reference_ms, strict=True))

    @property
    def reading(self) -> tuple[float, float] | None:
        """When it was measured, in seconds since 1970, and the reference's median, in milliseconds."""
        if not self.reference_ms:
            return None
        return datetime.fromisoformat(self.measured_at).timestamp(), statistics.median(self.reference_ms)

    def normalized(self, known: History) -> Latency:
        """The same measurement at the usual speed that a history tells, with the interval that follows from it.

        Without a reading in the history its own reference counts; without a reference nothing changes.
        """
        if not self.reference_ms:
            return self
        speed = UsualSpeed.of(known if known.readings else known.with_readings([self.reading]))
        ratios = [a / b for a, b in zip(self.samples_ms, self.reference_ms, strict=True)]
        median, low, high = reference_interval(ratios, speed)
        return replace(self, median_ms=median, low_ms=low, high_ms=high, reference_usual_ms=speed.usual_ms)

    @property
    def speed(self) -> float | None:
        """The machine's speed while it was measured, over the usual one."""
        if self.reference_usual_ms is None:
            return None
        return self.reference_usual_ms / statistics.median(self.reference_ms)


_COUNTS = ("threads", "batch_size", "rounds")
_TIMES = ("median_ms", "low_ms", "high_ms")
_LISTS = ("samples_ms", "reference_ms")
_TABLES = ("machine", "versions")


def _check_document(document: Any) -> None:
    """Refuse what is no document of a measurement; a cache or a study may have been changed by hand."""
    if not isinstance(document, Mapping):
        raise InputError("a measurement is a table of values")
    if missing := [name for name in Latency.__dataclass_fields__ if name not in document]:
        raise InputError(f"{missing[0]}: is missing in the measurement")
    rounds, given = document["rounds"], document["input"]
    fits = {name: isinstance(document[name], str) for name in ("runtime", "device")}
    fits |= {name: _is_count(document[name]) for name in _COUNTS}
    fits |= {name: is_measurement(document[name]) for name in _TIMES}
    fits |= {name: isinstance(document[name], list | tuple) for name in _LISTS}
    fits |= {name: isinstance(document[name], Mapping) and _is_flat(document[name]) for name in _TABLES}
    fits["input"] = isinstance(given, list | tuple) and len(given) == 3 and all(map(_is_count, given))
    fits["contended"] = isinstance(document["contended"], bool)
    fits["measured_at"] = _is_timestamp(document["measured_at"])
    _refuse(fits, document)
    for name in _LISTS:
        fits[name] = all(map(is_measurement, document[name]))
    beside = len(document["reference_ms"])
    fits["samples_ms"] &= len(document["samples_ms"]) == rounds
    fits["reference_ms"] &= beside in (0, rounds)
    usual = document["reference_usual_ms"]
    fits["reference_usual_ms"] = is_measurement(usual) if beside else usual is None
    fits["median_ms"] = document["low_ms"] <= document["median_ms"] <= document["high_ms"]
    _refuse(fits, document)


def _refuse(fits: Mapping[str, bool], document: Mapping[str, Any]) -> None:
    if wrong := [name for name, fitting in fits.items() if not fitting]:
        raise InputError(f"{wrong[0]}: {str(document[wrong[0]])[:40]!r} is not of a measurement; measure again")


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
    """A round of a network and what the reference took beside it (1 where there is no reference)."""

    value_ms: float
    reference_ms: float
    contended: bool

    @classmethod
    def of(cls, one: Round, beside: list[Round]) -> _PairedRound:
        """`beside` are the reference's rounds before and after; an undisturbed one is enough."""
        clean = [other.value_ms for other in beside if not other.contended]
        values = clean or [other.value_ms for other in beside] or [1.0]
        return cls(one.value_ms, statistics.mean(values), one.contended or bool(beside and not clean))


def _usable(pairs: list[_PairedRound]) -> tuple[list[_PairedRound], bool]:
    """Those that count, and whether contention left too few: the undisturbed ones if they are enough."""
    clean = [pair for pair in pairs if not pair.contended]
    return (clean, False) if len(clean) >= MIN_ROUNDS else (pairs, True)


def _finished(pairs: list[_PairedRound], spent: float, seconds: float, precision: float) -> bool:
    """Narrow enough, or out of time; disturbed rounds are made up for until twice the time is up."""
    if len(pairs) < MIN_ROUNDS:
        return False
    counting, contended = _usable(pairs)
    if contended:
        return spent >= 2 * seconds and len(pairs) >= 2 * MIN_ROUNDS
    if spent >= seconds:
        return True
    if len(counting) % 4:  # the interval costs a few milliseconds itself
        return False
    _, half = bootstrap_median([pair.value_ms / pair.reference_ms for pair in counting])
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
    """Measure loaded networks side by side: rounds of about 20 ms, in a new random order each time.

    A network is whatever has `run()` and says its `name`, `libraries`, `device`, `threads`, `batch_size` and `input`,
    as the classes of `runtimes` do. A network is done when its interval within this sitting is narrower than
    `precision` of its median, or after `seconds` of its own runs, and at least 12 rounds; contention at most doubles
    that. A `reference` is measured after at most four rounds of others.
    """
    if not seconds > 0:
        raise InputError(f"seconds: {seconds!r} is not a time above 0")
    order, shuffle = list(networks), random.Random(seed).shuffle
    pairs: dict[str, list[_PairedRound]] = {name: [] for name in networks}
    spent = dict.fromkeys(networks, 0.0)
    every = [*networks.values(), *([reference.network] if reference else [])]
    with _measurement_setup(every):
        for network in every:
            runtimes.warm_up(network, clocks)
        last = _reference_rounds(reference, clocks)
        began, stolen = clocks.wall(), clocks.stolen()
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
        robbed = clocks.stolen() - stolen > STEAL_LIMIT * (clocks.wall() - began)
    found = {name: _summarize(network, pairs[name], reference, robbed) for name, network in networks.items()}
    return _normalize(found, reference) if reference else found


def _normalize(found: dict[str, Latency], reference: Reference) -> dict[str, Latency]:
    """All by one normalizer, from what was known and from this sitting."""
    undisturbed = [one for one in found.values() if not one.contended] or list(found.values())
    values = [value for one in undisturbed for value in one.reference_ms]
    at, _ = undisturbed[0].reading
    known = reference.history.with_readings([(at, statistics.median(values))])
    return {name: one.normalized(known) for name, one in found.items()}


def _timed_round(network: Any, clocks: Clocks) -> tuple[Round, float]:
    """One round, and the seconds that it took."""
    began = clocks.wall()
    return runtimes.time_round(network, clocks), clocks.wall() - began


def _reference_rounds(reference: Reference | None, clocks: Clocks) -> list[Round]:
    return [runtimes.time_round(reference.network, clocks)] if reference else []


@contextlib.contextmanager
def _measurement_setup(networks: Iterable[Any]) -> Iterator[None]:
    """Runtimes made ready, and no garbage collection in the middle of a run."""
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


def _summarize(network: Any, pairs: list[_PairedRound], reference: Reference | None, robbed: bool) -> Latency:
    counting, contended = _usable(pairs)
    values = [pair.value_ms for pair in counting]
    beside = [pair.reference_ms for pair in counting] if reference else []
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
        contended=contended or robbed,
        samples_ms=tuple(values),
        reference_ms=tuple(beside),
        reference_usual_ms=statistics.median(beside) if beside else None,
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
    """The latency of an architecture, from the cache if it was measured before in the same conditions.

    The network is built with seeded weights unless `model` is given, and converted for `runtime`; its outputs there
    must be PyTorch's. `resolution` replaces the height and width of the architecture's input. `fresh` measures again,
    and that is then remembered. Within `alone()` nothing else is to keep the machine busy. The median and its interval
    are by all that is known of the machine by now, also where the measurement is an earlier one. Raises `InputError`
    for what cannot be measured so, and for a runtime that gives other outputs than PyTorch.
    """
    from nasspace.counting import cost

    check_counts(threads=threads, batch_size=batch_size)
    if not hasattr(architecture, "digest"):
        raise InputError(f"{type(architecture).__name__}: is not an architecture; give your own network as `model`")
    if resolution is not None:
        check_counts(resolution=resolution)
        architecture = architecture.with_resolution(resolution)
    cost(architecture)  # says what does not run at this resolution
    cache = LatencyCache() if cache is None else cache
    asked = {"device": device, "threads": threads, "batch_size": batch_size, "input": architecture.input}
    runtimes.get(runtime)  # says what is no runtime
    digest = network_digest(architecture, runtimes.module_of(model, runtime) if model is not None else None)
    key = Conditions.on_this_machine(digest, runtime, **asked) if digest else None
    beside = reference_conditions(threads, device)
    if key and not fresh and (known := cached_latency(key, cache)):
        return known.normalized(machine_history(beside, runtime, cache))
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
    return store_latency(latency, key, beside, runtime, cache)


def cached_latency(key: Conditions, cache: LatencyCache) -> Latency | None:
    """An earlier measurement in these conditions; one that was disturbed, or changed by hand, is better made again."""
    with contextlib.suppress(InputError):
        found = Latency.from_json(cache.get(key))
        told = (found.runtime, found.threads, found.batch_size, tuple(found.input))
        if not found.contended and told == (key.runtime, key.threads, key.batch_size, tuple(key.input)):
            return found
    return None


def store_latency(
    latency: Latency, key: Conditions | None, beside: Conditions, runtime: str, cache: LatencyCache
) -> Latency:
    """Keep a measurement, where `key` tells what was measured; it comes back by what is known of the machine now."""
    if key:
        cache.put(key, latency.to_json())
        if latency.ratio and not latency.contended:
            cache.add_ratio(beside, key, latency.ratio)
    return latency.normalized(machine_history(beside, runtime, cache))


def check_counts(**counts: int) -> None:
    """Refuse what is not a whole number from 1 to 4096."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST_COUNT:
            raise InputError(f"{name}: {value!r} is not a whole number from 1 to {LARGEST_COUNT}")
