"""The end of a search: the front exported, measured again from its files in a fresh process, and written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace.counting import cost
from nasspace.documents import Document
from nasspace.latency import afresh, remote, runtimes
from nasspace.latency.cache import machine
from nasspace.outputs.checks import INT8
from nasspace.outputs.export import FORMATS, Exported, export
from nasspace.outputs.report import report_html
from nasspace.studies import places, turns
from nasspace.studies import recipe as recipes
from nasspace.studies import study as records
from nasspace.studies.loop import nothing_found
from nasspace.studies.measure import images_for
from nasspace.studies.storage import errors_of_storage
from nasspace.studies.study import Study
from nasspace.studies.task import data_of
from nasspace.studies.workers import again as measured_again

if TYPE_CHECKING:
    from nasspace.accuracy.images import DataSet
    from nasspace.latency.meter import Latency

Report = Callable[..., None]
JUDGED = 40  # measured networks, the latest, on which the predictor is judged
COMPARED = 128  # held-out images on which int8 is compared
MEASURED = {"onnxruntime": "model.onnx", "onnxruntime-int8": INT8}  # the file of an export that a runtime runs


def deliver(study: Study, on_event: Report | None = None) -> Study:
    """Bring a study's `exports/`, tables and report up to its record; what is recorded is not done again.

    The front's networks are measured once more, from their exported files in a fresh process; a member that is
    then over its limit leaves the front. Raises `NothingFound` if none is left.
    """
    report = on_event or (lambda kind, **_: None)
    with places.alone(study.folder, wait=study.is_shared), errors_of_storage(study.folder):
        if study.settings["data"]:
            _export_and_measure(study, report)
        records.write_tables(study)
        write_report(study)
        study.record.set_user_attr(records.FINISHED, True)
    if not study.front_numbers():
        raise nothing_found(study)
    return study


def _export_and_measure(study: Study, report: Report) -> None:
    numbers = study.front_numbers()
    missing = [number for number in numbers if not (_exported(study, number) / "README.md").is_file()]
    for i, number in enumerate(missing):  # folders are moved into place whole: one with a README is done
        report("finishing", text=f"exporting and checking {i + 1} of {len(missing)} (trial {number})")
        export_trial(study, number, _exported(study, number))
    _measure_again(study, numbers, report)
    _judge_predictor(study, report)


def _judge_predictor(study: Study, report: Report) -> None:
    """Keep with the study how well each network's latency is predicted from the others that were measured."""
    from nasspace.latency.predictor import held_out

    trials = [trial for trial in study.frozen("COMPLETE", "PRUNED") if "latency_interval" in trial.user_attrs][-JUDGED:]
    if len(trials) < 3:
        return
    architectures = [study.architecture(trial.number) for trial in trials]
    measured = [trial.user_attrs["values"]["latency"] for trial in trials]
    found = held_out(architectures, measured, [trial.user_attrs.get("layers_ms") for trial in trials])
    study.record.set_user_attr(records.PREDICTOR, found.to_json())
    report("finishing", text=str(found))


def _exported(study: Study, number: int) -> Path:
    return study.folder / "exports" / str(number)


def export_trial(
    study: Study | str,
    number: int,
    folder: Path,
    *,
    formats: tuple[str, ...] = FORMATS,
    resolution: int | None = None,
    seed: int = 0,
    batch_size: int | str | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    data: DataSet | None = None,
) -> Exported:
    """Export one trial of a study with its trained weights, if they are kept, and its figures on the card.

    `batch_size`, `preprocessing` and `data` are those of `export`.
    """
    record = records.load(study) if isinstance(study, str) else study
    architecture = record.architecture(number)
    if resolution is not None:
        architecture = architecture.with_resolution(resolution)
        cost(architecture)  # says what does not run at this resolution
    row = record.trials().set_index("id").loc[number].to_dict()
    settings = record.settings
    weights = record.weights(number)
    card = {
        "study": record.name,
        "classes": (settings["data"] or {}).get("classes"),
        "mean": (settings["data"] or {}).get("mean"),
        "std": (settings["data"] or {}).get("std"),
    }
    if weights:  # only the front's are kept; the accuracy is theirs
        card |= {"accuracy": row["accuracy"], "accuracy_is_of": settings["accuracy_is_of"]}
    if architecture.input == record.architecture(number).input:
        card |= {name: row[name] for name in ("latency_ms", "latency_low_ms", "latency_high_ms")}
        card |= {name: settings["recipe"][name] for name in ("runtime", "threads", "batch_size")}
        card["machine"] = record.latency_machine() or settings["machine"]
    given = {"batch_size": batch_size, "preprocessing": preprocessing, "data": data}
    return export(architecture, folder, weights=weights, formats=formats, seed=seed, card=card, **given)


def _measure_again(study: Study, numbers: list[int], report: Report) -> None:
    """Measure the front's exports in a fresh process, in the runtime and on the machine that the search measured on."""
    recipe, again = study.settings["recipe"], study.again()
    wanted = [number for number in numbers if str(number) not in again]
    measured = "latency" in study.objectives or "latency" in study.limits
    if not wanted or not measured:
        return
    elsewhere = recipe.get("latency_device", remote.LOCAL) == remote.LOCAL and study.latency_machine() != machine()
    if elsewhere and not (recipe.get("ray") and recipe["runtime"] in MEASURED):
        report("note", text="not measured again: the search measured on another machine")
        return
    if MEASURED.get(recipe["runtime"]) == INT8:
        _quantise(study, wanted, report)
    report("finishing", text=f"measuring the {len(wanted)} exported networks again, in a fresh process")
    folders = [_exported(study, number) for number in wanted]
    for number, result in zip(wanted, _afresh(folders, recipe, elsewhere), strict=True):
        again = {**again, str(number): replace(result, runtime=recipe["runtime"]).to_json()}
        study.record.set_user_attr(records.AGAIN, again)


def _afresh(folders: list[Path], recipe: Mapping[str, Any], elsewhere: bool) -> Iterator[Latency]:
    """Latencies of exported folders, as they come; `elsewhere` is on the node of a cluster that measures."""
    runtime, asked = recipe["runtime"], {"threads": recipe["threads"], "batch_size": recipe["batch_size"]}
    paths = [folder / MEASURED.get(runtime, "") for folder in folders]
    device = recipe.get("latency_device", remote.LOCAL)
    if device != remote.LOCAL:
        with remote.Remote(device) as there:
            yield from there.measure_files(paths, **asked, runtime=runtime)
    elif elsewhere:
        yield from measured_again.measure_files(paths, recipes.read(Document(recipe, "study.yaml")), **asked)
    else:
        with turns.measuring():
            if runtime in MEASURED:
                found = afresh.measure_files_afresh(paths, **asked)
            else:
                on = recipe["device"] if runtimes.get(runtime).accelerated else "cpu"
                found = afresh.measure_folders_afresh(folders, runtime, **asked, device=on)
        yield from found


def _quantise(study: Study, numbers: list[int], report: Report) -> None:
    """Write the exported files in int8 beside the others, ranges of training images; tell where they decide otherwise.

    The accuracy of a study is of float32, so that it is said on how many held-out images int8 gives the same class.
    """
    from nasspace.latency.calibration import agreement, to_int8

    missing = [number for number in numbers if not (_exported(study, number) / INT8).is_file()]
    if missing:
        data = data_of(recipes.read(Document(study.settings["recipe"], str(study.folder / "study.yaml"))))
        for number in missing:
            folder, architecture = _exported(study, number), study.architecture(number)
            path = to_int8(folder / "model.onnx", folder / INT8, images_for(architecture, data))
            images = images_for(architecture, data, split="validation", count=COMPARED)
            same = agreement(folder / "model.onnx", path, images)
            report("note", text=f"trial {number} in int8: {same:.0%} of {len(images)} held-out images as in float32")


def write_report(study: Study) -> Path:
    """Write report.html anew from the record."""
    from nasspace import files

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
    }
    path = study.folder / "report.html"
    files.write_text(path, report_html(shown, study.trials(), study.front()))
    return path
