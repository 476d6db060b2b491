"""ONNX in int8: static quantisation, ranges taken from real images."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nasspace import files, temporary
from nasspace.errors import InputError

if TYPE_CHECKING:
    from onnxruntime.quantization import CalibrationDataReader

IMAGES = 32  # from which the ranges of activations are taken


def digit_images(input_shape: tuple[int, int, int], count: int = IMAGES) -> np.ndarray:
    """Handwritten digits of scikit-learn, spread over the set: standardised, scaled to `input_shape`, (C, H, W)."""
    import torch
    from sklearn.datasets import load_digits

    images = load_digits().images.astype(np.float32)
    images = (images - images.mean()) / images.std()
    channels, *size = input_shape
    chosen = torch.from_numpy(images[:: max(1, len(images) // count)][:count])[:, None]
    scaled = torch.nn.functional.interpolate(chosen, size, mode="bilinear", antialias=True)
    return scaled.expand(-1, channels, -1, -1).contiguous().numpy()


def to_int8(source: str | PathLike, path: str | PathLike, images: np.ndarray) -> Path:
    """Quantise an ONNX file of one input: weights in int8 a channel, activations in uint8, as QDQ pairs.

    `images` are float32 (N, C, H, W), prepared as the network is fed; ranges are the smallest and largest values that
    they cause (random noise would cause others). Weights keep seven bits: processors without VNNI add two products
    of eight bits in sixteen, and saturate. Errors: `InputError` for images that do not fit the network's input.
    """
    path = Path(path)
    with temporary.private() as folder, files.replacing(path) as target:
        prepared = Path(folder) / "prepared.onnx"
        try:
            _quantize(Path(source), prepared, target, images)
        except InputError:
            raise
        except Exception as error:  # of ONNX, ONNX Runtime and its quantiser, which share no base class
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"{source}: cannot be quantised: {reason}; use --runtime onnxruntime") from error
    return path


def agreement(first: str | PathLike, second: str | PathLike, images: np.ndarray) -> float:
    """The share of images, float32 (N, C, H, W), to which two ONNX files give the same class."""
    one, other = (_classes(Path(path), images) for path in (first, second))
    return float((one == other).mean())


def _classes(path: Path, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    batches = _batch_reader(path, images)
    outputs = [session.run(None, feed)[0].argmax(1) for feed in iter(batches.get_next, None)]
    return np.concatenate(outputs)[: len(images)]


def _quantize(source: Path, prepared: Path, path: Path, images: np.ndarray) -> None:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(prepared),
        str(path),
        _batch_reader(prepared, images),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
    )


def _batch_reader(path: Path, images: np.ndarray) -> CalibrationDataReader:
    """The images as batches of the network's size, one after another; too few for one batch are repeated."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader

    given = onnx.load(path, load_external_data=False).graph.input[0]
    batch, *shape = (size.dim_value for size in given.type.tensor_type.shape.dim)
    if len(images) == 0 or list(images.shape[1:]) != shape:
        raise InputError(f"calibration images of {images.shape}: the network's input needs some of (N, {shape})")
    whole = np.resize(images, (-(-len(images) // max(batch, 1)) * max(batch, 1), *shape)).astype(np.float32)
    batches = iter(np.split(whole, len(whole) // max(batch, 1)))

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(({given.name: part} for part in batches), None)

    return Reader()
