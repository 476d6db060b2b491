"""The end of a search: the front exported, measured again from its files in a fresh process, and written down."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nasspace import files
from nasspace.architecture import Architecture
from nasspace.counting import cost
from nasspace.documents import Document
from nasspace.engine import last_rung, machine_lock
from nasspace.engine.devices import check_device
from nasspace.engine.infeasible import empty_front
from nasspace.engine.latency_evaluator import input_images
from nasspace.engine.problem import data_of
from nasspace.engine.ray import remeasure
from nasspace.errors import InputError, VerificationError
from nasspace.exporting import code_runner
from nasspace.exporting.checks import INT8
from nasspace.exporting.export import FORMATS, RECORD, Exported, add_int8, export
from nasspace.exporting.model_card import trained_at
from nasspace.exporting.preprocessing import at_another_size
from nasspace.exporting.weights import read_safetensors
from nasspace.latency import remote, runtimes, subprocess_benchmark
from nasspace.latency.conditions import machine
from nasspace.reporting.study_report import write_report
from nasspace.studies import paths
from nasspace.studies import recipe as recipes
from nasspace.studies import study as records
from nasspace.studies.storage import errors_of_storage
from nasspace.studies.study import Study
from nasspace.studies.trial_table import is_same_machine

if TYPE_CHECKING:
    from nasspace.data.images import DataSet
    from nasspace.latency.benchmark import Latency

Report = Callable[..., None]
JUDGED = 40  # measured networks, the latest, on which the predictor is judged
MEASURED = {"onnxruntime": "model.onnx", "onnxruntime-int8": INT8}  # the file of an export that a runtime runs ...
PYTORCH = "weights.pt"  # ... and of PyTorch's runtimes and those that convert from it


def deliver(study: Study, on_event: Report | None = None) -> Study:
    """Train, export and judge a study's front, and write its tables and report; what is recorded is not done again.

    The front's networks are trained at their deployment resolution and their exported files judged on the validation
    images; a member that is then dominated leaves the front, and what it had dominated comes back. The files are
    measured once more in a fresh process; a member that is then over its limit leaves the front, too. Where the time
    budget is used up, the members that are left stay untrained, and the study unfinished. Raises `NothingFound` if no
    member is left, and, after all that can be written is written, `VerificationError` where an export did not hold.
    """
    report = on_event or (lambda kind, **_: None)
    failed: dict[int, VerificationError] = {}
    with paths.alone(study.folder, wait=study.is_shared), errors_of_storage(study.folder):
        if study.settings["data"]:
            _drop_leftovers(study)
            try:
                failed = _export_and_measure(study, report)
            finally:
                code_runner.discard()
        write_report(study)
        study.record.set_user_attr(records.FINISHED, not failed and not study.promoted())
        records.write_tables(study)  # the document says whether it is finished
    if failed:
        said = "; ".join(f"trial {number}: {error}" for number, error in failed.items())
        raise VerificationError(f"{said} (`nas resume {study.name}` tries again)")
    if not study.front_numbers():
        raise empty_front(study)
    return study


def _export_and_measure(study: Study, report: Report) -> dict[int, VerificationError]:
    """Train, export, judge and measure again until the front is stable; what is recorded is not done again.

    Returns the trials whose exports did not hold, which stay out.
    """
    data = _Data(study, report)
    failed: dict[int, VerificationError] = {}
    _forget_lost(study)
    while True:
        in_time = _train_front(study, data, failed, report)
        numbers = study.front_numbers()
        missing = [number for number in numbers if not _is_whole(_exported(study, number)) and number not in failed]
        for i, number in enumerate(missing):
            report("finishing", text=f"exporting and checking {i + 1} of {len(missing)} (trial {number})")
            with _noting(failed, number):
                _judged_export(study, number, data, report)
        exported = [number for number in numbers if number not in failed]
        _measure_again(study, exported, data, failed, report)
        if study.front_numbers() == numbers and (not in_time or not set(study.promoted()) - failed.keys()):
            break
    _drop_other_exports(study, numbers)
    _judge_predictor(study, report)
    return failed


def _train_front(study: Study, data: _Data, failed: dict[int, VerificationError], report: Report) -> bool:
    """Train what is promoted at its deployment resolution, the best of the search first; False where time ran out."""
    while promoted := [number for number in study.promoted() if number not in failed]:
        promoted.sort(key=lambda number: (-(study.searched_accuracy(number) or 0.0), number))
        for i, number in enumerate(promoted):
            if study.is_out_of_time and study.deployed().keys() & set(study.front_numbers()):
                left = len(promoted) - i
                report("note", text=f"the time budget is used up: {left} more to train, by `nas resume {study.name}`")
                return False
            with _noting(failed, number):
                _deploy(study, number, data, f"{i + 1} of {len(promoted)}", report)
    return True


@contextlib.contextmanager
def _noting(failed: dict[int, VerificationError], number: int) -> Iterator[None]:
    """Keep the error of an export that does not hold: it must not stop the other members."""
    try:
        yield
    except VerificationError as error:
        failed[number] = error


def _forget_lost(study: Study) -> None:
    """Take back the last rung of trials whose export and trained weights are both gone: they are trained again."""
    for number in study.deployed():
        if study.deployed_weights.path(number) is None and not _is_whole(_exported(study, number)):
            study.record.set_user_attr(f"{records.DEPLOYED}{number}", None)


class _Data:
    """A study's data set, held at the resolution of the network that is at work; read when it is first needed.

    `device` is where networks are trained: the recipe's, or the CPU where this machine has no such device.
    """

    def __init__(self, study: Study, report: Report):
        self.study = study
        self.recipe = recipes.read(Document(study.settings["recipe"], str(study.folder / "study.yaml")))
        self.device = self.recipe.device
        try:
            check_device(self.device)
        except InputError:  # the workers of a cluster have it, the driver has not
            report("note", text=f"this machine has no {self.device}: the front is trained on its CPU")
            self.device = "cpu"

    def of(self, architecture: Architecture) -> DataSet:
        """The data set at the network's resolution, decoded from the original files."""
        side = min(architecture.input[1:])
        held = self.study.data
        if held is None or held.resolution != side:
            held = self.study.data = data_of(self.recipe, side)
            self._check(held)
        return held

    def _check(self, held: DataSet) -> None:
        """Refuse other images than the study's; a fingerprint is that of the images at one resolution."""
        settings = self.study.settings
        if held.resolution == settings["task"]["resolution"] and held.fingerprint != settings["data"]["fingerprint"]:
            raise InputError(
                f"{self.study.folder}: {held.name} are not the images that were searched with (fingerprint "
                f"{settings['data']['fingerprint']}, now {held.fingerprint}); restore them"
            )


def _deploy(study: Study, number: int, data: _Data, which: str, report: Report) -> None:
    """The last rung of one trial: trained at its deployment resolution, exported, and its file judged."""
    architecture, recipe = study.architecture(number), data.recipe
    side, weights = min(architecture.input[1:]), study.deployed_weights
    checkpoints = study.folder / "checkpoints"
    code_runner.prepare()
    if weights.path(number) is None or study.last_rung(number) is None:
        start = study.kept_weights.path(number)

        def passed(epoch: int, epochs: int, loss: float) -> None:
            text = f"training at {side}x{side}, {which} (trial {number}): epoch {epoch} of {epochs}, loss {loss:.3f}"
            report("finishing", text=text)

        held = data.of(architecture)
        try:
            trained = last_rung.deployed(
                architecture,
                recipe,
                held,
                read_safetensors(start) if start else None,
                checkpoints=checkpoints,
                device=data.device,
                on_epoch=passed,
            )
        except last_rung.Diverged as error:
            study.record.set_user_attr(f"{records.DEPLOYED}{number}", {"resolution": side, **error.to_json()})
            last_rung.forget_checkpoints(checkpoints, architecture)
            remedy = f" (`nas show {study.name}:{number}` has its traceback)" if error.traceback else ""
            report("note", text=f"trial {number} leaves the front: {error}{remedy}")
            return
        about = {"resolution": side, "epochs": trained.epochs, "seconds": round(trained.seconds, 3)}
        about |= {"accuracy": trained.accuracy, "preprocessing": _without_classes(held.preprocessing)}
        study.record.set_user_attr(f"{records.LAST_RUNG}{number}", about)
        weights.keep(number, trained.state)
    last_rung.forget_checkpoints(checkpoints, architecture)
    report("finishing", text=f"exporting and checking {which} (trial {number})")
    judged = _judged_export(study, number, data, report)
    accuracy = judged[MEASURED.get(recipe.runtime, PYTORCH)]
    about = {key: study.last_rung(number)[key] for key in ("resolution", "epochs", "seconds")}
    about |= {"accuracy": accuracy, "accuracy_int8": judged.get(INT8)}
    study.record.set_user_attr(f"{records.DEPLOYED}{number}", about)
    found = f"trial {number}: accuracy {accuracy:.4f} of the exported file at {side}x{side}"
    before = study.searched_accuracy(number)
    report("note", text=f"{found} (the search's: {before:.4f})" if before is not None else found)


def _judged_export(study: Study, number: int, data: _Data, report: Report) -> Mapping[str, float]:
    """Export a trial, in int8 too where that is what the study's runtime runs; the accuracy of each file."""
    exported = export_trial(study, number, _exported(study, number), data=data.of(study.architecture(number)))
    if MEASURED.get(data.recipe.runtime) == INT8:
        return _quantise(study, number, data, report)
    return exported.accuracy


def _without_classes(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """The study has the names of the classes once."""
    return {key: value for key, value in preprocessing.items() if key != "classes"}


def _is_whole(folder: Path) -> bool:
    """Folders are moved into place whole: one with a README is finished."""
    return (folder / "README.md").is_file()


def _is_temporary(path: Path) -> bool:
    """Whether a hidden file has a name that only nasspace gives: a name of its own, and eight letters."""
    return re.fullmatch(r"\.(\d+|[\w-]+\.(pt|safetensors|yaml|csv|json|html))\.\w{8}", path.name) is not None


def _drop_leftovers(study: Study) -> None:
    """Remove what a killed delivery was writing: temporary files and folders are hidden until they are whole."""
    places_of = [study.folder / "exports", study.folder / "checkpoints", study.deployed_weights.folder]
    if not study.is_shared:  # there others may be searching, and writing, at this moment
        places_of += [study.folder, study.kept_weights.folder]
    for place in places_of:
        for path in filter(_is_temporary, place.glob(".*.*")):
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
    from nasspace.latency.predictor import cross_validate

    trials = [trial for trial in study.frozen("COMPLETE", "PRUNED") if "latency_interval" in trial.user_attrs][-JUDGED:]
    if len(trials) < 3:
        return
    architectures = [study.architecture(trial.number) for trial in trials]
    measured = [study.latency(trial)["median_ms"] for trial in trials]
    found = cross_validate(architectures, measured, [trial.user_attrs.get("layers_ms") for trial in trials])
    study.record.set_user_attr(records.PREDICTOR, {**found.to_json(), "sentence": str(found)})
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
    replace: bool = True,
) -> Exported:
    """Export one trial of a study with its trained weights, if they are kept, and its figures on the card.

    With `data`, the study's own at the network's resolution, every file is judged on the validation images.
    `replace` is as in `export`.
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
    if weights is None and row["search_accuracy"] is not None and row["search_accuracy"] == row["search_accuracy"]:
        raise InputError(
            f"{record.folder}: the trained weights of trial {number} are not kept; `nas train {record.name}:{number}` "
            "trains it and exports it"
        )
    own = architecture.input == record.architecture(number).input
    deployed = number in record.deployed() or record.deployed_weights.path(number) is not None
    trained = record.last_rung(number) or {} if deployed else {}
    if trained:
        preprocessing = {**trained["preprocessing"], "classes": described["classes"]}
    if preprocessing is not None:
        preprocessing = at_another_size(preprocessing, architecture)
    card = {"study": record.name, **{key: described.get(key) for key in ("classes", "mean", "std")}}
    if weights and own:
        card |= {"accuracy_is_of": settings["accuracy_is_of"]}
        card |= {"search_accuracy": row["search_accuracy"], "search_fidelity": record.fidelity(number)}
        card |= {"resolution_why": settings.get("resolution_why")}
    if weights and record.has_last_rung:
        at = record.architecture(number).input[1] if deployed else record.fidelity(number)["resolution"]
        if at != architecture.input[1]:
            card["resolution_why"] = trained_at(at)
    if own:
        card |= {name: row[name] for name in ("latency_ms", "latency_low_ms", "latency_high_ms")}
        card |= {name: settings["recipe"][name] for name in ("runtime", "threads", "batch_size")}
        card["machine"] = record.latency_machine() or settings["machine"]
    if weights and own:  # with data the training's, to which the files are held
        card |= {"accuracy": trained.get("accuracy") if data is not None else row["accuracy"]}
    return export(
        architecture,
        folder,
        weights=weights,
        formats=formats,
        seed=seed,
        card=card,
        batch_size=batch_size,
        preprocessing=preprocessing,
        data=data,
        origin=record.origin if weights else None,
        replace=replace,
    )


def export_front(study: str, folder: Path, **how: Any) -> list[Exported]:
    """Export the members of a study's front to folders below `folder`; `how` is as in `export_trial`."""
    record = records.load(study)
    numbers = record.front_numbers()
    if not numbers:
        raise InputError(f"{record.folder}: this study has no front yet; go on with `nas resume {study}`")
    return [export_trial(record, number, folder / str(number), **how) for number in numbers]


def _measure_again(
    study: Study, numbers: list[int], data: _Data, failed: dict[int, VerificationError], report: Report
) -> None:
    """Measure the front's exports in a fresh process, in the runtime and on the machine that the search measured on."""
    recipe, again = study.settings["recipe"], study.again()
    wanted = [number for number in numbers if str(number) not in again]
    measured = "latency" in study.objectives or "latency" in study.limits
    if not wanted or not measured:
        return
    measured_on = study.latency_machine() or machine()
    elsewhere = recipe.get("latency_device", remote.LOCAL) == remote.LOCAL
    elsewhere = elsewhere and not is_same_machine(measured_on, machine())
    if elsewhere and not (recipe.get("ray") and recipe["runtime"] in MEASURED):
        report("note", text="not measured again: the search measured on another machine")
        return
    if MEASURED.get(recipe["runtime"]) == INT8:
        for number in wanted:
            if INT8 not in files.load_json(_exported(study, number) / RECORD).value["files"]:
                with _noting(failed, number):
                    _quantise(study, number, data, report)
        wanted = [number for number in wanted if number not in failed]
    report("finishing", text=f"measuring the {len(wanted)} exported networks again, in a fresh process")
    folders = [_exported(study, number) for number in wanted]
    for number, result in zip(wanted, _afresh(study, folders, recipe, elsewhere), strict=True):
        again = {**again, str(number): replace(result, runtime=recipe["runtime"]).to_json()}
        study.record.set_user_attr(records.AGAIN, again)


def _afresh(study: Study, folders: list[Path], recipe: Mapping[str, Any], elsewhere: bool) -> Iterator[Latency]:
    """Latencies of exported folders, as they come; `elsewhere` is on the node of a cluster that measures."""
    runtime, asked = recipe["runtime"], {"threads": recipe["threads"], "batch_size": recipe["batch_size"]}
    exported = [folder / MEASURED.get(runtime, "") for folder in folders]
    device = recipe.get("latency_device", remote.LOCAL)
    if device != remote.LOCAL:
        with remote.RemoteDevice(device) as there:
            yield from there.measure_files(exported, **asked, runtime=runtime)
    elif elsewhere:
        read, go_on = recipes.read(Document(recipe, "study.yaml")), f"nas resume {paths.shown(study.folder)}"
        yield from remeasure.measure_files(exported, read, go_on, **asked)
    else:
        with machine_lock.measurement_lock():
            if runtime in MEASURED:
                found = subprocess_benchmark.measure_files_in_subprocess(exported, **asked)
            else:
                on = recipe["device"] if runtimes.get(runtime).uses_accelerator else "cpu"
                found = subprocess_benchmark.measure_folders_in_subprocess(folders, runtime, **asked, device=on)
        yield from found


def _quantise(study: Study, number: int, data: _Data, report: Report) -> Mapping[str, float]:
    """Write and judge an export's file in int8, ranges from training images; the accuracy of each file."""
    from nasspace.latency.quantization import to_int8

    folder, architecture = _exported(study, number), study.architecture(number)
    held = data.of(architecture)
    if not (folder / INT8).is_file():
        to_int8(folder / "model.onnx", folder / INT8, input_images(architecture, held))
    found = add_int8(folder, held)
    if INT8 in (accuracy := found.accuracy):  # a network that was never trained has none
        compared = f"accuracy {accuracy[INT8]:.4f}, in float32 {accuracy['model.onnx']:.4f}"
        report("note", text=f"trial {number} in int8: {compared}")
    return accuracy
