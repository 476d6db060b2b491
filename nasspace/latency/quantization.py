"""Static quantization of ONNX files to int8, calibrated on real images."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nasspace import files, temporary
from nasspace.errors import InputError

if TYPE_CHECKING:
    from onnxruntime.quantization import CalibrationDataReader

IMAGES = 32  # for calibration of the activations' ranges


def digit_images(input_shape: tuple[int, int, int], count: int = IMAGES) -> np.ndarray:
    """Return scikit-learn's handwritten digits, standardized and scaled to `input_shape`, (C, H, W)."""
    import torch
    from sklearn.datasets import load_digits

    images = load_digits().images.astype(np.float32)
    images = (images - images.mean()) / images.std()
    channels, *size = input_shape
    chosen = torch.from_numpy(images[:: max(1, len(images) // count)][:count])[:, None]
    scaled = torch.nn.functional.interpolate(chosen, size, mode="bilinear", antialias=True)
    return scaled.expand(-1, channels, -1, -1).contiguous().numpy()


def to_int8(source: str | PathLike, path: str | PathLike, images: np.ndarray) -> Path:
    """Quantize an ONNX file with one input: weights to int8 per channel, activations to uint8, as QDQ pairs.

    `images` are float32 (N, C, H, W), preprocessed as for inference; the ranges of activations are the smallest and
    largest values on them (random noise would give other ranges). Weights use seven bits, since processors without VNNI
    add two 8-bit products in 16 bits and saturate. Raises `InputError` for images that do not fit the network's input.
    """
    path = Path(path)
    with temporary.private() as folder, files.replacing(path) as target:
        prepared = Path(folder) / "prepared.onnx"
        try:
            _quantize(Path(source), prepared, target, images)
        except InputError:
            raise
        except Exception as error:  # from ONNX, ONNX Runtime and its quantizer, without a common base class
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"{source}: cannot be quantized: {reason}; use --runtime onnxruntime") from error
    return path


def agreement(first: str | PathLike, second: str | PathLike, images: np.ndarray) -> float:
    """Return the share of images, float32 (N, C, H, W), that two ONNX files assign to the same class."""
    one, other = (_classes(Path(path), images) for path in (first, second))
    return float((one == other).mean())


def _classes(path: Path, images: np.ndarray) -> np.ndarray:
    """Predict the class of each image."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    batches = _batch_reader(path, images)
    outputs = [session.run(None, feed)[0].argmax(1) for feed in iter(batches.get_next, None)]
    return np.concatenate(outputs)[: len(images)]


def _quantize(source: Path, prepared: Path, path: Path, images: np.ndarray) -> None:
    """Prepare a file (shape inference, optimization) and quantize it."""
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
    """Return a reader of the images in batches of the network's batch size; images repeat to fill the last batch."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader

    described = onnx.load(path, load_external_data=False).graph.input[0]
    batch, *shape = (size.dim_value for size in described.type.tensor_type.shape.dim)
    if len(images) == 0 or list(images.shape[1:]) != shape:
        raise InputError(f"calibration images of {images.shape}: the network's input needs some of (N, {shape})")
    whole = np.resize(images, (-(-len(images) // max(batch, 1)) * max(batch, 1), *shape)).astype(np.float32)
    batches = iter(np.split(whole, len(whole) // max(batch, 1)))

    class Reader(CalibrationDataReader):
        """The batches, one at a time."""

        def get_next(self) -> dict[str, np.ndarray] | None:
            """Return the next batch, or None at the end."""
            return next(({described.name: part} for part in batches), None)

    return Reader()
