"""Searches that judge networks with shared weights: the training, kills, workers, and what follows the search."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nasspace.blocks import registry
from nasspace.engine import checks, duration, loop, promotion, trials
from nasspace.engine.evaluator import evaluate
from nasspace.engine.ray.payload import Payload, deserialized, serialized
from nasspace.engine.shared_weights import InheritingEvaluator, supernet_of
from nasspace.errors import InputError
from nasspace.reporting.report import write_report
from nasspace.space.space import Space
from nasspace.studies import study as records
from nasspace.studies.recipe import Recipe, Rung
from nasspace.studies.schema import SHARED_WEIGHTS
from nasspace.training import supernet as supernets
from nasspace.training.settings import Sharing, SupernetSettings, TrainingSettings
from nasspace.training.supernet import Supernet

SPACE = """
name: few
input: [3, 32, 32]
stages: [{depth: [1, 2], out: [8, 12, 16], stride: 2, each: {block: [inverted_residual, sandglass]}}]
"""
pytestmark = pytest.mark.usefixtures("forked_model_py")
SETTINGS = {
    **{"trials": 6, "sampler": "spos", "seed": 3, "objectives": ("accuracy", "flops"), "resolution": 16},
    **{"supernet": {"epochs": 2, "resolution": 8, "sampling": "fair"}, "fidelity": {"resolution": 8, "epochs": 1}},
}
SCRIPT = """
import sys
import nasspace
from nasspace.space.space import Space
from nasspace.studies.recipe import Recipe, Rung

def print_event(kind, **about):
    print(kind, about.get("text", ""), flush=True)

recipe = Recipe(**{settings!r}, rungs=(Rung(epochs=1), Rung(epochs=2)))
nasspace.search(Space.from_text({space!r}, "few.yaml"), data="digits", recipe=recipe, study=sys.argv[1],
                on_event=print_event)
"""


def searched(name="s", **more):
    recipe = Recipe(**{**SETTINGS, **more})
    return loop.search(Space.from_text(SPACE, "few.yaml"), data="digits", recipe=recipe, study=name, deliver=False)


def inherited(study):
    return [trial.user_attrs["values"]["accuracy"] for trial in study.frozen("COMPLETE")]


def test_a_search_judges_with_shared_weights_and_trains_the_front_from_the_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = searched(rungs=(Rung(epochs=1), Rung(epochs=2)))
    assert len(study.record.user_attrs[SHARED_WEIGHTS]["losses"]) == 2
    assert all(study.weights(trial.number) is None for trial in study.frozen("COMPLETE"))
    low, high = study.belief().interval(0)
    assert high - low > 0.9, "shared weights do not tell the level of accuracies"
    loop.resume("s")
    study = records.load("s")
    for member in study.document()["front"]:
        assert member["fidelity"] == {"resolution": 8, "epochs": 2, "weights": "shared"}
        assert study.last_rung(member["id"])["steps"] == [[8, 1, 1.0], [16, 1, 1.0], [16, 2, 1.0]]
        card = (study.folder / "exports" / str(member["id"]) / "README.md").read_text()
        assert "(resolution 8, epochs 2, weights shared)" in card
        assert member["accuracy_high"] - member["accuracy_low"] < 0.9
    text = write_report(study.snapshot()).read_text()
    assert "with weights that all networks share" in text


@pytest.mark.slow
def test_killed_while_it_trains_or_uses_shared_weights_it_ends_in_the_same_front(tmp_path, monkeypatch, forked):
    monkeypatch.chdir(tmp_path)
    code = SCRIPT.format(settings={**SETTINGS, "supernet": {"epochs": 3, "resolution": 8}}, space=SPACE)
    forked(code, "uninterrupted").communicate()
    rng = random.Random(5)
    for moment in ("shared weights: epoch 2", "outcome", "training at 16x16"):
        process = forked(code, "killed")
        for line in process.lines():
            if moment in line:
                time.sleep(rng.uniform(0.0, 0.1))
                break
        process.kill()
        process.communicate()
    process = forked(code, "killed")
    rest = process.communicate()[0]
    assert process.returncode == 0, rest
    assert "training shared weights" not in rest, "they are read"
    killed, uninterrupted = (records.load(name) for name in ("killed", "uninterrupted"))
    assert inherited(killed) == inherited(uninterrupted)
    fronts = [
        [(one["id"], one["digest"], one["accuracy"]) for one in study.document()["front"]]
        for study in (killed, uninterrupted)
    ]
    assert fronts[0] == fronts[1]
    files = [(study.folder / "weights/shared/0.safetensors").read_bytes() for study in (killed, uninterrupted)]
    assert files[0] == files[1]
    assert not list(killed.folder.glob("checkpoints/*"))


def test_workers_judge_with_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = searched(trials=2)
    (tmp_path / "reports/s/checkpoints").mkdir(exist_ok=True)
    problem = loop.Problem.from_data(Recipe(**SETTINGS), Space.from_text(SPACE, "few.yaml"))
    supernet = supernet_of(study, problem, lambda *_, **__: None)
    problem = dataclasses.replace(problem, evaluator=InheritingEvaluator(problem.recipe, problem.data, supernet))
    payload = Payload.from_problem(problem, fresh_latency=False)
    assert payload.nbytes > sum(tensor.numel() * 4 for tensor in supernet.state_dict().values())
    evaluator = deserialized(serialized(payload)).evaluator()
    found = [evaluate(evaluator, study.architecture(number)).values["accuracy"] for number in (0, 1)]
    assert found == inherited(study)


def test_damaged_shared_weights_name_the_remedy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = searched(trials=1)
    file = study.folder / "weights/shared/0.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"0\.safetensors: .*; delete the file to train the shared weights again"):
        searched(trials=2)
    file.unlink()
    assert inherited(searched(trials=2))[0] == inherited(study)[0]


def test_a_search_that_has_its_trials_needs_no_shared_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = searched(trials=2)
    (study.folder / "weights/shared/0.safetensors").unlink()
    study.record.set_user_attr(records.SEARCHED, False)
    assert searched(trials=2).evaluated == 2
    assert not (study.folder / "weights/shared/0.safetensors").exists()


def test_the_time_for_exports_is_reserved_from_what_the_shared_training_leaves(monkeypatch):
    monkeypatch.setattr(trials, "time", SimpleNamespace(monotonic=lambda: 900.0))
    study = SimpleNamespace(deadline=1000.0, evaluated=0)
    manager = trials.TrialManager.__new__(trials.TrialManager)
    manager.study = study
    manager.reserve_time(1000.0)
    assert manager._reserved == 50.0


def test_nothing_is_learned_from_a_study_that_trained_no_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    searched(trials=2)
    with pytest.raises(InputError, match="--learn-from s: no network of the study is trained yet"):
        loop.search(
            Space.from_text(SPACE, "few.yaml"), data="digits", recipe=Recipe(**SETTINGS), study="t", learn_from="s"
        )


def test_a_network_without_a_finite_loss_keeps_the_study_readable(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(supernets, "scaled_log_loss", lambda *_: math.nan)
    searched(trials=2)
    assert records.load("s").evaluated == 2


class Fails(nn.Module):
    """A block that fails for some widths, or in training."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, when: str = "never"):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, stride)
        self.fails = {"never": False, "built": out_channels == 12, "trained": True}[when]
        self.is_late = when == "trained"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fails and (not self.is_late or (self.training and x.device.type == "cpu")):
            raise ValueError("this width is not for me")
        return self.conv(x)


OWN = (
    "name: own\ninput: [3, 32, 32]\nstages: [{out: [8, 12, 16], stride: 2, block: [fails: {when: WHEN}, sandglass]}]\n"
)


@pytest.mark.usefixtures("own_blocks")
@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("built", r"supernet: not every network of 'own' runs: .*not for me; remove its block from the space"),
        ("trained", r"supernet: a network of 'own' cannot be trained at 8x8: .*not for me; remove its block"),
    ],
)
def test_a_space_with_a_network_that_fails_is_refused(tmp_path, monkeypatch, when, message):
    monkeypatch.chdir(tmp_path)
    registry.register("fails", Fails)
    space = Space.from_text(OWN.replace("WHEN", when), "own.yaml")
    with pytest.raises(InputError, match=message):
        loop.search(space, data="digits", recipe=Recipe(**SETTINGS), study="s", deliver=False)


def test_a_training_that_diverges_says_what_to_change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"shared weights diverged: .*; lower supernet\.learning_rate in the recipe"):
        searched(supernet={"epochs": 2, "resolution": 8, "learning_rate": 1e38})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objectives": ("latency", "flops")}, "supernet: shared weights estimate accuracies; add accuracy"),
        ({"training": TrainingSettings(average=0.9)}, "training.average: shared weights have no moving average"),
    ],
)
def test_what_shared_weights_cannot_do_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        checks.check_recipe(Recipe(**{**SETTINGS, "sampler": "gain", **settings}))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7, "a supernet is a mapping such as {epochs: 100}"),
        ({"epoch": 7}, "'epoch' is not a setting; did you mean 'epochs'"),
        ({"epochs": 0}, "supernet.epochs: 0 is not from 1 to 100,000"),
        ({"epochs": 10**9}, "supernet.epochs: 1000000000 is not from 1 to 100,000"),
        ({"resolution": 7}, "supernet.resolution: 7 is not a number of pixels from 8 to 8192"),
        ({"networks": True}, "networks is True, not a number"),
        ({"sampling": "greedy"}, "supernet.sampling: 'greedy' is not fair, sandwich or uniform"),
        ({"resolution": 0.5}, "supernet.resolution"),
        ({"learning_rate": -1}, "supernet.learning_rate: -1"),
    ],
)
def test_wrong_settings_name_themselves(value, message):
    with pytest.raises(InputError, match=message):
        Recipe().with_changes({"supernet": value})


def test_an_evaluator_takes_the_place_of_shared_weights():
    with pytest.raises(InputError, match="supernet: the evaluator takes the place of shared weights; leave one"):
        loop.search(Space.from_text(SPACE, "few.yaml"), evaluator=lambda _: {}, recipe=Recipe(**SETTINGS), study="s")


def test_settings_are_written_and_read_the_same():
    recipe = Recipe(**SETTINGS)
    assert Recipe().with_changes({"supernet": recipe.as_written()["supernet"]}).supernet == recipe.supernet
    assert isinstance(recipe.supernet, SupernetSettings)
    assert Recipe().as_written()["supernet"] is None


def test_the_training_of_shared_weights_is_part_of_the_estimated_time():
    problem = loop.Problem.from_data(Recipe(**SETTINGS), Space.from_text(SPACE, "few.yaml"))
    expected = duration.estimate_duration(problem)
    assert expected.shared[1] > 0
    assert "to train the shared weights" in str(expected)
    assert "to train the shared weights" not in str(dataclasses.replace(expected, shared=(0.0, 0.0)))


def test_rungs_in_a_time_budget_follow_from_the_time_of_the_shared_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = searched(trials=4)
    record = {"seconds": 100.0, "networks": 50, "losses": [1.0]}  # 2 s for a batch at 8 pixels
    study.record.set_user_attr(SHARED_WEIGHTS, record)
    batches = study.settings["data"]["train"] / 64
    assert promotion._epoch_seconds(study, Recipe(**SETTINGS)) == pytest.approx(2.0 * round(batches) * 4)


def test_a_time_budget_ends_the_training_of_shared_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(duration, "estimate_duration", lambda _: duration.Duration((1, 1), (1, 1), shared=(4e4, 6e4)))
    notes = []
    study = loop.search(
        Space.from_text(SPACE, "few.yaml"),
        data="digits",
        recipe=Recipe(**{**SETTINGS, "supernet": {"epochs": 50_000, "resolution": 8}}),
        study="s",
        trials=2,
        time_budget="6s",
        deliver=False,
        on_event=lambda kind, **event: notes.append(event.get("text", "")),
    )
    record = study.record.user_attrs[SHARED_WEIGHTS]
    assert record["seconds"] < 4
    assert study.evaluated > 0, "time is left for the search"
    half = "the shared weights are trained for at most half of the time budget: about 3 of 50000 epochs"
    assert any(note.startswith(half) for note in notes)
    assert f"the time for the shared weights is used up: {len(record['losses'])} of 50000 epochs" in notes


def test_the_learning_rate_falls_with_the_time_to_a_deadline(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(supernets, "time", SimpleNamespace(monotonic=lambda: now[0]))
    space = Space.from_text(SPACE, "few.yaml")
    step = supernets._SharedStep(Supernet(space), TrainingSettings(), Sharing(), 100, 10, 0, deadline=10.0)
    assert step._place() == 0
    now[0] = 5.0
    assert step._place() == 500
    now[0] = 11.0
    assert step._place() == 999
