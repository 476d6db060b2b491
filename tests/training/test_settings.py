"""Training settings: read from recipes, former names, invalid values refused by name."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from nasspace import files
from nasspace.documents import Document
from nasspace.errors import InputError
from nasspace.studies import recipe
from nasspace.studies.schema import study_settings
from nasspace.training import published
from nasspace.training.settings import TrainingSettings

RECORDED = Path(__file__).parents[1] / "recorded" / "study"  # of a version that wrote `optimiser`


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_sise": 4}, "'batch_sise' is not a setting; did you mean 'batch_size'"),
        ({"batch_size": 1}, "training.batch_size: 1 is not 2 or more"),
        ({"batch_size": 32.5}, "training.batch_size: 32.5 is not a whole number"),
        ({"batch_size": True}, "training.batch_size: True is not a whole number"),
        ({"flip": "often"}, "flip: 'often' is not true, false or null"),
        ({"learning_rate": 0}, "learning_rate: 0"),
        ({"learning_rate": "fast"}, "training.learning_rate: 'fast' is not a number above 0"),
        ({"learning_rate": math.inf}, "training.learning_rate: inf"),
        ({"learning_rate": None}, "training.learning_rate: None"),
        ({"optimizer": "adam"}, "'adam' is not sgd, rmsprop or adamw"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"weight_decay": math.nan}, "weight_decay"),
        ({"label_smoothing": 1}, "label_smoothing"),
        ({"warm_up": 1}, "warm_up: 1 is not a share of the steps, below 1"),
        ({"warm_up": -1, "warm_up_in": "epochs"}, "warm_up"),
        ({"warm_up_in": "steps"}, "'steps' is not share or epochs"),
        ({"schedule": "step"}, "'step' is not cosine, one-cycle, exponential, steps or plateau"),
        ({"crop_padding": 1}, "crop_padding"),
        ({"gradient_norm": -1}, "gradient_norm"),
        ({"evaluation_batch_size": 0}, "evaluation_batch_size"),
        ({"threads": 0}, "threads"),
        ({"momentum": 1}, "momentum"),
        ({"nesterov": None}, "nesterov: None is not true or false"),
        ({"square_decay": 1}, "square_decay"),
        ({"epsilon": 0}, "epsilon"),
        ({"decayed": "some"}, "'some' is not weights, weights-but-depthwise or all"),
        ({"last_rate": 1}, "last_rate: 1 is not at most the learning rate"),
        ({"factor": 0}, "factor"),
        ({"every": 0}, "every: 0 is not a number of epochs above 0"),
        ({"milestones": [3, 2]}, "milestones: .* is not a rising list of epochs"),
        ({"milestones": 30}, "milestones: 30 is not a rising list of epochs"),
        ({"schedule": "steps"}, "milestones: .* name the epochs"),
        ({"patience": 0}, "patience"),
        ({"average": 1}, "average"),
        ({"norm_momentum": 0}, "norm_momentum"),
        ({"norm_statistics": "none"}, "'none' is not re-estimated or running"),
        ({"crop_scale": 0.5}, "crop_scale: 0.5 is not a range of shares of the area"),
        ({"crop_scale": [0, 1]}, "crop_scale"),
        ({"crop_scale": [0.5, 1.1]}, "crop_scale"),
        ({"crop_scale": [0.8, 0.5]}, "crop_scale"),
        ({"crop_ratio": [0, 1]}, "crop_ratio: .* is not a range of ratios above 0"),
        ({"crop_ratio": None}, "crop_ratio"),
        ({"policy": "autoaugment"}, "policy: 'autoaugment' is not randaugment, trivialaugment or null"),
        ({"policy_layers": 0}, "policy_layers: 0 is not 1 or more operations"),
        ({"policy_magnitude": 31}, "policy_magnitude: 31 is not from 0 to 30"),
        ({"jitter": 0.4}, "jitter: 0.4 is not four numbers of 0 or more"),
        ({"jitter": [0.4, 0.4, 0.4, 0.6]}, "hue at most 0.5"),
        ({"rotation": -1}, "rotation: -1 is not from 0 to 180 degrees"),
        ({"color_noise": -1}, "color_noise"),
        ({"erasing": 2}, "erasing"),
        ({"mixup": -1}, "mixup"),
        ({"cutmix": math.nan}, "cutmix"),
    ],
)
def test_an_invalid_setting_is_refused_by_name(values, message):
    with pytest.raises(InputError, match=message):
        TrainingSettings.from_mapping(values)


def test_settings_come_from_a_recipe():
    assert TrainingSettings.from_mapping({}) == TrainingSettings()
    assert TrainingSettings.from_mapping({"flip": False, "batch_size": 32}) == TrainingSettings(32, flip=False)
    assert TrainingSettings.from_mapping({"schedule": "steps", "milestones": [1, 2.5]}).milestones == (1, 2.5)


def test_the_former_name_of_a_setting_is_read_and_not_written():
    former = {"training": {"optimiser": "adamw"}}
    read = recipe.read_value(former, Document({}, ""))
    assert read.training == TrainingSettings(optimizer="adamw")
    assert read == recipe.Recipe().with_changes(former)
    assert read.as_written()["training"]["optimizer"] == "adamw"
    assert "optimiser" not in read.as_written()["training"]
    assert TrainingSettings.from_mapping(former["training"]) == read.training


def test_a_study_of_an_earlier_version_has_the_current_name():
    settings = study_settings(files.load_yaml(RECORDED / "study.yaml"))
    assert settings["recipe"]["training"]["optimizer"] == "sgd"
    assert recipe.Recipe().as_written()["training"] == settings["recipe"]["training"], "so that the study continues"


def test_a_setting_under_both_names_is_refused():
    both = {"optimizer": "sgd", "optimiser": "adamw"}
    with pytest.raises(InputError, match=r"training\.optimizer: also given under its former name 'optimiser'"):
        TrainingSettings.from_mapping(both)
    with pytest.raises(InputError, match="former name"):
        recipe.read_value({"training": both}, Document({}, ""))


def test_fingerprints_are_those_of_earlier_versions():
    """Checkpoints and full trainings keep them."""
    assert TrainingSettings().fingerprint() == "a69cd765d8dd"
    assert TrainingSettings(16, optimizer="rmsprop", learning_rate=0.01).fingerprint() == "d142af24e830"
    changed = [{"balance": "weights"}, {"accumulation": 2}, {"frozen_norms": True}, {"head_first": 0.1}]
    assert len({TrainingSettings(**each).fingerprint() for each in [{}, *changed]}) == 5


def test_the_defaults_are_the_documented_ones():
    assert dataclasses.astuple(TrainingSettings())[:6] == (64, 0.2, "sgd", 5e-4, 0.1, 0.2)
    assert (TrainingSettings().momentum, TrainingSettings().nesterov, TrainingSettings().average) == (0.9, True, 0)


def test_a_recipe_keeps_every_setting():
    training = {"optimizer": "rmsprop", "schedule": "steps", "milestones": [2, 4.5], "norm_momentum": 0.01}
    training |= {"crop_scale": [0.08, 1], "jitter": [0.4, 0.4, 0.4, 0], "policy": "trivialaugment", "mixup": 0.2}
    read = recipe.read_value({"training": training}, Document({}, ""))
    assert read.training == TrainingSettings.from_mapping(training)
    assert recipe.read_value(read.as_written(), Document({}, "")) == read


def test_a_recipe_names_an_invalid_setting():
    with pytest.raises(InputError, match=r"training\.average: 2"):
        recipe.read_value({"training": {"average": 2}}, Document({}, ""))
    with pytest.raises(InputError, match="'avarage' is not a setting; did you mean 'average'"):
        recipe.read_value({"training": {"avarage": 2}}, Document({}, ""))


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"teacher_share": 0.9}, "there is no teacher"),
        ({"temperature": 2.0}, "there is no teacher"),
        ({"optimizer": "adamw", "momentum": 0.8}, "optimizer is 'adamw'"),
        ({"milestones": (3,)}, "schedule is 'cosine'"),
        ({"policy": "trivialaugment", "policy_layers": 3}, "policy is 'trivialaugment'"),
        ({"crop_ratio": (1, 2)}, "there is no crop_scale"),
    ],
)
def test_a_setting_that_changes_nothing_is_named(setting, reason):
    [line] = TrainingSettings(**setting).without_effect()
    assert line.startswith(f"training.{[*setting][-1]}: without effect, since {reason}")
    needed = {"optimizer": "sgd", "schedule": "steps", "policy": "randaugment", "crop_scale": (0.5, 1)}
    assert not TrainingSettings(**{"milestones": (3,), **setting, **needed}).without_effect(has_teacher=True)


def test_published_settings_all_have_an_effect():
    assert not [name for name in published.names() if published.load(name).settings.without_effect()]
