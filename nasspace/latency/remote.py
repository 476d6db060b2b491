"""Latency on another device: ONNX files are pushed over SSH, measured by the same code, and cached locally."""

from __future__ import annotations

import functools
import io
import statistics
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace import temporary
from nasspace.errors import InputError
from nasspace.latency import benchmark, reference, runtimes
from nasspace.latency.benchmark import SECONDS, Latency, check_counts
from nasspace.latency.cache import LatencyCache
from nasspace.latency.conditions import Conditions, network_digest
from nasspace.latency.connection import Address, Connection

if TYPE_CHECKING:
    from torch import nn

    from nasspace.architecture import Architecture

LOCAL = "local"
GROUP_SIZE = 4  # files measured in turn; the reference network makes groups comparable


def check_device(address: str, runtime: str) -> None:
    """Raise `InputError` for an invalid address or a runtime that cannot run there, without connecting."""
    if address == LOCAL:
        return
    Address.parse(address)
    if not issubclass(runtimes.get(runtime), runtimes.OnnxRuntime):
        raise InputError(f"runtime '{runtime}': {address} measures with onnxruntime or onnxruntime-int8")


class RemoteDevice:
    """A device at `ssh://[user@]host[:port][/path/of/python]`, connected on first use and closed by `with`.

    Raises `InputError` for an unreachable device, an unknown or changed host key, missing Python or ONNX Runtime, and
    a lost connection.
    """

    def __init__(self, address: str) -> None:
        self.address = Address.parse(address)

    @functools.cached_property
    def _connection(self) -> Connection:
        return Connection(self.address, _pushed_code())

    def __enter__(self) -> RemoteDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process on the device, which leaves no files there; a later request starts a new one."""
        if connection := self.__dict__.pop("_connection", None):
            connection.close()

    @property
    def machine(self) -> dict[str, Any]:
        """The device, in the form of `conditions.machine()`."""
        return self._connection.hello["machine"]

    def versions(self, runtime: str) -> dict[str, str]:
        """Return the versions of the device's libraries, and of the local ones that write the files."""
        return runtimes.versions(runtime) | self._connection.hello["versions"]

    def measure_latency(
        self,
        architecture: Architecture,
        runtime: str = "onnxruntime",
        threads: int = 1,
        batch_size: int = 1,
        *,
        model: nn.Module | runtimes.CalibratedModel | None = None,
        seconds: float = SECONDS,
        fresh: bool = False,
        cache: LatencyCache | None = None,
    ) -> Latency:
        """Measure as `benchmark.measure_latency` does, on the device; cached by its machine, versions and address."""
        check_device(str(self.address), runtime)
        check_counts(self.machine, threads=threads, batch_size=batch_size)
        cache = LatencyCache() if cache is None else cache
        digest = network_digest(architecture, None if model is None else runtimes.module_of(model, runtime))
        settings = {"threads": threads, "batch_size": batch_size}
        key = self._conditions(digest, runtime, **settings, input=architecture.input) if digest else None
        reference_key = self._reference_conditions(threads)
        if key and not fresh and (known := benchmark.known_latency(key, reference_key, cache)):
            return known
        if model is None:
            from nasspace.network import build

            model = build(architecture)
        with temporary.private() as folder:
            local = runtimes.get(runtime)(threads, batch_size)
            path = local.write(model, architecture.input, Path(folder) / "network.onnx")
            runtimes.check_outputs(local.load(path), model)
            (found,) = self._measured([path], runtime, threads, batch_size, seconds, cache)
        return benchmark.store_latency(found, key, reference_key, runtime, cache)

    def measure_files(
        self,
        paths: Sequence[str | PathLike],
        threads: int = 1,
        batch_size: int | None = None,
        seconds: float = SECONDS,
        *,
        runtime: str = "onnxruntime",
        cache: LatencyCache | None = None,
    ) -> Iterator[Latency]:
        """Measure ONNX files on the device in groups of four; yield the results of each group when it is finished."""
        cache = LatencyCache() if cache is None else cache
        for first in range(0, len(paths), GROUP_SIZE):
            group = [Path(path) for path in paths[first : first + GROUP_SIZE]]
            yield from self._measured(group, runtime, threads, batch_size, seconds, cache)

    def _measured(
        self, paths: list[Path], runtime: str, threads: int, batch_size: int | None, seconds: float, cache: LatencyCache
    ) -> list[Latency]:
        """Measure a group of files, store the reference's reading, and normalize."""
        contents = [path.read_bytes() for path in paths]
        request = {"sizes": [len(content) for content in contents], "threads": threads, "batch_size": batch_size}
        request |= {"seconds": seconds}
        try:
            response = self._connection.request(request, *contents)
            found = [self._with_device(Latency.from_json(one), runtime) for one in response["latencies"]]
        except InputError:
            self.close()
            raise
        reference_key = self._reference_conditions(threads)
        undisturbed = [ms for one in found if not one.contended for ms in one.reference_ms]
        if undisturbed:
            cache.add_reading(reference_key, statistics.median(undisturbed))
        known = reference.machine_history(reference_key, runtime, cache)
        return [latency.normalized(known) for latency in found]

    def _with_device(self, latency: Latency, runtime: str) -> Latency:
        """Return a measurement with the device's address and versions."""
        return replace(latency, runtime=runtime, device=str(self.address), versions=self.versions(runtime))

    def _reference_conditions(self, threads: int) -> Conditions:
        """Return the conditions of the reference network on the device."""
        network = reference.reference_architecture()
        return self._conditions(network.digest, "onnxruntime", threads=threads, batch_size=1, input=network.input)

    def _conditions(self, digest: str, runtime: str, **settings: Any) -> Conditions:
        """Return conditions on the device."""
        where = {"device": str(self.address), "versions": self.versions(runtime), "machine": self.machine}
        return Conditions(digest, runtime, **where, **settings)


def measure_latency(
    architecture: Architecture,
    runtime: str = "onnxruntime",
    threads: int = 1,
    batch_size: int = 1,
    resolution: int | None = None,
    *,
    latency_device: str = LOCAL,
    device: str = "cpu",
    **options: Any,
) -> Latency:
    """Measure the latency of an architecture on `device` of this machine, or on another machine.

    `latency_device` is `local` or `ssh://[user@]host[:port][/path/of/python]`. `options` are `model`, `seconds`,
    `fresh` and `cache` of `benchmark.measure_latency`. Raises `InputError` for arguments that cannot be measured.
    """
    check_device(latency_device, runtime)
    options |= {"runtime": runtime, "threads": threads, "batch_size": batch_size}
    if latency_device == LOCAL:
        return benchmark.measure_latency(architecture, resolution=resolution, device=device, **options)
    if resolution is not None:
        check_counts(resolution=resolution)
        architecture = architecture.with_resolution(resolution)
    if device != "cpu":
        raise InputError(f"device '{device}': {latency_device} measures on its cpu")
    with RemoteDevice(latency_device) as remote_device:
        return remote_device.measure_latency(architecture, **options)


def _pushed_code() -> bytes:
    """Return the zip that is pushed: the modules needed for measuring, and the reference network."""
    package = Path(__file__).parents[1]
    modules = [
        package / "__init__.py",
        package / "errors.py",
        package / "temporary.py",
        *sorted((package / "latency").rglob("*.py")),
    ]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, temporary.private() as folder:
        for path in modules:
            archive.write(path, path.relative_to(package.parent))
        archive.write(reference.write_reference(Path(folder)), "reference.onnx")
    return buffer.getvalue()
