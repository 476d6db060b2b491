"""`nasspace.score` and `nas score`: the network, the data, the document."""

from __future__ import annotations

import json
import math

import pytest
import torch

import nasspace
from nasspace import Architecture, cli
from nasspace.data.loading import load_data
from nasspace.engine import scoring
from nasspace.errors import InputError
from nasspace.studies.recipe import Recipe
from nasspace.training.proxies import SCORES, scores
from nasspace.training.settings import Fidelity

SPACE = """
name: little
input: [1, 8, 8]
stem: [{block: conv, out: 4}]
stages: [{depth: 1, out: [4, 8, 12, 16], block: [conv]}]
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def network(classes: int = 10, channels: int = 1) -> Architecture:
    layers = [{"block": "conv", "out": 6}, {"block": "global_pool"}, {"block": "linear", "out": classes}]
    return Architecture.of(layers, input=(channels, 8, 8), name="net")


def test_a_network_is_scored_on_digits():
    found = nasspace.score(network(), seed=3)
    data = load_data("digits", resolution=8)
    assert found.scores == scores(network(), scoring.draw(data, network(), scoring.IMAGES, 3), seed=3)
    assert (found.data, found.images, found.digest) == ("digits", scoring.IMAGES, network().digest)
    assert nasspace.score(network(), seed=3, data=data).scores == found.scores


def test_counts_need_no_data():
    found = nasspace.score("shufflenet_v2_1.0", data="no such data", names=["units", "flops"])
    cost = nasspace.cost(nasspace.zoo.load("shufflenet_v2_1.0"))
    assert found.scores == {"units": cost.units, "flops": cost.flops}
    assert (found.data, found.images) == (None, 0)


def test_gray_images_are_repeated_for_colors_and_more_classes_are_allowed():
    found = nasspace.score(network(classes=1000, channels=3), images=6)
    assert all(map(math.isfinite, found.scores.values()))
    batch = scoring.draw(load_data("digits"), network(channels=3), 6, 0)
    assert torch.equal(batch.images[:, 0], batch.images[:, 2])


@pytest.mark.slow
def test_a_study_s_network_is_scored_on_the_study_s_data():
    nasspace.search(
        nasspace.Space.from_text(SPACE, "little.yaml"),
        trials=1,
        objectives=["accuracy"],
        recipe=Recipe(fidelity=Fidelity(8, 1)),
        data="digits",
        study="s",
        deliver=False,
    )
    found = nasspace.score("reports/s:0", images=4)
    assert (found.data, found.resolution) == ("digits", 8)


def test_a_score_that_is_not_finite_is_null_in_the_document():
    layers = [{"block": "conv", "out": 6, "activation": "none"}, {"block": "linear", "out": 10}]
    found = nasspace.score(Architecture.of(layers, input=(1, 8, 8)))
    assert found.scores["naswot"] == -math.inf
    assert found.to_dict()["scores"]["naswot"] is None
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["scores"]["units"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed: -1 is not a whole number"),
        ({"images": 2}, "images: 2 is not a whole number from 4"),
        ({"device": "tpu"}, "'tpu' is not a device"),
        ({"names": ["unit"]}, "'unit' is not a score; did you mean 'units'"),
        ({"arch": network(classes=5)}, "digits has 10 classes, the network 5; name other --data"),
        ({"arch": Architecture.of(network().to_dict()["layers"], input=(1, 8, 6))}, "8x6 is not square"),
    ],
)
def test_bad_arguments_are_one_message(changes, message):
    with pytest.raises(InputError, match=message):
        nasspace.score(**{"arch": network(), **changes})


def test_the_command_prints_a_table_or_the_document(capsys):
    assert cli.run(["score", "squeezenet_1.1", "--resolution", "32", "--images", "4"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in SCORES)
    assert "4 training images of digits, seed 0" in table
    assert cli.run(["score", "squeezenet_1.1", "--resolution", "32", "--images", "4", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document["scores"]) == list(SCORES)
    assert cli.run(["score", "squeezenet_1.1", "--only", "units,", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["scores"]) == ["units"]


def test_the_command_refuses_an_unknown_score_in_one_message(capsys):
    assert cli.run(["score", "squeezenet_1.1", "--only", "zicco"]) == 2
    assert capsys.readouterr().err.strip().splitlines() == ["nas: 'zicco' is not a score; did you mean 'zico'?"]
