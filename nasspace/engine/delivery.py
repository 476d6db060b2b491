"""The end of a search: last rung, export and re-measurement of the front until it is stable; tables and report."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nasspace import files
from nasspace.engine import dashboard, machine_lock, rungs
from nasspace.engine.checks import check_report
from nasspace.engine.infeasible import empty_front
from nasspace.engine.promotion import Promotion
from nasspace.engine.ray import remeasure
from nasspace.engine.study_data import StudyData
from nasspace.errors import VerificationError
from nasspace.exporting import code_runner
from nasspace.exporting.checks import INT8
from nasspace.exporting.export import RECORD, update_card
from nasspace.exporting.members import believed_facts, export_member
from nasspace.latency import remote, runtimes, subprocess_benchmark
from nasspace.latency.conditions import machine
from nasspace.reporting.report import write_report
from nasspace.studies import paths
from nasspace.studies import study as records
from nasspace.studies.schema import DEPLOYED, PREDICTOR, REMEASURED
from nasspace.studies.storage import errors_of_storage
from nasspace.studies.study import Study
from nasspace.studies.trial_table import is_same_machine

if TYPE_CHECKING:
    from nasspace.latency.benchmark import Latency

Report = Callable[..., None]
MAX_PREDICTED = 40  # latest measured networks on which the latency predictor is tested
EXPORTED_FILES = {"onnxruntime": "model.onnx", "onnxruntime-int8": INT8}  # file of an export by runtime
PYTORCH_FILE = "weights.pt"  # for all other runtimes


def deliver(study: Study, on_event: Report | None = None) -> Study:
    """Train, export and judge a study's front, and write its tables and report; recorded results are reused.

    The front's networks are trained at their deployment resolution, and their exported files judged on the validation
    images. A member that is now dominated leaves the front, and trials that only it dominated are promoted. The files
    are measured again in a fresh process; members over the latency limit leave the front, too. If the time budget is
    used up, the remaining members stay untrained and the study unfinished. Raises `NothingFound` if no member is left,
    and `VerificationError` if an export failed its checks, after everything else is written.
    """
    check_report(on_event)
    failed: dict[int, VerificationError] = {}
    with paths.alone(study.folder, wait=study.is_shared), errors_of_storage(study.folder):
        if study.settings["data"]:
            with study.recording_energy():
                failed = _Delivery(study, on_event or (lambda kind, **_: None)).run()
        finished = not failed and not study.promoted()
        write_report(replace(study.snapshot(), is_finished=finished))
        study.record.set_user_attr(records.FINISHED, finished)
        front = records.write_tables(study)  # after it: front.json records `finished`
        dashboard.update(study, front)
    if failed:
        errors = "; ".join(f"trial {number}: {error}" for number, error in failed.items())
        raise VerificationError(f"{errors} (`nas resume {paths.as_argument(study.folder)}` tries again)")
    if not study.front_numbers():
        raise empty_front(study)
    return study


class _Delivery:
    """The last rung, the exports and the re-measurement of one study.

    `failed` holds the errors of exports that failed their checks, by trial number.
    """

    def __init__(self, study: Study, report: Report):
        self.study = study
        self.report = report
        self.data = StudyData(study, report)
        self.rungs = Promotion(study, self.data, report)
        self.recipe = self.data.recipe
        self.file = EXPORTED_FILES.get(self.recipe.runtime)  # the exported file that the search's runtime runs
        self.failed: dict[int, VerificationError] = {}

    def run(self) -> dict[int, VerificationError]:
        """Train, export, evaluate and remeasure the front until it is stable; returns the failed exports."""
        study = self.study
        _drop_leftovers(study)
        self._reset_deleted()
        try:
            while True:
                in_time = self._train_front()
                numbers = study.front_numbers()
                self._export_missing(numbers)
                self._measure_again([number for number in numbers if number not in self.failed])
                nothing_to_train = not in_time or not set(study.promoted()) - self.failed.keys()
                if nothing_to_train and study.front_numbers() == numbers:
                    break
        finally:
            code_runner.discard()
        _drop_other_exports(study, numbers)
        self._drop_rungs()
        self._update_cards(numbers)
        _test_predictor(study, self.report)
        return self.failed

    def _update_cards(self, numbers: list[int]) -> None:
        """Bring the cards up to date: each training changed what is believed of all networks."""
        front = self.study.snapshot()
        for member in front.members:
            if member.id in numbers and member.id not in self.failed:
                update_card(self._folder(member.id), believed_facts(front, member))

    def _drop_rungs(self) -> None:
        """Drop weights and checkpoints of rungs before the last once no network is to be trained further."""
        if not self.study.promoted():
            for store in self.study.rung_stores:
                store.drop(trial.number for trial in self.study.frozen("COMPLETE"))
            for path in (self.study.folder / "checkpoints").glob("*.pt"):  # of a training that was killed at its end
                path.unlink(missing_ok=True)

    def _reset_deleted(self) -> None:
        """Reset trials whose export and trained weights were both deleted, so that they are trained again."""
        for number in self.study.deployed():
            if self.study.deployed_weights.path(number) is None and not _is_complete(self._folder(number)):
                self.study.record.set_user_attr(f"{DEPLOYED}{number}", None)

    def _folder(self, number: int) -> Path:
        """The export folder of a trial."""
        return self.study.folder / "exports" / str(number)

    @contextlib.contextmanager
    def _collecting_errors(self, number: int) -> Iterator[None]:
        """Collect the error of an export that failed its checks, and continue with the other members."""
        try:
            yield
        except VerificationError as error:
            self.failed[number] = error

    def _train_front(self) -> bool:
        """Train promoted trials up to their deployment resolution; False if time ran out.

        Each pass trains one rung of one network. A network that is then no longer expected on the front is not trained
        further, and another may take its place: progress says how many are left now, since their total is not known.
        """
        study = self.study
        self.rungs.climb_planned()
        while promoted := [number for number in study.promoted() if number not in self.failed]:
            number = self._next_to_train(promoted)
            if number is None:
                command = f"nas resume {paths.as_argument(study.folder)}"
                self.report("note", text=f"the time budget is used up: {len(promoted)} more to train, by `{command}`")
                return False
            position = f"{len(promoted)} left"
            with self._collecting_errors(number):
                if self.rungs.is_next_the_last(number):
                    self._deploy(number, position)
                else:
                    self.rungs.climb(number, self.rungs.next_rung(number), position)
        return True

    def _next_to_train(self, promoted: list[int]) -> int | None:
        """The promoted trial to train or export next; None if time is up.

        It is the one on the highest rung, with the highest expected accuracy: once that is confirmed, others may be
        dominated. When the time for trainings is used up, only networks that were trained at their deployment
        resolution follow. One network is trained in any case.
        """
        study, belief = self.study, self.study.belief()
        expected = belief.expected if belief else study.search_accuracy
        ranked = sorted(promoted, key=lambda n: (-self.rungs.next_rung(n), -(expected(n) or 0.0), n))
        if not self.rungs.is_time_used_up:
            return ranked[0]
        shippable = [number for number in ranked if self.rungs.is_shippable(number)]
        if not study.deployed().keys() & set(study.front_numbers()):
            return (shippable or ranked)[0]
        return shippable[0] if shippable and self.rungs.is_time_for_export else None

    def _deploy(self, number: int, position: str) -> None:
        """Run the last rung of one trial: train it at its deployment resolution, export it, and judge its file."""
        study, architecture = self.study, self.study.architecture(number)
        side = min(architecture.input[1:])
        code_runner.prepare()
        is_trained = study.deployed_weights.path(number) is not None and study.last_rung(number) is not None
        if not is_trained and not self.rungs.train_last(number, position):
            return
        rungs.remove_checkpoints(study.folder / "checkpoints", architecture)
        self.report("finishing", text=f"exporting and checking, {position} (trial {number})")
        started = time.monotonic()
        accuracies = self._export(number)
        self.rungs.record_export(time.monotonic() - started)
        accuracy = accuracies[self.file or PYTORCH_FILE]
        result = {key: study.last_rung(number)[key] for key in ("resolution", "epochs", "seconds")}
        result |= {"accuracy": accuracy, "accuracy_int8": accuracies.get(INT8)}
        study.record.set_user_attr(f"{DEPLOYED}{number}", result)
        text = f"trial {number}: accuracy {accuracy:.4f} of the exported file at {side}x{side}"
        before = study.search_accuracy(number)
        self.report("note", text=f"{text} (the search's: {before:.4f})" if before is not None else text)

    def _export_missing(self, numbers: list[int]) -> None:
        """Export the trials whose folders are missing or incomplete."""
        incomplete = [number for number in numbers if not _is_complete(self._folder(number))]
        missing = [number for number in incomplete if number not in self.failed]
        for i, number in enumerate(missing):
            self.report("finishing", text=f"exporting and checking {i + 1} of {len(missing)} (trial {number})")
            with self._collecting_errors(number):
                self._export(number)

    def _export(self, number: int) -> Mapping[str, float]:
        """Export a trial, also in int8 if the search's runtime runs that; returns the accuracy of each file."""
        data = self.data.of(self.study.architecture(number))
        exported = export_member(self.study.snapshot(), self.study.member(number), self._folder(number), data=data)
        return self._quantize(number) if self.file == INT8 else exported.accuracy

    def _quantize(self, number: int) -> Mapping[str, float]:
        """Write and judge an export's int8 file, calibrated on training images; returns the accuracy of each file."""
        from nasspace.exporting import int8

        data = self.data.of(self.study.architecture(number))
        with machine_lock.TrainingLock():  # it takes all cores for seconds, and no latency is measured meanwhile
            exported, quantized = int8.quantize(self._folder(number), data)
        accuracy = exported.accuracy
        if INT8 in accuracy:  # an untrained network has no accuracy
            compared = f"accuracy {accuracy[INT8]:.4f}, in float32 {accuracy['model.onnx']:.4f}"
            self.report("note", text=f"trial {number} in int8: {compared}; {quantized.scheme}")
        if quantized.warning:
            self.report("note", text=f"trial {number}: {quantized.warning}")
        return accuracy

    def _measure_again(self, numbers: list[int]) -> None:
        """Measure exports in a fresh process, on the machine and with the runtime of the search."""
        study, recipe, results = self.study, self.recipe, self.study.remeasured()
        missing = [number for number in numbers if str(number) not in results]
        if not missing or not ("latency" in study.objectives or "latency" in study.limits):
            return
        machine_of_search = study.latency_machine() or machine()
        elsewhere = recipe.latency_device == remote.LOCAL and not is_same_machine(machine_of_search, machine())
        if elsewhere and not (recipe.ray and self.file):
            self.report("note", text="not measured again: the search measured on another machine")
            return
        if self.file == INT8:
            for number in missing:
                if INT8 not in files.load_json(self._folder(number) / RECORD).value["files"]:
                    with self._collecting_errors(number):
                        self._quantize(number)
            missing = [number for number in missing if number not in self.failed]
        self.report("finishing", text=f"measuring the {len(missing)} exported networks again, in a fresh process")
        folders = [self._folder(number) for number in missing]
        for number, latency in zip(missing, self._fresh_latencies(folders, elsewhere), strict=True):
            results = {**results, str(number): replace(latency, runtime=recipe.runtime).to_json()}
            study.record.set_user_attr(REMEASURED, results)

    def _fresh_latencies(self, folders: list[Path], elsewhere: bool) -> Iterator[Latency]:
        """Yield the latencies of exports; with `elsewhere`, measured on the cluster's measuring node."""
        recipe = self.recipe
        settings = {"threads": recipe.threads, "batch_size": recipe.batch_size}
        exported = [folder / (self.file or "") for folder in folders]
        if recipe.latency_device != remote.LOCAL:
            with remote.RemoteDevice(recipe.latency_device) as device:
                yield from device.measure_files(exported, **settings, runtime=recipe.runtime)
        elif elsewhere:
            command = f"nas resume {paths.as_argument(self.study.folder)}"
            yield from remeasure.measure_files(exported, recipe, command, **settings)
        else:
            with machine_lock.measurement_lock():
                if self.file:
                    found = subprocess_benchmark.measure_files_in_subprocess(exported, **settings)
                else:
                    device_name = recipe.device if runtimes.get(recipe.runtime).uses_accelerator else "cpu"
                    found = subprocess_benchmark.measure_folders_in_subprocess(
                        folders, recipe.runtime, **settings, device=device_name
                    )
            yield from found


def _is_complete(folder: Path) -> bool:
    """Whether an export is complete: README.md is written last."""
    return (folder / "README.md").is_file()


def _is_temporary(path: Path) -> bool:
    """Whether a path is named like a temporary file of nasspace: `.NAME.` and eight characters."""
    kinds = "db|pt|safetensors|yaml|csv|json|html"  # a database may have a journal next to it
    return re.fullmatch(rf"\.(\d+|[\w-]+\.({kinds}))\.\w{{8}}(-journal|-wal|-shm)?", path.name) is not None


def _drop_leftovers(study: Study) -> None:
    """Remove temporary files and folders of a killed delivery."""
    folders = [study.folder / "exports", study.folder / "checkpoints", study.deployed_weights.folder]
    folders += study.folder.glob("weights/rung-*")
    if not study.is_shared:  # other processes may write to a shared study
        folders += [study.folder, study.search_weights.folder, study.shared_weights.folder, study.start_weights.folder]
    for folder in folders:
        for path in filter(_is_temporary, folder.glob(".*.*")):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _drop_other_exports(study: Study, numbers: list[int]) -> None:
    """Remove the exports of networks that left the front."""
    for folder in (study.folder / "exports").glob("*"):
        if folder.name.isdecimal() and int(folder.name) not in numbers:
            # README.md first, so that a partly removed folder does not look complete.
            (folder / "README.md").unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


def _test_predictor(study: Study, report: Report) -> None:
    """Record how well the latency of each measured network is predicted from the others."""
    from nasspace.latency.predictor import cross_validate

    measured_trials = [t for t in study.frozen("COMPLETE", "PRUNED") if "latency_interval" in t.user_attrs]
    trials = measured_trials[-MAX_PREDICTED:]
    if len(trials) < 3:
        return
    report("finishing", text="predicting the latency of each network from the others, as a test")
    architectures = [study.architecture(trial.number) for trial in trials]
    measured = [study.latency(trial)["median_ms"] for trial in trials]
    found = cross_validate(architectures, measured, [trial.user_attrs.get("layers_ms") for trial in trials])
    study.record.set_user_attr(PREDICTOR, {**found.to_json(), "sentence": str(found)})
