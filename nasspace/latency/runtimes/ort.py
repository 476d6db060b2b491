"""The runtime ONNX Runtime on the CPU, in float32 and int8."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nasspace import temporary
from nasspace.errors import InputError, first_line
from nasspace.latency.runtimes.common import CalibratedModel, check_outputs, module_of, random_batch, require_cpu

if TYPE_CHECKING:
    from nasspace.latency.runtimes.common import Shape, Source


class OnnxRuntime:
    """ONNX Runtime on the CPU: operators run one after another, each on `threads` threads.

    With several threads the pool spins during a run, which is the default, and stops between runs, so that networks
    measured in turn do not disturb each other.
    """

    name = "onnxruntime"
    libraries: tuple[str, ...] = ("onnxruntime", "torch")  # torch writes the file
    uses_accelerator = False
    needs_calibration = False
    tolerance: float | None = 1e-3

    def __init__(self, threads: int = 1, batch_size: int | None = 1, device: str = "cpu") -> None:
        require_cpu(self.name, device)
        self.threads, self.batch_size, self.device = threads, batch_size, device

    def load(self, source: Source, input_shape: Shape | None = None) -> OnnxRuntime:
        """Load an ONNX file, or a network through a temporary file (which needs `input_shape`, (C, H, W)).

        `batch_size=None` uses the file's own batch size, or 1 if it is dynamic.
        """
        if isinstance(source, str | PathLike):
            return self._load(Path(source))
        with temporary.private() as folder:
            return self._load(self.write(source, input_shape, Path(folder) / "network.onnx"))

    def write(self, source: Source, input_shape: Shape | None, path: Path) -> Path:
        """Write a network as a file that this runtime loads."""
        from nasspace.latency.convert import to_onnx

        return to_onnx(module_of(source, self.name), input_shape, path, batch_size=self.batch_size or 1)

    def _load(self, path: Path) -> OnnxRuntime:
        """Load a file and prepare its input."""
        self._session = _session(path, self.threads)
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
            raise InputError(f"{path}: its input must be one float32 tensor (batch, channels, height, width)")
        batch, *shape = inputs[0].shape
        if not all(isinstance(size, int) for size in shape):
            raise InputError(f"{path}: its input size is not fixed: {inputs[0].shape}; export it with a fixed size")
        if isinstance(batch, int) and self.batch_size not in (None, batch):
            raise InputError(f"{path}: was exported for a batch of {batch}, not {self.batch_size}")
        self.batch_size = batch if isinstance(batch, int) else self.batch_size or 1
        self.input = tuple(shape)
        self._input_name = inputs[0].name
        self._feed = {self._input_name: random_batch(self.batch_size, self.input)}
        return self

    def run(self) -> None:
        """Run one batch."""
        self._session.run(None, self._feed)

    def outputs(self, batch: np.ndarray) -> np.ndarray:
        """Return the loaded network's outputs for a batch, float32 (batch_size, C, H, W)."""
        return self._session.run(None, {self._input_name: batch})[0]


class OnnxRuntimeInt8(OnnxRuntime):
    """ONNX Runtime with a quantized network: weights in int8 per channel, activations in uint8.

    Ranges are calibrated on the images of a `CalibratedModel`, else on handwritten digits (see `quantization`). A file
    is assumed to be quantized already.
    """

    name = "onnxruntime-int8"
    libraries = ("onnxruntime", "onnx", "torch")
    needs_calibration = True
    tolerance = None  # int8 outputs of an untrained network differ widely; the float file is compared instead

    def write(self, source: Source, input_shape: Shape | None, path: Path) -> Path:
        """Write a network as a quantized file."""
        from nasspace.latency.quantization import digit_images, to_int8

        plain = super().write(source, input_shape, path.with_name("float.onnx"))
        check_outputs(OnnxRuntime(self.threads, self.batch_size).load(plain), source)
        images = source.images if isinstance(source, CalibratedModel) else digit_images(input_shape)
        return to_int8(plain, path, images)


def check_optimized(path: Path, batch_size: int) -> None:
    """Raise `InputError` if ONNX Runtime's optimizations change the outputs of a file.

    Used for files without a PyTorch network, such as an edited graph.
    """
    from nasspace.latency.convert import relative_difference

    network = OnnxRuntime(1, batch_size).load(path)
    batch = random_batch(network.batch_size, network.input)
    plain = _session(path, 1, optimized=False).run(None, {network._input_name: batch})[0]
    if not np.isfinite(plain).all():
        return
    difference = relative_difference(plain, network.outputs(batch))
    if not difference <= OnnxRuntime.tolerance:
        raise InputError(
            f"ONNX Runtime's outputs change with its optimizations (largest difference: "
            f"{100 * difference:.2g} % of the largest output), so another network would be measured"
        )


def _session(path: Path, threads: int, *, optimized: bool = True) -> Any:
    """Load a file in ONNX Runtime."""
    import onnxruntime

    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # without a common base class
        reason = first_line(error)
        raise InputError(f"{path}: ONNX Runtime cannot load it: {reason}") from error
