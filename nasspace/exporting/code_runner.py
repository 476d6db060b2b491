"""Run model.py of an export with its weights, in a separate process that cannot import nasspace."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from nasspace import temporary
from nasspace.errors import InputError

TIMEOUT = 3600  # seconds, against programs that never end
PROGRAM = """
import importlib.util, json, sys
sys.modules["nasspace"] = None  # any import of it fails
import torch
line = sys.stdin.readline()
if not line:
    sys.exit()  # the parent process has ended
path, source, target = json.loads(line)
spec = importlib.util.spec_from_file_location("model", path)
model = sys.modules["model"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(model)
network = model.load()
given = torch.load(source, weights_only=True, mmap=True)
found = {}
with torch.inference_mode():
    found["scores"] = network(given["inputs"])
    if "photo" in given:
        found["preprocessed"] = model.preprocess(given["photo"])
    if "pixels" in given:
        mean, std = (given[key][:, None, None] for key in ("mean", "std"))
        parts = given["pixels"].split(64)
        found["decisions"] = torch.cat([network((part.float() / 255 - mean) / std).argmax(1) for part in parts])
torch.save(found, target)
"""


# Not `-I`: torch may be on PYTHONPATH or in the user's site-packages.
_COMMAND = (sys.executable, "-P", "-B", "-W", "ignore", "-c", PROGRAM)
_waiting: list[subprocess.Popen[str]] = []  # processes that have imported torch and wait for a model.py


def prepare() -> None:
    """Start the process of the next `run`, which imports torch while this process does other work."""
    if not any(process.poll() is None for process in _waiting):
        _waiting.append(_start())


def discard() -> None:
    """End processes that wait for a `run`."""
    while _waiting:
        _kill(_waiting.pop())


def _start() -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(_COMMAND, stdin=pipe, stdout=subprocess.DEVNULL, stderr=pipe, text=True)


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def run(path: Path, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Run model.py on tensors: `scores` for `inputs`, `preprocessed` for `photo`, `decisions` for `pixels`.

    `pixels` are uint8 [N, C, H, W], to be normalized by `mean` and `std`. Raises ValueError with the reason if the
    program fails, and `InputError` if the tensors cannot be written to disk.
    """
    process = _waiting.pop() if _waiting and _waiting[-1].poll() is None else _start()
    with temporary.private() as name:
        source, target = Path(name) / "given.pt", Path(name) / "found.pt"
        try:
            torch.save(dict(given), source)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError if the disk is full
            _kill(process)
            raise InputError(
                f"{source}: cannot be written ({_first_line(error)}); "
                "free disk space there or set TMPDIR to another folder"
            ) from None
        try:
            _, message = process.communicate(json.dumps([str(path), str(source), str(target)]), timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            _kill(process)
            raise ValueError(f"did not end within {TIMEOUT} seconds") from None
        if process.returncode != 0 or not target.is_file():
            raise ValueError((message.strip().splitlines() or [f"ended with status {process.returncode}"])[-1])
        try:
            found = torch.load(target, weights_only=True)
        except Exception as error:  # the errors of torch.load share no base class
            raise ValueError(f"wrote no tensors ({_first_line(error)})") from None
    wrong = not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values())
    if wrong or "scores" not in found:
        raise ValueError("wrote no tensors")
    return found


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:100]
