"""A study's report.html, written from its record; it needs no PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nasspace import files
from nasspace.reporting.report import report_html
from nasspace.studies import study as records
from nasspace.studies.study import Study


def write_report(study: Study) -> Path:
    """Write report.html from the record."""
    settings: dict[str, Any] = dict(study.settings)
    recipe = settings["recipe"]
    shown = {
        **settings,
        "latency_predictor": study.record.user_attrs.get(records.PREDICTOR),
        "objectives": recipe["objectives"],
        "seed": recipe["seed"],
        "machine": study.latency_machine() or settings["machine"],
        **{key: recipe[key] for key in ("runtime", "threads", "batch_size", "fidelity")},
        "resolution": settings["task"]["resolution"],
        "budget_use": study.budget_use(),
    }
    path = study.folder / "report.html"
    files.write_text(path, report_html(shown, study.trials(), study.front()))
    return path
