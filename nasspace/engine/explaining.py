"""What the guidelines find in the networks of a front: measured once, and recorded in the study for its report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nasspace.engine import machine_lock
from nasspace.errors import InputError
from nasspace.guidelines.explanation import Explanation, explain
from nasspace.latency.conditions import machine
from nasspace.studies import paths
from nasspace.studies.schema import EXPLAINED
from nasspace.studies.storage import errors_of_storage
from nasspace.studies.study import Study
from nasspace.studies.trial_table import is_same_machine, machine_text

Report = Callable[..., None]


def explain_front(study: Study, on_event: Report) -> None:
    """Explain the members of a study's front, and record what is found; recorded results are reused.

    A network that was measured while the machine was busy is measured again. One that cannot be explained is reported,
    and the others follow. Raises `InputError` if the search measured with another runtime or on another machine, or if
    the front is empty.
    """
    front, place = study.snapshot(), f"--explain: {paths.as_argument(study.folder)}"
    if not front.is_explainable:
        raise InputError(
            f"{place} measured with {front.recipe['runtime']} on {front.recipe['latency_device']}; only searches with "
            "onnxruntime on their own machine can be explained"
        )
    measured_on = study.latency_machine() or machine()
    if not is_same_machine(measured_on, machine()):
        raise InputError(
            f"{place} measured on another machine ({machine_text(measured_on)}); run this there, or "
            "`nas explain STUDY:ID` to measure a network here"
        )
    if not front.members:
        raise InputError(f"{place} has no network on its front; run `nas resume {paths.as_argument(study.folder)}`")
    with paths.alone(study.folder, wait=study.is_shared), errors_of_storage(study.folder):
        explained = study.explained()
        missing = [number for number in study.front_numbers() if number not in explained]
        if not missing:
            on_event("note", text="all networks of the front were explained before")
        for i, number in enumerate(missing, start=1):
            on_event("finishing", text=f"explaining trial {number}, {i} of {len(missing)}")
            _explain(study, number, on_event)


def _explain(study: Study, number: int, on_event: Report) -> None:
    """Explain one network and record it; report why it cannot be explained, or that the machine was busy."""
    recipe, architecture = study.settings["recipe"], study.architecture(number)
    try:
        with machine_lock.measurement_lock():
            found = explain(architecture, threads=recipe["threads"], batch_size=recipe["batch_size"], fresh=True)
    except InputError as error:
        on_event("note", text=f"trial {number} cannot be explained: {error}")
        return
    study.record.set_user_attr(f"{EXPLAINED}{number}", _record(found))
    if found.contended:
        on_event("note", text=f"trial {number}: the machine was busy; run it again when the machine is idle")


def _record(found: Explanation) -> dict[str, Any]:
    """The part of an explanation that the report shows; changed architectures stay with `nas explain`."""
    names = ("guideline", "text", "change", "saving_ms", "plus_minus_ms")
    findings = [{"layers": list(one.layers), **{name: getattr(one, name) for name in names}} for one in found.findings]
    latency = {name: getattr(found, name) for name in ("latency_ms", "low_ms", "high_ms", "contended")}
    return {**latency, "findings": findings}
