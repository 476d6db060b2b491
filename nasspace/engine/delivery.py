"""The end of a search: last rung, export and re-measurement of the front until it is stable; tables and report."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace import files
from nasspace.architecture import Architecture
from nasspace.documents import Document
from nasspace.engine import last_rung, machine_lock
from nasspace.engine.checks import check_device
from nasspace.engine.infeasible import empty_front
from nasspace.engine.latency_evaluator import images_for
from nasspace.engine.problem import data_of
from nasspace.engine.ray import remeasure
from nasspace.errors import InputError, VerificationError
from nasspace.exporting import code_runner
from nasspace.exporting.checks import INT8
from nasspace.exporting.export import RECORD, add_int8
from nasspace.exporting.members import export_member
from nasspace.exporting.weights import read_safetensors
from nasspace.latency import remote, runtimes, subprocess_benchmark
from nasspace.latency.cache import machine
from nasspace.reporting.report import write_report
from nasspace.studies import paths
from nasspace.studies import recipe as recipes
from nasspace.studies import study as records
from nasspace.studies.schema import DEPLOYED, LAST_RUNG, PREDICTOR, REMEASURED
from nasspace.studies.storage import errors_of_storage
from nasspace.studies.study import Study
from nasspace.studies.trial_table import is_same_machine

if TYPE_CHECKING:
    from nasspace.data.images import DataSet
    from nasspace.latency.benchmark import Latency

Report = Callable[..., None]
LARGEST_SAMPLE = 40  # the latest measured networks, on which the latency predictor is tested
EXPORTED_FILES = {"onnxruntime": "model.onnx", "onnxruntime-int8": INT8}  # the file of an export that a runtime runs
PYTORCH_FILE = "weights.pt"  # of all other runtimes


def deliver(study: Study, on_event: Report | None = None) -> Study:
    """Train, export and judge a study's front, and write its tables and report; recorded results are reused.

    The front's networks are trained at their deployment resolution, and their exported files judged on the validation
    images. A member that is then dominated leaves the front, and trials that it alone had dominated return. The files
    are measured again in a fresh process; a member that is then over its limit leaves the front, too. If the time
    budget is used up, the remaining members stay untrained and the study unfinished. Raises `NothingFound` if no member
    is left, and `VerificationError` if an export failed its checks, after everything else is written.
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
        write_report(study.snapshot())
        study.record.set_user_attr(records.FINISHED, not failed and not study.promoted())
        records.write_tables(study)  # the document says whether it is finished
    if failed:
        errors = "; ".join(f"trial {number}: {error}" for number, error in failed.items())
        raise VerificationError(f"{errors} (`nas resume {study.name}` tries again)")
    if not study.front_numbers():
        raise empty_front(study)
    return study


def _export_and_measure(study: Study, report: Report) -> dict[int, VerificationError]:
    """Train, export, judge and measure the front again until it is stable; recorded results are reused.

    Returns the trials whose exports failed their checks, with their errors.
    """
    data = _StudyData(study, report)
    failed: dict[int, VerificationError] = {}
    _reset_deleted(study)
    while True:
        in_time = _train_front(study, data, failed, report)
        numbers = study.front_numbers()
        missing = [
            number for number in numbers if not _is_complete(_export_folder(study, number)) and number not in failed
        ]
        for i, number in enumerate(missing):
            report("finishing", text=f"exporting and checking {i + 1} of {len(missing)} (trial {number})")
            with _collect_errors(failed, number):
                _judged_export(study, number, data, report)
        exported = [number for number in numbers if number not in failed]
        _measure_again(study, exported, data, failed, report)
        if study.front_numbers() == numbers and (not in_time or not set(study.promoted()) - failed.keys()):
            break
    _drop_other_exports(study, numbers)
    _test_predictor(study, report)
    return failed


def _train_front(study: Study, data: _StudyData, failed: dict[int, VerificationError], report: Report) -> bool:
    """Train the promoted trials at their deployment resolution, best search accuracy first; False if time ran out."""
    while promoted := [number for number in study.promoted() if number not in failed]:
        promoted.sort(key=lambda number: (-(study.search_accuracy(number) or 0.0), number))
        for i, number in enumerate(promoted):
            if study.is_out_of_time and study.deployed().keys() & set(study.front_numbers()):
                left = len(promoted) - i
                report("note", text=f"the time budget is used up: {left} more to train, by `nas resume {study.name}`")
                return False
            with _collect_errors(failed, number):
                _deploy(study, number, data, f"{i + 1} of {len(promoted)}", report)
    return True


@contextlib.contextmanager
def _collect_errors(failed: dict[int, VerificationError], number: int) -> Iterator[None]:
    """Collect the error of an export that failed its checks, so that it does not stop the other members."""
    try:
        yield
    except VerificationError as error:
        failed[number] = error


def _reset_deleted(study: Study) -> None:
    """Reset the last rung of trials whose export and trained weights were both deleted: they are trained again."""
    for number in study.deployed():
        if study.deployed_weights.path(number) is None and not _is_complete(_export_folder(study, number)):
            study.record.set_user_attr(f"{DEPLOYED}{number}", None)


class _StudyData:
    """A study's data set, loaded at the resolution of the current network when it is first needed.

    `device` is where networks are trained: the recipe's device, or the CPU if this machine does not have it.
    """

    def __init__(self, study: Study, report: Report):
        self.study = study
        self.recipe = recipes.read(Document(study.settings["recipe"], str(study.folder / "study.yaml")))
        self.device = self.recipe.device
        try:
            check_device(self.device)
        except InputError:  # the workers of a cluster have it, the driver does not
            report("note", text=f"this machine has no {self.device}: the front is trained on its CPU")
            self.device = "cpu"

    def of(self, architecture: Architecture) -> DataSet:
        """The data set at a network's resolution, decoded from the original files."""
        side = min(architecture.input[1:])
        held = self.study.data
        if held is None or held.resolution != side:
            held = self.study.data = data_of(self.recipe, side)
            self._check(held)
        return held

    def _check(self, held: DataSet) -> None:
        """Refuse images that differ from the study's; the fingerprint holds for one resolution."""
        settings = self.study.settings
        if held.resolution == settings["task"]["resolution"] and held.fingerprint != settings["data"]["fingerprint"]:
            raise InputError(
                f"{self.study.folder}: {held.name} are not the images of the search (fingerprint "
                f"{settings['data']['fingerprint']}, now {held.fingerprint}); restore them"
            )


def _deploy(study: Study, number: int, data: _StudyData, which: str, report: Report) -> None:
    """Run the last rung of one trial: train it at its deployment resolution, export it, and judge its file."""
    architecture, recipe = study.architecture(number), data.recipe
    side, weights = min(architecture.input[1:]), study.deployed_weights
    checkpoints = study.folder / "checkpoints"
    code_runner.prepare()
    if weights.path(number) is None or study.last_rung(number) is None:
        start = study.search_weights.path(number)

        def on_epoch(epoch: int, epochs: int, loss: float) -> None:
            text = f"training at {side}x{side}, {which} (trial {number}): epoch {epoch} of {epochs}, loss {loss:.3f}"
            report("finishing", text=text)

        held = data.of(architecture)
        try:
            trained = last_rung.train_deployed(
                architecture,
                recipe,
                held,
                read_safetensors(start) if start else None,
                checkpoints=checkpoints,
                device=data.device,
                on_epoch=on_epoch,
            )
        except last_rung.Diverged as error:
            study.record.set_user_attr(f"{DEPLOYED}{number}", {"resolution": side, **error.to_json()})
            last_rung.remove_checkpoints(checkpoints, architecture)
            remedy = f" (`nas show {study.name}:{number}` has its traceback)" if error.traceback else ""
            report("note", text=f"trial {number} leaves the front: {error}{remedy}")
            return
        training = {"resolution": side, "epochs": trained.epochs, "seconds": round(trained.seconds, 3)}
        training |= {"accuracy": trained.accuracy, "preprocessing": _without_classes(held.preprocessing)}
        study.record.set_user_attr(f"{LAST_RUNG}{number}", training)
        weights.keep(number, trained.state)
    last_rung.remove_checkpoints(checkpoints, architecture)
    report("finishing", text=f"exporting and checking {which} (trial {number})")
    judged = _judged_export(study, number, data, report)
    accuracy = judged[EXPORTED_FILES.get(recipe.runtime, PYTORCH_FILE)]
    result = {key: study.last_rung(number)[key] for key in ("resolution", "epochs", "seconds")}
    result |= {"accuracy": accuracy, "accuracy_int8": judged.get(INT8)}
    study.record.set_user_attr(f"{DEPLOYED}{number}", result)
    found = f"trial {number}: accuracy {accuracy:.4f} of the exported file at {side}x{side}"
    before = study.search_accuracy(number)
    report("note", text=f"{found} (the search's: {before:.4f})" if before is not None else found)


def _judged_export(study: Study, number: int, data: _StudyData, report: Report) -> Mapping[str, float]:
    """Export a trial, also in int8 if the study's runtime runs that; returns the accuracy of each file."""
    held, folder = data.of(study.architecture(number)), _export_folder(study, number)
    exported = export_member(study.snapshot(), study.member(number), folder, data=held)
    if EXPORTED_FILES.get(data.recipe.runtime) == INT8:
        return _quantize(study, number, data, report)
    return exported.accuracy


def _without_classes(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """Preprocessing without the names of the classes, which the study has already."""
    return {key: value for key, value in preprocessing.items() if key != "classes"}


def _is_complete(folder: Path) -> bool:
    """Whether an export is complete: folders are moved into place whole, README.md last."""
    return (folder / "README.md").is_file()


def _is_temporary(path: Path) -> bool:
    """Whether a hidden file has a name that only nasspace gives: one of its own, with a suffix of eight characters."""
    return re.fullmatch(r"\.(\d+|[\w-]+\.(pt|safetensors|yaml|csv|json|html))\.\w{8}", path.name) is not None


def _drop_leftovers(study: Study) -> None:
    """Remove the hidden temporary files and folders that a killed delivery left."""
    folders = [study.folder / "exports", study.folder / "checkpoints", study.deployed_weights.folder]
    if not study.is_shared:  # other processes may be writing into a shared one
        folders += [study.folder, study.search_weights.folder]
    for folder in folders:
        for path in filter(_is_temporary, folder.glob(".*.*")):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _drop_other_exports(study: Study, numbers: list[int]) -> None:
    """Remove the exports of networks that left the front: `exports/` holds the front alone."""
    for folder in (study.folder / "exports").glob("*"):
        if folder.name.isdecimal() and int(folder.name) not in numbers:
            (folder / "README.md").unlink(
                missing_ok=True
            )  # first, so that a partly removed folder does not look complete
            shutil.rmtree(folder, ignore_errors=True)


def _test_predictor(study: Study, report: Report) -> None:
    """Record how well the latency of each measured network is predicted from the others."""
    from nasspace.latency.predictor import held_out

    trials = [trial for trial in study.frozen("COMPLETE", "PRUNED") if "latency_interval" in trial.user_attrs][
        -LARGEST_SAMPLE:
    ]
    if len(trials) < 3:
        return
    architectures = [study.architecture(trial.number) for trial in trials]
    measured = [study.latency(trial)["median_ms"] for trial in trials]
    found = held_out(architectures, measured, [trial.user_attrs.get("layers_ms") for trial in trials])
    study.record.set_user_attr(PREDICTOR, {**found.to_json(), "sentence": str(found)})
    report("finishing", text=str(found))


def _export_folder(study: Study, number: int) -> Path:
    return study.folder / "exports" / str(number)


def _measure_again(
    study: Study, numbers: list[int], data: _StudyData, failed: dict[int, VerificationError], report: Report
) -> None:
    """Measure the front's exports in a fresh process, with the runtime and on the machine of the search."""
    recipe, results = study.settings["recipe"], study.remeasured()
    missing = [number for number in numbers if str(number) not in results]
    measured = "latency" in study.objectives or "latency" in study.limits
    if not missing or not measured:
        return
    measured_on = study.latency_machine() or machine()
    elsewhere = recipe.get("latency_device", remote.LOCAL) == remote.LOCAL
    elsewhere = elsewhere and not is_same_machine(measured_on, machine())
    if elsewhere and not (recipe.get("ray") and recipe["runtime"] in EXPORTED_FILES):
        report("note", text="not measured again: the search measured on another machine")
        return
    if EXPORTED_FILES.get(recipe["runtime"]) == INT8:
        for number in missing:
            if INT8 not in files.load_json(_export_folder(study, number) / RECORD).value["files"]:
                with _collect_errors(failed, number):
                    _quantize(study, number, data, report)
        missing = [number for number in missing if number not in failed]
    report("finishing", text=f"measuring the {len(missing)} exported networks again, in a fresh process")
    folders = [_export_folder(study, number) for number in missing]
    for number, result in zip(missing, _fresh_latencies(study, folders, recipe, elsewhere), strict=True):
        results = {**results, str(number): replace(result, runtime=recipe["runtime"]).to_json()}
        study.record.set_user_attr(REMEASURED, results)


def _fresh_latencies(
    study: Study, folders: list[Path], recipe: Mapping[str, Any], elsewhere: bool
) -> Iterator[Latency]:
    """Yield the latencies of exported folders; with `elsewhere` they are measured on the cluster's measuring node."""
    runtime, settings = recipe["runtime"], {"threads": recipe["threads"], "batch_size": recipe["batch_size"]}
    exported = [folder / EXPORTED_FILES.get(runtime, "") for folder in folders]
    device = recipe.get("latency_device", remote.LOCAL)
    if device != remote.LOCAL:
        with remote.Remote(device) as there:
            yield from there.measure_files(exported, **settings, runtime=runtime)
    elif elsewhere:
        read, command = recipes.read(Document(recipe, "study.yaml")), f"nas resume {paths.shown(study.folder)}"
        yield from remeasure.measure_files(exported, read, command, **settings)
    else:
        with machine_lock.measuring():
            if runtime in EXPORTED_FILES:
                found = subprocess_benchmark.measure_files_afresh(exported, **settings)
            else:
                on = recipe["device"] if runtimes.get(runtime).accelerated else "cpu"
                found = subprocess_benchmark.measure_folders_afresh(folders, runtime, **settings, device=on)
        yield from found


def _quantize(study: Study, number: int, data: _StudyData, report: Report) -> Mapping[str, float]:
    """Write and judge an export's int8 file, calibrated on training images; returns the accuracy of each file."""
    from nasspace.latency.quantization import to_int8

    folder, architecture = _export_folder(study, number), study.architecture(number)
    held = data.of(architecture)
    if not (folder / INT8).is_file():
        to_int8(folder / "model.onnx", folder / INT8, images_for(architecture, held))
    found = add_int8(folder, held)
    if INT8 in (accuracy := found.accuracy):  # an untrained network has no accuracy
        compared = f"accuracy {accuracy[INT8]:.4f}, in float32 {accuracy['model.onnx']:.4f}"
        report("note", text=f"trial {number} in int8: {compared}")
    return accuracy
