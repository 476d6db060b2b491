"""Exported files of the front, measured again on the node of the cluster that measured them in the search."""

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

if TYPE_CHECKING:
    from nasspace.latency.benchmark import Latency

WAIT = 60.0  # seconds per network, including the wait for measurements of other searches
log = logging.getLogger(__name__)


def measure_files(paths: Sequence[Path], recipe: Recipe, resume_command: str, **settings: Any) -> list[Latency]:
    """Measure ONNX files in a fresh process, on a node with the resource `latency`."""
    contents = [path.read_bytes() for path in paths]
    with cluster.connect(recipe, resume_command=resume_command) as connection:
        import ray

        task = ray.remote(_measure).options(num_cpus=0, resources={cluster.LATENCY: 1})
        result, seconds = task.remote(contents, settings), len(paths) * WAIT
        return cluster.wait_for_node(result, seconds, "measuring the front again", log.warning, connection.monitor)


def _measure(contents: Sequence[bytes], settings: dict[str, Any]) -> list[Latency]:
    """Measure the contents of files, on this node."""
    with temporary.private() as folder:
        paths = [Path(folder) / f"{i}.onnx" for i in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        with machine_lock.measurement_lock():
            return subprocess_benchmark.measure_files_in_subprocess(paths, **settings)
