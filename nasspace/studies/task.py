"""What a search was asked: the space at the data's classes and channels, the recipe, and how candidates are scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nasspace.architecture import Architecture
from nasspace.errors import InputError, nearest
from nasspace.space import Space
from nasspace.studies import evaluate, recipe
from nasspace.studies import study as records
from nasspace.studies.recipe import Recipe

PACKAGES = ("nasspace", "torch", "optuna", "onnxruntime", "numpy", "scikit-learn")
Evaluator = Callable[[Architecture], Mapping[str, float]]


class Task:
    """One search as it was asked, checked; `scorer` is made when it begins, unless it is a function given."""

    def __init__(self, asked: Recipe, space: Space, data: Any = None, scorer: Any = None):
        self.recipe = asked
        self.space = space
        self.data = data
        self.scorer = scorer

    @classmethod
    def of_data(cls, asked: Recipe, space: Space | str | Path) -> Task:
        from nasspace.accuracy.data import load_data

        resolution = asked.resolution
        given = space if isinstance(space, Space) else Space.load(space, resolution=resolution)
        data = load_data(
            asked.data,
            resolution=asked.fidelity.resolution,
            data_dir=asked.data_dir,
            seed=asked.seed,
            held_out=asked.held_out,
            skip_broken=asked.skip_broken,
        )
        task = Space(
            given.document,
            classes=len(data.classes),
            resolution=resolution or given.resolution,
            channels=data.channels,
        )
        _check_fidelity(asked, task)
        return cls(asked, task, data)

    @classmethod
    def of_function(cls, asked: Recipe, space: Space | str | Path, evaluator: Evaluator, known: Any) -> Task:
        given = space if isinstance(space, Space) else Space.load(space, resolution=asked.resolution)
        scorer = evaluate.FromFunction(evaluator, known, asked.objectives, asked.limits.given())
        return cls(asked, given, None, scorer)

    def settings(self, name: str, storage: str | None) -> dict[str, Any]:
        """What study.yaml says: all that is needed to run the search again."""
        from nasspace.latency.cache import machine

        asked, space, data = self.recipe, self.space, self.data
        size = f"{asked.fidelity.resolution}x{asked.fidelity.resolution}"
        return {
            "nasspace_study": records.VERSION,
            "name": name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "space": {
                "name": space.name,
                "description": space.description,
                "size": str(space.size),
                "document": space.document.value,
            },
            "task": {"classes": space.classes, "channels": space.plan.input[0], "resolution": space.resolution},
            "data": data and {
                "name": asked.data,
                "classes": list(data.classes),
                "train": len(data.train.labels),
                "validation": len(data.validation.labels),
                "mean": [round(value / 255, 6) for value in data.mean],
                "std": [round(value / 255, 6) for value in data.std],
                "fingerprint": data.fingerprint,
            },
            "accuracy_is_of": f"held-out training images at {size}" if data else "the evaluator given",
            "recipe": {**asked.model_dump(mode="json", exclude={"limits"}), "limits": recipe.as_written(asked.limits)},
            "limits": asked.limits.given(),
            "evaluator": None if data else getattr(self.scorer.function, "__qualname__", "function"),
            "storage": storage,
            "machine": machine(),
            "versions": {package: version(package) for package in PACKAGES},
        }  # fmt: skip


def _check_fidelity(asked: Recipe, space: Space) -> None:
    """A fidelity's resolution is at most the deployment's."""
    sizes = space.plan.top["resolution"].options if "resolution" in space.plan.top else space.plan.input[1:]
    if asked.fidelity.resolution > min(sizes):
        raise InputError(
            f"fidelity.resolution: training at {asked.fidelity.resolution} is above the deployment's {min(sizes)}; "
            "choose a smaller one, or a larger --resolution"
        )


def check_names(asked: Recipe) -> None:
    """Names that only their own homes know, before any work."""
    from nasspace.latency.runtimes import RUNTIMES
    from nasspace.studies.samplers import SAMPLERS

    for kind, name, known in (("sampler", asked.sampler, SAMPLERS), ("runtime", asked.runtime, RUNTIMES)):
        if name not in known:
            raise InputError(f"'{name}' is not a {kind}{nearest(name, known)}")
    unmeasured = {"accuracy"} & set(asked.objectives)
    if not unmeasured and len(asked.objectives) < 2:
        raise InputError(f"objectives: {asked.objectives[0]} alone needs no search; add accuracy")


def refuse_other(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """A study goes on only with what it was begun with: space, task, data, recipe, machine."""
    remedy = "choose another --study name, or the settings that it was begun with"
    if old["space"]["document"] != new["space"]["document"]:
        was = old["space"]["name"]
        raise InputError(f"{folder}: this study searches another space ('{was}'); {remedy}")
    for part in ("task", "data", "limits", "evaluator"):
        if old[part] != new[part]:
            raise InputError(f"{folder}: this study has another {part} ({old[part]}, now {new[part]}); {remedy}")
    free = {"trials", "time_budget", "name", "description", "data"}
    for key in new["recipe"].keys() - free:
        was, now = old["recipe"].get(key), new["recipe"][key]
        if was != now:
            raise InputError(f"{folder}: this study was begun with {key} {was!r}, not {now!r}; {remedy}")
    if not new["evaluator"] and old["machine"] != new["machine"]:
        raise InputError(f"{folder}: this study's latencies are of another machine; search anew under another name")
