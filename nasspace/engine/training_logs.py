"""Logs of a full training for TensorBoard and MLflow (`nas train --log`), through their own optional packages.

A log has each epoch once: a resumed training continues the same curves.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nasspace import files
from nasspace.errors import MAX_VALUE_MESSAGE, InputError, cut, nearest

Report = Callable[[str], None]
Entry = dict[str, float | None]
SUFFIX = ".nasspace"  # of the names of event files
UNKNOWN: Entry = dict.fromkeys(("loss", "rate", "accuracy", "time"))
SCALARS = {"loss": "train/loss", "rate": "train/learning_rate", "accuracy": "validation/accuracy"}


def checked(names: str | Iterable[str]) -> tuple[str, ...]:
    """The names of logs without repetition; an unknown name and a missing package raise `InputError`."""
    found = tuple(dict.fromkeys([names] if isinstance(names, str) else names))
    for name in found:
        if name not in LOGS:
            raise InputError(f"--log: '{name}' is not a log of trainings{nearest(name, LOGS)}")
        if importlib.util.find_spec(name) is None:
            raise InputError(f"--log {name} needs {name}; run: pip install 'nasspace[{name}]'")
    return found


class History:
    """The finished epochs of a training and where they are logged, kept in a file next to its checkpoint.

    `epochs` has `loss`, `rate` and `accuracy` as in `trainer.Epoch`, and the `time` in seconds since 1970; values are
    None where unknown. `references` has what finds a log again, such as MLflow's id of the run. A file of a training
    with another `identity` is not read.
    """

    def __init__(self, path: Path, identity: Mapping[str, str]):
        self.path = path
        self.identity = dict(identity)
        self.epochs: list[Entry] = []
        self.references: dict[str, str] = {}
        with contextlib.suppress(InputError):  # there is none, or it is damaged: the epochs to come are recorded
            saved = files.load_json(path).value
            if isinstance(saved, dict) and saved.get("identity") == self.identity:
                self.epochs, self.references = saved["epochs"], saved["references"]

    def add(self, number: int, loss: float, rate: float, accuracy: float | None) -> Entry:
        """Record epoch `number`, counted from 1; what was recorded from there on is replaced."""
        before = self.padded(number - 1)
        finite = loss if math.isfinite(loss) else None
        entry: Entry = {"loss": finite, "rate": rate, "accuracy": accuracy, "time": time.time()}
        self.epochs = [*before, entry]
        self.save()
        return entry

    def padded(self, count: int) -> list[Entry]:
        """The first `count` epochs; those of a version that recorded none are unknown."""
        return (self.epochs + [UNKNOWN] * count)[:count]

    def save(self) -> None:
        """Write the file."""
        value = {"identity": self.identity, "epochs": self.epochs, "references": self.references}
        files.write_json(self.path, value)


@dataclass(frozen=True)
class Subject:
    """What is logged: the folder and the name of a training, and its settings as plain values."""

    folder: Path
    name: str
    settings: Mapping[str, Any]


class Log(Protocol):
    """A log of one training; `reference` finds it again, `steps` are the epochs that it has."""

    reference: str
    steps: set[int]

    def add(self, step: int, scalars: Mapping[str, float], seconds: float | None) -> None:
        """Add values of an epoch, `seconds` after 1970 (None: now)."""

    def keep(self, paths: Sequence[Path]) -> None:
        """Add files."""

    def close(self, status: str) -> None:
        """Close the log; `status` is FINISHED, FAILED or KILLED."""


class _TensorBoard:
    """Event files in the folder `tensorboard` of the training, which hold all of its epochs."""

    def __init__(self, subject: Subject, reference: str | None):
        from torch.utils.tensorboard import SummaryWriter

        folder = subject.folder / "tensorboard"
        self.reference = folder.name
        self.steps: set[int] = set()
        for path in folder.glob(f"*{SUFFIX}"):  # written again from the recorded epochs
            path.unlink()
        # The purge tells a running TensorBoard to forget what it read from the removed files.
        self.writer = SummaryWriter(str(folder), purge_step=1, filename_suffix=SUFFIX)
        rows = "\n".join(f"| {name} | {value} |" for name, value in subject.settings.items())
        self.writer.add_text("settings", f"| setting | value |\n| -- | -- |\n{rows}", 1)

    def add(self, step: int, scalars: Mapping[str, float], seconds: float | None) -> None:
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step, walltime=seconds)
        self.writer.flush()

    def keep(self, paths: Sequence[Path]) -> None:
        """TensorBoard has no files."""

    def close(self, status: str) -> None:
        self.writer.close()


class _MLflow:
    """A run of MLflow's tracking server or store, as its environment variables say."""

    def __init__(self, subject: Subject, reference: str | None):
        import mlflow

        self.mlflow = mlflow
        found = self._find(reference)
        # Nested: the caller may have a run of its own.
        run = mlflow.start_run(run_id=found, run_name=subject.name, nested=True)
        self.reference = run.info.run_id
        self.steps: set[int] = set()
        if found:
            history = mlflow.MlflowClient().get_metric_history(found, SCALARS["loss"])
            self.steps = {metric.step for metric in history}
        else:
            mlflow.log_params(dict(subject.settings), run_id=self.reference)

    def _find(self, reference: str | None) -> str | None:
        """The id of an earlier process's run, unless it was deleted."""
        if reference is None:
            return None
        try:
            run = self.mlflow.get_run(reference)
        except self.mlflow.exceptions.MlflowException:  # another store
            return None
        return reference if run.info.lifecycle_stage == "active" else None

    def add(self, step: int, scalars: Mapping[str, float], seconds: float | None) -> None:
        timestamp = None if seconds is None else round(1000 * seconds)
        self.mlflow.log_metrics(dict(scalars), step=step, timestamp=timestamp, run_id=self.reference)

    def keep(self, paths: Sequence[Path]) -> None:
        for path in paths:
            self.mlflow.log_artifact(str(path), run_id=self.reference)

    def close(self, status: str) -> None:
        with contextlib.redirect_stdout(sys.stderr):  # it prints the address of the run
            self.mlflow.end_run(status)


LOGS: dict[str, Callable[[Subject, str | None], Log]] = {"tensorboard": _TensorBoard, "mlflow": _MLflow}


@dataclass
class Logs:
    """The open logs of a training. One that fails is reported and closed: the training goes on without it."""

    report: Report
    logs: dict[str, Log] = field(default_factory=dict)
    complete: set[str] = field(default_factory=set)

    def open(self, names: Iterable[str], subject: Subject, history: History) -> None:
        """Open logs and add the epochs that they lack; raises `InputError` if that fails."""
        for name in names:
            try:
                self.logs[name] = LOGS[name](subject, history.references.get(name))
                for number, entry in enumerate(history.epochs, start=1):
                    _add(self.logs[name], number, entry)
            except Exception as error:  # of packages, databases and servers
                where = "; is MLFLOW_TRACKING_URI right?" if name == "mlflow" else ""
                raise InputError(f"--log {name}: cannot be opened ({_described(error)}){where}") from error
            history.references[name] = self.logs[name].reference
        if self.logs:
            history.save()

    def add(self, number: int, entry: Entry) -> None:
        """Add an epoch to the logs that lack it."""
        self._each(lambda log: _add(log, number, entry))

    def finish(self, step: int, scalars: Mapping[str, float], seconds: float | None, paths: Sequence[Path]) -> None:
        """Add the final scores, `seconds` after 1970 (None: now), and files to those logs that take some."""

        def finish(log: Log) -> None:
            log.add(step, scalars, seconds)
            log.keep(paths)

        self._each(finish)
        self.complete = set(self.logs)

    def close(self, status: str) -> None:
        """Close all logs."""
        self._each(lambda log: log.close(status))
        self.logs = {}

    def _each(self, act: Callable[[Log], None]) -> None:
        for name, log in list(self.logs.items()):
            try:
                act(log)
            except Exception as error:
                del self.logs[name]
                with contextlib.suppress(Exception):
                    log.close("FAILED")
                self.report(
                    f"--log {name}: {_described(error)}; the training goes on without this log; when it is finished, "
                    "the same command adds what is missing"
                )


def _add(log: Log, number: int, entry: Entry) -> None:
    scalars = {SCALARS[name]: value for name, value in entry.items() if name in SCALARS and value is not None}
    if scalars and number not in log.steps:
        log.add(number, scalars, entry["time"])
        log.steps.add(number)


def _described(error: Exception) -> str:
    """The first line of an error, shortened, without passwords in addresses."""
    text = str(error).strip().split("\n")[0] or type(error).__name__
    return cut(re.sub(r"(?<=://)[^@/\s]*@", "***@", text), MAX_VALUE_MESSAGE)
