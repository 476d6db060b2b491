"""Latency benchmark of exported files and folders, in this process or in a separate one that only loads them."""

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
    reference_file: str | PathLike | None = None,
) -> list[Latency]:
    """Measure ONNX files in turn in this process; `batch_size=None` is each file's own, 1 if it is dynamic.

    `reference_file` is the ONNX file of the reference network. The result is not yet normalized by the machine's
    history: see `Latency.normalized`.
    """
    check_counts(threads=threads, **({} if batch_size is None else {"batch_size": batch_size}))
    networks = {str(i): runtimes.OnnxRuntime(threads, batch_size).load(path) for i, path in enumerate(paths)}
    loaded = reference.Reference(runtimes.OnnxRuntime(threads).load(reference_file)) if reference_file else None
    return list(measure(networks, reference=loaded, seconds=seconds).values())


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
    """Measure exported folders in turn, in a runtime that loads networks (from `architecture.json` and the weights)."""
    from safetensors.torch import load_file

    from nasspace import architecture
    from nasspace.network import build

    check_counts(threads=threads, batch_size=batch_size)
    networks = {}
    for i, folder in enumerate(map(Path, folders)):
        network_architecture = architecture.load(folder / "architecture.json")
        model = build(network_architecture)
        model.load_state_dict(load_file(folder / "weights.safetensors"))
        networks[str(i)] = runtimes.get(runtime)(threads, batch_size, device).load(model, network_architecture.input)
        runtimes.check_outputs(networks[str(i)], model)
    loaded = reference.Reference(reference.reference_network(threads, device))
    return list(measure(networks, reference=loaded, seconds=seconds).values())


def measure_files_in_subprocess(
    paths: Iterable[str | PathLike],
    threads: int = 1,
    batch_size: int | None = None,
    seconds: float = SECONDS,
    *,
    cache: LatencyCache | None = None,
) -> list[Latency]:
    """Run `measure_files` with the reference network in a new Python process; `cache` holds the machine's history."""
    with temporary.private() as folder:
        request = {"paths": [os.path.abspath(path) for path in paths], "threads": threads, "batch_size": batch_size}
        return _run_and_record(
            {**request, "seconds": seconds, "reference_file": str(reference.write_reference(Path(folder)))}, cache
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
    """Run `measure_folders` with the reference network in a new Python process; `cache` holds the machine's history."""
    request = {"folders": [os.path.abspath(folder) for folder in folders], "runtime": runtime, "device": device}
    return _run_and_record({**request, "threads": threads, "batch_size": batch_size, "seconds": seconds}, cache)


def _run_and_record(request: dict, cache: LatencyCache | None) -> list[Latency]:
    """Measure in a new process, store the reference's reading, and normalize by the machine's history."""
    cache = LatencyCache() if cache is None else cache
    threads, device = request["threads"], request.get("device", "cpu")
    found = _run_subprocess(request)
    reference.record_rounds(
        [ms for one in found if not one.contended for ms in one.reference_ms], threads, device, cache
    )
    known = reference.machine_history(
        reference.reference_conditions(threads, device), request.get("runtime", "onnxruntime"), cache
    )
    return [latency.normalized(known) for latency in found]


def _run_subprocess(request: dict) -> list[Latency]:
    """Measure in a new Python process that runs `main`."""
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    ended = subprocess.run(
        [sys.executable, "-P", "-m", __spec__.name, json.dumps(request)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        answer = json.loads(ended.stdout)
    except ValueError:
        reason = (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1]
        raise NasspaceError(f"the process that measures the exported files failed: {reason}") from None
    if "error" in answer:
        raise InputError(answer["error"])
    return [Latency.from_json(document) for document in answer["latencies"]]


def main(text: str) -> None:
    """Measure what a JSON request describes, and print one JSON document on standard output."""
    try:
        request = json.loads(text)
        measured = measure_folders(**request) if "folders" in request else measure_files(**request)
        answer = {"latencies": [latency.to_json() for latency in measured]}
    except InputError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1])
