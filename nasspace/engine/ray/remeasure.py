"""The front's exported files measured again on the node of a cluster that measured in the search."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace import temporary
from nasspace.engine import machine_lock
from nasspace.engine.ray import cluster
from nasspace.latency import subprocess_benchmark
from nasspace.studies.recipe import Recipe

WAIT = 60.0  # seconds for one network, with whatever another search has under way there
log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from nasspace.latency.benchmark import Latency


def measure_files(paths: Sequence[Path], recipe: Recipe, go_on: str, **asked: Any) -> list[Latency]:
    """Latencies of exported ONNX files, in a fresh process on a node that carries the resource `latency`."""
    contents = [path.read_bytes() for path in paths]
    with cluster.connected(recipe, go_on=go_on) as connection:
        import ray

        there = ray.remote(_measured).options(num_cpus=0, resources={cluster.LATENCY: 1})
        waited, note = len(paths) * WAIT, lambda text: log.warning(text)
        return cluster.awaited(
            there.remote(contents, asked), waited, "measuring the front again", note, connection.watch
        )


def _measured(contents: Sequence[bytes], asked: dict[str, Any]) -> list[Latency]:
    with temporary.private() as folder:
        paths = [Path(folder) / f"{i}.onnx" for i in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        with machine_lock.measurement_lock():
            return subprocess_benchmark.measure_files_in_subprocess(paths, **asked)
