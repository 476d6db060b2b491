"""A trained network made smaller: channels pruned by measured latency, or its weights compressed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace.architecture import Architecture
from nasspace.compression.clustering import MOST_BITS
from nasspace.compression.sparsity import THRESHOLDS
from nasspace.engine import arch_reference, full_training, netadapt, weight_compression
from nasspace.engine.arch_reference import ResolvedArch
from nasspace.engine.compression_record import Compression, Job
from nasspace.engine.devices import check_device
from nasspace.engine.full_training import Options, Report
from nasspace.errors import InputError, nearest
from nasspace.exporting.export import check_folder
from nasspace.latency import runtimes
from nasspace.latency.benchmark import check_counts
from nasspace.studies.recipe import Recipe
from nasspace.training.settings import TrainingSettings

if TYPE_CHECKING:
    from torch import Tensor

METHODS: dict[str, dict[str, Any]] = {  # the options of each method, and their defaults
    netadapt.METHOD: {
        **{"latency_target_ms": None, "latency_share": None},
        **{"step": netadapt.STEP, "proposals": netadapt.PROPOSALS},
    },
    "magnitude": {"keep": 0.2, "threshold": "adaptive"},
    "svd": {"keep": 0.5},
    "cluster": {"bits": 4},
}
HOME = Path("compressed")  # the default place of output folders


def compress(
    arch: str | os.PathLike | Architecture,
    *,
    method: str = netadapt.METHOD,
    latency_target_ms: float | None = None,
    latency_share: float | None = None,
    keep: float | None = None,
    threshold: str | None = None,
    bits: int | None = None,
    data: Any = None,
    data_dir: str | Path | None = None,
    skip_broken: bool = False,
    resolution: int | None = None,
    weights: Mapping[str, Tensor] | str | os.PathLike | None = None,
    teacher: str | os.PathLike | None = None,
    settings: str | os.PathLike | TrainingSettings | None = None,
    epochs: int | None = None,
    step: float | None = None,
    proposals: int | None = None,
    runtime: str = "onnxruntime",
    threads: int = 1,
    batch_size: int = 1,
    out: str | os.PathLike | None = None,
    seed: int = 0,
    device: str = "cpu",
    report: Report | None = None,
) -> Compression:
    """Make a trained network smaller, train it, and export it to `out`, with its figures before and after.

    `arch`, `data`, `weights`, `teacher` and `settings` are as in `nasspace.train`; the network needs trained weights.
    The methods are:

    - `netadapt` prunes channels until the latency is `latency_target_ms`, or `latency_share` of the network's own; the
      upper end of the interval counts, for a share that of the ratio, measured in turn. A step narrows by a share
      `step` (0.05) of the first latency and trains `proposals` (6) networks. Then the network is trained for `epochs`
      (25). Raises `NothingFound` if no narrower network is faster.
    - `magnitude` sets the smallest weights to zero while it trains for `epochs` (10), until a share `keep` (0.2) is
      left. `threshold` says how weights of different layers are compared: `adaptive` (the default), `global` or
      `layer` (`nasspace.compression.sparsity.largest`).
    - `svd` replaces layers by two smaller ones each, so that a share `keep` (0.5) of their weights and multiply-adds is
      left, and trains for `epochs` (10). These are linear layers and convolutions outside of blocks but the first.
    - `cluster` replaces the weights of each layer by at most 2^`bits` (4) values, which it then trains for `epochs`
      (10).

    The same call continues a stopped compression, and reads a finished one.
    """
    given = {"latency_target_ms": latency_target_ms, "latency_share": latency_share, "step": step}
    given |= {"proposals": proposals, "keep": keep, "threshold": threshold, "bits": bits}
    chosen = _chosen(method, given)
    full_training.check_numbers(seed, epochs, resolution)
    check_device(device)
    check_counts(threads=threads, batch_size=batch_size)
    runtimes.get(runtime)(threads, batch_size)  # raises if a package is missing
    if not isinstance(arch, Architecture) and arch_reference.parse_front(str(arch)) is not None:
        raise InputError(f"{arch}: name one network of the front, as STUDY:ID")
    source = ResolvedArch(arch) if isinstance(arch, Architecture) else arch_reference.resolve_arch(str(arch))
    report = report or full_training._silent
    if epochs is None:
        epochs = full_training.EPOCHS if method == netadapt.METHOD else weight_compression.EPOCHS
    teacher = arch_reference.settled(teacher)
    options = Options(
        data, data_dir, epochs, resolution, settings, weights, False, teacher, seed, device,
        None, None, skip_broken,
    )  # fmt: skip
    folder = HOME / _name(source, method) if out is None else Path(out)
    if source.folder and folder.resolve() == source.folder.resolve():
        raise InputError(f"{folder}: holds the network to compress; choose another --out folder")
    check_folder(folder)
    architecture, start = full_training.prepared_start(source, options, report)
    if not start.account:
        raise InputError(
            f"{source.name}: compression starts from a trained network; give its --weights, or name STUDY:ID or a "
            "folder of `nas train`"
        )
    recipe = Recipe(runtime=runtime, threads=threads, batch_size=batch_size, device=device, seed=seed)
    job = Job(folder, architecture, start, options, recipe, report)
    run = _run(job, method, chosen)
    with run.record.locked():
        return run.record.finished() or run.compress()


def _name(source: ResolvedArch, method: str) -> str:
    """The name of the default output folder."""
    return source.name if method == netadapt.METHOD else f"{source.name}-{method}"


def _run(job: Job, method: str, chosen: Mapping[str, Any]) -> netadapt.Run | weight_compression.Run:
    """The run of a method."""
    if method != netadapt.METHOD:
        return weight_compression.Run(job, method, chosen)
    target = {name: chosen[name] for name in ("latency_target_ms", "latency_share")}
    return netadapt.Run(job, target, chosen["step"], chosen["proposals"])


def _chosen(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The method's options, checked, with its defaults for those that are None."""
    if method not in METHODS:
        raise InputError(f"method: {method!r} is not a method{nearest(method, METHODS)}")
    defaults = METHODS[method]
    for name, value in given.items():
        if value is not None and name not in defaults:
            of = " and ".join(other for other, options in METHODS.items() if name in options)
            raise InputError(f"{_flag(name)}: an option of {of}, not of the method {method}; leave it out")
    chosen = {name: default if given[name] is None else given[name] for name, default in defaults.items()}
    if method == netadapt.METHOD and (chosen["latency_target_ms"] is None) == (chosen["latency_share"] is None):
        raise InputError("latency target: give one, in milliseconds or as a share of the network's latency")
    for name, value in chosen.items():
        holds, allowed = RULES[name]
        if value is not None and not holds(value):
            raise InputError(f"{name}: {value!r} is not {allowed}")
    return chosen


def _flag(name: str) -> str:
    """An option in words: both forms of the latency target are one."""
    return "latency target" if name.startswith("latency_") else name


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < 1


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "latency_target_ms": (lambda value: 0 < value < float("inf"), "above 0"),
    **dict.fromkeys(("latency_share", "step", "keep"), (_is_share, "between 0 and 1")),
    "proposals": (lambda value: _is_whole(value) and value >= 1, "a whole number of 1 or more"),
    "bits": (lambda value: _is_whole(value) and 1 <= value <= MOST_BITS, f"a whole number from 1 to {MOST_BITS}"),
    "threshold": (THRESHOLDS.__contains__, f"one of {', '.join(THRESHOLDS)}"),
}
