"""Latency on another device: ONNX files are pushed over SSH, measured there as here, and remembered here."""

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
GROUP_SIZE = 4  # files that are measured side by side; the reference network beside makes several such groups one


def check_device(address: str, runtime: str) -> None:
    """Refuse what is no device, and a runtime that does not run the files that are pushed; nothing is connected."""
    if address == LOCAL:
        return
    Address.parse(address)
    if not issubclass(runtimes.get(runtime), runtimes.OnnxRuntime):
        raise InputError(f"runtime '{runtime}': {address} measures with onnxruntime or onnxruntime-int8")


class RemoteDevice:
    """A device at `ssh://[user@]host[:port][/path/of/python]`, connected when it is first asked; closed with `with`.

    Errors, each an `InputError`: no such device, an unknown or changed host key, no Python or ONNX Runtime there, a
    connection lost.
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
        """End the process on the device, which leaves no file there; a later question begins another."""
        if connection := self.__dict__.pop("_connection", None):
            connection.close()

    @property
    def machine(self) -> dict[str, Any]:
        """What the device is, as `conditions.machine`."""
        return self._connection.hello["machine"]

    def versions(self, runtime: str) -> dict[str, str]:
        """Of the device's Python, numpy and ONNX Runtime, and of what writes the files here."""
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
        """As `benchmark.measure_latency`, on the device; remembered by its description, versions and address."""
        check_device(str(self.address), runtime)
        check_counts(threads=threads, batch_size=batch_size)
        cache = LatencyCache() if cache is None else cache
        digest = network_digest(architecture, None if model is None else runtimes.module_of(model, runtime))
        asked = {"threads": threads, "batch_size": batch_size}
        key = self._conditions(digest, runtime, **asked, input=architecture.input) if digest else None
        beside = self._beside(threads)
        if key and not fresh and (known := benchmark.cached_latency(key, cache)):
            return known.normalized(reference.machine_history(beside, runtime, cache))
        if model is None:
            from nasspace.network import build

            model = build(architecture)
        with temporary.private() as folder:
            here = runtimes.get(runtime)(threads, batch_size)
            path = here.write(model, architecture.input, Path(folder) / "network.onnx")
            runtimes.check_outputs(here.load(path), model)
            (found,) = self._measured([path], runtime, threads, batch_size, seconds, cache)
        return benchmark.store_latency(found, key, beside, runtime, cache)

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
        """Measure ONNX files on the device, four at a time side by side; each four comes when it is done."""
        cache = LatencyCache() if cache is None else cache
        for first in range(0, len(paths), GROUP_SIZE):
            group = [Path(path) for path in paths[first : first + GROUP_SIZE]]
            yield from self._measured(group, runtime, threads, batch_size, seconds, cache)

    def _measured(
        self, paths: list[Path], runtime: str, threads: int, batch_size: int | None, seconds: float, cache: LatencyCache
    ) -> list[Latency]:
        contents = [path.read_bytes() for path in paths]
        request = {"sizes": [len(content) for content in contents], "threads": threads, "batch_size": batch_size}
        request |= {"seconds": seconds}
        try:
            answer = self._connection.ask(request, *contents)
            found = [self._here(Latency.from_json(document), runtime) for document in answer["latencies"]]
        except InputError:
            self.close()
            raise
        beside = self._beside(threads)
        undisturbed = [ms for one in found if not one.contended for ms in one.reference_ms]
        if undisturbed:
            cache.add_reading(beside, statistics.median(undisturbed))
        known = reference.machine_history(beside, runtime, cache)
        return [latency.normalized(known) for latency in found]

    def _here(self, latency: Latency, runtime: str) -> Latency:
        """What was measured there, with the device and the versions that belong to it."""
        return replace(latency, runtime=runtime, device=str(self.address), versions=self.versions(runtime))

    def _beside(self, threads: int) -> Conditions:
        """Those of the reference network there."""
        known = reference.reference_architecture()
        return self._conditions(known.digest, "onnxruntime", threads=threads, batch_size=1, input=known.input)

    def _conditions(self, digest: str, runtime: str, **asked: Any) -> Conditions:
        where = {"device": str(self.address), "versions": self.versions(runtime), "machine": self.machine}
        return Conditions(digest, runtime, **where, **asked)


def measure_latency(
    architecture: Architecture,
    runtime: str = "onnxruntime",
    threads: int = 1,
    batch_size: int = 1,
    resolution: int | None = None,
    *,
    latency_device: str = LOCAL,
    device: str = "cpu",
    **asked: Any,
) -> Latency:
    """`benchmark.measure_latency` on `device` of this machine, or `Remote.measure_latency` on the one at an address.

    `latency_device` is `local` or `ssh://[user@]host[:port][/path/of/python]`; `asked`: `model`, `seconds`, `fresh`,
    `cache`. Raises `InputError` for what cannot be measured so.
    """
    check_device(latency_device, runtime)
    asked |= {"runtime": runtime, "threads": threads, "batch_size": batch_size}
    if latency_device == LOCAL:
        return benchmark.measure_latency(architecture, resolution=resolution, device=device, **asked)
    if resolution is not None:
        check_counts(resolution=resolution)
        architecture = architecture.with_resolution(resolution)
    if device != "cpu":
        raise InputError(f"device '{device}': {latency_device} measures on its cpu")
    with RemoteDevice(latency_device) as there:
        return there.measure_latency(architecture, **asked)


def _pushed_code() -> bytes:
    """The zip that is pushed: the modules that measure, as they are here, and the reference network."""
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
