"""Measurement server that runs on another device: ONNX files from standard input, JSON lines to standard output.

`remote` pushes it together with the local measuring modules, so that both sides measure alike; the device needs Python
3.11, numpy and ONNX Runtime. A request is one JSON line, {"sizes", "threads", "batch_size", "seconds"}, followed by the
files' bytes; the response is one line, {"latencies"} or {"error"}. Responses start with `MARK`, because login shells
may print on standard output too.
"""

from __future__ import annotations

import importlib
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

MARK = "nasspace "
NEEDS = ("numpy", "onnxruntime")


def serve(requests: BinaryIO, reference: bytes) -> None:
    """Describe this machine, then answer requests until the input ends; `reference` holds an ONNX file."""
    if missing := _missing_package():
        return _send({"error": missing})
    from nasspace.latency.conditions import machine
    from nasspace.latency.runtimes import library_versions

    versions = library_versions(NEEDS) | {"python": platform.python_version()}
    _send(
        {"machine": machine(), "versions": {name: version for name, version in versions.items() if name != "nasspace"}}
    )
    with tempfile.TemporaryDirectory(prefix="nasspace-") as folder:
        reference_file = Path(folder) / "reference.onnx"
        reference_file.write_bytes(reference)
        while line := requests.readline():
            _send(_answer(json.loads(line), requests, reference_file))
    return None


def _missing_package() -> str:
    """Describe the first missing package and the command that installs it; '' if none is missing."""
    for package in NEEDS:
        try:
            importlib.import_module(package)
        except ImportError as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == package
            reason = f"has no {package}" if missing else f"cannot import {package} ({error})"
            command = f"{sys.executable} -m pip install {' '.join(NEEDS)}"
            return (
                f"{sys.executable} {reason}; run there: {command} (or append the path of another Python to the address)"
            )
    return ""


def _answer(request: dict[str, Any], requests: BinaryIO, reference_file: Path) -> dict[str, Any]:
    """Read a request's files, measure them and return the response."""
    from nasspace.errors import InputError
    from nasspace.latency.subprocess_benchmark import measure_files

    with tempfile.TemporaryDirectory(prefix="nasspace-") as folder:
        paths = [Path(folder) / f"{i}.onnx" for i in range(len(request["sizes"]))]
        for path, size in zip(paths, request.pop("sizes"), strict=True):
            path.write_bytes(requests.read(size))
        try:
            return {
                "latencies": [
                    found.to_json() for found in measure_files(paths, reference_file=reference_file, **request)
                ]
            }
        except InputError as error:
            return {"error": str(error)}


def _send(document: dict[str, Any]) -> None:
    """Print one response."""
    print(MARK + json.dumps(document), flush=True)
