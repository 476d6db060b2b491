"""A runtime: eager PyTorch on the CPU, with images and weights in the channels-last memory format."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from nasspace.errors import InputError
from nasspace.latency.convert import fold_batch_norm
from nasspace.latency.runtimes import module_of, random_batch


class ChannelsLast:
    """Eager PyTorch in the channels-last format, batch norm folded."""

    name = "channels-last"
    libraries = ("torch", "ghost-plugin")  # a new version of one of these is measured again
    uses_accelerator = False
    needs_calibration = False
    tolerance = 1e-3

    def __init__(self, threads: int = 1, batch_size: int | None = 1, device: str = "cpu") -> None:
        if device != "cpu":
            raise InputError(f"device '{device}': {self.name} runs on the cpu only; use --runtime eager")
        self.threads, self.batch_size, self.device = threads, batch_size or 1, device

    def load(self, source: Any, input_shape: tuple[int, int, int]) -> ChannelsLast:
        """Load a copy of a network; `input_shape` is (C, H, W)."""
        self.input = tuple(input_shape)
        model = fold_batch_norm(module_of(source, self.name), self.input)
        self._model = model.to(memory_format=torch.channels_last)
        self._batch = self._images(random_batch(self.batch_size, self.input))
        return self

    def run(self) -> None:
        """Run one batch."""
        with torch.inference_mode():
            self._model(self._batch)

    def outputs(self, batch: np.ndarray) -> np.ndarray:
        """Return the loaded network's outputs for a batch, float32 (batch_size, C, H, W)."""
        with self.configured(), torch.inference_mode():
            return self._model(self._images(batch)).numpy()

    @contextlib.contextmanager
    def configured(self) -> Iterator[None]:
        """Set PyTorch's number of threads for the body, which is a measurement."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def _images(self, batch: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(batch).to(memory_format=torch.channels_last)
