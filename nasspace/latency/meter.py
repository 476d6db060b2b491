"""Measure latency so that it can be believed: steady, interleaved, with its interval, and an alarm for contention.

What a number means: the median of many runs of one batch on an undisturbed machine, which is what a re-measurement of
the exported file finds. Whatever else a machine does only ever slows a network down, so it is estimated by the lower
quartile of the rounds' medians. Measured in windows of one second on two shared cores, networks of 0.1, 1 and 4 ms,
against the quiet median: bias -0.4 to -0.6 %, spread 0.2 to 1.1 % (the plain median: 0.1 to 1.0 % and 1.4 to 1.9 %);
beside other work on both cores +1 to +6 % and 1.9 to 2.6 % (3 to 8 % and 2.7 to 5.0 %). The minimum of a round lies up
to 3.5 % below what a user sees.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nasspace.errors import InputError, NasspaceError
from nasspace.latency import runtimes
from nasspace.latency.cache import LatencyCache, machine
from nasspace.latency.runtimes import CLOCKS, Clocks, Round

if TYPE_CHECKING:
    from torch import nn

    from nasspace.architecture import Architecture

SECONDS = 1.0  # of runs, for each network
PRECISION = 0.02  # width of the interval over the median at which measuring stops
MIN_ROUNDS = 8
STRETCH = 2.0  # of the bootstrap interval: one second sees about half of how a shared machine wanders


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one batch: the undisturbed median, and its 95 % interval (see `estimate`).

    `samples_ms` holds the value of each round that counts, in order. `contended` says that too few were undisturbed:
    then all count, with one thread by the CPU time of the disturbed runs, with more by the fastest run of a round.
    `input` is (C, H, W); `measured_at` is ISO time, UTC.
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
    machine: dict[str, Any]
    versions: dict[str, str]
    measured_at: str

    def to_json(self) -> dict[str, Any]:
        """Plain values, as in the `latency` document of the command line."""
        return {**asdict(self), "input": list(self.input), "samples_ms": list(self.samples_ms)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Latency:
        """The same measurement back."""
        values = {name: document[name] for name in cls.__dataclass_fields__}
        return cls(**{**values, "input": tuple(values["input"]), "samples_ms": tuple(values["samples_ms"])})


def estimate(values: Iterable[float], seed: int = 0, resamples: int = 1000) -> tuple[float, float, float]:
    """The undisturbed median, and the low and high end of its 95 % interval, from the values of rounds.

    The estimate is the lower quartile. The interval reaches from the low end of the quartile's bootstrap interval to
    the high end of the plain median's, and holds both readings of what was slow: a disturbance, or the network. Blocks
    of four rounds are drawn, since neighbours are alike (Künsch 1989), and the ends are stretched by `STRETCH`.

    On two shared cores the interval of one second held the plain median of the ten seconds around it in 82 to 100 % of
    the cases (a plain bootstrap's in 40 to 59 %), but the median over ten fresh processes, a minute in all, in 40 to
    70 %: how the machine's speed changes between measurements no single measurement can see.
    """
    values = np.asarray(list(values))
    count, block = len(values), max(1, min(4, len(values) // 2))
    generator = np.random.default_rng(seed)
    starts = generator.integers(0, count - block + 1, (resamples, -(-count // block), 1))
    drawn = values[(starts + np.arange(block)).reshape(resamples, -1)[:, :count]]
    middle = float(np.quantile(values, 0.25))
    low = np.quantile(np.quantile(drawn, 0.25, axis=1), 0.025)
    high = np.quantile(np.median(drawn, axis=1), 0.975)
    return middle, float(middle - STRETCH * max(0.0, middle - low)), float(middle + STRETCH * max(0.0, high - middle))


def _counting(rounds: list[Round]) -> tuple[list[float], bool]:
    """The values that count, and whether contention left too few: the undisturbed rounds if they are enough."""
    clean = [one.value_ms for one in rounds if not one.contended]
    if len(clean) >= MIN_ROUNDS:
        return clean, False
    return [one.value_ms for one in rounds], True


def _finished(rounds: list[Round], spent: float, seconds: float, precision: float) -> bool:
    """Narrow enough, or out of time; disturbed rounds are made up for until twice the time is up."""
    if len(rounds) < MIN_ROUNDS:
        return False
    values, contended = _counting(rounds)
    if contended:
        return spent >= 2 * seconds and len(rounds) >= 2 * MIN_ROUNDS
    if spent >= seconds:
        return True
    if len(values) % 4:  # the interval costs a few milliseconds itself
        return False
    median, low, high = estimate(values)
    return high - low < precision * median


def measure(
    networks: Mapping[str, Any],
    *,
    seconds: float = SECONDS,
    precision: float = PRECISION,
    seed: int = 0,
    clocks: Clocks = CLOCKS,
) -> dict[str, Latency]:
    """Measure loaded networks side by side: rounds of about 20 ms, in a new random order each time.

    A network is whatever has `run()` and says its `name`, `libraries`, `device`, `threads`, `batch_size` and `input`,
    as the classes of `runtimes` do. A network is done when its interval is narrower than `precision` of its median,
    or after `seconds` of its own runs, and at least 8 rounds; contention at most doubles that.
    """
    order, shuffle = list(networks), random.Random(seed).shuffle
    rounds: dict[str, list[Round]] = {name: [] for name in networks}
    spent = dict.fromkeys(networks, 0.0)
    with _prepared(networks.values()):
        for network in networks.values():
            runtimes.warm_up(network, clocks)
        while order:
            shuffle(order)
            for name in order:
                began = clocks.wall()
                rounds[name].append(runtimes.take_round(networks[name], clocks))
                spent[name] += clocks.wall() - began
            order = [name for name in order if not _finished(rounds[name], spent[name], seconds, precision)]
    return {name: _latency(network, rounds[name]) for name, network in networks.items()}


@contextlib.contextmanager
def _prepared(networks: Iterable[Any]) -> Iterator[None]:
    """Runtimes made ready, and no garbage collection in the middle of a run."""
    collecting = gc.isenabled()
    with contextlib.ExitStack() as stack:
        for network in networks:
            if hasattr(network, "ready"):
                stack.enter_context(network.ready())
        gc.collect()
        gc.disable()
        try:
            yield
        finally:
            if collecting:
                gc.enable()


def _latency(network: Any, rounds: list[Round]) -> Latency:
    values, contended = _counting(rounds)
    median, low, high = estimate(values)
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
        contended=contended,
        samples_ms=tuple(values),
        machine=machine(),
        versions=runtimes.library_versions(network.libraries),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
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
) -> Latency:
    """The latency of an architecture, from the cache if it was measured before in the same circumstances.

    The network is built with seeded weights unless `model` is given, and converted for `runtime`. `resolution`
    replaces the height and width of the architecture's input. `fresh` measures anew, and that is then remembered.
    """
    _check(threads=threads, batch_size=batch_size)
    if resolution is not None:
        _check(resolution=resolution)
        architecture = architecture.with_resolution(resolution)
    key = {
        "digest": architecture.digest,
        "runtime": runtime,
        "device": runtimes.device_label(device),
        "threads": threads,
        "batch_size": batch_size,
        "input": list(architecture.input),
        "versions": runtimes.versions(runtime),
        "machine": machine(),
    }
    cache = LatencyCache() if cache is None else cache
    known = None if fresh else cache.get(key)
    if known is not None:
        with contextlib.suppress(KeyError, TypeError):
            return Latency.from_json(known)
    if model is None:
        from nasspace.network import build

        model = build(architecture)
    network = runtimes.get(runtime)(threads, batch_size, device).load(model, architecture.input)
    latency = measure({"network": network}, seconds=seconds)["network"]
    cache.put(key, latency.to_json())
    return latency


def _check(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}: {value!r} is not a whole number of at least 1")


def measure_files(
    paths: Iterable[str | PathLike], threads: int = 1, batch_size: int | None = None, seconds: float = SECONDS
) -> list[Latency]:
    """Measure ONNX files side by side in this process; `batch_size=None` is each file's own, 1 where it is free."""
    _check(threads=threads, **({} if batch_size is None else {"batch_size": batch_size}))
    networks = {str(i): runtimes.OnnxRuntime(threads, batch_size).load(path) for i, path in enumerate(paths)}
    return list(measure(networks, seconds=seconds).values())


def measure_file(
    path: str | PathLike, threads: int = 1, batch_size: int | None = None, seconds: float = SECONDS
) -> Latency:
    """Measure one ONNX file in this process."""
    return measure_files([path], threads, batch_size, seconds)[0]


def measure_files_afresh(
    paths: Iterable[str | PathLike], threads: int = 1, batch_size: int | None = None, seconds: float = SECONDS
) -> list[Latency]:
    """As `measure_files`, in one fresh Python process, which knows nothing but the files and ONNX Runtime."""
    order = {"paths": [os.path.abspath(path) for path in paths], "threads": threads}
    order |= {"batch_size": batch_size, "seconds": seconds}
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    ended = subprocess.run(
        [sys.executable, "-P", "-m", __spec__.name, json.dumps(order)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        answer = json.loads(ended.stdout)
    except ValueError:
        reason = (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1]
        raise NasspaceError(f"the fresh process that measures the exported files failed: {reason}") from None
    if "error" in answer:
        raise InputError(answer["error"])
    return [Latency.from_json(document) for document in answer["latencies"]]


def main(order: str) -> None:
    """What the fresh process does: one JSON argument in, one JSON document on standard output."""
    try:
        answer = {"latencies": [latency.to_json() for latency in measure_files(**json.loads(order))]}
    except InputError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1])
