"""What runs on another device: reads ONNX files from standard input, measures them, writes JSON lines.

`remote` sends it with the modules that measure here, so that both measure alike; it needs Python 3.11, numpy and ONNX
Runtime there. A request is one JSON line, {"sizes", "threads", "batch_size", "seconds"}, followed by the files'
bytes; its answer one line, {"latencies"} or {"error"}. Lines begin with `MARK`: shells greet on standard output.
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
    """Say what this machine is, then answer requests until there are no more; `reference` is an ONNX file."""
    if trouble := _missing_package():
        return _send({"error": trouble})
    from nasspace.latency.conditions import machine
    from nasspace.latency.runtimes import library_versions

    versions = library_versions(NEEDS) | {"python": platform.python_version()}
    _send(
        {"machine": machine(), "versions": {name: version for name, version in versions.items() if name != "nasspace"}}
    )
    with tempfile.TemporaryDirectory(prefix="nasspace-") as folder:
        beside = Path(folder) / "reference.onnx"
        beside.write_bytes(reference)
        while line := requests.readline():
            _send(_answer(json.loads(line), requests, beside))
    return None


def _missing_package() -> str:
    """What is missing here, with the command that installs it; '' for nothing."""
    for package in NEEDS:
        try:
            importlib.import_module(package)
        except ImportError as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == package
            reason = f"has no {package}" if missing else f"cannot import {package} ({error})"
            command = f"{sys.executable} -m pip install {' '.join(NEEDS)}"
            return f"{sys.executable} {reason}; run there: {command} (or end the address in the path of another Python)"
    return ""


def _answer(request: dict[str, Any], requests: BinaryIO, beside: Path) -> dict[str, Any]:
    from nasspace.errors import InputError
    from nasspace.latency.subprocess_benchmark import measure_files

    with tempfile.TemporaryDirectory(prefix="nasspace-") as folder:
        paths = [Path(folder) / f"{i}.onnx" for i in range(len(request["sizes"]))]
        for path, size in zip(paths, request.pop("sizes"), strict=True):
            path.write_bytes(requests.read(size))
        try:
            return {"latencies": [found.to_json() for found in measure_files(paths, beside=beside, **request)]}
        except InputError as error:
            return {"error": str(error)}


def _send(document: dict[str, Any]) -> None:
    print(MARK + json.dumps(document), flush=True)
