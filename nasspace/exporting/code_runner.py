"""model.py of an export, run with its weights in a process of its own that has no nasspace."""

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

TIMEOUT = 3600  # seconds; a guard, not a budget
PROGRAM = """
import importlib.util, json, sys
sys.modules["nasspace"] = None  # any import of it fails
import torch
line = sys.stdin.readline()
if not line:
    sys.exit()  # whoever started this process has ended
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


# Not `-I`: torch may have been found through PYTHONPATH or in the user's site-packages.
_COMMAND = (sys.executable, "-P", "-B", "-W", "ignore", "-c", PROGRAM)
_waiting: list[subprocess.Popen[str]] = []  # processes that have imported torch and wait for a model.py


def prepare() -> None:
    """Start the process of the next `run`, so that torch is imported there while other work goes on here."""
    if not any(process.poll() is None for process in _waiting):
        _waiting.append(_started())


def discard() -> None:
    """End a process that waits for a `run` which does not come."""
    while _waiting:
        _ended(_waiting.pop())


def _started() -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(_COMMAND, stdin=pipe, stdout=subprocess.DEVNULL, stderr=pipe, text=True)


def _ended(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def run(path: Path, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What model.py makes of tensors: `scores` of `inputs`; `preprocessed` of `photo`; `decisions` on `pixels`.

    `pixels` are uint8 [N, C, H, W], normalized by `mean` and `std`. Raises ValueError with the reason where it fails,
    `InputError` where the tensors cannot be written for it.
    """
    process = _waiting.pop() if _waiting and _waiting[-1].poll() is None else _started()
    with temporary.private() as name:
        source, target = Path(name) / "given.pt", Path(name) / "found.pt"
        try:
            torch.save(dict(given), source)
        except (OSError, RuntimeError) as error:  # torch's own writer has no OSError for a full disk
            _ended(process)
            raise InputError(
                f"{source}: cannot be written ({_first_line(error)}); make room there or set TMPDIR to another folder"
            ) from None
        try:
            _, said = process.communicate(json.dumps([str(path), str(source), str(target)]), timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            _ended(process)
            raise ValueError(f"did not end within {TIMEOUT} seconds") from None
        if process.returncode != 0 or not target.is_file():
            raise ValueError((said.strip().splitlines() or [f"ended with status {process.returncode}"])[-1])
        try:
            found = torch.load(target, weights_only=True)
        except Exception as error:  # torch.load's errors have no common class
            raise ValueError(f"wrote no tensors ({_first_line(error)})") from None
    wrong = not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values())
    if wrong or "scores" not in found:
        raise ValueError("wrote no tensors")
    return found


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:100]
