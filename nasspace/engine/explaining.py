"""What the guidelines find in the networks of a front: measured once, and recorded in the study for its report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nasspace.engine import machine_lock
from nasspace.errors import InputError
from nasspace.guidelines.explanation import Explanation, explain
from nasspace.latency import remote
from nasspace.latency.conditions import machine
from nasspace.studies import paths
from nasspace.studies.schema import EXPLAINED
from nasspace.studies.storage import errors_of_storage
from nasspace.studies.study import Study
from nasspace.studies.trial_table import is_same_machine, machine_text

RUNTIME = "onnxruntime"  # the only one whose operators are measured
Report = Callable[..., None]


def explain_front(study: Study, on_event: Report) -> None:
    """Explain the members of a study's front that were not explained before, and record what is found.

    Raises `InputError` if the search measured with another runtime, or on another machine.
    """
    recipe, place = study.settings["recipe"], f"--explain: {paths.as_argument(study.folder)}"
    if recipe["runtime"] != RUNTIME:
        raise InputError(f"{place} measured with {recipe['runtime']}; only searches with {RUNTIME} can be explained")
    measured_on = study.latency_machine() or machine()
    if recipe["latency_device"] != remote.LOCAL or not is_same_machine(measured_on, machine()):
        raise InputError(
            f"{place} measured on another machine ({machine_text(measured_on)}); run this there, or "
            "`nas explain STUDY:TRIAL` to measure a network here"
        )
    with paths.alone(study.folder, wait=study.is_shared), errors_of_storage(study.folder):
        missing = [number for number in study.front_numbers() if number not in study.explained()]
        for i, number in enumerate(missing, start=1):
            on_event("finishing", text=f"explaining trial {number}, {i} of {len(missing)}")
            with machine_lock.measurement_lock():
                found = explain(study.architecture(number), threads=recipe["threads"], batch_size=recipe["batch_size"])
            study.record.set_user_attr(f"{EXPLAINED}{number}", _record(found))


def _record(found: Explanation) -> dict[str, Any]:
    """The part of an explanation that the report shows; changed architectures stay with `nas explain`."""
    findings = [
        {
            "guideline": one.guideline,
            "layers": list(one.layers),
            "text": one.text,
            "change": one.change,
            "share": one.share,
            "saving_ms": one.saving_ms,
            "plus_minus_ms": one.plus_minus_ms,
        }
        for one in found.findings
    ]
    return {"latency_ms": found.latency_ms, "contended": found.contended, "findings": findings}
