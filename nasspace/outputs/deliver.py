"""The end of a search: the front exported, measured again from its files in a fresh process, and written down."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nasspace.architecture import Architecture
from nasspace.counting import cost
from nasspace.documents import Document
from nasspace.latency import afresh, remote, runtimes
from nasspace.latency.cache import machine
from nasspace.outputs import running
from nasspace.outputs.checks import INT8
from nasspace.outputs.export import FORMATS, Exported, add_int8, export
from nasspace.outputs.report import report_html
from nasspace.outputs.weights import read_safetensors
from nasspace.studies import last_rung, places, turns
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
MEASURED = {"onnxruntime": "model.onnx", "onnxruntime-int8": INT8}  # the file of an export that a runtime runs ...
PYTORCH = "weights.pt"  # ... and of PyTorch's runtimes and those that convert from it


def deliver(study: Study, on_event: Report | None = None) -> Study:
    """Train, export and judge a study's front, and write its tables and report; what is recorded is not done again.

    The front's networks are trained at their deployment resolution and their exported files judged on the validation
    images; a member that is then dominated leaves the front, and what it had dominated comes back. The files are
    measured once more in a fresh process; a member that is then over its limit leaves the front, too. Raises
    `NothingFound` if none is left.
    """
    report = on_event or (lambda kind, **_: None)
    with places.alone(study.folder, wait=study.is_shared), errors_of_storage(study.folder):
        if study.settings["data"]:
            _drop_leftovers(study)
            try:
                _export_and_measure(study, report)
            finally:
                running.discard()
        records.write_tables(study)
        write_report(study)
        study.record.set_user_attr(records.FINISHED, True)
    if not study.front_numbers():
        raise nothing_found(study)
    return study


def _export_and_measure(study: Study, report: Report) -> None:
    """Train, export, judge and measure again until the front is stable; what is recorded is not done again."""
    data = _Data(study)
    while True:
        while promoted := study.promoted():
            for i, number in enumerate(promoted):
                _deploy(study, number, data, f"{i + 1} of {len(promoted)}", report)
        numbers = study.front_numbers()
        missing = [number for number in numbers if not _is_whole(_exported(study, number))]
        for i, number in enumerate(missing):
            report("finishing", text=f"exporting and checking {i + 1} of {len(missing)} (trial {number})")
            export_trial(study, number, _exported(study, number), data=data.of(study.architecture(number)))
        _measure_again(study, numbers, data, report)
        if study.front_numbers() == numbers and not study.promoted():
            break
    _drop_other_exports(study, numbers)
    _judge_predictor(study, report)


class _Data:
    """A study's data set, held at the resolution of the network that is at work; read when it is first needed."""

    def __init__(self, study: Study):
        self.study = study
        self.recipe = recipes.read(Document(study.settings["recipe"], str(study.folder / "study.yaml")))

    def of(self, architecture: Architecture) -> DataSet:
        """The data set at the network's resolution, decoded from the original files."""
        side = min(architecture.input[1:])
        held = self.study.data
        if held is None or held.resolution != side:
            held = self.study.data = data_of(self.recipe, side)
        return held


def _deploy(study: Study, number: int, data: _Data, which: str, report: Report) -> None:
    """The last rung of one trial: trained at its deployment resolution, exported, and its file judged."""
    architecture, recipe = study.architecture(number), data.recipe
    side, weights = min(architecture.input[1:]), study.deployed_weights
    about: dict[str, Any] = {"resolution": side}
    running.prepare()
    if weights.path(number) is None:
        start = study.kept_weights.path(number)

        def passed(epoch: int, epochs: int, loss: float) -> None:
            text = f"training at {side}x{side}, {which} (trial {number}): epoch {epoch} of {epochs}, loss {loss:.3f}"
            report("finishing", text=text)

        checkpoints = study.folder / "checkpoints"
        trained = last_rung.deployed(
            architecture,
            recipe,
            data.of(architecture),
            read_safetensors(start) if start else None,
            checkpoints=checkpoints,
            on_epoch=passed,
        )
        weights.keep(number, trained.state)
        last_rung.forget_checkpoints(checkpoints, architecture)
        about |= {"epochs": trained.epochs, "seconds": round(trained.seconds, 3)}
    report("finishing", text=f"exporting and checking {which} (trial {number})")
    exported = export_trial(study, number, _exported(study, number), data=data.of(architecture))
    judged = exported.accuracy
    if MEASURED.get(recipe.runtime) == INT8:
        judged = _quantise(study, number, data, report)
    accuracy = judged[MEASURED.get(recipe.runtime, PYTORCH)]
    study.record.set_user_attr(f"{records.DEPLOYED}{number}", {**about, "accuracy": accuracy})
    found = f"trial {number}: accuracy {accuracy:.4f} of the exported file at {side}x{side}"
    before = study.searched_accuracy(number)
    report("note", text=f"{found} (the search's: {before:.4f})" if before is not None else found)


def _is_whole(folder: Path) -> bool:
    """Folders are moved into place whole: one with a README is finished."""
    return (folder / "README.md").is_file()


def _drop_leftovers(study: Study) -> None:
    """Remove what a killed delivery was writing: temporary files and folders are hidden until they are whole."""
    for place in (study.folder / "exports", study.folder / "checkpoints", study.deployed_weights.folder):
        for path in place.glob(".*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _drop_other_exports(study: Study, numbers: list[int]) -> None:
    """Remove the exports of networks that left the front: `exports/` holds the front."""
    for folder in (study.folder / "exports").glob("*"):
        if folder.name.isdecimal() and int(folder.name) not in numbers:
            (folder / "README.md").unlink(missing_ok=True)  # a part of a folder is none that is finished
            shutil.rmtree(folder, ignore_errors=True)


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
    batch_size: int | Literal["dynamic"] | None = None,
    data: DataSet | None = None,
) -> Exported:
    """Export one trial of a study with its trained weights, if they are kept, and its figures on the card.

    With `data`, the study's own at the network's resolution, every file is judged on the validation images.
    """
    record = records.load(study) if isinstance(study, str) else study
    architecture = record.architecture(number)
    if resolution is not None:
        architecture = architecture.with_resolution(resolution)
        cost(architecture)  # says what does not run at this resolution
    row = record.trials().set_index("id").loc[number].to_dict()
    settings = record.settings
    described = settings["data"] or {}
    weights, preprocessing = record.weights(number), described.get("preprocessing")
    own = architecture.input == record.architecture(number).input
    card = {"study": record.name, **{key: described.get(key) for key in ("classes", "mean", "std")}}
    if weights and own:
        card |= {"accuracy_is_of": settings["accuracy_is_of"]}
        card |= {"search_accuracy": row["search_accuracy"], "search_fidelity": record.fidelity(number)}
        card |= {"resolution_why": settings.get("resolution_why")}
    if own:
        card |= {name: row[name] for name in ("latency_ms", "latency_low_ms", "latency_high_ms")}
        card |= {name: settings["recipe"][name] for name in ("runtime", "threads", "batch_size")}
        card["machine"] = record.latency_machine() or settings["machine"]
    if data is None and weights and own:
        card |= {"accuracy": row["accuracy"]}
    return export(
        architecture,
        folder,
        weights=weights,
        formats=formats,
        seed=seed,
        card=card,
        batch_size=batch_size,
        preprocessing=preprocessing if (preprocessing or {}).get("input") == list(architecture.input) else None,
        data=data,
    )


def _measure_again(study: Study, numbers: list[int], data: _Data, report: Report) -> None:
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
        for number in wanted:
            _quantise(study, number, data, report)
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


def _quantise(study: Study, number: int, data: _Data, report: Report) -> Mapping[str, float]:
    """Write and judge an export's file in int8, ranges from training images; the accuracy of each file."""
    from nasspace.latency.calibration import to_int8

    folder, architecture = _exported(study, number), study.architecture(number)
    held = data.of(architecture)
    if not (folder / INT8).is_file():
        to_int8(folder / "model.onnx", folder / INT8, images_for(architecture, held))
    accuracy = add_int8(folder, held).accuracy
    report(
        "note", text=f"trial {number} in int8: accuracy {accuracy[INT8]:.4f}, in float32 {accuracy['model.onnx']:.4f}"
    )
    return accuracy


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
        "budget_use": study.budget_use(),
    }
    path = study.folder / "report.html"
    files.write_text(path, report_html(shown, study.trials(), study.front()))
    return path
