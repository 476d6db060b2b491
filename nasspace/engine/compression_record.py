"""What a compression leaves: the figures before and after, and their record in the output folder."""

from __future__ import annotations

import contextlib
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nasspace import files
from nasspace.architecture import Architecture
from nasspace.counting import cost
from nasspace.engine import full_training, teachers
from nasspace.engine.full_training import FullTraining, Options, Report, Start
from nasspace.errors import InputError
from nasspace.exporting.export import COMPRESSED
from nasspace.latency.benchmark import Latency
from nasspace.studies.recipe import Recipe
from nasspace.training import checkpoints
from nasspace.training.distillation import Teacher
from nasspace.training.metrics import wilson
from nasspace.training.settings import Fidelity, TrainingSettings

RECORD = COMPRESSED
HEADING = "## Compression\n\n"  # of the section in the README
VERSION = 1
SAME_SIZE = 0.005  # share of a size that is not worth a word


@dataclass(frozen=True)
class Figures:
    """A network before or after: milliseconds with the 95 % interval, validation accuracy, counts, bytes of its file.

    `deflated_bytes` is the ONNX file's size after deflate. `accuracy_low` and `accuracy_high` are the 95 % interval
    (Wilson); records of earlier versions lack them.
    """

    digest: str
    latency_ms: float
    latency_low_ms: float
    latency_high_ms: float
    accuracy: float
    flops: int
    params: int
    file_bytes: int
    deflated_bytes: int
    accuracy_low: float | None = None
    accuracy_high: float | None = None

    @classmethod
    def of(cls, architecture: Architecture, latency: Latency, accuracy: float, images: int, path: Path) -> Figures:
        """The figures of a network with its ONNX file; `accuracy` is of `images` validation images."""
        counted, content = cost(architecture), path.read_bytes()
        return cls(
            architecture.digest,
            *interval(latency),
            accuracy,
            *(counted.flops, counted.params, len(content), len(zlib.compress(content, 9))),
            *wilson(round(accuracy * images), images),
        )


@dataclass(frozen=True)
class Step:
    """A step: what was narrowed, the network's figures after its short training, the number of trained proposals."""

    change: str
    digest: str
    latency_ms: float
    latency_low_ms: float
    latency_high_ms: float
    accuracy: float
    log_loss: float
    trained: int


@dataclass(frozen=True)
class Compression:
    """A finished compression: the JSON document `compress`.

    `target_ms` and `steps` are those of NetAdapt. `strength` is what the user chose for another method, and for
    NetAdapt the share of the latency if that is the target; `details` is what another method came to. `latency_change`
    is the relative change of latency with its 95 % interval (both networks in turn).
    """

    method: str
    digest: str
    folder: Path
    target_ms: float | None
    original: Figures
    compressed: Figures
    steps: tuple[Step, ...]
    training: FullTraining
    strength: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    latency_change: tuple[float, float, float] | None = None

    @property
    def bought(self) -> str:
        """What changed in size and latency, in a sentence."""
        before, after = self.original, self.compressed
        size = _size_change(before.file_bytes, after.file_bytes)
        deflated = _size_change(before.deflated_bytes, after.deflated_bytes)
        return f"model.onnx {size}, after deflate {deflated}; {_latency_change(before, after, self.latency_change)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = {**asdict(self), "folder": str(self.folder), "training": self.training.to_dict()}
        return {**plain, "bought": self.bought}


def _size_change(before: int, after: int) -> str:
    """How a size changed.

    >>> _size_change(1000, 350), _size_change(1000, 1001), _size_change(1000, 1100)
    ('is 65 % smaller', 'has the same size', 'is 10 % larger')
    """
    change = after / before - 1
    if abs(change) < SAME_SIZE:
        return "has the same size"
    return f"is {abs(change) * 100:.0f} % {'smaller' if change < 0 else 'larger'}"


def _latency_change(before: Figures, after: Figures, change: tuple[float, float, float] | None) -> str:
    """How the latency changed; no difference is claimed if the interval of the change contains 0.

    Without that interval, the latencies are of different sessions, and their intervals must be apart.
    """
    if change is None:
        is_apart = before.latency_low_ms > after.latency_high_ms or after.latency_low_ms > before.latency_high_ms
        value, shown = after.latency_ms / before.latency_ms - 1, ""
    else:
        value, low, high = change
        is_apart = low > 0 or high < 0
        shown = f" ({100 * value:+.1f} %, {100 * low:+.1f} to {100 * high:+.1f})"
    if not is_apart:
        return f"no difference in latency is measured{shown or ': the intervals overlap'}"
    return f"the latency is {abs(value) * 100:.0f} % {'lower' if value < 0 else 'higher'}{shown}"


def interval(latency: Latency) -> tuple[float, float, float]:
    """Median, lower and upper end, in milliseconds."""
    return latency.median_ms, latency.low_ms, latency.high_ms


@dataclass(frozen=True)
class Job:
    """What is compressed, with which data and options, and into which folder."""

    folder: Path
    architecture: Architecture
    start: Start
    options: Options
    recipe: Recipe
    report: Report

    @cached_property
    def teacher(self) -> Teacher | None:
        """The teacher, if one is named."""
        teacher, options = self.options.teacher, self.options
        return None if teacher is None else teachers.load(teacher, self.start.data, options.device, self.report)

    def record(self, fidelity: Fidelity, settings: TrainingSettings, chosen: Mapping[str, Any]) -> Record:
        """The folder's record, for a training with these settings and what was `chosen` about the compression."""
        options, start = self.options, self.start
        identity = checkpoints.identity(start.model, start.data, fidelity, settings, options.seed, options.device)
        measured = {name: getattr(self.recipe, name) for name in ("runtime", "threads", "batch_size")}
        identity["architecture"] = self.architecture.digest
        identity |= {name: str(value) for name, value in {**chosen, "epochs": options.epochs, **measured}.items()}
        if self.teacher:
            identity["teacher"] = self.teacher.fingerprint
        return Record(self.folder, identity, self.report)


class Record:
    """The output folder of a compression, and the folder `work` next to it that keeps the state until then.

    `identity` distinguishes compressions.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str], report: Report):
        self.folder = folder
        self.identity = identity
        self.report = report
        self.work = folder.resolve().with_name(f".{folder.resolve().name}.compression")

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the lock of the output folder."""
        busy = f"{self.folder}: another process is compressing into it; wait, or choose another --out"
        return full_training.locked(self.work, busy)

    def finished(self) -> Compression | None:
        """The finished compression in the folder, or None; another one raises `InputError`."""
        path = self.folder / RECORD
        if not path.is_file():
            return None
        remedy = f"delete {path} to compress again, or choose another --out folder"
        document = files.load_json(path)
        record = document.value
        if not isinstance(record, dict) or record.get("nasspace_compression") != VERSION:
            raise document.error((), f"not the record of a compression of version {VERSION}; {remedy}")
        if other := checkpoints.differing(self.identity, record.get("identity", {})):
            raise InputError(f"{self.folder}: holds another compression ({', '.join(other)} differ); {remedy}")
        training = full_training.read(self.folder)
        self.report(f"{self.folder}: finished before")
        shutil.rmtree(self.work, ignore_errors=True)
        return Compression(
            record["method"],
            record["digest"],
            self.folder,
            record["target_ms"],
            Figures(**record["original"]),
            Figures(**record["compressed"]),
            tuple(Step(**each) for each in record["steps"]),
            training,
            record.get("strength", {}),
            record.get("details", {}),
            (change := record.get("latency_change")) and tuple(change),
        )

    def write(self, result: Compression, section: str) -> None:
        """Add a section to the folder's README, and the record, which marks a finished compression."""
        readme = (self.folder / "README.md").read_text(encoding="utf-8")
        readme = readme.partition(f"\n{HEADING}")[0]  # a process killed before it wrote the record had added it
        files.write_text(self.folder / "README.md", f"{readme}\n{HEADING}{section}")
        record = {"nasspace_compression": VERSION, "identity": self.identity, **result.to_dict()}
        files.write_json(self.folder / RECORD, record)
        shutil.rmtree(self.work, ignore_errors=True)
