"""The last rung: which trials are trained at which deployment resolution, and kills during it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import save_file

import nasspace
from nasspace import files
from nasspace.cli import run
from nasspace.engine import delivery, loop, rungs
from nasspace.engine.resolution import choose_deployment
from nasspace.errors import InputError, NothingFound, VerificationError
from nasspace.exporting import members
from nasspace.exporting.members import export_member
from nasspace.exporting.weights import read_safetensors
from nasspace.space.space import Space
from nasspace.studies import study as records
from nasspace.training.settings import Fidelity

pytestmark = pytest.mark.usefixtures("forked_model_py")
SPACE = """
name: few
input: [3, 32, 32]
stem: [{block: conv, out: 8, kernel: 3}]
stages: [{depth: [1, 2], out: [8, 16], stride: 2, each: {block: [inverted_residual, shuffle_v2]}}]
head: [{block: conv, out: 32, kernel: 1}]
"""
SCRIPT = """
import sys
import nasspace
from nasspace.space.space import Space

def print_event(kind, **about):
    print(kind, about.get("text", ""), flush=True)

nasspace.search(Space.from_text({space!r}, "few.yaml"), data="digits", trials=2, seed=3, sampler="random",
                objectives=["accuracy", "flops"], fidelity={{"resolution": 8, "epochs": 4}}, study=sys.argv[1],
                resolution=16, on_event=print_event)
"""


class Stored:
    """Stand-in for a study in `Study.promoted`: values by trial number, and accuracies at the deployment resolution."""

    def __init__(self, trials, deployed):
        self.values = trials
        self.found = {number: {"accuracy": accuracy} for number, accuracy in deployed.items()}

    objectives = ("accuracy", "flops")
    has_last_rung = True
    promoted, _promoted = records.Study.promoted, records.Study._promoted
    front_numbers, _front_numbers = records.Study.front_numbers, records.Study._front_numbers
    _front_of, _figures = records.Study._front_of, records.Study._figures

    def belief(self):
        return None

    def deployed(self):
        return self.found

    def undeployable(self):
        return {}

    def _feasible(self):
        class Trial:
            def __init__(self, number, values):
                self.number, self.user_attrs = number, {"values": dict(zip(Stored.objectives, values, strict=True))}

        return [Trial(number, values) for number, values in self.values.items()]


@pytest.mark.parametrize(
    ("deployed", "promoted", "front"),
    [
        ({}, [0, 1], [0, 1]),  # the search's front
        ({0: 0.95, 1: 0.85}, [], [0, 1]),  # stable
        ({0: 0.84, 1: 0.85}, [2], [1]),  # 0 left: the trial that only it dominated returns
        ({0: 0.84, 1: 0.85, 2: 0.86}, [], [2, 1]),
        ({0: 0.84, 1: 0.85, 2: 0.80}, [3], [1]),  # and the trial that those dominated
        ({1: 0.85}, [0], [1]),
    ],
)
def test_dominated_trials_return_when_a_member_leaves(deployed, promoted, front):
    trials = {0: (0.9, 100), 1: (0.8, 50), 2: (0.88, 110), 3: (0.87, 120), 4: (0.7, 60)}
    study = Stored(trials, deployed)
    assert (study.promoted(), set(study.front_numbers())) == (promoted, set(front))


@pytest.mark.parametrize(
    ("space", "native", "requested", "sizes"),
    [
        ("shuffle", 8, None, (8,)),
        ("mobile", 8, None, (16,)),
        ("shuffle", 28, None, (28,)),
        ("shuffle", 32, None, (32,)),
        ("shuffle", 128, None, (128,)),
        ("shuffle", 500, None, (224,)),
        ("shuffle", 8, 224, (224,)),
    ],
)
def test_the_deployment_resolution_is_the_smaller_of_the_space_and_the_images(space, native, requested, sizes):
    found = choose_deployment(requested, Space.load(space).plan, native)
    assert found.sizes == sizes
    assert found.why


def test_the_choices_of_a_space_stay_as_far_as_the_images_go():
    plan = Space.from_text(SPACE.replace("input:", "resolution: [96, 128, 160]\ninput:"), "few.yaml").plan
    assert [choose_deployment(None, plan, native).sizes for native in (64, 128, 500)] == [
        (96,),
        (96, 128),
        (96, 128, 160),
    ]


def test_the_rungs_double_the_size():
    def steps(*ladder):
        return [[(step.resolution, step.epochs) for step in rung] for rung in rungs.ladder(*ladder)]

    assert steps(Fidelity(32, 8), 224) == [[(64, 2), (128, 2), (224, 4)]]
    assert steps(Fidelity(16, 1), 16) == [[(16, 2)]]
    assert steps(Fidelity(32, 4), 128, [Fidelity(64, 3), Fidelity(128, 6)]) == [[(64, 3)], [(128, 6)]]
    assert steps(Fidelity(32, 4), 128, [Fidelity(48, 6)]) == [[(48, 6)], [(96, 2), (128, 3)]]


def shipped(study):
    """Return the front, and the digest of every exported weights and ONNX file."""
    document = records.load(study).document()
    members = [(member["id"], member["digest"], member["accuracy"]) for member in document["front"]]
    exports = Path("reports") / study / "exports"
    held = sorted([*exports.glob("*/weights.safetensors"), *exports.glob("*/model.onnx")])
    files = {str(path.relative_to(exports)): hashlib.sha256(path.read_bytes()).hexdigest() for path in held}
    return members, files


@pytest.mark.parametrize(
    "name", ["study.db", "study.yaml", "trials.csv", "front.json", "report.html", "17", "weights.pt", "1.safetensors"]
)
def test_temporary_files_of_a_killed_search_are_recognized(name, tmp_path):
    """The study's own files, and a database's journal, are not taken for temporary ones."""
    with files.replacing(tmp_path / name) as temporary:
        assert delivery._is_temporary(temporary)
        assert delivery._is_temporary(temporary.with_name(f"{temporary.name}-journal"))
        temporary.touch()
    assert not delivery._is_temporary(tmp_path / name)
    assert not delivery._is_temporary(tmp_path / ".lock")


@pytest.mark.slow
def test_a_killed_delivery_exports_the_same_files(tmp_path, monkeypatch, forked):
    monkeypatch.chdir(tmp_path)
    script = SCRIPT.format(space=SPACE)
    rest = forked(script, "uninterrupted").communicate()[0]
    assert "training at 16x16" in rest
    rng, seen = random.Random(7), set()
    for word in ("training at", "exporting", "training at"):
        process = forked(script, "killed")
        for line in process.lines():
            if line.startswith("finishing") and word in line:
                seen.add(word)
                time.sleep(rng.uniform(0.0, 0.6))
                break
        process.kill()
        process.communicate()
    assert seen == {"training at", "exporting"}
    process = forked(script, "killed")
    rest = process.communicate()[0]
    assert process.returncode == 0, rest
    assert shipped("killed") == shipped("uninterrupted")
    study = Path("reports/killed")
    assert [path for path in study.rglob(".*") if path.name != ".lock"] == []
    assert not list((study / "checkpoints").glob("*"))


def searched(**changes):
    """A short search on digits, without its last rung."""
    settings = {"trials": 4, "objectives": ["accuracy", "flops"], "sampler": "random", "seed": 2, **changes}
    brief = {"resolution": 8, "epochs": 1}
    space = Space.from_text(SPACE, "few.yaml")
    return loop.search(space, data="digits", fidelity=brief, study="s", deliver=False, **settings)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders with a study: `searched`, with several front members, and `delivered`, with one network."""
    base = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        for name, trials in (("searched", 4), ("delivered", 1)):
            (base / name).mkdir()
            patch.chdir(base / name)
            study = searched(trials=trials, time_budget="1h")
            if name == "delivered":
                delivery.deliver(study)
    return base


@pytest.fixture
def study(made, folder):
    """A copy of the searched study."""
    shutil.copytree(made / "searched", folder, dirs_exist_ok=True)
    return records.load("s")


@pytest.fixture
def delivered(made, folder):
    """A copy of the delivered study."""
    shutil.copytree(made / "delivered", folder, dirs_exist_ok=True)
    return records.load("s")


@pytest.mark.slow
def test_a_search_in_python_ends_with_evaluated_exports(folder):
    space = Space.from_text(SPACE, "few.yaml")
    brief = {"resolution": 8, "epochs": 1}
    study = nasspace.search(space, data="digits", trials=2, objectives=["accuracy", "flops"], fidelity=brief, study="s")
    for member in study.document()["front"]:
        record = json.loads((study.folder / "exports" / str(member["id"]) / "export.json").read_text())
        assert record["accuracy"]["model.onnx"] == pytest.approx(member["accuracy"], abs=0.003)
        assert (member["resolution"], member["search_accuracy"] is not None) == (8, True)


@pytest.mark.slow
def test_a_member_whose_training_diverges_leaves_the_front(study, monkeypatch):
    first, *others = study.promoted()
    assert others
    trained, notes = rungs.climb, []

    def diverging(architecture, *arguments, **settings):
        if architecture.digest == study.architecture(first).digest:
            raise rungs.Diverged("the training diverged: a test says so")
        return trained(architecture, *arguments, **settings)

    monkeypatch.setattr(rungs, "climb", diverging)
    delivery.deliver(study, lambda kind, text="", **_: notes.append(text))
    assert f"trial {first} leaves the front: the training diverged: a test says so" in notes
    assert first not in study.front_numbers()
    assert study.front_numbers()
    assert records.load("s").document()["finished"]


@pytest.mark.slow
def test_a_member_whose_training_raises_keeps_its_traceback(study, monkeypatch, capsys):
    first, *_ = study.promoted()
    trained, notes = rungs._climb, []

    def raising(architecture, *arguments):
        if architecture.digest == study.architecture(first).digest:
            raise RuntimeError("a test says so")
        return trained(architecture, *arguments)

    monkeypatch.setattr(rungs, "_climb", raising)
    delivery.deliver(study, lambda kind, text="", **_: notes.append(text))
    failure = "the training failed: RuntimeError: a test says so"
    assert f"trial {first} leaves the front: {failure} (`nas show s:{first}` has its traceback)" in notes
    assert run(["show", f"s:{first}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("global_pool" in line for line in lines), "its layers are printed"
    assert any(f"failed at the deployment resolution 8x8: {failure}" in line for line in lines)
    assert any("in raising" in line for line in lines)
    assert lines[-1] == "RuntimeError: a test says so"
    assert run(["show", f"s:{first}", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["digest"] == study.architecture(first).digest
    assert document["layers"]
    assert document["failure"] == f"failed at the deployment resolution 8x8: {failure}"
    other = study.front_numbers()[0]
    assert run(["show", f"s:{other}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"]


@pytest.mark.slow
def test_a_front_whose_trainings_all_diverge_is_an_error(study, monkeypatch):
    monkeypatch.setattr(rungs, "RATE", 1e20)
    with pytest.raises(NothingFound, match=r"failed at the deployment resolution.*diverged.*learning_rate"):
        delivery.deliver(study)
    assert (study.folder / "trials.csv").is_file()


@pytest.mark.slow
def test_a_failed_export_does_not_stop_the_others(study, folder, monkeypatch):
    first, *others = study.promoted()
    written = members.export

    def failing(architecture, folder, **settings):
        if folder.name == str(first):
            raise VerificationError("the export does not hold: a test says so")
        return written(architecture, folder, **settings)

    monkeypatch.setattr(members, "export", failing)
    with pytest.raises(VerificationError, match=f"trial {first}: .*a test says so"):
        delivery.deliver(study)
    assert set(others) & {int(path.name) for path in (study.folder / "exports").iterdir()}
    assert (study.folder / "report.html").is_file()
    assert not study.document()["finished"]
    monkeypatch.undo()
    os.chdir(folder)
    resumed = loop.resume("s")
    assert first in resumed.deployed()
    assert resumed.document()["finished"]


@pytest.mark.slow
def test_deleted_files_are_written_again_and_checked_against_the_record(delivered):
    study = delivered
    before, number = shipped("s"), study.front_numbers()[0]
    export, kept = study.folder / "exports" / str(number), study.deployed_weights.path(number)
    (export / "README.md").unlink()
    kept.unlink()
    (export / "weights.safetensors").rename(kept)
    assert shipped("s") != before
    delivery.deliver(study)  # from the weights
    assert shipped("s") == before
    (export / "README.md").unlink()
    kept.unlink()
    delivery.deliver(study)  # trained again
    assert shipped("s") == before
    (export / "README.md").unlink()
    state = read_safetensors(kept)
    last = next(name for name, value in state.items() if value.ndim == 2)  # of the linear layer
    save_file({**state, last: state[last].roll(1, 0).contiguous()}, kept)
    with pytest.raises(VerificationError, match=r"accuracy of weights\.safetensors in the training pipeline"):
        delivery.deliver(study)


@pytest.mark.slow
def test_the_last_rung_ends_with_the_time_budget_and_resumes(study, folder, monkeypatch):
    assert study.is_searched
    monkeypatch.setattr(study, "deadline", 0.0)
    notes = []
    delivery.deliver(study, lambda kind, text="", **_: notes.append(text))
    document = study.document()
    assert len(document["front"]) == len(study.deployed()) == 1
    assert document["untrained"] == len(study.promoted()) > 0
    assert not document["finished"]
    assert any("the time budget is used up" in note for note in notes)
    monkeypatch.undo()
    os.chdir(folder)
    resumed = loop.resume("s")
    assert (resumed.evaluated, resumed.document()["finished"]) == (4, True), "no further trial"


def test_a_budget_too_short_for_one_network_is_reported_and_a_longer_one_searches(folder):
    with pytest.raises(InputError, match=r"time budget of 0.001 s ended before a network.*longer --time-budget"):
        searched(time_budget="0.001s")
    assert searched(time_budget="1h", trials=1).evaluated == 1


@pytest.mark.slow
def test_deleted_weights_are_read_from_the_export(delivered, folder):
    study = delivered
    (number,) = study.front_numbers()
    shutil.rmtree(study.folder / "weights")
    export_member(study.snapshot(), study.member(number), folder / "again")
    export = study.folder / "exports" / str(number)
    assert (folder / "again/weights.pt").read_bytes() == (export / "weights.pt").read_bytes()
    assert json.loads((study.folder / "front.json").read_text())["finished"]
    shutil.rmtree(export)
    with pytest.raises(InputError, match=f"weights of trial {number} are not kept; `nas train s:{number}`"):
        export_member(study.snapshot(), study.member(number), folder / "untrained")


@pytest.mark.slow
def test_weights_of_the_search_name_the_resolution_of_their_training(folder):
    study = searched(trials=1, resolution=16)
    export_member(study.snapshot(), study.member(0), folder / "own")
    export_member(study.snapshot(), study.member(0), folder / "larger", resolution=32)
    for name in ("own", "larger"):
        text = (folder / name / "README.md").read_text()
        assert "the weights were trained at 8x8" in text
        assert "| Accuracy |" not in text, "no file was evaluated at this resolution"


@pytest.mark.slow
def test_an_export_at_another_resolution_keeps_its_origin(delivered, folder, capsys):
    (number,) = delivered.front_numbers()
    place = delivered.folder / "exports" / str(number)
    assert run(["export", str(place), "--resolution", "16"]) == 0
    larger = folder / "exports" / str(number)
    assert "the weights were trained at 8x8" in (larger / "README.md").read_text()
    assert run(["verify", str(larger), "--data", "digits", "--no-code"]) == 0
    assert run(["export", str(place), "--format", ""]) == 2
    assert "names no format" in capsys.readouterr().err


@pytest.mark.slow
def test_a_network_at_another_resolution_keeps_its_preprocessing_and_reports_it(delivered, folder):
    study = delivered
    (number,) = study.front_numbers()
    own = json.loads((study.folder / "exports" / str(number) / "preprocessing.json").read_text())
    export_member(study.snapshot(), study.member(number), folder / "same")
    assert json.loads((folder / "same/preprocessing.json").read_text()) == own
    export_member(study.snapshot(), study.member(number), folder / "larger", resolution=16)
    larger = json.loads((folder / "larger/preprocessing.json").read_text())
    assert larger["input"] == [1, 16, 16]
    assert larger["resize"] == {"shorter_side": 16}
    assert {key: larger[key] for key in ("mean", "std", "range", "classes")} == {
        key: own[key] for key in ("mean", "std", "range", "classes")
    }
    for name in ("same", "larger"):
        assert run(["verify", name, "--data", "digits", "--no-code"]) == 0
    assert run(["verify", "larger", "--data", "fashion-mnist", "--no-code"]) == 2
    assert "the weights were trained at 8x8" in (folder / "larger/README.md").read_text()


@pytest.mark.slow
def test_a_front_is_exported_and_a_study_verified_by_its_name(delivered, folder, capsys):
    (number,) = delivered.front_numbers()
    assert run(["export", "s:front", "--out", "front", "--json"]) == 0
    assert f"{number}/model.onnx" in json.loads(capsys.readouterr().out)["files"]
    assert run(["verify", "s", "--data", "digits", "--no-code", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert any(check["name"].endswith("accuracy of model.onnx as recorded") for check in document["checks"])
    (delivered.folder / "exports" / str(number) / "predict.py").write_text("")
    assert run(["verify", "reports/s", "--no-code", "--json"]) == 1
    assert f'"{number}: predict.py unchanged"' in capsys.readouterr().out
    shutil.rmtree(delivered.folder / "exports")
    assert run(["verify", "s"]) == 2
    assert "has no exports" in capsys.readouterr().err


def test_progress_says_how_many_networks_are_left():
    """Not of how many: one that needs two rungs, or takes the place of another, would let the total grow."""
    left, positions = {1: 2, 2: 1}, []  # rungs that each network still needs

    def train(number, *arguments):
        positions.append(arguments[-1])
        left[number] -= 1

    run = delivery._Delivery.__new__(delivery._Delivery)
    run.study = SimpleNamespace(
        promoted=lambda: [number for number, rungs in left.items() if rungs], belief=lambda: None, search_accuracy=float
    )
    run.rungs = SimpleNamespace(
        **{"climb_planned": lambda: None, "next_rung": lambda number: 3 - left[number], "is_time_used_up": False},
        **{"is_next_the_last": lambda number: left[number] == 1, "climb": train},
    )
    run.failed, run._deploy = {}, train
    assert run._train_front()
    assert positions == ["2 left", "1 left", "1 left"]
