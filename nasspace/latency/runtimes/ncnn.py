"""The runtime ncnn, used in many phone apps and on single-board computers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nasspace import temporary
from nasspace.errors import InputError
from nasspace.latency.runtimes.common import module_of, random_batch, require_cpu, require_packages

if TYPE_CHECKING:
    from nasspace.latency.runtimes.common import Shape, Source


class Ncnn:
    """ncnn on the CPU with its defaults, converted from an ONNX file by its converter pnnx.

    By default weights and activations use 16 bits where the processor supports them, as on phones; outputs agree to
    about a thousandth. ncnn has no batch dimension, so the images of a batch run one after another.
    """

    name = "ncnn"
    libraries = ("ncnn", "pnnx", "torch")
    uses_accelerator = False
    needs_calibration = False
    tolerance = 0.05

    def __init__(self, threads: int = 1, batch_size: int | None = 1, device: str = "cpu") -> None:
        require_cpu(self.name, device)
        require_packages(self.name, "ncnn", "pnnx")
        self.threads, self.batch_size, self.device = threads, batch_size or 1, device

    def load(self, source: Source, input_shape: Shape | None = None) -> Ncnn:
        """Load a network; `input_shape` is (C, H, W)."""
        from nasspace.latency.convert import to_ncnn, to_onnx

        model, self.input = module_of(source, self.name), tuple(input_shape)
        with temporary.private() as folder:
            path = to_onnx(model, self.input, Path(folder) / "network.onnx")
            self._net = _net(*to_ncnn(path, self.input), self.threads)
        self._images = _mats(random_batch(self.batch_size, self.input))
        return self

    def run(self) -> None:
        """Run one batch."""
        for image in self._images:
            self._run(image)

    def _run(self, image: Any) -> Any:
        """Run one image and return its output."""
        with self._net.create_extractor() as extractor:
            extractor.input("in0", image)
            return extractor.extract("out0")[1]

    def outputs(self, batch: np.ndarray) -> np.ndarray:
        """Return the loaded network's outputs for a batch, float32 (batch_size, C, H, W)."""
        return np.stack([np.array(self._run(image)) for image in _mats(batch)])


def _net(param: Path, weights: Path, threads: int) -> Any:
    """Load a network's structure and weights."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    if net.load_param(str(param)) != 0 or net.load_model(str(weights)) != 0:
        raise InputError(f"{param.name}: ncnn cannot load it; measure the network with --runtime onnxruntime")
    return net


def _mats(batch: np.ndarray) -> list[Any]:
    """Convert a batch to one `ncnn.Mat` for each image."""
    import ncnn

    return [ncnn.Mat(image).clone() for image in batch]  # a Mat does not keep its array alive
