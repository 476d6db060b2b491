"""`--start-from`: candidates inherit the weights of a given network where they overlap, and studies keep them."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch

import nasspace
from nasspace import Architecture, InputError, build, files, zoo
from nasspace.data.loading import load_data
from nasspace.engine import loop
from nasspace.engine.problem import Problem
from nasspace.engine.ray.payload import Payload, deserialized, serialized
from nasspace.engine.starting_weights import StartingEvaluator, evaluator_of, find, with_donor
from nasspace.reporting.report import write_report
from nasspace.space.space import Space
from nasspace.studies import study as records
from nasspace.studies.recipe import Recipe
from nasspace.training import pretrained

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from test_pretrained import RECORDS, formula

SPACE = """
name: few
input: [3, 32, 32]
stages: [{depth: [1, 2], out: [8, 12, 16], stride: 2, each: {block: [inverted_residual, sandglass]}}]
"""
pytestmark = pytest.mark.usefixtures("forked_model_py")
SETTINGS = {
    **{"trials": 3, "sampler": "random", "seed": 3, "objectives": ("accuracy", "flops"), "resolution": 16},
    "fidelity": {"resolution": 8, "epochs": 1},
}


def space() -> Space:
    return Space.from_text(SPACE, "few.yaml")


def searched(start=None, name="s", **more):
    recipe = Recipe(**{**SETTINGS, **more})
    return loop.search(space(), data="digits", recipe=recipe, study=name, deliver=False, start_from=start)


@pytest.fixture(scope="module")
def donor(tmp_path_factory) -> Path:
    """The folder of a trained network of the space: two layers of 12 channels."""
    data = load_data("digits", resolution=16)
    fitted = Space(space().document, classes=10, resolution=16, channels=1)
    architecture = fitted.replay(
        {
            **{"stages.0.depth": 2, "stages.0.out": 12},
            **{"stages.0.0.block": 0, "stages.0.1.block": 1},
        }
    )
    folder = tmp_path_factory.mktemp("d") / "donor"
    nasspace.train(architecture, data=data, epochs=1, out=folder)
    return folder


def problem_from(donor, **more) -> Problem:
    """The problem of a search from a donor."""
    problem = Problem.from_data(Recipe(**{**SETTINGS, **more}), space())
    return with_donor(problem, str(donor))


def test_candidates_have_the_overlapping_weights_and_new_ones(donor):
    problem = problem_from(donor)
    given = problem.donor.state
    choices = {"stages.0.depth": 2, "stages.0.0.block": 0, "stages.0.1.block": 1}
    for out in (8, 12, 16):
        architecture = problem.space.replay({**choices, "stages.0.out": out})
        network = evaluator_of(problem)._initial(architecture, 0)
        found = dict(network.named_parameters())
        for name, own in found.items():
            part = tuple(slice(0, min(sizes)) for sizes in zip(own.shape, given[name].shape, strict=True))
            assert torch.equal(own[part], given[name][part]), name
        assert (out == 12) == all(torch.equal(own, given[name]) for name, own in found.items())
    other = evaluator_of(problem)._initial(
        problem.space.replay({**choices, "stages.0.out": 12, "stages.0.0.block": 1}), 0
    )
    assert not torch.equal(other[0].state_dict()[next(iter(other[0].state_dict()))], next(iter(given.values())))


def test_the_whole_donor_is_a_candidate_with_its_function(donor):
    problem = problem_from(donor)
    architecture = problem.space.replay(problem.donor.choices)
    network, original = evaluator_of(problem)._initial(architecture, 0), build(architecture)
    original.load_state_dict(dict(problem.donor.state))
    for one, other in zip(network.parameters(), original.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_study_keeps_the_weights_and_resumes_without_the_file(donor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(donor, "given")
    study = searched("given")
    recorded = files.load_yaml(study.folder / "study.yaml").value["start_from"]
    assert recorded["source"] == "given"
    assert recorded["choices"]["stages.0.out"] == 12
    accuracies = [trial.user_attrs["values"]["accuracy"] for trial in study.frozen("COMPLETE")]
    plain = searched(name="plain")
    assert accuracies != [trial.user_attrs["values"]["accuracy"] for trial in plain.frozen("COMPLETE")]
    with pytest.raises(
        InputError, match=r"candidates start from the weights of given .--start-from., now from new ones"
    ):
        searched(trials=4)
    with pytest.raises(InputError, match="candidates start from new weights, now from others"):
        searched("given", name="plain", trials=4)
    again = searched("given", name="again")
    assert accuracies == [trial.user_attrs["values"]["accuracy"] for trial in again.frozen("COMPLETE")]
    shutil.rmtree("given")
    settings = files.load_yaml(study.folder / "study.yaml").value
    settings["recipe"]["trials"] = 5
    files.write_yaml(study.folder / "study.yaml", settings)
    longer = loop.resume("s", deliver=False)
    assert longer.evaluated == 5
    assert searched("given", trials=6).evaluated == 6, "the same command needs the file no more"
    with pytest.raises(InputError, match="--start-from given: "):
        searched("given", name="new")
    shutil.rmtree(study.folder / "weights" / "start")
    assert loop.resume("s", deliver=False).evaluated == 6, "all candidates are trained"
    settings = files.load_yaml(study.folder / "study.yaml").value
    settings["recipe"]["trials"] = 7
    files.write_yaml(study.folder / "study.yaml", settings)
    with pytest.raises(InputError, match="not in weights/start; run the `nas search` command that started it"):
        loop.resume("s", deliver=False)


def test_a_trial_of_an_earlier_study_is_a_donor(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = searched()
    number = first.frozen("COMPLETE")[0].number
    second = searched(f"s:{number}", name="second")
    assert second.settings["start_from"]["source"] == f"s:{number}"
    page = write_report(records.load("second").snapshot()).read_text()
    assert re.search(rf"candidates start from\s*</dt>\s*<dd>\s*s:{number}", page)


def test_a_donor_of_another_resolution_is_found(tmp_path, monkeypatch):
    """Below 64 pixels the strides of a stem become 1: choices are compared at the donor's own resolution."""
    monkeypatch.chdir(tmp_path)
    text = SPACE + "stem: [{block: conv, out: 8, stride: 2}]\n"
    recipe = Recipe(**{**SETTINGS, "trials": 1})
    loop.search(Space.from_text(text, "s.yaml"), data="digits", recipe=recipe, study="small", deliver=False)
    larger = Problem.from_data(Recipe(**{**SETTINGS, "resolution": 64}), Space.from_text(text, "s.yaml"))
    found = find("small:0", larger, lambda _: None)
    assert found.choices == records.load("small").frozen("COMPLETE")[0].params
    with pytest.raises(InputError, match="--start-from small: is a study; name one of its trials, as small:ID"):
        find("small", larger, lambda _: None)


def test_workers_start_from_the_same_weights(donor):
    problem = problem_from(donor)
    evaluator = evaluator_of(problem)
    payload = deserialized(serialized(Payload.from_problem(replace(problem, evaluator=evaluator), False)))
    worker = payload.evaluator(measure=lambda architecture: None)
    assert isinstance(worker, StartingEvaluator)
    architecture = problem.space.architecture(lambda name, options: options[-1])
    for one, other in zip(
        worker._initial(architecture, 0).parameters(), evaluator._initial(architecture, 0).parameters(), strict=True
    ):
        assert torch.equal(one, other)


def as_space(name: str) -> Space:
    """A space with a published network in it: each layer a stage, the first kernel a choice."""
    network = zoo.load(name)
    layers = [{**layer, "out": own.out} for layer, own in zip(network.to_dict()["layers"], network.layers, strict=True)]
    layers = [{key: value for key, value in layer.items() if value is not None} for layer in layers]
    last = max(number for number, layer in enumerate(layers) if layer["block"] == "inverted_residual")
    stages = []
    for layer in layers[1 : last + 1]:
        options = {key: value for key, value in layer.items() if key not in ("block", "out", "stride")}
        options |= {"kernel": [3, 5]} if len(stages) == 3 else {}
        stages.append(
            {
                **{"depth": 1, "out": layer["out"], "stride": layer.get("stride", 1)},
                "each": {"block": {layer["block"]: options} if options else layer["block"]},
            }
        )
    document = {
        "name": "published",
        "input": [3, 64, 64],
        "stem": layers[:1],
        "stages": stages,
        "head": layers[last + 1 : -1],
    }
    return Space.from_text(json.dumps({**document, "divisor": 4}), "published.yaml")


def test_a_checkpoint_of_a_published_network_is_a_donor(tmp_path):
    record = RECORDS["mobilenet_v2_0.35-torchvision"]
    state = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in formula(record["layers"]).items()
    }
    assert pretrained.networks_of(state) == ["mobilenet_v2_0.35"]
    torch.save(state, tmp_path / "w.pth")
    recipe = Recipe(**{**SETTINGS, "resolution": 32})
    problem = Problem.from_data(recipe, as_space("mobilenet_v2_0.35"))
    lines: list[str] = []
    found = find(str(tmp_path / "w.pth"), problem, lines.append)
    assert any("weights of torchvision's MobileNetV2" in line for line in lines)
    assert any("adapted from color to gray" in line for line in lines)
    (own,) = [tensor for name, tensor in found.state.items() if name.startswith("5.") and tensor.shape[:2] == (16, 96)]
    torch.testing.assert_close(own, state["features.5.conv.2.weight"])
    scale = problem.data.std[0] / 255 / numpy.mean(pretrained.IMAGENET[1])
    first = next(tensor for tensor in found.state.values() if tensor.ndim == 4)
    torch.testing.assert_close(first, scale * state["features.0.0.weight"].sum(1, keepdim=True), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("mobilenet_v2_1.0", "--start-from mobilenet_v2_1.0: has no trained weights"),
        ("nothing.pth", "--start-from nothing.pth: cannot be read"),
        ("other.pth", "--start-from other.pth: is of no published network"),
        ("published.pth", "is of mobilenet_v2_0.35, which is not a network of the space 'few'"),
        ("foreign", "--start-from foreign: .*name a network of the space"),
    ],
)
def test_unfit_weights_are_one_message_and_leave_no_study(start, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a.weight": torch.ones(2, 2)}, "other.pth")
    if start == "published.pth":
        torch.save(formula(RECORDS["mobilenet_v2_0.35-torchvision"]["layers"]), start)
    if start == "foreign":
        layers = [{"block": "conv", "out": 8, "stride": 2}, {"block": "global_pool"}, {"block": "linear", "out": 10}]
        data = load_data("digits", resolution=16)
        nasspace.train(Architecture.of(layers, input=(1, 16, 16)), data=data, epochs=1, out=start)
    with pytest.raises(InputError, match=message):
        searched(start)
    assert not Path("reports").exists()


def test_a_search_without_trainings_is_refused(donor):
    with pytest.raises(InputError, match="this search trains no candidates, which could start from weights"):
        problem_from(donor, supernet={"epochs": 1})
