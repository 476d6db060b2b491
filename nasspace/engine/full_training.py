"""The full training of a network at its deployment resolution: resumable, tested once, exported."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace import files, zoo
from nasspace.architecture import Architecture
from nasspace.counting import cost
from nasspace.data.loading import DataSet, load_data, prepared
from nasspace.engine import machine_lock, origins, subjects
from nasspace.engine.checks import check_device
from nasspace.engine.origins import Origin
from nasspace.engine.problem import with_absolute_path
from nasspace.engine.settings import ResolvedSettings, resolve_settings
from nasspace.engine.subjects import Subject
from nasspace.errors import InputError, NasspaceError
from nasspace.exporting.export import LARGEST_SEED, TRAINED, check_folder, export
from nasspace.exporting.weights import load_into, read_safetensors, read_state
from nasspace.initialization import DEFAULT
from nasspace.latency.conditions import machine
from nasspace.latency.runtimes import library_versions
from nasspace.network import Network, build
from nasspace.studies import study as records
from nasspace.studies.recipe import LEAST_RESOLUTION
from nasspace.training import checkpoints, metrics, trainer
from nasspace.training.settings import Fidelity, TrainingSettings

if TYPE_CHECKING:
    from torch import Tensor

EPOCHS = 25  # a recipe's `full`
SMALLEST = 32  # pixels: smaller images are enlarged to this, where the architecture's own input is not below it
RECORD, CONFUSION = TRAINED
VERSION = 1
HOME = Path("trainings")
SETTLED = 50  # steps until the running statistics of batch norm say something of the network
MOST_SHOWN = 20  # classes of a confusion matrix in the README
MOST_NAMED = 3  # images left out
PACKAGES = ("nasspace", "torch", "numpy", "pillow")
NUMBER = int | float
FREE = ("version of PyTorch", "device")  # a finished training stays the same training on another machine
Report = Callable[[str], None]


@dataclass(frozen=True)
class Validation:
    """Accuracy on the validation images (the data's own, else held-out training images), a fraction."""

    accuracy: float


@dataclass(frozen=True)
class Test:
    """Fractions on the test split: accuracy with its 95 % interval (Wilson), balanced accuracy, macro F1."""

    __test__ = False  # for pytest

    accuracy: float
    low: float
    high: float
    balanced_accuracy: float
    macro_f1: float


SCORES = {part.name: NUMBER for part in dataclasses.fields(Test)}
RESULT = {  # what of result.json is relied on, and the types; of training.json likewise
    "identity": dict,
    "validation": {"accuracy": NUMBER},
    "test": SCORES,
    "confusion_is_of": str,
    "confusion": list,
}
RECORDED = {
    **{"nasspace_training": int, "identity": dict, "validation": {"accuracy": NUMBER}, "test": SCORES},
    **{"digest": str, "resolution": int, "epochs": int, "seconds": NUMBER, "settings": str, "not_applied": str},
}


@dataclass(frozen=True)
class FullTraining:
    """A finished training: the JSON document `train`. `test` is None where the data has no test split."""

    digest: str
    folder: Path
    resolution: int
    epochs: int
    seconds: float
    validation: Validation
    test: Test | None
    settings: str
    not_applied: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "folder": str(self.folder)}


@dataclass(frozen=True)
class FrontTraining:
    """The trainings of a study's front."""

    trained: tuple[FullTraining, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"trained": [one.to_dict() for one in self.trained]}


@dataclass(frozen=True)
class Options:
    """What a training is asked besides the network and the folder."""

    data: str | DataSet | None
    data_dir: str | Path | None
    epochs: int
    resolution: int | None
    settings: str | os.PathLike | TrainingSettings | None
    weights: Mapping[str, Tensor] | str | os.PathLike | None
    from_scratch: bool
    seed: int
    device: str
    threads: int | None
    batch_size: int | None
    skip_broken: bool


def train(
    arch: str | os.PathLike | Architecture,
    *,
    data: str | DataSet | None = None,
    data_dir: str | Path | None = None,
    epochs: int | None = None,
    resolution: int | None = None,
    settings: str | os.PathLike | TrainingSettings | None = None,
    weights: Mapping[str, Tensor] | str | os.PathLike | None = None,
    from_scratch: bool = False,
    out: str | os.PathLike | None = None,
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    batch_size: int | None = None,
    skip_broken: bool = False,
    report: Report | None = None,
) -> FullTraining | FrontTraining:
    """Train a network on all training images of `data` and export it to `out`; the same call resumes a stopped one.

    `arch` is an `Architecture`, the name of a published network, a path (of an architecture JSON or an export folder),
    `STUDY:ID`, or `STUDY:front`, which gives a `FrontTraining`. Published networks take the classes and channels of the
    data. `data` is a data set's name as in `load_data`, by default that of the study or export which the architecture
    or the weights come from, else digits; with `skip_broken` images that cannot be read are left out. `resolution` is
    by default that of the study's member or the export, else the smaller of the network's input and the images' size.
    `settings` are the package's own unless a published training is named (`nasspace.training.published`), a YAML file,
    or `TrainingSettings`. The start is `weights` (a state dictionary or a file), else the weights that a study or
    export kept, unless `from_scratch`, else initial ones of `seed`.

    The validation split stays held out. It is that of the study or export, so that none of its images was trained on
    before; `report` says where it is another. The test split is evaluated once, at the end. `out` becomes an export
    folder with `training.json` and `confusion.csv`; until then the state is kept next to it, in `.NAME.training`. A
    finished training is read, not repeated. `report` is called with a line of text for each epoch. Errors: `InputError`
    for what does not fit together; `NasspaceError` if the loss diverges.
    """
    _check_whole("seed", seed, 0)
    for name, value, least in (
        *(("epochs", epochs, 1), ("resolution", resolution, LEAST_RESOLUTION)),
        *(("threads", threads, 1), ("batch_size", batch_size, 2)),
    ):
        if value is not None:
            _check_whole(name, value, least)
    if weights is not None and from_scratch:
        raise InputError("weights and from_scratch exclude each other; give one")
    check_device(device)
    options = Options(
        data,
        data_dir,
        epochs or EPOCHS,
        resolution,
        settings,
        weights,
        from_scratch,
        seed,
        device,
        threads,
        batch_size,
        skip_broken,
    )
    report = report or _silent
    if isinstance(arch, Architecture):
        return _trained(Subject(arch), options, out, report)
    if (name := subjects.study_front(str(arch))) is None:
        return _trained(subjects.subject(str(arch)), options, out, report)
    study = records.load(name)
    numbers = study.front_numbers()
    if not numbers:
        raise InputError(f"{study.folder}: this study has no front yet; go on with `nas resume {name}`")
    if weights is not None:
        raise InputError(f"{arch}: the members of a front cannot start from the same weights; name one as {name}:ID")
    trained = []
    for i, number in enumerate(numbers):
        report(f"member {number} ({i + 1} of {len(numbers)})")
        folder = None if out is None else Path(out) / str(number)
        trained.append(_trained(subjects.member(study, number), options, folder, report))
    return FrontTraining(tuple(trained))


def _check_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}: {value!r} is not a whole number of {least} or more")
    if value > LARGEST_SEED:
        raise InputError(f"{name}: {value} is too large; give a number of at most {LARGEST_SEED}")


def _silent(text: str) -> None:
    """Nobody reads the progress."""


def _trained(subject: Subject, options: Options, out: str | os.PathLike | None, report: Report) -> FullTraining:
    folder = HOME / subject.name if out is None else Path(out)
    check_folder(folder)
    data, resolution = _data(subject, options, report)
    architecture = _fitted(subject, data, resolution)
    resolved = resolve_settings(
        options.settings,
        images=len(data.train),
        epochs=options.epochs,
        batch_size=options.batch_size,
        threads=options.threads,
    )
    model = _started(architecture, subject, options, report)
    run = _Run(subject, options, folder, data, architecture, resolved, model, report)
    return run.finished() or run.train()


def _data(subject: Subject, options: Options, report: Report) -> tuple[DataSet, int]:
    """The data held at the deployment resolution, split as where the weights come from; the resolution."""
    exported = origins.of_export(subject.folder) if subject.folder else None
    from_weights = origins.of_weights(options.weights)
    usual = origins.of_study(subject.study) if subject.study else from_weights or exported
    started = from_weights if options.weights is not None else usual
    chosen = _resolution(subject, exported, options.resolution, report)
    if isinstance(options.data, DataSet):
        given, resolution = options.data, chosen(options.data.resolution)
        data = prepared(given, resolution)
    else:
        given = data = _loaded(subject, options, usual, chosen, report)
    recorded = (subject.study.settings["data"] or {}) if subject.study else {}
    if recorded and usual.is_called(data.name) and list(data.classes) != recorded["classes"]:
        raise InputError(
            f"{data.name}: not the classes that the study was searched with; restore them, or name other --data"
        )
    if count := len(data.skipped):
        named = ", ".join(map(str, data.skipped[:MOST_NAMED])) + (", ..." if count > MOST_NAMED else "")
        report(f"left out, unreadable or in no class: {count:,} ({named})")
    if started and not started.is_of(given):
        starts = options.weights is not None or (subject.weights is not None and not options.from_scratch)
        effect = "; images that its weights were trained on may be held out here" if starts else ""
        report(f"{data.name}: another split than that of {started.place} ({started}){effect}")
    return data, data.resolution


def _loaded(
    subject: Subject, options: Options, usual: Origin | None, chosen: Callable[[int], int], report: Report
) -> DataSet:
    """The data set by its name; `usual` is the default, and its split that of any other data too.

    Images that were moved have another name, and are to be split as before.
    """
    asked = options.data
    if asked is None and usual is None:
        _check_digits_are_meant(subject, options)
    name, how = (
        with_absolute_path(str(asked or "digits")),
        {"data_dir": options.data_dir, "skip_broken": options.skip_broken},
    )
    if usual:
        how |= {"seed": usual.seed, "held_out": usual.held_out}
        if asked is None or usual.is_called(name):
            name = usual.name
            recipe = subject.study.settings["recipe"] if subject.study else {}
            how["data_dir"] = options.data_dir or recipe.get("data_dir")
            how["skip_broken"] = options.skip_broken or recipe.get("skip_broken", False)
    try:
        data = load_data(name, resolution=chosen, **how)
    except InputError as error:
        if asked is not None or usual is None:
            raise
        raise InputError(f"{error} (the data of {usual.place}; --data names others)") from None
    if usual and not subject.study and name == usual.name:
        named = f"{usual.name}, with its own validation split" if data.own_validation else str(usual)
        report(f"data of {usual.place}: {named}")
    return data


def _check_digits_are_meant(subject: Subject, options: Options) -> None:
    """Refuse digits as the default where the network or its weights come from other data, which are not known."""
    if subject.study:
        raise InputError(f"{subject.study.folder}: this study was searched without images; name some with --data")
    weights = options.weights if options.weights is not None else not options.from_scratch and subject.weights
    folder = origins.export_of(weights) if weights and not isinstance(weights, Mapping) else None
    if folder:
        raise InputError(f"{folder}: its export.json names no data; name those of its training with --data")


def _resolution(subject: Subject, exported: Origin | None, asked: int | None, report: Report) -> Callable[[int], int]:
    """The deployment resolution as a function of the size of the data's images."""
    rows, columns = subject.architecture.input[1:]

    def choose(native: int) -> int:
        if asked:
            return asked
        if rows != columns:
            raise InputError(f"the network's input of {rows}x{columns} is not square; give a --resolution")
        if subject.study or exported:
            return rows
        found = min(rows, max(native, SMALLEST))
        if found != rows or native < found:
            report(f"images of {native}x{native}: trained at {found}x{found}; --resolution sets another")
        return found

    return choose


def _fitted(subject: Subject, data: DataSet, resolution: int) -> Architecture:
    """The architecture at the resolution; a published one with the data's classes and channels."""
    architecture, classes = subject.architecture, len(data.classes)
    if subject.is_published:
        loaded = zoo.load(architecture.name, resolution=resolution, classes=classes)
        fitted = loaded.with_input(channels=data.channels)
    else:
        if architecture.classes != classes:
            raise InputError(
                f"the network has {architecture.classes} classes, {data.name} has {classes}; set 'classes' and the "
                "last layer's 'out', or name other --data"
            )
        if architecture.input[0] != data.channels:
            raise InputError(
                f"the network takes {architecture.input[0]} channels, {data.name} has {data.channels}; set its "
                "'input', or name other --data"
            )
        fitted = architecture.with_resolution(resolution)
    cost(fitted)  # says what does not run at this resolution
    return fitted


def _started(architecture: Architecture, subject: Subject, options: Options, report: Report) -> Network:
    """The network with the weights that it starts from."""
    # A published network that was named starts as in its paper.
    scheme = zoo.initialization_of(architecture.name) if subject.is_published else DEFAULT
    model = build(architecture, seed=options.seed, initialization=scheme)
    given = options.weights
    if given is None and not options.from_scratch:
        given = subject.weights
        if given is None and subject.folder:
            report(
                f"{subject.folder}: holds no {origins.WEIGHTS}; starts from the initial weights of seed {options.seed}"
            )
    if given is None:
        return model
    source = "weights" if isinstance(given, Mapping) else str(given)
    state = dict(given) if isinstance(given, Mapping) else _read(origins.file_of(given))
    head = f"{len(architecture.layers) - 1}."
    own = model.state_dict()
    other = [n for n in state if n in own and n.startswith(head) and state[n].shape != own[n].shape]
    if other:
        report(f"{source}: the last layer is of other classes and starts from its initial weights")
        state |= {name: own[name] for name in own if name.startswith(head)}
    load_into(model, state, source)
    report(f"starts from {source}")
    return model


def _read(path: Path) -> dict[str, Tensor]:
    return read_safetensors(path) if path.suffix == ".safetensors" else read_state(path)


class _Run:
    """One training: its checkpoint and result next to the folder, then the folder itself."""

    def __init__(
        self,
        subject: Subject,
        options: Options,
        folder: Path,
        data: DataSet,
        architecture: Architecture,
        resolved: ResolvedSettings,
        model: Network,
        report: Report,
    ):
        self.subject = subject
        self.options = options
        self.folder = folder
        self.data = data
        self.architecture = architecture
        self.resolved = resolved
        self.model = model
        self.report = report
        self.work = folder.resolve().with_name(f".{folder.resolve().name}.training")
        self.fidelity = Fidelity(data.resolution, options.epochs)
        self.identity = checkpoints.identity(
            model, data, self.fidelity, resolved.settings, options.seed, options.device
        )
        self.identity["architecture"] = architecture.digest

    def finished(self) -> FullTraining | None:
        """The training that the folder holds, if it is this one; another is an `InputError`."""
        path = self.folder / RECORD
        if not path.is_file():
            return None
        record = _kept(path, RECORDED, f"delete {path} to train again, or choose another --out folder")
        recorded = record["identity"]
        other = [part for part, value in self.identity.items() if part not in FREE and recorded.get(part) != value]
        if other:
            raise InputError(
                f"{self.folder}: holds another training ({', '.join(other)} differ); choose another --out folder"
            )
        self.report(f"{self.folder}: finished before")
        shutil.rmtree(self.work, ignore_errors=True)  # of a process that was killed in between
        return self._read(record)

    def train(self) -> FullTraining:
        """Train, judge, export; a training that another process has finished in the meantime is read."""
        with self._alone():
            return self.finished() or self._trained()

    def _trained(self) -> FullTraining:
        self._say()
        found = self._fit()
        if found.diverged:
            raise NasspaceError(
                f"the loss of epoch {len(found.losses)} is not a number: the training diverged; lower the learning "
                f"rate (--settings), and delete {self.work}"
            )
        result = self._judged(found)
        export(
            self.architecture,
            self.folder,
            weights=self.model.state_dict(),
            classes=self.data.classes,
            card=self._card(result),
            data=self.data if self.data.validation.originals is not None else None,
        )
        return self._written(found, result)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        import filelock

        if self.folder.is_dir() and not os.access(self.folder, os.W_OK | os.X_OK):  # the export comes last
            raise InputError(f"{self.folder}: cannot be written; choose another --out folder")
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.work / "lock", timeout=0)
            lock.acquire()
        except filelock.Timeout:
            raise InputError(
                f"{self.folder}: another process is training into it; wait, or choose another --out"
            ) from None
        except OSError as error:
            raise files.cannot_write(self.work, error) from None
        try:
            yield
        finally:
            lock.release()

    def _say(self) -> None:
        for note in self.resolved.notes:
            self.report(note)
        if self.resolved.not_applied:
            self.report(f"not applied: {self.resolved.not_applied}")
        if (self.work / "checkpoint.pt").is_file():
            self.report(f"continues from {self.work / 'checkpoint.pt'}")

    def _fit(self) -> trainer.Trained:
        options, data = self.options, self.data
        with machine_lock.TrainingLock() as turn:
            progress = _Progress(self, turn)
            return trainer.train(
                self.model,
                data,
                self.fidelity,
                self.resolved.settings,
                seed=options.seed,
                device=options.device,
                on_epoch=progress,
                checkpoint=self.work / "checkpoint.pt",
            )

    def _judged(self, found: trainer.Trained) -> dict[str, Any]:
        """Scores of the trained network, kept before the export so that the test split is not evaluated again."""
        path = self.work / "result.json"
        if path.is_file():
            remedy = f"delete {path} to evaluate again"
            kept = _kept(path, RESULT, remedy)
            count = len(self.data.classes)
            if not all(isinstance(row, list) and len(row) == count for row in [kept["confusion"], *kept["confusion"]]):
                raise InputError(f"{path}: confusion is not {count} rows of {count} counts; {remedy}")
            if kept["identity"] == self.identity:
                return kept
        split = "validation" if self.data.test is None else "test"
        images = self.data.test or self.data.validation
        with trainer.threads(self.resolved.settings.threads):
            predicted = trainer.predictions(
                self.model,
                images,
                self.data,
                self.data.resolution,
                batch_size=self.resolved.settings.evaluation_batch_size,
            )
        scored = asdict(metrics.scores(predicted, images.labels, len(self.data.classes)))
        confusion = [list(row) for row in scored.pop("confusion")]
        result = {
            "identity": self.identity,
            "validation": {"accuracy": found.accuracy},
            "test": scored if split == "test" else None,
            "confusion_is_of": split,
            "confusion": confusion,
        }
        files.write_json(path, result)
        return result

    def _card(self, result: Mapping[str, Any]) -> dict[str, Any]:
        study, side = self.subject.study, self.data.resolution
        return {
            "mean": [value / 255 for value in self.data.mean],
            "std": [value / 255 for value in self.data.std],
            "accuracy": result["validation"]["accuracy"],
            "accuracy_is_of": f"{self.data.validated_on} at {side}x{side}",
            "data": self.data.name,
            "study": study and study.name,
            "space": study and study.settings["space"]["name"],
            "id": self.subject.number,
        }

    def _written(self, found: trainer.Trained, result: Mapping[str, Any]) -> FullTraining:
        """Complete the exported folder; `training.json` comes last and marks a finished training."""
        confusion = metrics.confusion_csv(result["confusion"], self.data.classes)
        files.write_text(self.folder / CONFUSION, confusion)
        record = self._record(found, result)
        readme = (self.folder / "README.md").read_text(encoding="utf-8")
        files.write_text(
            self.folder / "README.md", f"{readme}\n{_section(record, result['confusion'], self.data.validated_on)}"
        )
        files.write_json(self.folder / RECORD, record)
        shutil.rmtree(self.work, ignore_errors=True)
        return self._read(record)

    def _record(self, found: trainer.Trained, result: Mapping[str, Any]) -> dict[str, Any]:
        data, options = self.data, self.options
        splits = {"train": data.train, "validation": data.validation, "test": data.test}
        return {
            "nasspace_training": VERSION,
            "digest": self.architecture.digest,
            "folder": str(self.folder),
            "resolution": data.resolution,
            "epochs": options.epochs,
            "seconds": round(found.seconds, 2),
            "validation": result["validation"],
            "test": result["test"],
            "confusion_is_of": result["confusion_is_of"],
            "settings": self.resolved.name,
            "not_applied": self.resolved.not_applied,
            "training": asdict(self.resolved.settings),
            "losses": list(found.losses),
            "seed": options.seed,
            "device": options.device,
            "data": {
                "name": data.name,
                "seed": data.seed,
                "held_out": data.held_out,
                "classes": list(data.classes),
                **{name: images and len(images) for name, images in splits.items()},
                "fingerprint": data.fingerprint,
            },
            "identity": self.identity,
            "machine": machine(),
            "versions": library_versions(PACKAGES),
        }

    def _read(self, record: Mapping[str, Any]) -> FullTraining:
        names = [part.name for part in dataclasses.fields(FullTraining)]
        values = {name: record[name] for name in names}
        test = record["test"]
        values |= {"validation": Validation(**record["validation"]), "test": test and Test(**test)}
        return FullTraining(**{**values, "folder": self.folder})


def _kept(path: Path, kinds: Mapping[str, Any], remedy: str) -> dict[str, Any]:
    """The content of a file that a training wrote; an `InputError` with the remedy for a damaged one."""
    try:
        document = files.load_json(path)
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from None
    record = document.value
    if not isinstance(record, dict) or record.get("nasspace_training", VERSION) != VERSION:
        raise document.error((), f"not the record of a training of version {VERSION}; {remedy}")
    for key, kind in kinds.items():
        may_lack = key in record and record[key] is None and key in ("test", "not_applied")
        if not may_lack and not _is(record.get(key), kind):
            raise document.error((key,), f"missing or of another kind; {remedy}")
    return record


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, or an object with these keys of these types."""
    if isinstance(kind, Mapping):
        return (
            isinstance(value, dict) and value.keys() == kind.keys() and all(_is(value[key], kind[key]) for key in kind)
        )
    return isinstance(value, kind) and not isinstance(value, bool)


class _Progress:
    """A line an epoch: loss, validation accuracy where it costs little, time left; lets measurements go first."""

    def __init__(self, run: _Run, turn: machine_lock.TrainingLock):
        self.run = run
        self.turn = turn
        self.start = time.monotonic()
        self.done = 0
        settings, data = run.resolved.settings, run.data
        usual = settings.norm_momentum is None and not settings.average  # else the current network is not the result
        self.cheap = run.report is not _silent and usual and 3 * len(data.validation) <= len(data.train)
        self.steps = max(1, len(data.train) // settings.batch_size)  # of an epoch

    def __call__(self, epoch: int, epochs: int, loss: float) -> None:
        self.done += 1
        left = (time.monotonic() - self.start) / self.done * (epochs - epoch)
        text = f"epoch {epoch} of {epochs}: loss {loss:.4f}"
        if self.cheap and epoch * self.steps >= SETTLED:
            run, data = self.run, self.run.data
            found = trainer.evaluate(
                run.model, data.validation, data, data.resolution, device=run.options.device
            )  # fmt: skip
            text += f", validation {found:.2%}"
        self.run.report(f"{text}, {_duration(left)} left" if epoch < epochs else text)
        self.turn.yield_to_measurements()


def _duration(seconds: float) -> str:
    """A time as people read it: 45 s, 12 min, 3.2 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _section(record: Mapping[str, Any], confusion: list[list[int]], validated_on: str) -> str:
    """What the README says of the training; `validated_on` names the validation images."""
    data, test = record["data"], record["test"]
    images = ", ".join(f"{data[name]:,} {name}" for name in ("train", "validation", "test") if data[name])
    rows = [
        ("Data", f"{_cell(data['name'])}: {images} images at {record['resolution']}x{record['resolution']}"),
        (
            "Training",
            f"{record['epochs']} epochs with the settings `{_cell(record['settings'])}`, seed {record['seed']}",
        ),
        ("Time", f"{_duration(record['seconds'])} on {record['device']}"),
        ("Validation accuracy", f"{record['validation']['accuracy']:.2%} of {validated_on}"),
    ]
    if test:
        interval = f"{test['low']:.2%} to {test['high']:.2%}"
        rows.append(("Test accuracy", f"{test['accuracy']:.2%} (95 % interval {interval}), evaluated once"))
        rows.append(("Balanced accuracy, macro F1", f"{test['balanced_accuracy']:.2%}, {test['macro_f1']:.2%} of test"))
    if record["not_applied"]:
        rows.append(("Not applied", f"of the published training: {_cell(record['not_applied'])}"))
    table = "\n".join(f"| {name} | {value} |" for name, value in (("", ""), ("--", "--"), *rows))
    split = record["confusion_is_of"]
    heading = f"## Training\n\n{table}\n\n`training.json` has every setting and the loss of each epoch."
    return f"{heading}\n\n### Confusion matrix of the {split} images\n\n{_matrix(confusion, data['classes'])}\n"


def _matrix(confusion: list[list[int]], classes: list[str]) -> str:
    """The matrix as a table, or of many classes the most frequent confusions."""
    names = [_cell(name) for name in classes]
    where = f"A row a true class, a column a predicted one; also in `{CONFUSION}`."
    if len(classes) <= MOST_SHOWN:
        head = f"| | {' | '.join(names)} |\n|{' -- |' * (len(names) + 1)}"
        rows = [f"| **{name}** | {' | '.join(map(str, row))} |" for name, row in zip(names, confusion, strict=True)]
        return "\n".join([f"{where}\n", head, *rows])
    pairs = [(n, i, j) for i, row in enumerate(confusion) for j, n in enumerate(row) if i != j and n]
    worst = sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:MOST_SHOWN]
    rows = [f"| {names[i]} | {names[j]} | {n} |" for n, i, j in worst]
    return "\n".join(
        [
            f"The most frequent confusions; all are in `{CONFUSION}`.\n",
            "| true | predicted | images |",
            "| -- | -- | -- |",
            *rows,
        ]
    )


def _cell(text: Any) -> str:
    """Words of others on one line, with nothing that Markdown would read."""
    return "".join("\\" + c if c in "\\`*_[]<>#|" else c for c in " ".join(str(text).split()))
