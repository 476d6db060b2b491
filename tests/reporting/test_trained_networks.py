"""Finished full trainings in a study's report: its own networks', and those of published networks for reference."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from html import unescape
from pathlib import Path

import pytest

from nasspace import zoo
from nasspace.reporting import published_networks, trained_networks
from nasspace.reporting.report import report_html
from nasspace.studies import study as records

NAME = "mobilenet_v1_1.0_cifar"
TEST = {"accuracy": 0.81, "low": 0.78, "high": 0.84, "balanced_accuracy": 0.8, "macro_f1": 0.8}


@pytest.fixture
def study(restore_study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return records.read(restore_study(tmp_path))


def write_training(study, network: str, digest: str, place: str = "", **changes) -> Path:
    """Write what the report reads of a finished training."""
    epochs = trained_networks.full_epochs(study.snapshot())
    record = {
        "nasspace_training": 1,
        "network": network,
        "digest": digest,
        "resolution": study.origin["resolution"],
        "epochs": epochs,
        "seed": 0,
        "settings": "own",
        "starts_from": [],
        "teacher": None,
        "seconds": 12.3,
        "validation": {"accuracy": 0.825},
        "test": TEST,
        "data": {"fingerprint": study.origin["fingerprint"]},
        **changes,
    }
    folder = Path("trainings") / (place or network)
    folder.mkdir(parents=True)
    (folder / "training.json").write_text(json.dumps(record))
    return folder / "training.json"


def published(study) -> str:
    """The digest of a published network as it is trained for the study."""
    front = study.snapshot()
    task = front.settings["task"]
    architecture = zoo.load(NAME, resolution=task["resolution"], classes=task["classes"])
    return architecture.with_input(task["channels"]).digest


def test_the_report_has_the_trainings_of_members_and_of_published_networks(study):
    front = study.snapshot()
    member = front.members[0]
    write_training(study, f"real-{member.id}", str(member.row["digest"]), starts_from=["starts from reports/real"])
    write_training(study, NAME, published(study), validation={"accuracy": 0.7}, test=None, seed=3)
    page = unescape(report_html(front))
    assert "Trained in full" in page
    assert "further training: 25 epochs from reports/real, seed 0" in page
    assert "full training, seed 0" not in page
    assert "its test images" in page
    assert "78.00% to 84.00%" in page
    assert "from new weights, seed 3" in page
    assert "70.00%" in page


def test_a_published_network_has_the_mean_accuracy_of_the_standard_trainings(study):
    write_training(study, NAME, published(study), "a", validation={"accuracy": 0.7})
    write_training(study, NAME, published(study), "all/b", validation={"accuracy": 0.8}, seed=1)
    write_training(study, NAME, published(study), "c", validation={"accuracy": 0.99}, teacher="large")
    write_training(study, NAME, published(study), "d", validation={"accuracy": 0.99}, starts_from=["starts from x"])
    write_training(study, NAME, published(study), "e", validation={"accuracy": 0.99}, epochs=1000)
    write_training(study, NAME, published(study), "f", validation={"accuracy": 0.99}, settings="mobilenet_v2")
    write_training(study, NAME, published(study), "g", validation={"accuracy": 0.99}, training={"batch_size": 32})
    shutil.copytree("trainings/a", "trainings/copied")
    Path("trainings/latest").symlink_to("a")
    front = study.snapshot()
    trainings = trained_networks.of_study(front).networks
    assert len(trainings) == 7
    assert trainings[0].validation == 0.99
    assert any(one.words() == "25 epochs from new weights, batch size 32, seed 0" for one in trainings)
    largest = [{**row, "flops": 1e9} for row in front.trials]
    found = {one.name: one for one in published_networks.within_limits(replaced(front, largest), trainings)}
    assert found[NAME].values["accuracy"] == pytest.approx(0.75)
    assert found[NAME].seeds == 2
    assert [name for name, one in found.items() if "accuracy" in one.values] == [NAME]


def replaced(front, trials):
    return dataclasses.replace(front, trials=tuple(trials))


@pytest.mark.parametrize(
    "changes",
    [
        {"data": None},
        {"digest": 7},
        {"epochs": -3},
        {"epochs": 1e300},
        {"validation": {}},
        {"test": {"accuracy": "high"}},
        {"seed": []},
        {"seed": math.inf},
        {"nasspace_training": 2},
        *({"validation": {"accuracy": value}} for value in ("nan", math.nan, 1.5, True, 10**400)),
    ],
)
def test_damaged_records_are_left_out_and_named(study, changes):
    write_training(study, NAME, **{"digest": published(study), **changes})
    found = trained_networks.of_study(study.snapshot())
    assert found == trained_networks.Trainings((), (f"trainings/{NAME}/training.json",))
    assert f"since they cannot be read: trainings/{NAME}/training.json." in report_html(study.snapshot())


def test_a_cut_off_record_is_left_out_and_named(study):
    path = write_training(study, NAME, published(study))
    path.write_text(path.read_text()[:40])
    assert trained_networks.of_study(study.snapshot()).unreadable == (str(path),)


@pytest.mark.parametrize("changes", [{"data": {"fingerprint": "another"}}, {"resolution": 999}])
def test_trainings_on_other_data_are_not_shown(study, changes):
    write_training(study, NAME, published(study), **changes)
    assert trained_networks.of_study(study.snapshot()) == trained_networks.Trainings()
    assert "Trained in full" not in report_html(study.snapshot())


def test_hostile_names_stay_text(study):
    write_training(study, "<script>alert(1)</script>", published(study), "x")
    page = report_html(study.snapshot())
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_member_trained_at_its_own_lower_resolution_belongs_to_the_study(study):
    front = study.snapshot()
    origin = study.origin
    data = {"fingerprint": "at another size", **{name: origin[name] for name in ("name", "seed", "held_out")}}
    digest = str(front.members[0].row["digest"])
    settings = {**front.settings, "task": {**front.settings["task"], "resolution": 2 * origin["resolution"]}}
    write_training(study, "real-0", digest, data=data)
    write_training(study, "real-0", digest, "larger", resolution=64, data=data)
    write_training(study, NAME, published(study), data=data)
    assert trained_networks.of_study(front).networks == (), "other images of the same size"
    front = dataclasses.replace(front, settings=settings)  # as if another network had twice the resolution
    assert [one.network for one in trained_networks.of_study(front).networks] == ["real-0"]


def test_trainings_are_found_in_the_working_folder_and_next_to_the_studies(study, tmp_path, monkeypatch):
    write_training(study, NAME, published(study))
    front = study.snapshot()
    assert len(trained_networks.of_study(front).networks) == 1
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move("reports/real", elsewhere / "mine")
    moved = records.read("elsewhere/mine").snapshot()
    assert len(trained_networks.of_study(moved).networks) == 1, "in the working folder"
    monkeypatch.chdir(elsewhere)
    moved = dataclasses.replace(moved, folder=elsewhere / "mine")
    assert len(trained_networks.of_study(moved).networks) == 1, "next to its folder"
