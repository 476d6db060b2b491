"""Checks before any work: recipe values, devices, clusters and storage, and whether a study may be continued."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nasspace.engine.devices import check_device
from nasspace.engine.evaluator import INT8_RUNTIMES, needs_latency
from nasspace.engine.ray.address import connection_environment
from nasspace.errors import InputError, nearest
from nasspace.studies import weight_store
from nasspace.studies.objectives import LIMITED, OBJECTIVES
from nasspace.studies.recipe import Recipe, short
from nasspace.studies.trial_table import is_same_machine, machine_text
from nasspace.training.settings import DISTILLATION, FINE_TUNING, check_for_sharing

# Settings of where and how trials run: a study that was started with one value may be continued with another.
EXECUTION_SETTINGS = ("workers", "ray", "gpus", "retries", "trial_timeout", "storage_path")
SPLIT_SETTINGS = ("seed", "held_out", "skip_broken")  # the splits of the data depend on these
MAX_DIFFERENCES = 4  # differences that an error message lists


def check_recipe(recipe: Recipe) -> None:
    """Check the names in a recipe, its device and its cluster; raise `InputError` for what cannot be used."""
    from nasspace.latency import remote, runtimes
    from nasspace.latency.benchmark import check_counts
    from nasspace.samplers.optuna_samplers import SAMPLERS
    from nasspace.training.precision import check_precision

    if recipe.sampler not in SAMPLERS:
        raise InputError(f"'{recipe.sampler}' is not a sampler{nearest(recipe.sampler, SAMPLERS)}")
    runtime = runtimes.get(recipe.runtime)
    if recipe.objectives == ("latency",) or not {"accuracy", "latency"} & set(recipe.objectives):
        raise InputError(f"objectives: {', '.join(recipe.objectives)} alone is no search; add accuracy")
    _check_sampler(recipe)
    for name in recipe.training.changed(FINE_TUNING):
        raise InputError(f"training.{name}: is for `nas train --weights`; a search trains from new batch norms")
    for name in recipe.training.changed(DISTILLATION):
        raise InputError(f"training.{name}: is for `nas train --teacher`; a search trains without a teacher")
    _check_supernet(recipe)
    _check_accuracy_of(recipe)
    if recipe.ray is None:  # on a cluster, the workers need the device
        check_device(recipe.device)
        check_precision(recipe.training.precision, recipe.device)
        check_counts(threads=recipe.training.threads)
        if recipe.latency_device == remote.LOCAL:
            check_counts(threads=recipe.threads)
    check_execution(recipe)
    remote.check_device(recipe.latency_device, recipe.runtime)
    runtime(recipe.threads, recipe.batch_size)  # raises if a package is missing


def _check_sampler(recipe: Recipe) -> None:
    """Refuse a sampler that lacks the accuracy, the limit or the latency that it works with."""
    name = recipe.sampler
    if name in ("mnasnet", "netadapt", "spos") and "accuracy" not in recipe.objectives:
        raise InputError(f"--sampler {name} compares accuracies; add accuracy to the objectives")
    if name == "mnasnet" and not recipe.limits.given():
        flags = " or ".join(OBJECTIVES[limit].limit_flag or "" for limit in LIMITED)
        raise InputError(f"--sampler mnasnet rewards networks by a target of their cost; give {flags}")
    if name == "netadapt" and not needs_latency(recipe):
        raise InputError("--sampler netadapt lowers the measured latency; give --latency-target, such as 20ms")


def _check_accuracy_of(recipe: Recipe) -> None:
    """Refuse the accuracy in int8 where the network that ships is another one, or none is trained by itself."""
    if recipe.accuracy_of != "int8":
        return
    if recipe.runtime not in INT8_RUNTIMES:
        raise InputError(
            f"objectives: accuracy_int8 is of a network that ships in int8; add --runtime {INT8_RUNTIMES[0]}"
        )
    if recipe.supernet is not None:
        raise InputError("objectives: accuracy_int8 cannot be judged with shared weights (supernet); write accuracy")


def _check_supernet(recipe: Recipe) -> None:
    """Refuse shared weights where nothing would be judged with them, or with settings that they cannot have."""
    if recipe.supernet is None:
        return
    if "accuracy" not in recipe.objectives:
        raise InputError(
            "supernet: shared weights estimate accuracies; add accuracy to the objectives, or leave it out"
        )
    check_for_sharing(recipe.training)


def check_execution(recipe: Recipe) -> None:
    """Check that the cluster answers and that the storage is writable."""
    if recipe.gpus and not recipe.distributed:
        raise InputError("--gpus is the share of one worker; give --workers, or --ray, too")
    if recipe.ray is not None:
        connection_environment(recipe.ray)
    if recipe.storage_path is not None:
        weight_store.check(recipe.storage_path)


def check_functions(evaluator: Any, known: Any) -> None:
    """Check that an evaluator takes an architecture, and that `known` maps names of objectives to such functions."""
    if evaluator is not None and not _takes(evaluator, None):
        raise InputError(f"evaluator: {short(evaluator)} is not a function of an architecture")
    is_mapping = isinstance(known, Mapping) and all(callable(function) for function in known.values())
    if known is not None and not is_mapping:
        raise InputError(f"known: {short(known)} is not a dictionary of functions, such as {{'flops': f}}")
    for name, function in (known or {}).items():
        if not _takes(function, None):
            raise InputError(f"known: '{name}' is {short(function)}, not a function of an architecture")


def check_report(on_event: Any) -> None:
    """Check that `on_event` takes the kind of an event and its values as keyword arguments."""
    if on_event is not None and not _takes(on_event, "note", text=""):
        raise InputError(
            f"on_event: {short(on_event)} is not a function of an event's kind and its values, "
            "such as def on_event(kind, **values)"
        )


def check_switches(**switches: Any) -> None:
    """Check that each of the parameters is True or False."""
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise InputError(f"{name}: {short(value)} is neither True nor False")


def _takes(function: Any, *arguments: Any, **keywords: Any) -> bool:
    """Whether a function can be called with these arguments, as far as its signature is known."""
    if not callable(function):
        return False
    try:
        inspect.signature(function, follow_wrapped=False).bind(*arguments, **keywords)
    except TypeError:
        return False
    except ValueError:  # a built-in function without a signature, or a partial with too many arguments
        return not isinstance(function, functools.partial)
    return True


def check_same_settings(
    folder: Path, old: Mapping[str, Any], new: Mapping[str, Any], measured_on: Mapping[str, Any] | None = None
) -> None:
    """Refuse to continue a study with another space, data set, limit or recipe than it was started with.

    The machine must be the same, too, if the study has latencies: `measured_on` is the machine they were measured on.
    """
    remedy = "choose another --study name, or the settings that it was started with"
    if old["space"]["document"] != new["space"]["document"]:
        name = old["space"]["name"]
        raise InputError(f"{folder}: this study searches another space ('{name}'); {remedy}")
    if difference := _data_difference(old, new):
        raise InputError(f"{folder}: this study {difference}; {remedy}")
    if old["task"] != new["task"]:
        raise InputError(f"{folder}: this study has another task: {_difference(old['task'], new['task'])}; {remedy}")
    starts = [(one.get("start_from") or {}).get("fingerprint") for one in (old, new)]
    if starts[0] != starts[1]:
        source = (old.get("start_from") or {}).get("source")
        before = f"from the weights of {source} (--start-from)" if source else "from new weights"
        now = "from others" if starts[1] else "from new ones"
        raise InputError(f"{folder}: this study's candidates start {before}, now {now}; {remedy}")
    if old["limits"] != new["limits"]:
        before, now = _limits_text(old["limits"]), _limits_text(new["limits"])
        raise InputError(f"{folder}: this study was searched with the limits {before}, now they are {now}; {remedy}")
    if new["storage"] and old["storage"] != new["storage"]:
        raise InputError(f"{folder}: this study's storage is {old['storage'] or 'its own study.db'}; {remedy}")
    may_differ = {"trials", "time_budget", "name", "description", "data", "data_dir", "limits", *EXECUTION_SETTINGS}
    for key in sorted(new["recipe"].keys() - may_differ):
        default = Recipe().as_written()[key]
        before, now = old["recipe"].get(key, default), new["recipe"][key]
        if isinstance(before, dict) and isinstance(default, dict):  # an older study lacks newer settings
            before = {**default, **before}
        if before != now:
            difference = _difference(before, now)
            raise InputError(f"{folder}: this study was started with another {key}: {difference}; {remedy}")
    here = new["recipe"]["latency_device"] == "local" and new["recipe"]["ray"] is None
    if not new["evaluator"] and here and measured_on and not is_same_machine(measured_on, new["machine"]):
        raise InputError(
            f"{folder}: this study's latencies were measured on another machine ({machine_text(measured_on)}); "
            "search again under another --study name"
        )


def _data_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """How the data or the evaluators of two studies differ, as the end of a sentence; empty if they are equal."""
    before, now = old["data"], new["data"]
    if old["evaluator"] != new["evaluator"] or bool(before) != bool(now):
        ways = [
            f"with the evaluator {one['evaluator']}" if one["evaluator"] else f"on {_data_text(one['data'] or {})}"
            for one in (old, new)
        ]
        return f"was searched {ways[0]}, now it is {ways[1]}"
    if _without_name(before) == _without_name(now):
        return ""
    if before.get("classes") != now.get("classes") or before["name"] != now["name"]:
        texts = [_data_text(before), _data_text(now)]
        if texts[0].partition(" (")[2] == texts[1].partition(" (")[2]:
            parts = zip(texts, (before, now), strict=True)
            texts = [f"{text}, fingerprint {part.get('fingerprint')}" for text, part in parts]
        missing = [f"'{name}'" for name in before.get("classes", ()) if name not in now.get("classes", ())]
        lacks = f"; its classes {', '.join(missing[:MAX_DIFFERENCES])} are not there" if missing else ""
        return f"was searched on {texts[0]}, now it is on {texts[1]}{lacks}"
    if (sizes := [part["task"].get("resolution") for part in (old, new)])[0] != sizes[1]:
        return f"was searched for the deployment resolution {sizes[0]}, now it is {sizes[1]}"
    for key in SPLIT_SETTINGS:
        if (value := old["recipe"].get(key)) != (new_value := new["recipe"].get(key)):
            return f"was started with {key} {value}, now it is {new_value}"
    counts = [part["train"] + part["validation"] for part in (before, now)]
    counted = f", {counts[0]:,} and now {counts[1]:,} of them" if counts[0] != counts[1] else ""
    fingerprints = f"fingerprint {before.get('fingerprint')}, now {now.get('fingerprint')}"
    return f"was searched on other images of {before['name']} ({fingerprints}{counted})"


def _without_name(data: Any) -> Any:
    """A study's data without its name: data that was moved is the same data."""
    return {key: value for key, value in data.items() if key != "name"} if isinstance(data, dict) else data


def _data_text(data: Mapping[str, Any]) -> str:
    classes = data.get("classes", ())
    counts = f"{data.get('train', 0):,} training and {data.get('validation', 0):,} validation images"
    return f"{data.get('name', 'no images')} ({len(classes)} classes, {counts})"


def _limits_text(limits: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {OBJECTIVES[name].describe(limit)}" for name, limit in limits.items()) or "none"


def _difference(before: Any, now: Any) -> str:
    """The keys at which two settings differ, with both values."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return f"{short(before)}, now {short(now)}"
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return "; ".join(f"{key} {short(before.get(key))}, now {short(now.get(key))}" for key in keys[:MAX_DIFFERENCES])
