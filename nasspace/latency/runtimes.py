"""Ways to run a network, each with `load` and `run` of one seeded batch; and to time a round of such runs."""

from __future__ import annotations

import contextlib
import glob
import importlib.metadata
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nasspace.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import nn

    Source = nn.Module | str | PathLike
Shape = tuple[int, int, int]
CONTENDED = 1.15  # wall time over CPU time from which a round counts as disturbed
WARM_UP_SECONDS = 0.5
ROUND_SECONDS = 0.02


class OnnxRuntime:
    """ONNX Runtime on the CPU: operators one after another, each on `threads` threads.

    With several threads the pool spins while a run lasts, as users have it, and rests between runs, so that several
    networks measured in turn do not disturb each other.
    """

    name = "onnxruntime"
    libraries = ("onnxruntime", "torch")  # torch writes the file

    def __init__(self, threads: int = 1, batch_size: int | None = 1, device: str = "cpu") -> None:
        if device != "cpu":
            raise InputError(f"device '{device}': onnxruntime runs on the cpu here; use --runtime eager")
        self.threads, self.batch_size, self.device = threads, batch_size, device

    def load(self, source: Source, input_shape: Shape | None = None) -> OnnxRuntime:
        """Load an ONNX file, or a network by way of a temporary one (then `input_shape`, (C, H, W), is needed).

        `batch_size=None` takes the file's own, 1 where it is free.
        """
        if isinstance(source, str | PathLike):
            return self._load(Path(source))
        from nasspace.latency.convert import to_onnx

        with tempfile.TemporaryDirectory(prefix="nasspace-") as folder:
            path = Path(folder) / "network.onnx"
            return self._load(to_onnx(source, input_shape, path, batch_size=self.batch_size or 1))

    def _load(self, path: Path) -> OnnxRuntime:
        self._session = _session(path, self.threads)
        given = self._session.get_inputs()
        if len(given) != 1 or given[0].type != "tensor(float)" or len(given[0].shape) != 4:
            raise InputError(f"{path}: its input must be one float32 tensor (batch, channels, height, width)")
        batch, *shape = given[0].shape
        if not all(isinstance(size, int) for size in shape):
            raise InputError(f"{path}: the size of its input is not fixed: {given[0].shape}; export it at one size")
        if isinstance(batch, int) and self.batch_size not in (None, batch):
            raise InputError(f"{path}: was exported for a batch of {batch}, not {self.batch_size}")
        self.batch_size = batch if isinstance(batch, int) else self.batch_size or 1
        self.input = tuple(shape)
        self._feed = {given[0].name: batch_of(self.batch_size, self.input)}
        return self

    def run(self) -> None:
        """One batch."""
        self._session.run(None, self._feed)


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{path}: ONNX Runtime cannot load it: {reason}") from error


class Eager:
    """PyTorch as it is, batch norm folded, in inference mode; on a GPU a run ends when the device is done."""

    name = "eager"
    libraries = ("torch",)

    def __init__(self, threads: int = 1, batch_size: int | None = 1, device: str = "cpu") -> None:
        self.threads, self.batch_size, self.device = threads, batch_size or 1, device

    def load(self, source: Source, input_shape: Shape | None = None) -> Eager:
        """Load a network; `input_shape` is (C, H, W)."""
        if isinstance(source, str | PathLike):
            raise InputError(f"{source}: the runtime 'eager' runs networks, not files; use --runtime onnxruntime")
        import torch

        from nasspace.latency.convert import folded

        self._finish = _synchroniser(self.device)
        self.input = tuple(input_shape)
        self._model = folded(source, self.input).to(self.device)
        self._batch = torch.from_numpy(batch_of(self.batch_size, self.input)).to(self.device)
        self._inference_mode = torch.inference_mode
        return self

    def run(self) -> None:
        """One batch."""
        with self._inference_mode():
            self._model(self._batch)
        self._finish()

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """While it lasts PyTorch has our number of threads; then the caller's again."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _synchroniser(device: str) -> Any:
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


RUNTIMES = {runtime.name: runtime for runtime in (OnnxRuntime, Eager)}


def get(name: str) -> type[OnnxRuntime] | type[Eager]:
    """The class of a runtime; an `InputError` names the nearest where there is none."""
    if name not in RUNTIMES:
        raise InputError(f"'{name}' is not a runtime{nearest(name, RUNTIMES)}")
    return RUNTIMES[name]


def versions(runtime: str) -> dict[str, str]:
    """The versions of the libraries behind a runtime, and ours, without importing them."""
    return library_versions(get(runtime).libraries)


def library_versions(libraries: Iterable[str]) -> dict[str, str]:
    """The installed version of each, and of nasspace."""
    return {library: _version(library) for library in (*libraries, "nasspace")}


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def batch_of(batch_size: int, input_shape: Shape) -> np.ndarray:
    """Seeded normal input, (batch, C, H, W) in float32."""
    return np.random.default_rng(0).standard_normal((batch_size, *input_shape), dtype=np.float32)


def _queue_seconds() -> float:
    """Seconds in which threads of this process were ready to run and had no core, summed; grows with time.

    Where the system does not tell (not Linux): the time in which the whole process had less than one core.
    """
    waited = 0
    for path in glob.glob("/proc/self/task/*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError), open(path, encoding="ascii") as file:
            waited += int(file.read().split()[1])
    return waited / 1e9 if waited else time.perf_counter() - time.process_time()


@dataclass(frozen=True)
class Clocks:
    """Wall time, CPU time of the calling thread, and time that threads waited for a core; all in seconds."""

    wall: Callable[[], float] = time.perf_counter
    cpu: Callable[[], float] = time.thread_time
    queue: Callable[[], float] = _queue_seconds


CLOCKS = Clocks()


@dataclass(frozen=True)
class Round:
    """Several runs of one network on end, as one value in milliseconds."""

    value_ms: float
    contended: bool


def _runs(network: Any, clocks: Clocks, seconds: float) -> tuple[list[float], list[float]]:
    """Wall and CPU seconds of each run; at least two runs, for about `seconds`."""
    walls, cpus = [], []
    while len(walls) < 2 or sum(walls) < seconds:
        cpu, wall = clocks.cpu(), clocks.wall()
        network.run()
        walls.append(clocks.wall() - wall)
        cpus.append(clocks.cpu() - cpu)
    return walls, cpus


def take_round(network: Any, clocks: Clocks = CLOCKS) -> Round:
    """Run for about 20 ms: the median run, or where the round was disturbed the best that is known of it.

    Disturbed is a round whose wall time exceeds its thread's CPU time by 15 %; with several threads, one in which
    they waited for a core for 15 % of it. A thread that waits for another device shows nothing, and raises no alarm.
    """
    several = network.threads > 1
    before = clocks.queue() if several else 0.0
    walls, cpus = _runs(network, clocks, ROUND_SECONDS)
    if network.device != "cpu":
        contended = False
    elif several:
        contended = clocks.queue() - before > (CONTENDED - 1) * sum(walls)
    else:
        contended = sum(walls) > CONTENDED * sum(cpus)
    if contended:
        walls = [min(walls)] if several else [min(pair) for pair in zip(walls, cpus, strict=True)]
    return Round(1e3 * statistics.median(walls), contended)


def warm_up(network: Any, clocks: Clocks = CLOCKS) -> None:
    """Run until the fastest of some runs is within 2 % of the fastest of the runs before, or half a second is up."""
    network.run()
    end, fastest = clocks.wall() + WARM_UP_SECONDS, float("inf")
    while clocks.wall() < end:
        walls, _ = _runs(network, clocks, ROUND_SECONDS / 2)
        if min(walls) > 0.98 * fastest:
            return
        fastest = min(walls)
