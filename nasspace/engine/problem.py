"""What a search was asked: the space at the data's classes and channels, the recipe, and how candidates are scored."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace.architecture import Architecture
from nasspace.engine.evaluator import FromFunction, shown
from nasspace.engine.ray.address import reached
from nasspace.engine.resolution import Deployment, deployment
from nasspace.errors import InputError, nearest
from nasspace.latency.runtimes import library_versions
from nasspace.space.space import Space
from nasspace.studies import schema, weight_store
from nasspace.studies.recipe import Recipe, short
from nasspace.studies.trial_table import is_same_machine, machine_text

if TYPE_CHECKING:
    from nasspace.data.loading import DataSet

PACKAGES = ("nasspace", "torch", "optuna", "onnxruntime", "numpy", "scikit-learn")
WHERE = ("workers", "ray", "gpus", "retries", "trial_timeout", "storage_path")  # a study started here goes on there
DIFFERENCES = 4  # that an error names
Evaluator = Callable[[Architecture], Mapping[str, float]]


class Task:
    """One search as it was asked, checked; `scorer` is made when it begins, unless it is a function given."""

    def __init__(
        self, asked: Recipe, space: Space, data: Any = None, scorer: Any = None, deployed: Deployment | None = None
    ):
        self.recipe = asked
        self.space = space
        self.data = data
        self.scorer = scorer
        self.deployed = deployed
        self.notes: tuple[str, ...] = ()

    @classmethod
    def of_data(cls, asked: Recipe, space: Space | str | Path) -> Task:
        asked = asked.model_copy(
            update={
                "data": absolute(asked.data),
                "data_dir": asked.data_dir and str(Path(asked.data_dir).expanduser().absolute()),
            }
        )
        given = space if isinstance(space, Space) else Space.load(space)
        data = data_of(asked, lambda native: deployment(asked.resolution, given.plan, native).resolution)
        deployed = deployment(asked.resolution, given.plan, data.native)
        own = Space(given.document, classes=len(data.classes), resolution=deployed.sizes, channels=data.channels)
        lowered = min(asked.fidelity.resolution, deployed.resolution)
        task = cls(_at(asked, lowered), own, data, deployed=deployed)
        if lowered < asked.fidelity.resolution:
            task.notes = (f"fidelity.resolution {asked.fidelity.resolution} is lowered to the deployment's {lowered}",)
        return task

    @classmethod
    def of_function(cls, asked: Recipe, space: Space | str | Path, evaluator: Evaluator, known: Any) -> Task:
        given = space if isinstance(space, Space) else Space.load(space)
        if asked.resolution:
            channels = given.plan.input[0]
            given = Space(given.document, classes=given.classes, resolution=asked.resolution, channels=channels)
        scorer = FromFunction(evaluator, known, asked.objectives, asked.limits.given())
        return cls(asked, given, None, scorer)

    def settings(self, name: str, storage: str | None) -> dict[str, Any]:
        """What study.yaml says: all that is needed to run the search again."""
        from nasspace.latency.conditions import machine

        asked, space, data = self.recipe, self.space, self.data
        return {
            "nasspace_study": schema.VERSION,
            "name": name,
            "identity": uuid.uuid4().hex[:8],
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "space": {
                "name": space.name,
                "description": space.description,
                "size": str(space.size),
                "document": space.document.value,
            },
            "task": {"classes": space.classes, "channels": space.plan.input[0], "resolution": self._resolution},
            "resolution_why": self.deployed and self.deployed.why,
            "data": data and {
                "name": asked.data,
                "classes": list(data.classes),
                "train": len(data.train.labels),
                "validation": len(data.validation.labels),
                "mean": [round(value / 255, 6) for value in data.mean],
                "std": [round(value / 255, 6) for value in data.std],
                "fingerprint": data.fingerprint,
                "preprocessing": data.preprocessing,
            },
            "accuracy_is_of": self._accuracy_is_of(),
            "recipe": asked.as_written(),
            "limits": asked.limits.given(),
            "evaluator": None if data else getattr(self.scorer.function, "__qualname__", "function"),
            "storage": storage,
            "machine": machine(),
            "versions": library_versions(PACKAGES),
        }  # fmt: skip

    @property
    def _resolution(self) -> int | None:
        """The deployment's; the largest where the space chooses."""
        return self.deployed.resolution if self.deployed else self.space.resolution

    def _accuracy_is_of(self) -> str:
        if self.deployed is None:
            return "the evaluator given"
        sizes = " or ".join(f"{size}x{size}" for size in self.deployed.sizes)
        return f"the exported file on {self.data.validated_on} at {sizes}"


def data_of(asked: Recipe, resolution: int | Callable[[int], int]) -> DataSet:
    """The data set of a recipe, held at a resolution, or at what a function makes of the images' own size."""
    from nasspace.data.loading import load_data

    return load_data(
        asked.data,
        resolution=resolution,
        data_dir=asked.data_dir,
        seed=asked.seed,
        held_out=asked.held_out,
        skip_broken=asked.skip_broken,
    )


def _at(asked: Recipe, resolution: int) -> Recipe:
    """The recipe with its fidelity at this resolution."""
    return asked.model_copy(update={"fidelity": replace(asked.fidelity, resolution=resolution)})


def check_names(asked: Recipe) -> None:
    """Names that only their own homes know, before any work."""
    from nasspace.latency import remote
    from nasspace.latency.runtimes import RUNTIMES
    from nasspace.samplers.optuna_samplers import SAMPLERS

    for kind, name, known in (("sampler", asked.sampler, SAMPLERS), ("runtime", asked.runtime, RUNTIMES)):
        if name not in known:
            raise InputError(f"'{name}' is not a {kind}{nearest(name, known)}")
    if asked.objectives == ("latency",) or not {"accuracy", "latency"} & set(asked.objectives):
        raise InputError(f"objectives: {', '.join(asked.objectives)} alone is no search; add accuracy")
    if asked.ray is None:  # elsewhere the workers are where such devices are
        check_device(asked.device)
    check_where(asked)
    remote.check_device(asked.latency_device, asked.runtime)
    RUNTIMES[asked.runtime](asked.threads, asked.batch_size)  # what it needs is here, or this says so


def check_where(asked: Recipe) -> None:
    """An address at which nothing answers, a storage that cannot be written: before any work."""
    if asked.gpus and not asked.distributed:
        raise InputError("--gpus is the share of one worker; give --workers, or --ray, too")
    if asked.ray is not None:
        reached(asked.ray)
    if asked.storage_path is not None:
        weight_store.check(asked.storage_path)


def check_device(name: str) -> None:
    """A device that is not here is an `InputError`, before any work."""
    import torch

    kind = name.partition(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise InputError(f"device: '{name}' is not a device{nearest(kind, ('cpu', 'cuda', 'mps'))}")
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here[kind]:
        raise InputError(f"device: PyTorch finds no {kind} on this machine; choose cpu")


def _without_name(part: Any) -> Any:
    """A part of the settings but its name: data that was moved is the same data."""
    return {key: value for key, value in part.items() if key != "name"} if isinstance(part, dict) else part


SPLITS_DATA = ("seed", "held_out", "skip_broken")  # settings that the splits depend on


def _other_data(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """How the data or the evaluator of two studies differ, as the end of a sentence; empty where they do not."""
    was, now = old["data"], new["data"]
    if old["evaluator"] != new["evaluator"] or bool(was) != bool(now):
        ways = [
            f"with the evaluator {one['evaluator']}" if one["evaluator"] else f"on {_data_text(one['data'] or {})}"
            for one in (old, new)
        ]
        return f"was searched {ways[0]}, now it is {ways[1]}"
    if _without_name(was) == _without_name(now):
        return ""
    if was.get("classes") != now.get("classes") or was["name"] != now["name"]:
        ways = [_data_text(was), _data_text(now)]
        if ways[0].partition(" (")[2] == ways[1].partition(" (")[2]:
            ways = [f"{way}, fingerprint {part.get('fingerprint')}" for way, part in zip(ways, (was, now), strict=True)]
        only = [f"'{name}'" for name in was.get("classes", ()) if name not in now.get("classes", ())]
        lacking = f"; its classes {', '.join(only[:DIFFERENCES])} are not there" if only else ""
        return f"was searched on {ways[0]}, now it is on {ways[1]}{lacking}"
    if (sizes := [part["task"].get("resolution") for part in (old, new)])[0] != sizes[1]:
        return f"was searched for the deployment resolution {sizes[0]}, now it is {sizes[1]}"
    for key in SPLITS_DATA:
        if (was_set := old["recipe"].get(key)) != (now_set := new["recipe"].get(key)):
            return f"was started with {key} {was_set}, now it is {now_set}"
    counts = [part["train"] + part["validation"] for part in (was, now)]
    more = f", {counts[0]:,} and now {counts[1]:,} of them" if counts[0] != counts[1] else ""
    prints = f"fingerprint {was.get('fingerprint')}, now {now.get('fingerprint')}"
    return f"was searched on other images of {was['name']} ({prints}{more})"


def _data_text(data: Mapping[str, Any]) -> str:
    classes = data.get("classes", ())
    counts = f"{data.get('train', 0):,} training and {data.get('validation', 0):,} validation images"
    return f"{data.get('name', 'no images')} ({len(classes)} classes, {counts})"


def _limits_text(limits: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {shown(name, limit)}" for name, limit in limits.items()) or "none"


def _difference(was: Any, now: Any) -> str:
    """Where two settings differ, in words."""
    if not (isinstance(was, dict) and isinstance(now, dict)):
        return f"{short(was)}, now {short(now)}"
    keys = [key for key in {**was, **now} if was.get(key) != now.get(key)]
    shown = [f"{key} {short(was.get(key))}, now {short(now.get(key))}" for key in keys[:DIFFERENCES]]
    return "; ".join(shown)


def absolute(text: str) -> str:
    """The path in `imagefolder:DIR` or `parquet:FILE` made absolute, so that any working folder resumes."""
    kind, colon, path = text.partition(":")
    if colon and path and kind in ("imagefolder", "parquet"):
        return f"{kind}:{Path(path).expanduser().absolute()}"
    return text


def refuse_other(
    folder: Path, old: Mapping[str, Any], new: Mapping[str, Any], measured_on: Mapping[str, Any] | None = None
) -> None:
    """A study goes on only with what it was started with: space, task, data, recipe.

    So does the machine, if the study has latencies: `measured_on` is the one that took them.
    """
    remedy = "choose another --study name, or the settings that it was started with"
    if old["space"]["document"] != new["space"]["document"]:
        was = old["space"]["name"]
        raise InputError(f"{folder}: this study searches another space ('{was}'); {remedy}")
    if difference := _other_data(old, new):
        raise InputError(f"{folder}: this study {difference}; {remedy}")
    if old["task"] != new["task"]:
        raise InputError(f"{folder}: this study has another task: {_difference(old['task'], new['task'])}; {remedy}")
    if old["limits"] != new["limits"]:
        was, now = _limits_text(old["limits"]), _limits_text(new["limits"])
        raise InputError(f"{folder}: this study was searched with the limits {was}, now they are {now}; {remedy}")
    if new["storage"] and old["storage"] != new["storage"]:
        raise InputError(f"{folder}: this study's storage is {old['storage'] or 'its own study.db'}; {remedy}")
    free = {"trials", "time_budget", "name", "description", "data", "data_dir", "limits", *WHERE}
    for key in sorted(new["recipe"].keys() - free):
        default = Recipe().as_written()[key]
        was, now = old["recipe"].get(key, default), new["recipe"][key]
        if isinstance(was, dict) and isinstance(default, dict):  # settings that an older study did not know
            was = {**default, **was}
        if was != now:
            raise InputError(f"{folder}: this study was started with another {key}: {_difference(was, now)}; {remedy}")
    here = new["recipe"]["latency_device"] == "local" and new["recipe"]["ray"] is None
    if not new["evaluator"] and here and measured_on and not is_same_machine(measured_on, new["machine"]):
        raise InputError(
            f"{folder}: this study's latencies were measured on another machine ({machine_text(measured_on)}); "
            "search again under another --study name"
        )
