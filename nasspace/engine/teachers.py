"""The teacher of a training: an ONNX file, or a network with trained weights (STUDY:ID, or an export's folder)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nasspace.data.loading import DataSet
from nasspace.engine import arch_reference, data_origin
from nasspace.errors import InputError, first_line
from nasspace.exporting import judging
from nasspace.exporting.weights import load_into, read_safetensors
from nasspace.network import build
from nasspace.training.distillation import Teacher, are_shares, as_logits

ONNX = ".onnx"
WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
Report = Callable[[str], None]


def load(teacher: str | os.PathLike, data: DataSet, device: str, report: Report) -> Teacher:
    """Load the teacher that a path or `STUDY:ID` names, for the classes and channels of `data`.

    A network runs on `device`, an ONNX file on the CPU by ONNX Runtime. Each takes images at its own size, normalized
    as it was trained. Raises `InputError` if it has no trained weights, or other classes or channels.
    """
    if not isinstance(teacher, str | os.PathLike):
        raise InputError(f"teacher: {teacher!r} is neither a path nor STUDY:ID")
    name = os.fspath(teacher)
    try:
        found = _loaded(name, data, device, report)
        outputs = found.scores(torch.zeros(1, data.channels, data.resolution, data.resolution, device=device))
    except OSError as error:
        raise InputError(f"--teacher {name[:100]}: cannot be read ({error.strerror or error})") from None
    except InputError as error:
        raise InputError(f"--teacher {name}: {str(error).removeprefix(f'{name}: ')}") from None
    if not bool(outputs.isfinite().all()):
        raise InputError(f"--teacher {name}: its outputs are not finite")
    return found


def _loaded(name: str, data: DataSet, device: str, report: Report) -> Teacher:
    """The teacher of `load`; errors do not name it."""
    if Path(name).suffix.lower() == ONNX:
        return _of_onnx(Path(name), data, report)
    if Path(name).suffix in WEIGHTS and Path(name).is_file():
        raise InputError(
            "weights alone do not say their network; name the folder of its export, STUDY:ID, or an ONNX file"
        )
    source = arch_reference.resolve_arch(name)
    if source.weights is None:
        raise InputError("has no trained weights; name an ONNX file, a trained network's folder, or STUDY:ID")
    spec = data_origin.specification(source.weights)
    if spec is None:
        raise InputError("nothing records its classes; name an export's folder, or STUDY:ID")
    columns = _columns(spec["classes"], data)
    if note := data_origin.note_on_split(source.weights, data):
        report(note)
    _check_channels(source.architecture.input[0], data)
    network = build(source.architecture)
    state = read_safetensors(source.weights)
    load_into(network, state, str(source.weights))
    network.to(device).eval()
    size, normalize = source.architecture.input[1:], _normalization(spec, device)

    def scores(images: Tensor) -> Tensor:
        with torch.no_grad():
            return network(normalize(_resized(images, size)))[:, columns]

    return Teacher(scores, _fingerprint(source.weights.read_bytes()))


def _of_onnx(path: Path, data: DataSet, report: Report) -> Teacher:
    """An ONNX file as the teacher; without our metadata it gets images as the data's training does."""
    shape, metadata = judging.described(path)
    if len(shape) != 3 or not all(isinstance(size, int) for size in shape):
        raise InputError(f"its input is {shape}, not (channels, height, width) of fixed sizes")
    _check_channels(shape[0], data)
    try:
        spec = json.loads(metadata["preprocessing"])
        columns = _columns(spec["classes"], data)
        normalize = _normalization(spec, "cpu")
        if {len(spec[key]) for key in ("mean", "std")} != {shape[0]}:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        report(f"{path}: names no classes and no normalization; the data's are used, classes in their order")
        columns = list(range(len(data.classes)))
        normalize = _normalization(
            {key: [value / 255 for value in getattr(data, key)] for key in ("mean", "std")}, "cpu"
        )
    run = judging.onnx_scores(path, threads=1)
    try:
        outputs = torch.from_numpy(run(torch.zeros(1, *shape).numpy()))
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise InputError(f"ONNX Runtime cannot run it ({first_line(error)[:200]})") from None
    if outputs.ndim != 2 or outputs.shape[1] != len(columns):
        found = "x".join(map(str, outputs.shape[1:]))
        raise InputError(f"has {found} outputs, {data.name} has {len(data.classes)} classes")
    returns_shares = are_shares(outputs)

    def scores(images: Tensor) -> Tensor:
        outputs = torch.from_numpy(run(normalize(_resized(images.cpu(), shape[1:])).contiguous().numpy()))
        return (as_logits(outputs) if returns_shares else outputs)[:, columns].to(images.device)

    return Teacher(scores, _fingerprint(path.read_bytes()))


def _columns(classes: Sequence[str], data: DataSet) -> list[int]:
    """The teacher's output for each class of the data."""
    if sorted(map(str, classes)) != sorted(data.classes):
        raise InputError(
            f"was trained for {len(classes)} classes, which are not the {len(data.classes)} of {data.name}"
        )
    places = {one: place for place, one in enumerate(classes)}
    return [places[one] for one in data.classes]


def _check_channels(channels: int, data: DataSet) -> None:
    """Refuse a teacher for gray images where the data's are in color, or the reverse."""
    if channels != data.channels:
        raise InputError(f"takes {channels} channels, {data.name} has {data.channels}")


def _normalization(spec: Mapping[str, Any], device: str) -> Callable[[Tensor], Tensor]:
    """Images from 0 to 255 as a network takes them."""
    mean, std = (torch.tensor(spec[key], device=device, dtype=torch.float32)[:, None, None] for key in ("mean", "std"))
    return lambda images: (images / 255 - mean) / std


def _resized(images: Tensor, size: Sequence[int]) -> Tensor:
    """Images at the teacher's size."""
    if tuple(images.shape[2:]) == tuple(size):
        return images
    return functional.interpolate(images, tuple(size), mode="bilinear", antialias=True)


def _fingerprint(content: bytes) -> str:
    """12 hex digits of the teacher's file."""
    return hashlib.sha256(content).hexdigest()[:12]
