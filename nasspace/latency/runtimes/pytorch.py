"""The runtimes of PyTorch: eager, TorchScript and `torch.compile`, in inference mode with folded batch norm."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from nasspace.errors import InputError
from nasspace.latency.runtimes.common import module_of, random_batch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nasspace.latency.runtimes.common import Shape, Source


class Eager:
    """Eager PyTorch; on a GPU a run ends when the device has finished."""

    name = "eager"
    libraries: tuple[str, ...] = ("torch",)
    uses_accelerator = True
    needs_calibration = False

    def __init__(self, threads: int = 1, batch_size: int | None = 1, device: str = "cpu") -> None:
        self.threads, self.batch_size, self.device = threads, batch_size or 1, device
        self.tolerance = 1e-3 if device == "cpu" else 0.05  # GPUs may multiply with reduced precision

    def load(self, source: Source, input_shape: Shape | None = None) -> Eager:
        """Load a copy of a network; `input_shape` is (C, H, W)."""
        model = module_of(source, self.name)
        import torch

        from nasspace.latency.convert import fold_batch_norm

        self._finish = synchronizer(self.device)
        self.input = tuple(input_shape)
        self._batch = torch.from_numpy(random_batch(self.batch_size, self.input)).to(self.device)
        self._inference_mode = torch.inference_mode
        with self.configured():
            self._model = self._prepare(fold_batch_norm(model, self.input).requires_grad_(False).to(self.device))
        return self

    def _prepare(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """Return the callable that runs the model."""
        return model

    def run(self) -> None:
        """Run one batch."""
        with self._inference_mode():
            self._model(self._batch)
        self._finish()

    def outputs(self, batch: np.ndarray) -> np.ndarray:
        """Return the loaded network's outputs for a batch, float32 (batch_size, C, H, W)."""
        import torch

        with self.configured(), torch.inference_mode():
            return self._model(torch.from_numpy(batch).to(self.device)).cpu().numpy()

    @contextlib.contextmanager
    def configured(self) -> Iterator[None]:
        """Set PyTorch's number of threads for the body, and restore it afterwards."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


class TorchScript(Eager):
    """TorchScript: the network traced and frozen, as LibTorch runs it."""

    name = "torchscript"

    def _prepare(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        from nasspace.latency.convert import to_torchscript

        return to_torchscript(model, self._batch)


class Compiled(Eager):
    """`torch.compile` with Inductor for a fixed batch; the first compilation takes half a minute or more.

    On the CPU Inductor needs a C++ compiler; without one the constructor raises `InputError`. Inductor's disk cache
    makes later compilations of the same parts fast.
    """

    name = "compile"

    def __init__(self, threads: int = 1, batch_size: int | None = 1, device: str = "cpu") -> None:
        super().__init__(threads, batch_size, device)
        if device == "cpu":
            _require_compiler()

    def _prepare(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        import torch

        def forward(batch: Tensor) -> Tensor:
            return model(batch)

        # PyTorch caches at most eight compilations per code object, so each network gets its own code object.
        own = types.FunctionType(forward.__code__.replace(), globals(), "forward", None, forward.__closure__)
        compiled = torch.compile(own, fullgraph=True, dynamic=False)
        with _compiling(), torch.inference_mode():
            compiled(self._batch)
        return compiled


@contextlib.contextmanager
def _compiling() -> Iterator[None]:
    """Convert Inductor's errors to `InputError`, and ignore warnings about TorchScript that PyTorch itself causes."""
    import torch

    from nasspace.latency.convert import torchscript_warnings

    try:
        with torchscript_warnings():
            yield
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"torch.compile cannot compile the network: {reason}; measure it with --runtime eager"
        ) from error


def _require_compiler() -> None:
    """Raise `InputError` if Inductor finds no C++ compiler."""
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError):
        raise InputError(
            "--runtime compile needs a C++ compiler; install g++ (Debian: apt-get install g++), "
            "or name a compiler in the environment variable CXX"
        ) from None


def synchronizer(device: str) -> Any:
    """Return the function that waits until a device has finished its work; `InputError` for an unavailable device."""
    import torch

    kind = device.partition(":")[0]
    if kind == "cpu":
        return lambda: None
    if kind == "cuda" and torch.cuda.is_available():
        return lambda: torch.cuda.synchronize(device)
    if kind == "mps" and torch.backends.mps.is_available():
        return torch.mps.synchronize
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    known = ", ".join(name for name, is_available in available.items() if is_available)
    raise InputError(f"device '{device}' is not available; this machine has: {known}")


def device_label(device: str) -> str:
    """Return the device with the name of the GPU, so that measurements on different GPUs are kept apart."""
    if not device.startswith("cuda"):
        return device
    import torch

    return f"{device} {torch.cuda.get_device_name(device)}" if torch.cuda.is_available() else device
