"""PyTorch's own ways to run a network: eager, TorchScript, `torch.compile`; batch norm folded, in inference mode."""

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
    """PyTorch as it is; on a GPU a run ends when the device is done."""

    name = "eager"
    libraries: tuple[str, ...] = ("torch",)
    uses_accelerator = True
    needs_calibration = False

    def __init__(self, threads: int = 1, batch_size: int | None = 1, device: str = "cpu") -> None:
        self.threads, self.batch_size, self.device = threads, batch_size or 1, device
        self.tolerance = 1e-3 if device == "cpu" else 0.05  # GPUs may multiply in fewer bits

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
        return model

    def run(self) -> None:
        """One batch."""
        with self._inference_mode():
            self._model(self._batch)
        self._finish()

    def outputs(self, batch: np.ndarray) -> np.ndarray:
        """What the loaded network gives for a batch, float32 (batch_size, C, H, W)."""
        import torch

        with self.configured(), torch.inference_mode():
            return self._model(torch.from_numpy(batch).to(self.device)).cpu().numpy()

    @contextlib.contextmanager
    def configured(self) -> Iterator[None]:
        """While it lasts PyTorch has our number of threads; then the caller's again."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


class TorchScript(Eager):
    """The network traced and frozen, as LibTorch runs it."""

    name = "torchscript"

    def _prepare(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        from nasspace.latency.convert import to_torchscript

        return to_torchscript(model, self._batch)


class Compiled(Eager):
    """The network compiled by `torch.compile` (Inductor) for this batch; half a minute or more the first time.

    On the CPU Inductor writes C++; without a compiler it is an `InputError`. Its cache on disk makes a second
    compilation of the same parts quick.
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

        # Compiled code is kept for each code object, eight at most: each network gets one of its own.
        own = types.FunctionType(forward.__code__.replace(), globals(), "forward", None, forward.__closure__)
        compiled = torch.compile(own, fullgraph=True, dynamic=False)
        with _compiling(), torch.inference_mode():
            compiled(self._batch)
        return compiled


@contextlib.contextmanager
def _compiling() -> Iterator[None]:
    """Inductor's errors as ours, and PyTorch's notices about its own use of TorchScript silenced by their text."""
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
    """A C++ compiler as Inductor finds it."""
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError):
        raise InputError(
            "--runtime compile needs a C++ compiler, and there is none; install g++ (Debian: apt-get install g++), "
            "or name one in the environment variable CXX"
        ) from None


def synchronizer(device: str) -> Any:
    """The function that waits until the device has done all it was told."""
    import torch

    kind = device.partition(":")[0]
    if kind == "cpu":
        return lambda: None
    if kind == "cuda" and torch.cuda.is_available():
        return lambda: torch.cuda.synchronize(device)
    if kind == "mps" and torch.backends.mps.is_available():
        return torch.mps.synchronize
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    known = ", ".join(name for name, there in here.items() if there)
    raise InputError(f"device '{device}' is not here; this machine has: {known}")


def device_label(device: str) -> str:
    """The device with its model, as far as that is known: two GPUs are two devices."""
    if not device.startswith("cuda"):
        return device
    import torch

    return f"{device} {torch.cuda.get_device_name(device)}" if torch.cuda.is_available() else device
