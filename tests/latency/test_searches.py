"""Whole searches with every runtime and on another device."""

from __future__ import annotations

import dataclasses
import importlib.util
import json

import pytest

import nasspace
from nasspace import cli
from nasspace.documents import Document
from nasspace.engine.delivery import deliver
from nasspace.engine.loop import resume
from nasspace.errors import InputError
from nasspace.exporting.checks import INT8
from nasspace.latency.connection import Connection
from nasspace.latency.runtimes import RUNTIMES
from nasspace.space.space import Space
from nasspace.studies import study as records

pytestmark = pytest.mark.usefixtures("forked_model_py")
SPACE = {
    "name": "few",
    "input": [3, 32, 32],
    "stem": [{"block": "conv", "out": 8, "kernel": 3}],
    "stages": [{"depth": [1, 2], "out": [8, 16], "stride": 2, "block": ["inverted_residual", "shuffle_v2"]}],
    "head": [{"block": "conv", "out": 32, "kernel": 1}],
}
LEFT_OUT = ("torchscript", "compile")  # slow; a search treats them as it treats `eager`
BRIEF = {"resolution": 16, "epochs": 1}


def searched(**settings):
    defaults = {"data": "digits", "trials": 2, "latency_target_ms": 500, "fidelity": BRIEF, "study": "s", **settings}
    return nasspace.search(Space(Document(SPACE, "few")), **defaults)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def intervals(study):
    return [trial.user_attrs["latency_interval"] for trial in study.frozen("COMPLETE", "PRUNED")]


@pytest.mark.slow
@pytest.mark.parametrize("runtime", [name for name in RUNTIMES if name not in LEFT_OUT])
def test_a_search_measures_with_its_runtime(runtime):
    if runtime == "ncnn" and not importlib.util.find_spec("ncnn"):
        pytest.skip("pip install 'nasspace[ncnn]'")
    texts = []
    study = searched(runtime=runtime, trials=1, on_event=lambda kind, **about: texts.append(about.get("text", "")))
    assert any("in int8: accuracy" in text for text in texts) == runtime.endswith("int8")
    assert [interval["runtime"] for interval in intervals(study)] == [runtime]
    assert set(RUNTIMES[runtime].libraries) < set(intervals(study)[0]["versions"])
    again = [found["runtime"] for found in study.remeasured().values()]
    assert again == [runtime] * len(study.front_numbers())
    if runtime == "onnxruntime-int8":
        check_front_of_int8(study)


def check_front_of_int8(study):
    """Check that the front comes from the int8 files, also after an export was repeated."""
    (member,) = study.document()["front"]
    export = study.folder / "exports" / str(member["id"])
    recorded = json.loads((export / "export.json").read_text())["accuracy"]
    assert member["accuracy"] == member["accuracy_int8"] == recorded[INT8]
    (export / "README.md").unlink()  # incomplete: it is exported again
    (export / INT8).unlink()
    deliver(study)
    assert json.loads((export / "export.json").read_text())["accuracy"] == recorded


@pytest.mark.slow
def test_a_search_of_latency_and_flops_in_int8_measures_untrained_networks():
    study = searched(runtime="onnxruntime-int8", objectives=["latency", "flops"], trials=1)
    assert study.remeasured().keys() == {str(number) for number in study.front_numbers()}
    assert (study.folder / "exports" / str(study.front_numbers()[0]) / INT8).is_file()


@pytest.mark.slow
def test_a_search_can_judge_candidates_in_int8(monkeypatch):
    """Every accuracy of the search is of an int8 network; a ruinous quantization ruins it."""
    from nasspace.latency import quantization

    fidelity = {"resolution": 16, "epochs": 3}
    settings = {"runtime": "onnxruntime-int8", "deliver": False, "seed": 1, "fidelity": fidelity}
    plain = searched(**settings, objectives=["accuracy", "latency"], study="float").trials()["search_accuracy"]
    study = searched(**settings, objectives=["accuracy_int8", "latency"], study="int8")
    assert study.settings["recipe"]["accuracy_of"] == "int8"
    assert study.settings["recipe"]["objectives"] == ["accuracy", "latency"]
    assert abs(study.trials()["search_accuracy"] - plain).max() < 0.1
    honest = quantization.to_int8
    monkeypatch.setattr(quantization, "to_int8", lambda source, path, images: honest(source, path, images * 1e-3))
    ruined = searched(**settings, objectives=["accuracy_int8", "latency"], study="ruined").trials()["search_accuracy"]
    assert ruined.max() < plain.min()


@pytest.mark.slow
def test_a_search_in_int8_delivers_networks_that_lose_accuracy(monkeypatch):
    """The accuracy of the rungs is of int8; the exported float files must reach that of the float network."""
    from nasspace.engine import int8_accuracy

    honest = int8_accuracy.with_int8_accuracy

    def lossy(trained, *arguments):
        found = honest(trained, *arguments)
        return dataclasses.replace(found, accuracy=max(0.0, trained.accuracy - 0.05))

    monkeypatch.setattr("nasspace.engine.rungs.with_int8_accuracy", lossy)
    monkeypatch.setattr("nasspace.engine.evaluator.with_int8_accuracy", lossy)
    study = searched(runtime="onnxruntime-int8", objectives=["accuracy_int8", "latency"], trials=1)
    (member,) = study.document()["front"]
    assert member["accuracy"] == member["accuracy_int8"]
    last = study.last_rung(member["id"])
    assert last["float_accuracy"] == pytest.approx(last["accuracy"] + 0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "add --runtime onnxruntime-int8"),
        ({"runtime": "onnxruntime-int8", "supernet": {"epochs": 1}}, "cannot be judged with shared weights"),
        ({"runtime": "onnxruntime-int8", "evaluator": lambda architecture: {"accuracy": 1.0}}, "with an evaluator"),
    ],
)
def test_accuracy_in_int8_is_refused_where_nothing_ships_in_int8(settings, message):
    with pytest.raises(InputError, match=message):
        searched(objectives=["accuracy_int8", "latency"], **settings)


def test_a_runtimes_packages_are_checked_before_any_work(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    status = cli.run(["search", "--space", "shuffle", "--runtime", "ncnn"])
    assert (status, "pip install 'nasspace[ncnn]'" in capsys.readouterr().err) == (2, True)
    with pytest.raises(InputError, match="ssh://user@host"):
        searched(latency_device="pi")
    with pytest.raises(InputError, match="measures with onnxruntime"):
        searched(latency_device="ssh://pi", runtime="eager")


@pytest.mark.slow
def test_a_search_measures_its_front_on_the_device_too(board):
    study = searched(latency_device=board.address(), runtime="onnxruntime")
    device = board.address().removesuffix(str(board.folder / "python"))
    assert {interval["device"] for interval in intervals(study)} == {device}
    again = study.remeasured()
    assert sorted(map(int, again)) == study.front_numbers()
    assert {found["device"] for found in again.values()} == {device}
    assert "python" in next(iter(again.values()))["versions"]


@pytest.mark.slow
def test_a_search_resumes_after_losing_its_device(board, monkeypatch):
    send, sent = Connection._send, []

    def cut_at_the_second(connection, *parts):
        send(connection, *parts)
        sent.append(parts)
        if len(sent) == 3:  # the code, the first network, the second one
            assert board.cut() == 1

    monkeypatch.setattr(Connection, "_send", cut_at_the_second)
    with pytest.raises(InputError, match="connection was lost"):
        searched(latency_device=board.address())
    before = intervals(records.load("s"))
    assert len(before) == 1
    study = resume("s")
    assert intervals(study)[:1] == before
    assert study.evaluated == 2


@pytest.mark.slow
def test_the_command_line_measures_on_the_device(board, capsys):
    arguments = ["latency", "shufflenet_v2_0.5", "--resolution", "32", "--seconds", "0.1", "--json"]
    assert cli.run([*arguments, "--latency-device", board.address()]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["device"].startswith("ssh://")
    assert document["machine"]["cores"] >= 1
    assert cli.run([*arguments, "--latency-device", board.address(), "--device", "cuda"]) == 2
    assert "measures on its cpu" in capsys.readouterr().err
