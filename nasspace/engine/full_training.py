"""Full training of a network at its deployment resolution: resumable, tested once, exported."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace import files, zoo
from nasspace.architecture import Architecture
from nasspace.counting import cost
from nasspace.data import pixel_files
from nasspace.data.loading import DataSet, load_data, prepared
from nasspace.engine import arch_reference, data_origin, machine_lock, teachers, training_logs
from nasspace.engine.arch_reference import ResolvedArch
from nasspace.engine.data_origin import DataOrigin
from nasspace.engine.devices import check_device
from nasspace.engine.problem import with_absolute_path
from nasspace.engine.settings import OWN, ResolvedSettings, resolve_settings
from nasspace.errors import InputError, NasspaceError
from nasspace.exporting.export import LARGEST_SEED, TRAINED, check_folder, export
from nasspace.exporting.weights import as_state, load_into, read_weights
from nasspace.formatting import duration
from nasspace.initialization import DEFAULT
from nasspace.latency.benchmark import check_counts
from nasspace.latency.conditions import machine
from nasspace.latency.runtimes import library_versions
from nasspace.network import Network, build
from nasspace.reporting import training_page
from nasspace.studies import paths
from nasspace.studies import study as records
from nasspace.studies.recipe import LEAST_RESOLUTION
from nasspace.studies.study import Study
from nasspace.training import checkpoints, distributed, metrics, pretrained, trainer
from nasspace.training.distributed import Processes
from nasspace.training.precision import check_precision
from nasspace.training.settings import FINE_TUNING, Fidelity, TrainingSettings

if TYPE_CHECKING:
    from torch import Tensor

EPOCHS = 25  # a recipe's `full`
SMALLEST = 32  # pixels: smaller images are enlarged to this, unless the architecture's own input is smaller
RECORD, CONFUSION, PAGE = TRAINED  # training.json, confusion.csv, training.html
VERSION = 1
HOME = Path(paths.TRAININGS)  # the default place of output folders
SETTLED = 50  # steps until the running statistics of batch norm are usable
MOST_SHOWN = 20  # classes of a confusion matrix in the README
JUDGED_COPIES = 4  # of the validation images in memory while an export is judged
MOST_NAMED = 3  # skipped images listed by path
PACKAGES = ("nasspace", "torch", "numpy", "pillow")
NUMBER = int | float
PORTABLE = ("version of PyTorch", "device")  # parts of an identity that do not distinguish finished trainings
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
RESULT = {  # required keys of result.json and their types
    "identity": dict,
    "validation": {"accuracy": NUMBER},
    "test": SCORES,
    "confusion_is_of": str,
    "confusion": list,
}
RECORDED = {  # required keys of training.json and their types
    **{"nasspace_training": int, "identity": dict, "validation": {"accuracy": NUMBER}, "test": SCORES},
    **{"digest": str, "resolution": int, "epochs": int, "seconds": NUMBER, "settings": str, "not_applied": str},
    "losses": list,
}
ADDED = {"rates": list, "validation_by_epoch": list, "logs": dict}  # keys that older trainings lack


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
    """The trainings of a study's front, one for each member."""

    trained: tuple[FullTraining, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"trained": [one.to_dict() for one in self.trained]}


@dataclass(frozen=True)
class Options:
    """The arguments of `train` other than the network and the folder."""

    data: str | DataSet | None
    data_dir: str | Path | None
    epochs: int
    resolution: int | None
    settings: str | os.PathLike | TrainingSettings | None
    weights: Mapping[str, Tensor] | str | os.PathLike | None
    from_scratch: bool
    teacher: str | os.PathLike | None
    seed: int
    device: str
    threads: int | None
    batch_size: int | None
    skip_broken: bool
    log: tuple[str, ...] = ()
    on_disk: bool = False
    processes: Processes = distributed.ALONE
    constraint: trainer.Constraint | None = None
    beside: Study | None = None  # whose data, split, resolution and epochs are taken
    inherited: Start | None = None  # what `weights` were before a compression changed them: their origin, normalization


def train(
    arch: str | os.PathLike | Architecture,
    *,
    data: str | DataSet | None = None,
    data_dir: str | Path | None = None,
    beside: str | os.PathLike | None = None,
    epochs: int | None = None,
    resolution: int | None = None,
    settings: str | os.PathLike | TrainingSettings | None = None,
    weights: Mapping[str, Tensor] | str | os.PathLike | None = None,
    from_scratch: bool = False,
    teacher: str | os.PathLike | None = None,
    out: str | os.PathLike | None = None,
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    batch_size: int | None = None,
    skip_broken: bool = False,
    log: str | Iterable[str] = (),
    on_disk: bool = False,
    report: Report | None = None,
) -> FullTraining | FrontTraining:
    """Train a network on all training images of `data` and export it to `out`; the same call resumes a stopped one.

    `arch` is an `Architecture`, the name of a published network, a path (of an architecture JSON or an export folder),
    `STUDY:ID`, or `STUDY:front`, which returns a `FrontTraining`. Published networks are built for the classes and
    channels of the data. `data` is a data set's name as in `load_data`; the default is the data of the study or export
    that the architecture or the weights come from, else digits. `beside` names a study: a network that is not its own
    is trained on its data and split, at its resolution, for the epochs of its full training, to be compared with its
    networks. With `skip_broken`, unreadable images are skipped. With
    `on_disk`, or if they would take more than half of the memory, decoded images are read from a file (`load_data`).
    `epochs` defaults to 25, or to those of the study's full training (`full` of its recipe).
    `resolution` defaults to that of the study's member or the export, else to the smaller of the network's input and
    the images' size. `settings` is None or `own` (the package's own), the name of a published training
    (`nasspace.training.published`), a YAML file, or `TrainingSettings`. Training starts from `weights` (a state
    dictionary or a file), else from the weights in the study or export unless `from_scratch`, else from initial
    weights of `seed`. `teacher` is a trained network that it learns from (`nasspace.engine.teachers`): an ONNX file, an
    export's folder or `STUDY:ID`.

    The validation split stays held out. It is the split of the study or export, so that none of its images was trained
    on before; `report` says if it differs. The test split is evaluated once, at the end. `out` becomes an export folder
    with `training.json`, `confusion.csv` and the page `training.html`; until then the state is kept next to it, in
    `.NAME.training`. A finished training is read, not repeated. Processes that `torchrun` started train
    together (`nasspace.training.distributed`) and need the same files; the first one writes, and all return the result.
    `log` names `tensorboard` (event files in
    `OUT/tensorboard`), `mlflow` (a run as MLflow's environment variables say), or both. `report` is called with a line
    of text for each epoch. Raises `InputError` for arguments that do not fit together and `NasspaceError` if the loss
    diverges.
    """
    check_numbers(seed, epochs, resolution)
    for name, value, least in (("threads", threads, 1), ("batch_size", batch_size, 2)):
        if value is not None:
            _check_whole(name, value, least)
    if weights is not None and not isinstance(weights, Mapping | str | os.PathLike):
        raise InputError(f"weights: {type(weights).__name__} is neither a state dictionary nor a path")
    if weights is not None and from_scratch:
        raise InputError("weights and from_scratch are mutually exclusive; give one")
    study = None if beside is None else _study_beside(beside, data)
    check_device(device)
    with distributed.joined(device) as processes:
        options = Options(
            data,
            data_dir,
            epochs or EPOCHS,
            resolution,
            settings,
            weights,
            from_scratch,
            arch_reference.settled(teacher),
            seed,
            processes.device,
            threads,
            batch_size,
            skip_broken,
            training_logs.checked(log),
            on_disk or processes.count > 1,
            processes,
            beside=study,
        )
        return _train(arch, options, epochs, out, report if report and processes.is_first else _silent)


def _train(
    arch: str | os.PathLike | Architecture,
    options: Options,
    epochs: int | None,
    out: str | os.PathLike | None,
    report: Report,
) -> FullTraining | FrontTraining:
    """Train what `arch` names; `epochs` were given by the user."""
    if isinstance(arch, Architecture):
        source = ResolvedArch(arch)
        return train_one(source, _with_epochs(options, source, epochs), out, report)
    if (name := arch_reference.parse_front(str(arch))) is None:
        source = arch_reference.resolve_arch(str(arch))
        return train_one(source, _with_epochs(options, source, epochs), out, report)
    study = records.read(name)
    numbers = study.front_numbers()
    if not numbers:
        raise InputError(
            f"{study.folder}: this study has no front yet; run `nas resume {paths.as_argument(study.folder)}`"
        )
    if options.weights is not None:
        raise InputError(f"{arch}: the members of a front cannot start from the same weights; name one as {name}:ID")
    trained = []
    for i, number in enumerate(numbers):
        report(f"member {number} ({i + 1} of {len(numbers)})")
        folder = None if out is None else Path(out) / str(number)
        source = arch_reference.resolve_trial(study, number)
        trained.append(train_one(source, _with_epochs(options, source, epochs), folder, report))
    return FrontTraining(tuple(trained))


def _study_beside(name: str | os.PathLike, data: Any) -> Study:
    """The study beside whose networks another one is trained."""
    if data is not None:
        raise InputError("beside and data are mutually exclusive: the images are those of the study; give one")
    study = records.read(name)
    if study.origin is None:
        raise InputError(
            f"{study.folder}: this study was searched without images; leave --beside out, and name some with --data"
        )
    return study


def check_numbers(seed: int, epochs: int | None, resolution: int | None) -> None:
    """Refuse arguments that are not whole numbers in their ranges."""
    _check_whole("seed", seed, 0)
    for name, value, least in (("epochs", epochs, 1), ("resolution", resolution, LEAST_RESOLUTION)):
        if value is not None:
            _check_whole(name, value, least)


def _check_whole(name: str, value: Any, least: int) -> None:
    """Refuse an argument that is not a whole number of `least` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}: {value!r} is not a whole number of {least} or more")
    if value > LARGEST_SEED:
        raise InputError(f"{name}: {value} is too large; give a number of at most {LARGEST_SEED}")


def _silent(text: str) -> None:
    """Discard the progress."""


@contextlib.contextmanager
def locked(work: Path, busy: str) -> Iterator[None]:
    """Hold the lock of the folder `work`, which is made; an `InputError` says `busy` if another process holds it."""
    import filelock

    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(work / "lock", timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise InputError(busy) from None
    except OSError as error:
        raise files.cannot_write(work, error) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if [path.name for path in work.iterdir()] == ["lock"]:  # nothing was started
                shutil.rmtree(work)
        lock.release()


def train_one(source: ResolvedArch, options: Options, out: str | os.PathLike | None, report: Report) -> FullTraining:
    """Train one network, or read its finished training."""
    if options.beside and source.study and source.study.folder.resolve() == options.beside.folder.resolve():
        raise InputError(f"{source.name}: is of this study, on whose data it is trained; leave --beside out")
    folder = HOME / source.name if out is None else Path(out)
    check_folder(folder)
    if _is_finished_without_weights(folder, source, options):
        report(f"{folder}: finished before; {options.weights} is gone, from which it started")
        return read(folder)
    architecture, start = prepared_start(source, options, report)
    resolved = resolve_settings(
        options.settings,
        images=len(start.data.train),
        epochs=options.epochs,
        batch_size=options.batch_size,
        threads=options.threads,
        has_teacher=options.teacher is not None,
    )
    check_precision(resolved.settings.precision, options.device)
    check_counts(threads=resolved.settings.threads)
    if not start.account:
        for name in resolved.settings.changed(FINE_TUNING):
            raise InputError(f"training.{name}: is for fine-tuning of given weights; give --weights, or leave it out")
    run = _Run(source, options, folder, architecture, resolved, start, report)
    if options.processes.count > 1:
        return run.train_together()
    return run.finished() or run.train()


def _is_finished_without_weights(folder: Path, source: ResolvedArch, options: Options) -> bool:
    """Whether a folder has the finished training of these arguments, whose weights are gone: it can still be shown.

    All is compared that needs neither the weights nor the images.
    """
    weights, path = options.weights, folder / RECORD
    if (
        weights is None
        or isinstance(weights, Mapping)
        or not path.is_file()
        or data_origin.weights_file(weights).exists()
    ):
        return False
    record = _read_record(path, RECORDED, f"delete {path} to train again, or choose another --out folder")
    recorded = {
        **{name: record.get(name) for name in ("network", "epochs", "seed", "resolution", "settings")},
        **{name: (record.get("training") or {}).get(name) for name in ("batch_size", "threads")},
        "data": (record.get("data") or {}).get("name"),
        "weights": (record.get("starts_from") or [""])[-1],
        "teacher": record.get("teacher") or "",
    }
    settings = "given" if isinstance(options.settings, TrainingSettings) else options.settings
    data = options.data.name if isinstance(options.data, DataSet) else options.data and with_absolute_path(options.data)
    given = {
        **{"network": source.name, "epochs": options.epochs, "seed": options.seed, "resolution": options.resolution},
        **{"settings": str(settings or OWN), "batch_size": options.batch_size, "threads": options.threads},
        **{"data": data, "weights": f"starts from {weights}"},
        "teacher": "" if options.teacher is None else os.fspath(options.teacher),
    }
    return all(value is None or recorded[name] == value for name, value in given.items())


def prepared_start(source: ResolvedArch, options: Options, report: Report) -> tuple[Architecture, Start]:
    """The architecture for the data and the resolution, and the network and the data that a training starts with."""
    data, resolution = _data(source, options, report)
    architecture = _architecture(source, data, resolution)
    return architecture, _start(architecture, source, data, options, report)


def _study_of(source: ResolvedArch, options: Options) -> Study | None:
    """The study whose images, split and full training are the default: that of `beside`, else the network's own."""
    return options.beside or source.study


def _with_epochs(options: Options, source: ResolvedArch, epochs: int | None) -> Options:
    """The options with the epochs of the study's full training, which its intervals speak of, if none were given."""
    study = _study_of(source, options)
    if epochs is not None or study is None:
        return options
    return dataclasses.replace(options, epochs=study.settings["recipe"]["full"]["epochs"])


def _data(source: ResolvedArch, options: Options, report: Report) -> tuple[DataSet, int]:
    """The data at the deployment resolution, split as in the study or export of the weights; the resolution."""
    of_export = data_origin.of_export(source.folder) if source.folder else None
    of_weights = data_origin.of_weights(options.weights)
    study = _study_of(source, options)
    default = data_origin.of_study(study) if study else of_weights or of_export
    its_own = data_origin.of_study(source.study) if source.study else default
    trained_on = of_weights if options.weights is not None else its_own
    requested = options.resolution
    if requested is None and options.beside:
        requested = options.beside.settings["task"]["resolution"]
    choose = _resolution_chooser(source, of_export, requested, report)
    if isinstance(options.data, DataSet):
        given, resolution = options.data, choose(options.data.resolution)
        data = prepared(given, resolution)
    else:
        given = data = _load_by_name(source, options, default, choose, report)
    recorded = (study.settings["data"] or {}) if study else {}
    if recorded and default.has_name(data.name) and list(data.classes) != recorded["classes"]:
        raise InputError(
            f"{data.name}: not the classes that the study was searched with; restore them, or name other --data"
        )
    if count := len(data.skipped):
        named = ", ".join(map(str, data.skipped[:MOST_NAMED])) + (", ..." if count > MOST_NAMED else "")
        report(f"left out, unreadable or in no class: {count:,} ({named})")
    if trained_on and not trained_on.is_split_of(given):
        has_weights = options.weights is not None or (source.weights is not None and not options.from_scratch)
        effect = "; images that its weights were trained on may be held out here" if has_weights else ""
        report(f"{data.name}: another split than that of {trained_on.recorded_in} ({trained_on}){effect}")
    return data, data.resolution


def _load_by_name(
    source: ResolvedArch,
    options: Options,
    default: DataOrigin | None,
    resolution: Callable[[int], int],
    report: Report,
) -> DataSet:
    """Load the data set that `options.data` names, else the `default`; both are split as the default was.

    Images that were moved have another name but must be split as before.
    """
    requested = options.data
    if requested is None and default is None:
        _check_default_data(source, options)
    name = with_absolute_path(str(requested or "digits"))
    arguments: dict[str, Any] = {"data_dir": options.data_dir, "skip_broken": options.skip_broken}
    arguments |= {"on_disk": options.on_disk, "report": report}
    if default:
        arguments |= {"seed": default.seed, "held_out": default.held_out}
        if requested is None or default.has_name(name):
            name = default.name
            study = _study_of(source, options)
            recipe = study.settings["recipe"] if study else {}
            arguments["data_dir"] = options.data_dir or recipe.get("data_dir")
            arguments["skip_broken"] = options.skip_broken or recipe.get("skip_broken", False)
    try:
        data = load_data(name, resolution=resolution, **arguments)
    except InputError as error:
        if requested is not None or default is None:
            raise
        raise InputError(f"{error} (the data of {default.recorded_in}; --data names others)") from None
    if default and not source.study and name == default.name:
        description = f"{default.name}, with its own validation split" if data.own_validation else str(default)
        report(f"data of {default.recorded_in}: {description}")
    return data


def _check_default_data(source: ResolvedArch, options: Options) -> None:
    """Refuse digits as the default for a network or weights that come from other, unknown data."""
    if source.study:
        raise InputError(f"{source.study.folder}: this study was searched without images; name some with --data")
    weights = options.weights if options.weights is not None else not options.from_scratch and source.weights
    folder = data_origin.export_folder(weights) if weights and not isinstance(weights, Mapping) else None
    if folder:
        raise InputError(f"{folder}: its export.json names no data; name those of its training with --data")


def _resolution_chooser(
    source: ResolvedArch, of_export: DataOrigin | None, requested: int | None, report: Report
) -> Callable[[int], int]:
    """The deployment resolution as a function of the size of the data's images."""
    rows, columns = source.architecture.input[1:]

    def choose(native: int) -> int:
        if requested:
            return requested
        if rows != columns:
            raise InputError(f"the network's input of {rows}x{columns} is not square; give a --resolution")
        if source.study or of_export:
            return rows
        chosen = min(rows, max(native, SMALLEST))
        if chosen != rows or native < chosen:
            report(f"images of {native}x{native}: trained at {chosen}x{chosen}; --resolution sets another")
        return chosen

    return choose


def _architecture(source: ResolvedArch, data: DataSet, resolution: int) -> Architecture:
    """The architecture at `resolution`; a published network's for the data's classes and channels."""
    architecture, classes = source.architecture, len(data.classes)
    if source.is_published:
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
    cost(fitted)  # raises if the network does not run at this resolution
    return fitted


@dataclass(frozen=True)
class Start:
    """The network and the data that a training starts with; `account` says where given weights come from, by line.

    The data is normalized as that of given weights. `is_judged` says whether the network's accuracy before the training
    means something: weights were given for all layers.
    """

    model: Network
    data: DataSet
    account: tuple[str, ...] = ()
    is_judged: bool = False
    normalization: dict[str, list[float]] | None = None  # of the given weights, if it is not that of the data


def _start(architecture: Architecture, source: ResolvedArch, data: DataSet, options: Options, report: Report) -> Start:
    """The network with the weights that its training starts from."""
    # A published network given by name is initialized as in its paper.
    scheme = zoo.initialization_of(architecture.name) if source.is_published else DEFAULT
    model = build(architecture, seed=options.seed, initialization=scheme)
    given = options.weights
    if given is None and not options.from_scratch:
        given = source.weights
        if given is None and source.folder:
            report(
                f"{source.folder}: holds no {data_origin.WEIGHTS}; starts from the initial weights of seed "
                f"{options.seed}"
            )
    if given is None:
        return Start(model, data)
    if options.inherited:
        load_into(model, given, "weights")
        return dataclasses.replace(options.inherited, model=model, data=data, is_judged=True)
    place = "weights" if isinstance(given, Mapping) else str(given)
    state = as_state(given, place) if isinstance(given, Mapping) else read_weights(data_origin.weights_file(given))
    account: list[str] = []
    normalization = data_origin.normalization(given)
    replaced = None
    if not pretrained.is_own(state, model):
        state, normalization = pretrained.converted(state, model, architecture, place, account.append)
    elif (other := data_origin.architecture_of(given)) and other != _like(architecture, other):
        account.append(
            f"{place}: weights of another network ({other.name or other.digest}), whose shapes agree; its function may "
            "differ"
        )
    state, is_whole = pretrained.fitted(state, model, place, account.append)
    load_into(model, state, place)
    if normalization is None and options.weights is not None:
        account.append(f"{place}: records no normalization of images; the data's own mean and deviation are used")
    normalization = normalization and pretrained.for_channels(normalization, data.channels)
    if normalization and normalization != (tuple(data.preprocessing["mean"]), tuple(data.preprocessing["std"])):
        mean, std = (tuple(255 * value for value in values) for values in normalization)
        data = dataclasses.replace(data, mean=mean, std=std)
        replaced = {key: data.preprocessing[key] for key in ("mean", "std")}
        mean, std = (", ".join(f"{value:.3g}" for value in values) for values in normalization)
        account.append(f"{place}: images are normalized as for these weights, mean {mean}, standard deviation {std}")
    account.append(f"starts from {place}")
    for line in account:
        report(line)
    return Start(model, data, tuple(account), is_whole and options.weights is not None, replaced)


def _like(architecture: Architecture, other: Architecture) -> Architecture:
    """The architecture with the input and the classes of another one."""
    return architecture.with_input(other.input[0], other.input[1]).with_classes(other.classes)


class _Run:
    """One training: checkpoint and result are kept next to the output folder until the folder is written."""

    def __init__(
        self,
        source: ResolvedArch,
        options: Options,
        folder: Path,
        architecture: Architecture,
        resolved: ResolvedSettings,
        start: Start,
        report: Report,
    ):
        self.source = source
        self.options = options
        self.folder = folder
        self.data = data = start.data
        self.architecture = architecture
        self.resolved = resolved
        self.start = start
        self.model = model = start.model
        self.report = report
        self.work = folder.resolve().with_name(f".{folder.resolve().name}.training")
        self.fidelity = Fidelity(data.resolution, options.epochs)
        self.identity = checkpoints.identity(
            model, data, self.fidelity, resolved.settings, options.seed, options.device
        )
        self.identity["architecture"] = architecture.digest
        if start.normalization:
            self.identity["normalization"] = str(start.normalization)
        self.teacher = (
            teachers.load(options.teacher, data, options.device, report) if options.teacher is not None else None
        )
        if self.teacher:
            self.identity["teacher"] = self.teacher.fingerprint
        if options.constraint:
            self.identity["constraint"] = options.constraint.fingerprint
        self.history = training_logs.History(self.work / "epochs.json", self.identity)
        self.logs = training_logs.Logs(report)

    def finished(self) -> FullTraining | None:
        """The finished training in the folder, or None; another training raises `InputError`."""
        path = self.folder / RECORD
        if not path.is_file():
            return None
        record = _read_record(path, RECORDED, f"delete {path} to train again, or choose another --out folder")
        recorded = record["identity"]
        other = [part for part in checkpoints.differing(self.identity, recorded) if part not in PORTABLE]
        if other:
            raise InputError(
                f"{self.folder}: holds another training ({', '.join(other)} differ); choose another --out folder"
            )
        self.report(f"{self.folder}: finished before")
        self._write_page(record)
        self._add_logs(record)
        shutil.rmtree(self.work, ignore_errors=True)  # left by a process killed after it wrote the record
        return _as_training(record, self.folder)

    def _add_logs(self, record: dict[str, Any]) -> None:
        """Add a finished training to the requested logs that lack it or its end."""
        logs = _recorded_logs(record)
        missing = [name for name in self.options.log if not logs.get(name, {}).get("complete")]
        if not missing:
            return
        if len(self.history.epochs) != len(record["losses"]):  # the file was removed at the end
            unknown = [None] * len(record["losses"])
            columns = (record["losses"], *(record.get(name) or unknown for name in ("rates", "validation_by_epoch")))
            self.history.epochs = [
                {"loss": loss, "rate": rate, "accuracy": accuracy, "time": None}
                for loss, rate, accuracy in zip(*columns, strict=False)
            ]
        self.history.references = {name: entry["reference"] for name, entry in logs.items()} | self.history.references
        with self._logged(missing):
            self._finish_logs(record)

    def train(self) -> FullTraining:
        """Train, evaluate and export; if another process has finished this training meanwhile, read it."""
        with self._locked():
            return self.finished() or self._train()

    def train_together(self) -> FullTraining:
        """Train with the other processes: the first one does all that `train` does, the others only train."""
        processes = self.options.processes
        with self._locked() if processes.is_first else contextlib.nullcontext():
            result = self.finished() if processes.is_first else None
            if not processes.any(result is not None):
                if processes.is_first:
                    result = self._train()
                else:
                    self._fit()
            processes.any(True)  # waits until the folder is written
        return result or read(self.folder)

    def _train(self) -> FullTraining:
        """Train, evaluate and export while holding the lock."""
        self._report_settings()
        with self._logged(self.options.log):
            return self._train_and_export()

    def _train_and_export(self) -> FullTraining:
        """Train, evaluate and export with open logs."""
        trained = self._fit()
        if trained.diverged:
            raise NasspaceError(
                f"the loss of epoch {len(trained.losses)} is not a number: the training diverged; lower the learning "
                f"rate (--settings), and delete {self.work}"
            )
        result = self._evaluate(trained)
        export(
            self.architecture,
            self.folder,
            weights=self.model.state_dict(),
            classes=self.data.classes,
            card=self._card(result),
            data=self._judged_data(),
        )
        return self._complete_folder(trained, result)

    def _judged_data(self) -> DataSet | None:
        """The data that the export's files are judged on; None if they cannot be."""
        pixels = self.data.validation.pixels
        if self.data.validation.originals is None:
            return None
        if self.data.validation.file is not None and pixel_files.exceeds_memory(JUDGED_COPIES * pixels.numel()):
            self.report(
                f"accuracy of the exported files not checked: {JUDGED_COPIES} copies of the {len(pixels):,} validation "
                "images would take more than half of the memory"
            )
            return None
        return self.data

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the output folder, so that no other process trains into it."""
        if self.folder.is_dir() and not os.access(self.folder, os.W_OK | os.X_OK):  # fail now, not at the export
            raise InputError(f"{self.folder}: cannot be written; choose another --out folder")
        with locked(self.work, f"{self.folder}: another process is training into it; wait, or choose another --out"):
            yield

    @contextlib.contextmanager
    def _logged(self, names: Iterable[str]) -> Iterator[None]:
        """Open logs, and close them with MLflow's word for the outcome."""
        settings = {
            "network": self.source.name,
            "digest": self.architecture.digest,
            "data": self.data.name,
            "data fingerprint": self.data.fingerprint,
            "resolution": self.data.resolution,
            "epochs": self.options.epochs,
            "seed": self.options.seed,
            "device": self.options.device,
            "starts from": self.start.account[-1].removeprefix("starts from ") if self.start.account else "new weights",
            "teacher": self.options.teacher,
            "settings": self.resolved.name,
            **asdict(self.resolved.settings),
        }
        status = "FAILED"
        try:
            self.logs.open(names, training_logs.Subject(self.folder, self.source.name, settings), self.history)
            yield
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            self.logs.close(status)

    def _report_settings(self) -> None:
        """Report notes on the settings, and the checkpoint if there is one."""
        for note in self.resolved.notes:
            self.report(note)
        if self.resolved.not_applied:
            self.report(f"not applied: {self.resolved.not_applied}")
        if (self.work / "checkpoint.pt").is_file():
            self.report(f"continues from {self.work / 'checkpoint.pt'}")
        elif self.start.is_judged:
            data, settings = self.data, self.resolved.settings
            with trainer.threads(settings.threads):
                accuracy = trainer.evaluate(
                    self.model, data.validation, data, data.resolution, batch_size=settings.evaluation_batch_size
                )
            self.report(f"validation accuracy of the given weights, before training: {accuracy:.2%}")

    def _fit(self) -> trainer.Trained:
        """Train from the checkpoint or from the start, with the machine's lock for training."""
        options, data = self.options, self.data
        is_first = options.processes.is_first
        with machine_lock.TrainingLock() if is_first else contextlib.nullcontext() as turn:
            return trainer.train(
                self.model,
                data,
                self.fidelity,
                self.resolved.settings,
                seed=options.seed,
                device=options.device,
                on_epoch=_Progress(self, turn) if is_first else None,
                validate_from=self._first_validation(),
                checkpoint=self.work / "checkpoint.pt",
                teacher=self.teacher,
                processes=options.processes,
                constraint=options.constraint,
            )

    def _first_validation(self) -> int | None:
        """The first epoch after which validation accuracy is measured; None if that is costly or says little."""
        settings, data = self.resolved.settings, self.data
        # With an average or a slow norm momentum, the current weights say little about the result.
        if settings.norm_momentum is not None or settings.average or 3 * len(data.validation) > len(data.train):
            return None
        return math.ceil(SETTLED / max(1, len(data.train) // settings.batch_size))

    def _evaluate(self, trained: trainer.Trained) -> dict[str, Any]:
        """Scores of the trained network, written before the export so that the test split is evaluated only once."""
        path = self.work / "result.json"
        if path.is_file():
            remedy = f"delete {path} to evaluate again"
            previous = _read_record(path, RESULT, remedy)
            count, confusion = len(self.data.classes), previous["confusion"]
            if not all(isinstance(row, list) and len(row) == count for row in [confusion, *confusion]):
                raise InputError(f"{path}: confusion is not {count} rows of {count} counts; {remedy}")
            if previous["identity"] == self.identity:
                return previous
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
        scores = asdict(metrics.scores(predicted, images.labels, len(self.data.classes)))
        confusion = [list(row) for row in scores.pop("confusion")]
        result = {
            "identity": self.identity,
            "validation": {"accuracy": trained.accuracy},
            "test": scores if split == "test" else None,
            "confusion_is_of": split,
            "confusion": confusion,
        }
        # On one line: a confusion matrix of a thousand classes, a number a line, would be too long to be read again.
        files.write_text(path, json.dumps(result))
        return result

    def _card(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of the export's model card."""
        study, side = self.source.study, self.data.resolution
        return {
            "mean": [value / 255 for value in self.data.mean],
            "std": [value / 255 for value in self.data.std],
            "accuracy": result["validation"]["accuracy"],
            "accuracy_is_of": f"{self.data.validated_on} at {side}x{side}",
            "data": self.data.name,
            "study": study and study.name,
            "space": study and study.settings["space"]["name"],
            "id": self.source.number,
        }

    def _complete_folder(self, trained: trainer.Trained, result: Mapping[str, Any]) -> FullTraining:
        """Add the training's files to the export; `training.json` comes last and marks a finished training."""
        confusion = metrics.confusion_csv(result["confusion"], self.data.classes)
        files.write_text(self.folder / CONFUSION, confusion)
        record = self._record(trained, result)
        readme = (self.folder / "README.md").read_text(encoding="utf-8")
        files.write_text(
            self.folder / "README.md", f"{readme}\n{_section(record, result['confusion'], self.data.validated_on)}"
        )
        files.write_json(self.folder / RECORD, record)
        self._write_page(record)
        self._finish_logs(record)
        shutil.rmtree(self.work, ignore_errors=True)
        return _as_training(record, self.folder)

    def _write_page(self, record: Mapping[str, Any]) -> None:
        """Write training.html if it is missing; the training is complete without it."""
        path = self.folder / PAGE
        if path.is_file():
            return
        try:
            confusion = training_page.read_confusion(self.folder / CONFUSION, len(record["data"]["classes"]))
            files.write_text(path, training_page.page_html(record, confusion))
        except Exception as error:  # a full disk, an edited record
            self.report(f"{path}: not written ({type(error).__name__}: {error}); the same command tries again")

    def _finish_logs(self, record: dict[str, Any]) -> None:
        """Add the final scores and files to the open logs, and say in `training.json` which logs are complete."""
        scores = {"final/validation_accuracy": record["validation"]["accuracy"]}
        scores |= {f"final/test_{name}": value for name, value in (record["test"] or {}).items()}
        seconds = self.history.epochs[-1]["time"] if self.history.epochs else None
        paths = [path for path in (self.folder / RECORD, self.folder / PAGE) if path.is_file()]
        self.logs.finish(record["epochs"], scores, seconds, paths)
        if self.logs.complete:
            complete = {name: _log_entry(self.history.references[name], True) for name in self.logs.complete}
            files.write_json(self.folder / RECORD, {**record, "logs": {**_recorded_logs(record), **complete}})

    def _record(self, trained: trainer.Trained, result: Mapping[str, Any]) -> dict[str, Any]:
        """The content of `training.json`."""
        data, options, epochs = self.data, self.options, self.history.padded(len(trained.losses))
        splits = {"train": data.train, "validation": data.validation, "test": data.test}
        return {
            "nasspace_training": VERSION,
            "network": self.source.name,
            "digest": self.architecture.digest,
            "folder": str(self.folder),
            "resolution": data.resolution,
            "epochs": options.epochs,
            "seconds": round(trained.seconds, 2),
            "validation": result["validation"],
            "test": result["test"],
            "confusion_is_of": result["confusion_is_of"],
            "settings": self.resolved.name,
            "not_applied": self.resolved.not_applied,
            "training": asdict(self.resolved.settings),
            "losses": list(trained.losses),
            "rates": [entry["rate"] for entry in epochs],
            "validation_by_epoch": [entry["accuracy"] for entry in epochs],
            "starts_from": list(self.start.account),
            "normalization": self.start.normalization,
            "teacher": None if options.teacher is None else os.fspath(options.teacher),
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
            "logs": {name: _log_entry(reference, False) for name, reference in self.history.references.items()},
            "machine": machine(),
            "versions": library_versions(PACKAGES),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def read(folder: Path) -> FullTraining:
    """The finished training in a folder; a missing or damaged record raises `InputError`."""
    return _as_training(_read_record(folder / RECORD, RECORDED, "train it again"), folder)


def _as_training(record: Mapping[str, Any], folder: Path) -> FullTraining:
    """The content of `training.json` as a `FullTraining`."""
    names = [part.name for part in dataclasses.fields(FullTraining)]
    values = {name: record[name] for name in names}
    test = record["test"]
    values |= {"validation": Validation(**record["validation"]), "test": test and Test(**test)}
    return FullTraining(**{**values, "folder": folder})


def _read_record(path: Path, kinds: Mapping[str, Any], remedy: str) -> dict[str, Any]:
    """Read a JSON file that a training wrote; a damaged file raises `InputError` with the remedy."""
    try:
        document = files.load_json(path)
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from None
    record = document.value
    if not isinstance(record, dict) or record.get("nasspace_training", VERSION) != VERSION:
        raise document.error((), f"not the record of a training of version {VERSION}; {remedy}")
    added = {key: kind for key, kind in ADDED.items() if key in record}
    for key, kind in {**kinds, **added}.items():
        is_null = key in record and record[key] is None and key in ("test", "not_applied")
        if not is_null and not _has_type(record.get(key), kind):
            raise document.error((key,), f"missing or of the wrong type; {remedy}")
    return record


def _log_entry(reference: str, is_complete: bool) -> dict[str, Any]:
    """What `training.json` records of a log: `reference` as in `training_logs.Log`, whether it has the final scores."""
    return {"reference": reference, "complete": is_complete}


def _recorded_logs(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries of logs by their names; trainings of earlier versions have none."""
    logs = record.get("logs", {}).items()
    return {name: entry for name, entry in logs if isinstance(entry, dict) and isinstance(entry.get("reference"), str)}


def _has_type(value: Any, kind: Any) -> bool:
    """Whether a value has a type, or is a dictionary with exactly these keys of these types."""
    if isinstance(kind, Mapping):
        same_keys = isinstance(value, dict) and value.keys() == kind.keys()
        return same_keys and all(_has_type(value[key], kind[key]) for key in kind)
    return isinstance(value, kind) and not isinstance(value, bool)


class _Progress:
    """Records and logs each epoch, and reports a line of it: loss, validation accuracy if measured, time left.

    Between epochs it lets waiting latency measurements use the machine.
    """

    def __init__(self, run: _Run, turn: machine_lock.TrainingLock):
        self.run = run
        self.turn = turn
        self.start = time.monotonic()
        self.done = 0

    def __call__(self, epoch: trainer.Epoch) -> None:
        self.done += 1
        self.run.logs.add(epoch.number, self.run.history.add(epoch.number, epoch.loss, epoch.rate, epoch.accuracy))
        left = (time.monotonic() - self.start) / self.done * (epoch.epochs - epoch.number)
        text = f"epoch {epoch.number} of {epoch.epochs}: loss {epoch.loss:.4f}"
        if epoch.accuracy is not None:
            text += f", validation {epoch.accuracy:.2%}"
        self.run.report(f"{text}, {duration(left)} left" if epoch.number < epoch.epochs else text)
        self.turn.yield_to_measurements()


def _section(record: Mapping[str, Any], confusion: list[list[int]], validated_on: str) -> str:
    """The README's section about the training; `validated_on` names the validation images."""
    data, test = record["data"], record["test"]
    images = ", ".join(f"{data[name]:,} {name}" for name in ("train", "validation", "test") if data[name])
    rows = [
        ("Data", f"{_cell(data['name'])}: {images} images at {record['resolution']}x{record['resolution']}"),
        (
            "Training",
            f"{record['epochs']} epochs with the settings `{_cell(record['settings'])}`, seed {record['seed']}",
        ),
        ("Time", f"{duration(record['seconds'])} on {record['device']}"),
        ("Validation accuracy", f"{record['validation']['accuracy']:.2%} of {validated_on}"),
    ]
    if test:
        interval = f"{test['low']:.2%} to {test['high']:.2%}"
        rows.append(("Test accuracy", f"{test['accuracy']:.2%} (95 % interval {interval}), evaluated once"))
        rows.append(("Balanced accuracy, macro F1", f"{test['balanced_accuracy']:.2%}, {test['macro_f1']:.2%} of test"))
    if account := record.get("starts_from"):
        place = account[-1].removeprefix("starts from ")
        notes = [line.removeprefix(f"{place}: ") for line in account[:-1]]
        rows.append(("Starts from", _cell("; ".join([Path(place).name, *notes]))))
    if record.get("teacher"):
        rows.append(("Teacher", _cell(record["teacher"])))
    if record["not_applied"]:
        rows.append(("Not applied", f"of the published training: {_cell(record['not_applied'])}"))
    table = "\n".join(f"| {name} | {value} |" for name, value in (("", ""), ("--", "--"), *rows))
    split = record["confusion_is_of"]
    heading = (
        f"## Training\n\n{table}\n\n[`{PAGE}`]({PAGE}) shows the training: its curves, the confusions, the accuracy of "
        f"each class. `{RECORD}` has every setting and the figures of each epoch."
    )
    return f"{heading}\n\n### Confusion matrix of the {split} images\n\n{_matrix(confusion, data['classes'])}\n"


def _matrix(confusion: list[list[int]], classes: list[str]) -> str:
    """The confusion matrix as a table; for many classes, the most frequent confusions."""
    names = [_cell(name) for name in classes]
    where = f"Rows are true classes, columns predicted ones; also in `{CONFUSION}`."
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
    """Text from elsewhere on one line, with Markdown's special characters escaped."""
    return "".join("\\" + c if c in "\\`*_[]<>#|" else c for c in " ".join(str(text).split()))
