"""Rungs between the search and the last one: who climbs, and kills on the way."""

from __future__ import annotations

import json
import math
import random
import re
import time
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from nasspace import files
from nasspace.engine import delivery, duration, loop, trials
from nasspace.engine import promotion as promotions
from nasspace.engine.problem import Problem
from nasspace.engine.promotion import EPOCHS_IN_TIME, EXPORTED_MEMBERS, Promotion
from nasspace.engine.study_data import StudyData
from nasspace.errors import InputError
from nasspace.samplers.accuracy_belief import Prior
from nasspace.space.space import Space
from nasspace.studies import study as records
from nasspace.studies.recipe import UNBOUNDED, Recipe, Rung
from nasspace.studies.schema import RUNGS

SPACE = """
name: few
input: [3, 32, 32]
stages: [{depth: [1, 2], out: [8, 12, 16], stride: 2, each: {block: [inverted_residual, sandglass]}}]
"""
pytestmark = pytest.mark.usefixtures("forked_model_py")
SCRIPT = """
import sys
import nasspace
from nasspace.space.space import Space
from nasspace.studies.recipe import UNBOUNDED, Recipe, Rung

def print_event(kind, **about):
    print(kind, about.get("text", ""), flush=True)

recipe = Recipe(trials=6, sampler="random", seed=3, objectives=("accuracy", "flops"), resolution=16,
                fidelity={{"resolution": 8, "epochs": 1}}, rungs=(Rung(epochs=2), Rung(epochs=2)))
nasspace.search(Space.from_text({space!r}, "few.yaml"), data="digits", recipe=recipe, study=sys.argv[1],
                on_event=print_event)
"""


def results(name):
    """The members of a study's front with their accuracies, the planned rungs, and the bytes of the weights."""
    study = records.load(name)
    members = [(member["id"], member["digest"], member["accuracy"]) for member in study.document()["front"]]
    weights = [(study.folder / "exports" / str(number) / "weights.safetensors").read_bytes() for number, *_ in members]
    return members, study.planned_rungs, weights


def searched(**settings):
    """A short search on digits, without what follows it."""
    fidelity = {"resolution": 8, "epochs": 1}
    recipe = Recipe(**{"trials": 6, "objectives": ("accuracy", "flops"), "sampler": "random", "seed": 2, **settings})
    space = Space.from_text(SPACE, "few.yaml")
    return loop.search(space, data="digits", recipe=recipe, fidelity=fidelity, study="s", deliver=False)


@pytest.mark.slow
def test_the_most_promising_networks_climb_and_all_members_were_on_the_last_rung(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = searched(rungs=(Rung(epochs=1), Rung(epochs=2)))
    order = study.promotion_order()
    delivery.deliver(study)
    first, second = study.planned_rungs
    assert (first["count"], second["count"]) == (2, 1)
    assert first["networks"] == order[:2]
    assert set(second["networks"]) <= set(first["networks"])
    document = records.load("s").document()
    assert document["finished"]
    for member in document["front"]:
        assert study.rung(0, member["id"])["steps"] == [[8, 1, 1.0], [8, 1, 1.0]]
        assert study.last_rung(member["id"])["steps"] == [[8, 1, 1.0], [8, 1, 1.0], [8, 2, 1.0]]
        assert study.last_rung(member["id"])["log_loss"] > 0
        card = json.loads((study.folder / "exports" / str(member["id"]) / "export.json").read_text())["card"]
        assert (card["accuracy_low"], card["accuracy_high"]) == (member["accuracy_low"], member["accuracy_high"])
    assert not list(study.folder.glob("weights/rung-*/*.safetensors"))
    with pytest.raises(InputError, match=r"--learn-from s: .*other images"):
        loop.search(Space.from_text(SPACE, "few.yaml"), data="digits", learn_from="s", seed=9, study="other")
    learned = loop.search(
        Space.from_text(SPACE, "few.yaml"), data="digits", learn_from="s", study="other", deliver=False,
        recipe=Recipe(trials=1, seed=2, objectives=("accuracy", "flops")), fidelity={"resolution": 8, "epochs": 1},
    )  # fmt: skip
    assert learned.settings["belief"]["learned_from"] == "s"
    assert learned.settings["belief"]["gain_sd"] < study.settings["belief"]["gain_sd"]
    # A study of versions before, which knew no early gain and no activations: nothing is learned of them.
    older = {key: value for key, value in study.settings["belief"].items() if "early" not in key}
    older = {key: value for key, value in older.items() if "activation" not in key} | {"slope": 0.05}
    files.write_yaml(study.folder / "study.yaml", {**study.settings, "belief": older})
    learned = loop._learned("s", Problem.from_data(Recipe(seed=2), Space.from_text(SPACE, "few.yaml")))
    assert learned["early_gain_sd"] > 0
    assert (learned["slope"], learned["activation_slope"]) == (Prior.slope, Prior.activation_slope)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"belief": None}, "the study is of an earlier version, which recorded no intervals of accuracy"),
        ({"data": None, "evaluator": "f"}, "the study's accuracies came from the evaluator f, not from trainings"),
        ({}, "no network of the study is trained yet; resume it first"),
    ],
)
def test_why_nothing_is_learned_from_a_study(tmp_path, monkeypatch, change, why):
    monkeypatch.chdir(tmp_path)
    problem = Problem.from_data(Recipe(objectives=("accuracy", "flops")), Space.from_text(SPACE, "few.yaml"))
    study = records.create(Path("reports/empty"), problem.settings("empty", None), None)
    monkeypatch.setattr(loop.records, "load", lambda _: study)
    study.settings = {**study.settings, **change}
    with pytest.raises(InputError, match=f"--learn-from empty: {re.escape(why)}"):
        loop._learned("empty", problem)


@pytest.mark.slow
def test_killed_between_and_within_rungs_it_ends_in_the_same_front(tmp_path, monkeypatch, forked):
    monkeypatch.chdir(tmp_path)
    script = SCRIPT.format(space=SPACE)
    forked(script, "uninterrupted").communicate()
    rng = random.Random(5)
    for kill in range(2):
        process = forked(script, "killed")
        trainings = 0
        for line in process.lines():
            trainings += line.startswith("finishing training at")
            if trainings > kill:
                time.sleep(rng.uniform(0.0, 0.4))
                break
        process.kill()
        process.communicate()
    process = forked(script, "killed")
    rest = process.communicate()[0]
    assert process.returncode == 0, rest
    assert results("killed") == results("uninterrupted")
    assert not list(Path("reports/killed/checkpoints").glob("*"))


def quiet(kind, **_):
    """Ignore an event."""


def planned(*epochs, **rung):
    """Rungs at the deployment resolution as a study records them."""
    return [{"resolution": None, "epochs": one, "share": 1.0, "count": 1, "networks": None, **rung} for one in epochs]


@pytest.mark.slow
def test_a_search_that_goes_on_with_other_rungs_starts_from_the_trainings_that_they_share(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = searched(trials=2)
    number = study.promoted()[0]
    study.record.set_user_attr(RUNGS, planned(1, 2, 3))
    promotion = Promotion(study, StudyData(study, quiet), quiet)
    promotion.climb(number, 0, "")
    promotion.climb(number, 1, "")
    assert promotion.next_rung(number) == 2

    study.record.set_user_attr(RUNGS, planned(1, 3, 3))
    assert promotion.next_rung(number) == 1

    def stop(kind, text="", **_):
        if "epoch 2" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Promotion(study, StudyData(study, quiet), stop).climb(number, 1, "")
    assert list(study.folder.glob("checkpoints/*.pt"))
    study.record.set_user_attr(RUNGS, [])  # then the last rung has two epochs, not three
    assert promotion.next_rung(number) == 0
    delivery.deliver(study)
    assert study.last_rung(number)["steps"] == [[8, 1, 1.0], [8, 2, 1.0]]
    assert not [path for pattern in ("weights/rung-*/*", "checkpoints/*") for path in study.folder.glob(pattern)]


@pytest.mark.slow
def test_without_its_weights_a_network_is_trained_again_also_when_time_is_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = searched(trials=2, rungs=(Rung(epochs=1), Rung(epochs=2)))
    promotion = Promotion(study, StudyData(study, quiet), quiet)
    promotion.climb_planned()
    (number,) = study.planned_rungs[0]["networks"]
    assert promotion.is_shippable(number)
    study.rung_weights(0).drop([number])
    study.deadline = time.monotonic() - 1
    assert not promotion.is_shippable(number)
    delivery.deliver(study)
    assert study.deployed()


@pytest.mark.slow
def test_the_networks_of_a_rung_are_chosen_after_the_rung_before_also_when_time_runs_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = searched(trials=4, rungs=(Rung(epochs=1), Rung(epochs=1), Rung(epochs=1)))
    study.deadline = time.monotonic() + 3600
    promotion = Promotion(study, StudyData(study, quiet), quiet)
    record = promotion._record

    def record_and_run_out_of_time(*arguments):
        record(*arguments)
        study.deadline = time.monotonic() - 1

    monkeypatch.setattr(promotion, "_record", record_and_run_out_of_time)
    promotion.climb_planned()
    first, second, third = (rung["networks"] for rung in study.planned_rungs)
    assert (len(first), second, third) == (2, None, None)
    study.deadline = None
    Promotion(study, promotion.data, quiet).climb_planned()
    assert all(study.rung(0, number) for number in first)
    assert set(study.planned_rungs[1]["networks"]) <= set(first)


class Waiting:
    """A study with one planned rung and a time budget; its trials took `others` seconds besides their training."""

    planned_rungs = planned(1)

    def __init__(self, seconds: float, others: float = duration.MEASURED, **recipe):
        self.deadline = time.monotonic() + seconds
        self.settings = {"recipe": recipe}
        attributes = {"seconds": 20 + others, "training": {"seconds": 20.0}}
        self.trials = [SimpleNamespace(user_attrs=attributes)] * 3

    def frozen(self, *_):
        return self.trials


class NoData:
    recipe = None


@pytest.mark.parametrize("seconds", [5.0, 12.0, 60.0, 3600.0])
def test_exports_take_at_most_half_of_the_time_that_the_search_leaves_or_that_of_one(seconds):
    promotion = Promotion(Waiting(seconds), NoData(), quiet)
    kept = min(EXPORTED_MEMBERS * duration.EXPORTED, max(seconds / 2, min(seconds, duration.EXPORTED)))
    assert promotion._seconds_left() == pytest.approx(seconds - kept, abs=2)
    assert promotion.is_time_used_up == (seconds <= duration.EXPORTED)


def test_on_a_busy_machine_more_time_is_kept_for_exports():
    """The search shows how busy it is, then the exports so far do."""
    promotion = Promotion(Waiting(3600.0, others=5 * duration.MEASURED), NoData(), quiet)
    assert promotion.export_seconds == pytest.approx(5 * duration.EXPORTED)
    assert promotion._seconds_left() == pytest.approx(3600 - EXPORTED_MEMBERS * 5 * duration.EXPORTED, abs=2)
    promotion.record_export(100.0)
    promotion.record_export(200.0)
    assert promotion.export_seconds == pytest.approx(150 + 5 * duration.MEASURED)
    assert promotion.is_time_for_export
    promotion.study.deadline = time.monotonic() + 150
    assert not promotion.is_time_for_export
    assert duration.slowdown(Waiting(1.0, others=1.0)) == 1.0
    assert duration.slowdown(Waiting(1.0, others=900.0, workers=4)) == 1.0, "they wait for each other to measure"


def test_a_search_on_a_busy_machine_leaves_the_time_of_one_export():
    manager = trials.TrialManager.__new__(trials.TrialManager)
    manager.study, manager._reserved = Waiting(90.0, others=10 * duration.MEASURED), 45.0
    manager.study.evaluated, manager._most_reserved = 1, 200.0
    assert manager._reserved_seconds() == pytest.approx(10 * duration.EXPORTED)
    manager._most_reserved = 50.0
    assert manager._reserved_seconds() == 50.0, "half of the time at most"
    manager.study.evaluated = 0
    assert manager._reserved_seconds() == 45.0
    manager._reserved = 0.0
    assert manager._reserved_seconds() == 0.0, "nothing follows this search"


@pytest.mark.slow
def test_a_time_budget_alone_plans_rungs_that_fit_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = searched(trials=2, resolution=8)
    recipe = StudyData(study, quiet).recipe.model_copy(update={"trials": UNBOUNDED, "time_budget": 60.0})
    second = promotions._epoch_seconds(study, recipe)
    assert second > 0
    for workers in (1, 4):
        monkeypatch.setattr(promotions, "_parallel", lambda *_, workers=workers: workers)
        for epochs in (0.5, 10, 1000, 1e5):
            rungs = promotions.plan(study, recipe, epochs * second)
            assert [rung["epochs"] for rung in rungs] == list(EPOCHS_IN_TIME[: len(rungs)])
            assert sum(rung["epochs"] * math.ceil(rung["count"] / workers) for rung in rungs) <= epochs
        assert [rung["count"] for rung in rungs] == [study.evaluated] * 3
    assert promotions.plan(study, recipe, -1.0) == []


def test_as_many_networks_train_at_a_time_as_in_the_search():
    def trial(start, end):
        start, end = (datetime(2025, 1, 1, 0, minute) for minute in (start, end))
        return SimpleNamespace(datetime_start=start, datetime_complete=end)

    study = SimpleNamespace(frozen=lambda *_: [trial(0, 4), trial(1, 5), trial(2, 6), trial(4, 8), trial(9, 10)])
    at_once = [promotions._parallel(study, Recipe(workers=workers)) for workers in (1, 2, 3, 4, 8)]
    assert at_once == [1, 2, 3, 3, 3]
    assert promotions._parallel(SimpleNamespace(frozen=lambda *_: []), Recipe(workers=4)) == 1


@pytest.mark.slow
def test_the_weights_of_promoted_networks_are_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trials, "KEPT_LAYERS", 0)
    monkeypatch.setattr(trials, "EVALUATED_BEFORE_DROP", 100)
    study = searched(trials=13, rungs=(Rung(epochs=1), Rung(epochs=1)))
    order = study.promotion_order()
    manager = trials.TrialManager.__new__(trials.TrialManager)
    manager.study, manager.problem = study, SimpleNamespace(recipe=StudyData(study, quiet).recipe, donor=None)
    manager._drop_weights()
    assert [number for number in order if study.search_weights.path(number)] == order[:10]
    promotion = Promotion(study, StudyData(study, quiet), quiet)
    promotion.climb_planned()
    first = study.planned_rungs[0]["networks"]
    assert first == order[:5]
    assert all(study.rung(0, number)["epochs"] == 1 for number in first), "the search's training was not repeated"


@pytest.mark.slow
def test_networks_that_were_deployed_take_no_place_when_a_search_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    delivery.deliver(searched(trials=3, rungs=(Rung(epochs=1),)))
    study = searched(trials=9, rungs=(Rung(epochs=1),))
    deployed = set(study.deployed())
    assert deployed
    assert not deployed & set(study.candidates())
    promotion = Promotion(study, StudyData(study, quiet), quiet)
    monkeypatch.setattr(promotion, "_climb_all", lambda *_: None)
    promotion.climb_planned()
    (rung,) = study.planned_rungs
    assert rung["count"] == math.ceil((9 - len(deployed)) / 3)
    assert len(rung["networks"]) == rung["count"]
    assert not deployed & set(rung["networks"])


@pytest.mark.parametrize(("epochs", "told"), [(2, True), (6, False)])
def test_a_full_training_that_is_shorter_than_the_rungs_is_noted(epochs, told):
    recipe = Recipe(
        objectives=("accuracy", "flops"),
        resolution=8,
        fidelity={"resolution": 8, "epochs": 1},
        rungs=(Rung(epochs=2), Rung(epochs=3)),
        full={"epochs": epochs},
    )
    notes = Problem.from_data(recipe, Space.from_text(SPACE, "few.yaml")).notes
    text = f"full.epochs {epochs}: the networks of the front are trained for longer, 1 + 2 + 3 epochs"
    assert (text in "".join(notes)) == told


def test_a_rung_above_the_deployment_resolution_is_lowered_with_a_note():
    recipe = Recipe(resolution=8, fidelity={"resolution": 8, "epochs": 1}, rungs=(Rung(epochs=1, resolution=64),))
    problem = Problem.from_data(recipe, Space.from_text(SPACE, "few.yaml"))
    assert problem.notes == ("rungs.0.resolution 64 is lowered to the deployment's 8",)
    assert problem.recipe.rungs == (Rung(epochs=1),)
