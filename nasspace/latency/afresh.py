"""Measure exported ONNX files: here, or in a fresh process that knows nothing but the files and ONNX Runtime."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path

from nasspace.errors import InputError, NasspaceError
from nasspace.latency import reference, runtimes
from nasspace.latency.cache import LatencyCache
from nasspace.latency.meter import SECONDS, Latency, check_counts, measure


def measure_files(
    paths: Iterable[str | PathLike],
    threads: int = 1,
    batch_size: int | None = None,
    seconds: float = SECONDS,
    *,
    beside: str | PathLike | None = None,
    earlier: Sequence[float] = (),
) -> list[Latency]:
    """Measure ONNX files side by side in this process; `batch_size=None` is each file's own, 1 where it is free.

    `beside` is the reference network's file, `earlier` what it took in earlier sittings, in milliseconds.
    """
    check_counts(threads=threads, **({} if batch_size is None else {"batch_size": batch_size}))
    networks = {str(i): runtimes.OnnxRuntime(threads, batch_size).load(path) for i, path in enumerate(paths)}
    compared = reference.Reference(runtimes.OnnxRuntime(threads).load(beside), tuple(earlier)) if beside else None
    return list(measure(networks, reference=compared, seconds=seconds).values())


def measure_file(
    path: str | PathLike, threads: int = 1, batch_size: int | None = None, seconds: float = SECONDS
) -> Latency:
    """Measure one ONNX file in this process, without a reference."""
    return measure_files([path], threads, batch_size, seconds)[0]


def measure_files_afresh(
    paths: Iterable[str | PathLike],
    threads: int = 1,
    batch_size: int | None = None,
    seconds: float = SECONDS,
    *,
    cache: LatencyCache | None = None,
) -> list[Latency]:
    """As `measure_files`, in one fresh Python process and beside the reference network, whose history `cache` has."""
    cache = LatencyCache() if cache is None else cache
    with tempfile.TemporaryDirectory(prefix="nasspace-") as folder:
        order = {"paths": [os.path.abspath(path) for path in paths], "threads": threads, "batch_size": batch_size}
        order |= {"seconds": seconds, "beside": str(reference.write(Path(folder)))}
        order |= {"earlier": reference.earlier(threads, "cpu", cache)}
        found = _asked(order)
    for latency in found[:1]:  # one sitting
        if not latency.contended:
            reference.remember(latency.reference_ms, threads, "cpu", cache)
    return found


def _asked(order: dict) -> list[Latency]:
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
