"""Logs of trainings: each epoch is there once, over interruptions, failures of a log, and finished trainings."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import nasspace
from nasspace import cli
from nasspace.architecture import Architecture
from nasspace.data.loading import DataSet, load_data
from nasspace.engine import full_training, training_logs
from nasspace.engine.training_logs import UNKNOWN, History
from nasspace.errors import InputError

TINY = Architecture.of(
    [{"block": "conv", "out": 8, "stride": 2}, {"block": "global_pool"}, {"block": "linear", "out": 10}],
    input=(1, 16, 16),
    name="tiny",
)
EPOCHS = [1, 2, 3, 4]
CURVES = {"train/loss": EPOCHS, "train/learning_rate": EPOCHS, "validation/accuracy": EPOCHS}


@pytest.fixture(scope="module")
def data() -> DataSet:
    digits = load_data("digits", resolution=16)
    train, test = digits.train.at(torch.arange(150)), digits.train.at(torch.arange(200, 250))
    return dataclasses.replace(digits, train=train, test=test, validation=digits.validation.at(torch.arange(40)))


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    """In a folder of its own, validated after every epoch, without the export, which takes seconds."""

    def write(architecture, folder, **_):
        folder.mkdir(exist_ok=True)
        (folder / "architecture.json").write_text(architecture.to_json())
        (folder / "README.md").write_text("# A network\n")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(full_training, "SETTLED", 1)
    monkeypatch.setattr(full_training, "export", write)


def train(data, *, log=(), stop_at: int = 0, lines: list[str] | None = None):
    """Train four epochs, or until epoch `stop_at` is interrupted after it was logged."""

    def report(line: str) -> None:
        (lines if lines is not None else []).append(line)
        if stop_at and line.startswith(f"epoch {stop_at}"):
            raise KeyboardInterrupt

    how = {"epochs": 4, "batch_size": 32, "out": "t", "log": log, "report": report}
    return nasspace.train(TINY, data=data, **how)


def interrupted(data, *, log=(), stop_at: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(data, log=log, stop_at=stop_at)


def record() -> dict:
    return json.loads(Path("t/training.json").read_text())


class Memory:
    """A log that keeps what it is given, and what was done, over its instances."""

    kept: ClassVar[list[tuple[int, dict]]] = []
    done: ClassVar[list] = []
    fails_at: ClassVar[int] = 0

    def __init__(self, subject, reference):
        self.reference = reference or f"of {subject.name}"
        self.steps = {step for step, _ in self.kept}
        self.done.append(reference)

    def add(self, step, scalars, seconds):
        if step == Memory.fails_at:
            raise ConnectionError("https://me:secret@host is away\nand more")
        self.kept.append((step, scalars))

    def keep(self, paths):
        self.done.append([path.name for path in paths])

    def close(self, status):
        self.done.append(status)


@pytest.fixture
def memory(monkeypatch) -> type[Memory]:
    monkeypatch.setattr(Memory, "kept", [])
    monkeypatch.setattr(Memory, "done", [])
    monkeypatch.setattr(Memory, "fails_at", 0)
    monkeypatch.setitem(training_logs.LOGS, "json", Memory)  # a module that exists
    return Memory


def test_unknown_logs_and_missing_packages_are_refused_before_anything_else(monkeypatch, capsys):
    with pytest.raises(InputError, match="'tensorbord' is not a log of trainings; did you mean 'tensorboard'"):
        nasspace.train("none", log="tensorbord")
    monkeypatch.setattr(training_logs.importlib.util, "find_spec", lambda name: None)
    assert cli.run(["train", "none", "--log", "mlflow"]) == 2
    assert capsys.readouterr().err == "nas: --log mlflow needs mlflow; run: pip install 'nasspace[mlflow]'\n"


def test_the_history_replaces_repeated_epochs_and_is_of_one_training(tmp_path):
    path, who = tmp_path / "epochs.json", {"seed": "1"}
    history = History(path, who)
    history.add(1, 2.0, 0.1, None)
    history.add(2, math.inf, 0.1, 0.5)
    again = History(path, who)
    assert [(entry["loss"], entry["accuracy"]) for entry in again.epochs] == [(2.0, None), (None, 0.5)]
    again.add(2, 1.0, 0.1, 0.5)
    assert [entry["loss"] for entry in again.epochs] == [2.0, 1.0]
    assert again.padded(3)[2] == UNKNOWN
    assert History(path, {"seed": "2"}).epochs == []
    for damaged in ("{", "[]"):
        path.write_text(damaged)
        assert History(path, who).epochs == []


def test_each_epoch_is_logged_once_with_the_final_scores(data, memory):
    found = train(data, log="json")
    assert [step for step, _ in memory.kept] == [*EPOCHS, 4]
    assert [scalars["train/loss"] for _, scalars in memory.kept[:4]] == record()["losses"]
    assert [scalars["validation/accuracy"] for _, scalars in memory.kept[:4]] == record()["validation_by_epoch"]
    assert memory.kept[4][1] == {
        "final/validation_accuracy": found.validation.accuracy,
        **{f"final/test_{name}": value for name, value in dataclasses.asdict(found.test).items()},
    }
    assert memory.done == [None, ["training.json", "training.html"], "FINISHED"]
    assert record()["logs"] == {"json": {"reference": "of tiny", "complete": True}}
    train(data, log="json")
    assert len(memory.kept) == 5


@pytest.mark.parametrize("first", ["json", ()])
def test_a_resumed_training_continues_its_log_and_adds_what_is_missing(first, data, memory):
    interrupted(data, log=first, stop_at=2)  # its checkpoint has one epoch
    train(data, log="json")
    assert [step for step, _ in memory.kept] == [*EPOCHS, 4]
    if first:
        assert memory.done[:3] == [None, "KILLED", "of tiny"]


def test_a_finished_training_can_be_logged(data, memory):
    train(data)
    assert record()["logs"] == {}
    train(data, log="json")
    assert [step for step, _ in memory.kept] == [*EPOCHS, 4]
    assert record()["logs"]["json"]["complete"]


def test_a_log_that_fails_does_not_stop_the_training(data, memory):
    memory.fails_at, lines = 3, []
    train(data, log="json", lines=lines)
    (line,) = [line for line in lines if line.startswith("--log")]
    assert line.startswith("--log json: https://***@host is away; the training goes on without this log")
    assert [step for step, _ in memory.kept] == [1, 2]
    assert record()["logs"] == {"json": {"reference": "of tiny", "complete": False}}
    memory.fails_at = 0
    train(data, log="json")
    assert [step for step, _ in memory.kept] == [*EPOCHS, 4]
    assert record()["logs"]["json"] == {"reference": "of tiny", "complete": True}


def test_a_log_that_cannot_be_opened_ends_the_command_before_the_training(data, memory):
    train(data)
    memory.fails_at = 1
    with pytest.raises(InputError, match=r"--log json: cannot be opened \(https://\*\*\*@host is away\)"):
        train(data, log="json")


def tensorboard_scalars() -> dict:
    """The scalars of the only event file, by their tags."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (path,) = Path("t/tensorboard").iterdir()
    events = EventAccumulator(str(path))
    events.Reload()
    return {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_the_curves_of_a_resumed_training(data):
    pytest.importorskip("tensorboard")
    interrupted(data, log="tensorboard", stop_at=3)
    before = tensorboard_scalars()["train/loss"]
    found = train(data, log="tensorboard")
    after = tensorboard_scalars()
    assert {tag: [event.step for event in after[tag]] for tag in CURVES} == CURVES
    assert [event.value for event in after["train/loss"]] == pytest.approx(record()["losses"])
    assert after["train/loss"][:2] == before[:2]  # the times, too
    (accuracy,) = after["final/test_accuracy"]
    assert (accuracy.step, accuracy.value) == (4, pytest.approx(found.test.accuracy))


def test_a_folder_with_event_files_alone_can_be_trained_into(data):
    (Path("t") / "tensorboard").mkdir(parents=True)
    train(data)
    (Path("t") / "notes.txt").touch()
    (Path("t") / "architecture.json").unlink()
    with pytest.raises(InputError, match="holds other files"):
        train(data)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of MLflow's libraries
def test_mlflow_has_one_run_of_a_resumed_training(data, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'runs.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "digits")
    import mlflow

    interrupted(data, log="mlflow", stop_at=3)
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.status == "KILLED"
    found = train(data, log="mlflow")
    (run,) = mlflow.search_runs(output_format="list")
    assert (run.info.run_name, run.info.status) == ("tiny", "FINISHED")
    client = mlflow.MlflowClient()
    steps = {tag: [metric.step for metric in client.get_metric_history(run.info.run_id, tag)] for tag in CURVES}
    assert steps == CURVES
    assert run.data.metrics["train/loss"] == pytest.approx(record()["losses"][-1])
    assert run.data.metrics["final/test_accuracy"] == pytest.approx(found.test.accuracy)
    assert (run.data.params["epochs"], run.data.params["batch_size"]) == ("4", "32")
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"training.json", "training.html"}
    assert record()["logs"]["mlflow"] == {"reference": run.info.run_id, "complete": True}
    assert mlflow.active_run() is None
