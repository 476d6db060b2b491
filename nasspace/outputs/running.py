"""model.py of an export, run with its weights in a process of its own that has no nasspace."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

TIMEOUT = 3600  # seconds; a guard, not a budget
PROGRAM = """
import importlib.util, sys
sys.modules["nasspace"] = None  # any import of it fails
path, source, target = sys.argv[1:]
spec = importlib.util.spec_from_file_location("model", path)
model = sys.modules["model"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(model)
import torch
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


def run(path: Path, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What model.py makes of tensors: `scores` of `inputs`; `preprocessed` of `photo`; `decisions` on `pixels`.

    `pixels` are uint8 [N, C, H, W], normalized by `mean` and `std`. Raises ValueError with the reason where it fails.
    """
    with tempfile.TemporaryDirectory(prefix="nasspace-") as name:
        source, target = Path(name) / "given.pt", Path(name) / "found.pt"
        torch.save(dict(given), source)
        command = [sys.executable, "-I", "-B", "-W", "ignore", "-c", PROGRAM, str(path), str(source), str(target)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        except subprocess.TimeoutExpired:
            raise ValueError(f"did not end within {TIMEOUT} seconds") from None
        if done.returncode != 0 or not target.is_file():
            raise ValueError((done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1])
        try:
            found = torch.load(target, weights_only=True)
        except Exception as error:  # torch.load's errors have no common class
            raise ValueError(f"wrote no tensors ({str(error).splitlines()[0][:100]})") from None
    wrong = not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values())
    if wrong or "scores" not in found:
        raise ValueError("wrote no tensors")
    return found
