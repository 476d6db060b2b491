"""Rungs between the search and the last one: who climbs, and kills on the way."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from nasspace.engine import delivery, duration, loop
from nasspace.engine.promotion import EPOCHS_IN_TIME, EXPORTED_MEMBERS, Promotion
from nasspace.engine.study_data import StudyData
from nasspace.errors import InputError
from nasspace.space.space import Space
from nasspace.studies import study as records
from nasspace.studies.recipe import Recipe, Rung

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
from nasspace.studies.recipe import Recipe, Rung

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
    gains = study.contributions()
    delivery.deliver(study)
    first, second = study.planned_rungs
    assert (first["count"], second["count"]) == (2, 1)
    assert len(first["networks"]) == 2
    assert set(second["networks"]) <= set(first["networks"])
    assert min(gains[number] for number in first["networks"]) >= max(
        gain for number, gain in gains.items() if number not in first["networks"]
    )
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


@pytest.mark.slow
def test_killed_between_and_within_rungs_it_ends_in_the_same_front(tmp_path, monkeypatch, forked):
    monkeypatch.chdir(tmp_path)
    script = SCRIPT.format(space=SPACE)
    forked(script, "uninterrupted").communicate()
    rng = random.Random(5)
    for kill in range(4):
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


@pytest.mark.slow
def test_a_time_budget_alone_plans_rungs_that_fit_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = searched(time_budget="12s", trials=10**6, resolution=8)
    assert study.evaluated >= 1
    promotion = Promotion(study, StudyData(study, lambda kind, **_: None), lambda kind, **_: None)
    second = promotion._epoch_seconds()
    assert second > 0
    for left in (0.5, 10, 1000, 1e5):
        study.deadline = time.monotonic() + EXPORTED_MEMBERS * duration.EXPORTED + left * second
        planned = promotion._plan()
        assert [rung["epochs"] for rung in planned] == list(EPOCHS_IN_TIME[: len(planned)])
        assert sum(rung["epochs"] * rung["count"] for rung in planned) <= left
    assert [rung["count"] for rung in planned] == [study.evaluated] * 3
