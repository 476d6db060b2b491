"""Static quantization of ONNX files to int8, calibrated on real images."""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nasspace import files, temporary
from nasspace.errors import InputError

if TYPE_CHECKING:
    from onnxruntime.quantization import CalibrationDataReader
    from onnxruntime.quantization.calibrate import CalibrationMethod

IMAGES = 32  # for calibration of the activations' ranges
PERCENTILE = 99.99
WEIGHTED = ("Conv", "Gemm", "MatMul")  # operators that ONNX Runtime runs in int8


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


@dataclass(frozen=True)
class Scheme:
    """How a network is quantized: the scales of its weights, the ranges of its activations, the nodes left in float.

    `ranges` are the smallest and largest value on the calibration images (`minmax`), the 99.99th percentile of the
    magnitudes (`percentile`), or the range with the least loss of information (`entropy`; Migacz 2017).
    """

    per_channel: bool = True
    ranges: str = "minmax"
    float_nodes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"weights per {'channel' if self.per_channel else 'tensor'}, ranges by {self.ranges}"


OPTIONS: dict[str, dict[str, float]] = {
    "minmax": {},
    "percentile": {"percentile": PERCENTILE},
    "entropy": {"num_bins": 1024},  # of ONNX Runtime's 128, one remains to choose: the whole range
}
RANGES = tuple(OPTIONS)


def to_int8(source: str | PathLike, path: str | PathLike, images: np.ndarray) -> Path:
    """Quantize an ONNX file with one input: weights to int8 per channel, activations to uint8, as QDQ pairs.

    `images` are float32 (N, C, H, W), preprocessed as for inference; the ranges of activations are the smallest and
    largest values on them (random noise would give other ranges). Weights use seven bits, since processors without VNNI
    add two 8-bit products in 16 bits and saturate. Raises `InputError` for images that do not fit the network's input.
    """
    with calibrated(source, images) as calibration:
        return calibration.quantize(path, Scheme())


@contextlib.contextmanager
def calibrated(source: str | PathLike, images: np.ndarray) -> Iterator[Calibration]:
    """Prepare an ONNX file for quantization, calibrated on images as in `to_int8`."""
    with temporary.private() as folder:
        prepared = Path(folder) / "prepared.onnx"
        with _errors_of(source):
            from onnxruntime.quantization.shape_inference import quant_pre_process

            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)  # shapes, and optimization
        yield Calibration(Path(source), prepared, images)


@dataclass(frozen=True, eq=False)
class Calibration:
    """A float network, prepared for quantization, and the images that calibrate it; ranges are found once."""

    source: Path
    prepared: Path
    images: np.ndarray

    @cached_property
    def nodes(self) -> list[str]:
        """The names of the nodes with weights, in order."""
        import onnx

        graph = onnx.load(self.prepared).graph
        weights = {one.name for one in graph.initializer}
        return [node.name for node in graph.node if node.op_type in WEIGHTED and weights & set(node.input[1:2])]

    def quantize(self, path: str | PathLike, scheme: Scheme) -> Path:
        """Write the int8 file of a scheme; an `InputError` for images that do not fit, or another operator's limits."""
        from onnxruntime import quantization

        path = Path(path)
        options = {"calibration_cache_path": self._ranges(scheme.ranges)} if has_cache() else {}
        printed = contextlib.redirect_stdout(io.StringIO())  # the calibrators print what they do
        with files.replacing(path) as target, _errors_of(self.source), printed:
            quantization.quantize_static(
                str(self.prepared),
                str(target),
                _batch_reader(self.prepared, self.images),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=scheme.per_channel,
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=_method(scheme.ranges),
                nodes_to_exclude=list(scheme.float_nodes),
                **options,
            )
        return path

    def with_weights(self, weights: Mapping[str, np.ndarray]) -> Calibration:
        """The network with other weights, by their names in the prepared file; the ranges of activations stay.

        An ONNX Runtime that reads no ranges from a file finds them again.
        """
        import onnx

        model = onnx.load(self.prepared)
        for one in model.graph.initializer:
            if one.name in weights:
                one.CopyFrom(onnx.numpy_helper.from_array(weights[one.name], one.name))
        onnx.save(model, path := self.prepared.with_name("with-weights.onnx"))
        return replace(self, prepared=path)

    def _ranges(self, kind: str) -> Path:
        """The ranges on the calibration images, as a file of ONNX Runtime's; written at the first call."""
        from onnxruntime.quantization import calibrate

        path = self.prepared.with_name(f"{kind}.json")
        if not path.exists():
            with _errors_of(self.source), contextlib.redirect_stdout(io.StringIO()):
                calibrator = calibrate.create_calibrator(
                    self.prepared,
                    augmented_model_path=str(path.with_suffix(".onnx")),
                    calibrate_method=_method(kind),
                    extra_options=OPTIONS[kind],
                )
                calibrator.collect_data(_batch_reader(self.prepared, self.images))
                calibrate.save_tensors_data(calibrator.compute_data(), path)
        return path


def _method(kind: str) -> CalibrationMethod:
    """ONNX Runtime's name of a way to find ranges."""
    from onnxruntime.quantization import CalibrationMethod as methods

    return {"minmax": methods.MinMax, "percentile": methods.Percentile, "entropy": methods.Entropy}[kind]


def has_cache() -> bool:
    """Whether this ONNX Runtime reads ranges from a file; else it finds them itself, with its own options."""
    from onnxruntime.quantization import quantize_static

    return "calibration_cache_path" in inspect.signature(quantize_static).parameters


@contextlib.contextmanager
def _errors_of(source: str | PathLike) -> Iterator[None]:
    """Turn the errors of ONNX, ONNX Runtime and its quantizer, which share no base class, into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{source}: cannot be quantized: {reason}; use --runtime onnxruntime") from error


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
