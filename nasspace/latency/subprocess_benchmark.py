"""Measure what was exported: here, or in a fresh process that knows nothing but the files and what runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from nasspace import temporary
from nasspace.errors import InputError, NasspaceError
from nasspace.latency import reference, runtimes
from nasspace.latency.benchmark import SECONDS, Latency, check_counts, measure
from nasspace.latency.cache import LatencyCache


def measure_files(
    paths: Iterable[str | PathLike],
    threads: int = 1,
    batch_size: int | None = None,
    seconds: float = SECONDS,
    *,
    beside: str | PathLike | None = None,
) -> list[Latency]:
    """Measure ONNX files side by side in this process; `batch_size=None` is each file's own, 1 where it is free.

    `beside` is the reference network's file. Nothing else is known of the machine here: see `Latency.normalized`.
    """
    check_counts(threads=threads, **({} if batch_size is None else {"batch_size": batch_size}))
    networks = {str(i): runtimes.OnnxRuntime(threads, batch_size).load(path) for i, path in enumerate(paths)}
    compared = reference.Reference(runtimes.OnnxRuntime(threads).load(beside)) if beside else None
    return list(measure(networks, reference=compared, seconds=seconds).values())


def measure_file(
    path: str | PathLike, threads: int = 1, batch_size: int | None = None, seconds: float = SECONDS
) -> Latency:
    """Measure one ONNX file in this process, without a reference."""
    return measure_files([path], threads, batch_size, seconds)[0]


def measure_folders(
    folders: Iterable[str | PathLike],
    runtime: str,
    threads: int = 1,
    batch_size: int = 1,
    seconds: float = SECONDS,
    *,
    device: str = "cpu",
) -> list[Latency]:
    """Measure exported folders side by side in a runtime that takes networks: `architecture.json` and its weights."""
    from safetensors.torch import load_file

    from nasspace import architecture
    from nasspace.network import build

    check_counts(threads=threads, batch_size=batch_size)
    networks = {}
    for i, folder in enumerate(map(Path, folders)):
        described = architecture.load(folder / "architecture.json")
        model = build(described)
        model.load_state_dict(load_file(folder / "weights.safetensors"))
        networks[str(i)] = runtimes.get(runtime)(threads, batch_size, device).load(model, described.input)
        runtimes.check_outputs(networks[str(i)], model)
    compared = reference.Reference(reference.reference_network(threads, device))
    return list(measure(networks, reference=compared, seconds=seconds).values())


def measure_files_in_subprocess(
    paths: Iterable[str | PathLike],
    threads: int = 1,
    batch_size: int | None = None,
    seconds: float = SECONDS,
    *,
    cache: LatencyCache | None = None,
) -> list[Latency]:
    """As `measure_files`, in one fresh Python process and beside the reference network, whose history `cache` has."""
    with temporary.private() as folder:
        order = {"paths": [os.path.abspath(path) for path in paths], "threads": threads, "batch_size": batch_size}
        return _run_and_record(
            {**order, "seconds": seconds, "beside": str(reference.write_reference(Path(folder)))}, cache
        )


def measure_folders_in_subprocess(
    folders: Iterable[str | PathLike],
    runtime: str,
    threads: int = 1,
    batch_size: int = 1,
    seconds: float = SECONDS,
    *,
    device: str = "cpu",
    cache: LatencyCache | None = None,
) -> list[Latency]:
    """As `measure_folders`, in one fresh Python process, beside the reference network."""
    order = {"folders": [os.path.abspath(folder) for folder in folders], "runtime": runtime, "device": device}
    return _run_and_record({**order, "threads": threads, "batch_size": batch_size, "seconds": seconds}, cache)


def _run_and_record(order: dict, cache: LatencyCache | None) -> list[Latency]:
    """What the fresh process finds, by all that is known of the machine; the reference's part of it is remembered."""
    cache = LatencyCache() if cache is None else cache
    threads, device = order["threads"], order.get("device", "cpu")
    found = _run_subprocess(order)
    reference.record_rounds(
        [ms for one in found if not one.contended for ms in one.reference_ms], threads, device, cache
    )
    known = reference.machine_history(
        reference.reference_conditions(threads, device), order.get("runtime", "onnxruntime"), cache
    )
    return [latency.normalized(known) for latency in found]


def _run_subprocess(order: dict) -> list[Latency]:
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
        asked = json.loads(order)
        measured = measure_folders(**asked) if "folders" in asked else measure_files(**asked)
        answer = {"latencies": [latency.to_json() for latency in measured]}
    except InputError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1])
