"""The published trainings: each one loads, has the values of its source, and trains."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from nasspace import Architecture, build, initialization, zoo
from nasspace.data.loading import DataSet, load_data
from nasspace.errors import InputError
from nasspace.training import published
from nasspace.training.schedules import rate
from nasspace.training.settings import Fidelity
from nasspace.training.trainer import train

ENTRIES = published.names()
TINY = [{"block": "conv", "out": 8, "stride": 2}, {"block": "depthwise_separable", "out": 16}]
# name: optimizer, rate, weight decay, batch size, epochs, label smoothing, average
PUBLISHED = {
    "alexnet": ("sgd", 0.01, 5e-4, 128, 90, 0, 0),
    "squeezenet": ("sgd", 0.04, 2e-4, 512, 68, 0, 0),
    "googlenet": ("sgd", 0.01, 2e-4, 32, 250, 0, 0.9999),
    "inception": ("rmsprop", 0.045, 4e-5, 1600, 100, 0.1, 0.9999),
    "xception": ("sgd", 0.045, 1e-5, 1920, None, 0, 0.9999),
    "mobilenet_v1": ("rmsprop", 0.045, 4e-5, 64, None, 0, 0),
    "mobilenet_v2": ("rmsprop", 0.045, 4e-5, 96, None, 0.1, 0.9999),
    "mnasnet": ("rmsprop", 0.256, 1e-5, 4096, 350, 0.1, 0.9999),
    "shufflenet": ("sgd", 0.5, 4e-5, 1024, 240, 0.1, 0),
    "mobilenet_v3": ("rmsprop", 0.1, 1e-5, 4096, None, 0, 0.9999),
    "mobilenext": ("sgd", 0.05, 4e-5, 256, 200, 0, 0),
    "mobilenext_logs": ("sgd", 0.1, 1e-4, 256, 200, 0.1, 0),
    "resnet": ("sgd", 0.1, 1e-4, 256, 90, 0, 0),
    "repvgg": ("sgd", 0.1, 1e-4, 256, 120, 0, 0),
    "mobileone": ("sgd", 0.1, 1e-4, 256, 300, 0.1, 0.9995),
    "ghostnet": ("sgd", 0.4, 4e-5, 1024, 240, 0.1, 0),
    "mobilenet_v4": ("adamw", 0.002, 0.01, 4096, 9600, 0.1, 0.9999),
    "fasternet": ("adamw", 0.004, 0.005, 4096, 300, 0.1, 0),
    "starnet": ("adamw", 0.003, 0.025, 2048, 300, 0.1, 0),
    "mobilenet_v2_d-li14": ("sgd", 0.05, 4e-5, 256, 150, 0, 0),
    "mobilenet_v3_d-li14": ("sgd", 0.4, 4e-5, 1024, 150, 0.1, 0),
    "cifar100": ("sgd", 0.1, 5e-4, 128, 200, 0, 0),
}
# name: the rate, as a share of the peak, when so many epochs are done (of the published length)
SHAPES = {
    "squeezenet": {0: 1, 17: 0.75, 34: 0.5},
    "googlenet": {7.9: 1, 8: 0.96, 80: 0.96**10},
    "inception": {1.9: 1, 2: 0.94, 50: 0.94**25},
    "xception": {0: 1, 1.9: 1, 2: 0.94, 5: 0.94**2},
    "mobilenet_v1": {2.4: 1, 2.5: 0.94, 25: 0.94**10},
    "mobilenet_v2": {0.9: 1, 1: 0.98, 100: 0.98**100},
    "mnasnet": {2.49: 0.5, 5: 0.97**2, 240: 0.97**100},
    "shufflenet": {0: 1, 60: 0.75, 120: 0.5, 180: 0.25},
    "mobilenet_v3": {2.9: 1, 3: 0.99, 30: 0.99**10},
    "mobilenext": {0: 1, 50: 0.5 + math.sqrt(0.125), 100: 0.5, 150: 0.5 - math.sqrt(0.125)},
    "mobilenext_logs": {1.49: 0.5, 3: 1, 101.5: 0.50005, 199.99: 1e-4},
    "resnet": {29.9: 1, 30: 0.1, 60: 0.01, 89: 0.01},
    "repvgg": {0: 1, 60: 0.5},
    "mobileone": {0: 1, 150: 0.5},
    "ghostnet": {0: 1, 60: 0.75, 120: 0.5, 180: 0.25},
    "mobilenet_v4": {2.49: 0.5, 5: 1, 4802.5: 0.5},
    "fasternet": {9.99: 0.5, 20: 1, 160: 0.50125},
    "starnet": {2.49: 0.5, 5: 1, 152.5: 0.5},
    "mobilenet_v2_d-li14": {0: 1, 75: 0.5},
    "mobilenet_v3_d-li14": {2.49: 0.5, 5: 1, 77.5: 0.5},
    "cifar100": {0.49: 0.5, 1: 1, 59.9: 1, 60: 0.2, 120: 0.04, 160: 0.008},
    "alexnet": {0: 1, 80: 1},
}


@pytest.fixture(scope="module")
def few() -> DataSet:
    digits = load_data("digits")
    return dataclasses.replace(
        digits, train=digits.train.at(torch.arange(160)), validation=digits.validation.at(torch.arange(60))
    )


def test_the_table_of_this_file_is_complete():
    assert set(PUBLISHED) == set(SHAPES) == set(ENTRIES)


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_has_the_values_of_its_source(name):
    entry = published.load(name)
    settings = entry.settings
    given = (settings.optimizer, settings.learning_rate, settings.weight_decay, entry.batch_size, entry.epochs)
    assert (*given, settings.label_smoothing, settings.average) == PUBLISHED[name]
    clipped = 2 if name == "inception" else 0
    assert (settings.momentum, settings.square_decay, settings.gradient_norm) == (0.9, 0.9, clipped)
    assert settings.optimizer != "sgd" or not settings.nesterov
    assert entry.initialization in initialization.names()
    assert entry.resolution in (32, 224, 227, 299)
    for text in (entry.source, entry.augmentation, entry.not_applied, entry.note):
        assert text


@pytest.mark.parametrize("name", ENTRIES)
def test_the_rate_of_every_epoch_is_that_of_the_source(name):
    entry = published.load(name)
    epochs, per_epoch = entry.epochs or 300, 100
    for epoch, share in SHAPES[name].items():
        found = rate(entry.settings, round(epoch * per_epoch), epochs * per_epoch, per_epoch)
        assert found / entry.settings.learning_rate == pytest.approx(share, rel=2e-3, abs=2e-6)


def test_epochs_are_iterations_times_batch():
    for name, iterations in (("squeezenet", 170_000), ("shufflenet", 300_000)):
        entry = published.load(name)
        assert entry.epochs == round(iterations * entry.batch_size / published.IMAGES)
    assert round(437_898 * 1024 / published.IMAGES) == published.load("mnasnet").epochs


def test_decay_and_batch_norm_settings():
    decayed = {name: published.load(name).settings.decayed for name in ENTRIES}
    assert {name for name, kind in decayed.items() if kind == "weights-but-depthwise"} == {
        "mobilenet_v1",
        "mobilenet_v2",
    }
    assert decayed["shufflenet"] == decayed["ghostnet"] == decayed["mobilenet_v3_d-li14"] == "weights"
    momenta = {name: published.load(name).settings.norm_momentum for name in ENTRIES}
    kept = {"mobilenet_v1": 3e-4, "mobilenet_v2": 3e-3, "mnasnet": 0.01, "mobilenet_v3": 0.01, "xception": 0.01}
    kept |= {"mobilenet_v4": 0.05, "inception": 3e-4}
    assert {name: momentum for name, momentum in momenta.items() if momentum} == kept
    assert published.load("shufflenet").settings.norm_statistics == "re-estimated"


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_trains(name, few):
    """A tiny network on 160 digits, two epochs, the rate scaled to batches of 32."""
    entry = published.load(name)
    layers = [*TINY, {"block": "global_pool"}, {"block": "linear", "out": 10}]
    scheme = entry.initialization
    model = build(Architecture.of(layers, input=(1, 8, 8)), seed=1, initialization=scheme)
    before = [p.detach().clone() for p in model.parameters()]
    trained = train(model, few, Fidelity(8, 2), entry.scaled(32, epochs=2), seed=1)
    assert not trained.diverged
    assert len(trained.losses) == 2
    assert 0 <= trained.accuracy <= 1
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_settings_scale_with_batch_size_and_epochs():
    scaled = published.load("cifar100").scaled(32, epochs=20)
    assert (scaled.batch_size, scaled.learning_rate) == (32, 0.025)
    assert scaled.milestones == pytest.approx((6, 12, 16))
    assert scaled.warm_up == pytest.approx(0.1)
    logs = published.load("mobilenext_logs").scaled(64)
    assert (logs.learning_rate, logs.last_rate, logs.warm_up) == (0.025, 2.5e-6, 3)
    mobile = published.load("mobilenet_v1").scaled(64, epochs=5)
    assert mobile == dataclasses.replace(published.load("mobilenet_v1").settings, norm_statistics="re-estimated")


@pytest.mark.parametrize("name", zoo.names())
def test_every_published_network_has_its_training(name):
    entry = published.of(name)
    family = zoo.family_of(name)
    assert entry.name == ("cifar100" if name.endswith("_cifar") else published.SHARED.get(family, family))
    assert name.endswith("_cifar") or entry.initialization == zoo.initialization_of(name)


def test_variants_of_others():
    assert published.of("mobilenet_v3_large_1.0_d-li14").name == "mobilenet_v3_d-li14"
    assert published.of("shufflenet_v1_g3_1.0_megvii").name == "shufflenet"
    assert published.of("mobilenet_v2_1.0_cifar").settings.milestones == (60, 120, 160)


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="'mobilenet_v9' is not a published training; did you mean 'mobilenet_v"):
        published.load("mobilenet_v9")
    with pytest.raises(InputError, match="'study-3' is not a published network"):
        published.of("study-3")


def test_an_invalid_table_is_named(monkeypatch):
    wrong = {"alexnet": {"training": {"batch_size": 1}}}
    monkeypatch.setattr(published, "_table", lambda: wrong)
    with pytest.raises(InputError, match=r"published\.yaml: alexnet: training\.batch_size: 1 is not 2 or more"):
        published.load("alexnet")
