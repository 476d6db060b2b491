"""Published networks within a study's limits, for reference: counted at its resolution.

Nothing is measured or trained for them. Latencies come from the cache, accuracies from trainings that were finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from nasspace.errors import InputError
from nasspace.reporting.trained_networks import TrainedNetwork, by_digest
from nasspace.studies.front import Front
from nasspace.studies.objectives import COUNTED
from nasspace.studies.trial_table import has_value, is_same_machine

SMALL_IMAGES = 64  # pixels below which the forms for CIFAR are compared
LARGER = 1.25  # times the FLOPs of the largest evaluated network, above which a published one is no reference
MOST = 24  # networks that are shown, besides those that were trained


@dataclass(frozen=True)
class PublishedNetwork:
    """A published network at a study's resolution; `latency` has `median_ms`, `low_ms` and `high_ms`, or is None.

    `values` has the accuracy (a fraction of the validation images, the mean over seeds) if it was trained as the
    study's full training is, with `seeds` seeds.
    """

    name: str
    values: Mapping[str, float]
    latency: Mapping[str, float] | None = None
    seeds: int = 0


def within_limits(front: Front, trainings: Sequence[TrainedNetwork] = ()) -> list[PublishedNetwork]:
    """The published networks within the limits, by FLOPs: those that were trained, and of the others at most MOST.

    They take the study's images and classes. Latencies are those that the cache of this machine has under the study's
    conditions: nothing is measured. A network whose latency is not known is within that limit as far as is known.
    """
    largest = max((row["flops"] for row in front.trials if has_value(row.get("flops"))), default=0)
    if not front.resolution or not largest:
        return []
    latencies, trained = _Latencies(front), by_digest(one for one in trainings if one.is_standard)
    found = [one for one in _counted(front) if one[1]["flops"] <= LARGER * largest]
    networks = []
    for architecture, values in found:
        latency = latencies.of(architecture)
        all_values = {**values, **({"latency": latency["median_ms"]} if latency else {})}
        runs = trained.get(architecture.digest, ())
        if runs:
            all_values["accuracy"] = fmean(one.validation for one in runs)
        if all(all_values.get(name, 0.0) <= limit for name, limit in front.limits.items()):
            networks.append(PublishedNetwork(architecture.name, all_values, latency, len(runs)))
    others = sorted((one for one in networks if "accuracy" not in one.values), key=_flops)
    step = max(1.0, len(others) / MOST)
    spread = [others[int(i * step)] for i in range(min(MOST, len(others)))]
    return sorted([*(one for one in networks if "accuracy" in one.values), *spread], key=_flops)


def _flops(network: PublishedNetwork) -> float:
    return network.values["flops"]


def _counted(front: Front) -> Iterator[tuple[Any, dict[str, float]]]:
    """The published networks that run at the study's resolution, with their counts."""
    from nasspace import zoo  # imports PyTorch
    from nasspace.counting import cost

    task, side = front.settings["task"], front.resolution or 0
    is_int8 = front.recipe.get("runtime") == "onnxruntime-int8"
    attributes = {name: f"{name}_int8" if is_int8 and name in ("peak_memory", "flash") else name for name in COUNTED}
    for name in zoo.names():
        if name.endswith(zoo.CIFAR) != (side < SMALL_IMAGES):
            continue
        try:
            architecture = zoo.load(name, resolution=side, classes=task["classes"]).with_input(task["channels"])
            counted = cost(architecture)
        except InputError:  # its maps become too small
            continue
        yield architecture, {name: getattr(counted, attribute) for name, attribute in attributes.items()}


class _Latencies:
    """The latencies in the cache under a study's conditions; none on another machine than the study's."""

    def __init__(self, front: Front):
        from nasspace.latency import runtimes
        from nasspace.latency.cache import LatencyCache
        from nasspace.latency.conditions import machine

        recipe, self._cache = front.recipe, LatencyCache()
        self._is_known = False
        if recipe.get("latency_device", "local") != "local" or recipe["runtime"] not in runtimes.known():
            return
        if not self._cache.path.is_file() or not is_same_machine(front.machine, machine()):
            return
        self._is_known, self._runtime = True, recipe["runtime"]
        device = recipe.get("device", "cpu") if runtimes.get(self._runtime).uses_accelerator else "cpu"
        self._settings = {"threads": recipe["threads"], "device": device}
        self._batch_size = recipe["batch_size"]

    def of(self, architecture: Any) -> dict[str, float] | None:
        """The cached latency of a network; None if there is none."""
        from nasspace.latency.benchmark import known_latency
        from nasspace.latency.conditions import Conditions
        from nasspace.latency.reference import reference_conditions

        if not self._is_known:
            return None
        size = {"batch_size": self._batch_size, "input": architecture.input}
        key = Conditions.on_this_machine(architecture.digest, self._runtime, **self._settings, **size)
        reference = reference_conditions(self._settings["threads"], self._settings["device"])
        found = known_latency(key, reference, self._cache)
        if found is None:
            return None
        return {name: getattr(found, name) for name in ("median_ms", "low_ms", "high_ms")}
