"""A stopped training continues from its checkpoint and ends in the same weights, bit by bit."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from nasspace.data.loading import DataSet, load_data
from nasspace.errors import InputError
from nasspace.training import checkpoints
from nasspace.training.checkpoints import Checkpoints
from nasspace.training.trainer import Fidelity, TrainingSettings, train

EPOCHS, BATCHES = 3, 6
SETTINGS = {
    "own": TrainingSettings(batch_size=16),
    "rmsprop, average, plateau": TrainingSettings(
        batch_size=16, optimizer="rmsprop", average=0.9, schedule="plateau", patience=1, learning_rate=0.01
    ),
    "adamw, everything random": TrainingSettings(
        batch_size=16,
        optimizer="adamw",
        learning_rate=0.01,
        crop_scale=(0.3, 1),
        jitter=(0.4, 0.4, 0, 0),
        policy="randaugment",
        rotation=15,
        color_noise=0.1,
        erasing=0.3,
        mixup=0.2,
        cutmix=1,
        norm_statistics="running",
    ),
}


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def few() -> DataSet:
    digits = load_data("digits")
    return dataclasses.replace(
        digits, train=digits.train.at(torch.arange(97)), validation=digits.validation.at(torch.arange(29))
    )


@pytest.fixture(autouse=True)
def _every_step(monkeypatch):
    monkeypatch.setattr(checkpoints, "INTERVAL", 0.0)


def network(seed: int = 0, width: int = 8) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, width, 3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(width, 10),
        )


def trained(data, settings, path=None, model=None, seed=1, epochs=EPOCHS):
    model = model or network()
    result = train(model, data, Fidelity(8, epochs), settings, seed=seed, checkpoint=path)
    return dataclasses.replace(result, seconds=0), {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second) -> bool:
    return first[0] == second[0] and all(torch.equal(first[1][name], second[1][name]) for name in first[1])


@pytest.fixture(scope="module")
def uninterrupted(few):
    return {name: trained(few, settings) for name, settings in SETTINGS.items()}


@pytest.mark.parametrize("saves", [1, 4, BATCHES, BATCHES + 1, 2 * BATCHES + 3, EPOCHS * BATCHES])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_stopped_training_ends_in_the_same_weights(name, saves, few, uninterrupted, tmp_path, monkeypatch):
    path, save, count = tmp_path / "checkpoint.pt", Checkpoints.save, 0

    def stop(self, state):
        nonlocal count
        save(self, state)
        count += 1
        if count == saves:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", stop)
        with pytest.raises(Stopped):
            trained(few, SETTINGS[name], path)
    assert same(trained(few, SETTINGS[name], path), uninterrupted[name])
    assert same(trained(few, SETTINGS[name], path), uninterrupted[name])  # a finished training is only read
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_saving_changes_nothing_and_is_at_every_step(few, uninterrupted, tmp_path, monkeypatch):
    saved, save = [], Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, state: saved.append(state["batch"]) or save(self, state))
    assert same(trained(few, SETTINGS["own"], tmp_path / "c.pt"), uninterrupted["own"])
    assert saved == [1, 2, 3, 4, 5, 0] * EPOCHS


def test_the_time_includes_earlier_runs(few, tmp_path):
    path = tmp_path / "c.pt"
    first = train(network(), few, Fidelity(8, 2), checkpoint=path).seconds
    state = torch.load(path, weights_only=True)
    state["state"]["seconds"] = 1000.0
    torch.save(state, path)
    again = train(network(), few, Fidelity(8, 2), checkpoint=path).seconds
    assert first < 100 < 1000 < again


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"settings": TrainingSettings(batch_size=17)}, "settings"),
        ({"seed": 2}, "seed"),
        ({"epochs": 4}, "epochs or resolution"),
        ({"model": network(seed=5)}, "initial weights"),
        ({"model": network(width=9)}, "network, initial weights"),
    ],
)
def test_the_checkpoint_of_another_training_is_refused(change, part, few, tmp_path):
    path = tmp_path / "c.pt"
    arguments = {"settings": SETTINGS["own"], "path": path}
    trained(few, **arguments)
    with pytest.raises(InputError, match=rf"c\.pt: the checkpoint of another training \({part} differ\); delete it"):
        trained(few, **{**arguments, **change})


def test_other_data_is_refused(few, tmp_path):
    trained(few, SETTINGS["own"], tmp_path / "c.pt")
    other = dataclasses.replace(few, train=few.train.at(torch.arange(96)))
    with pytest.raises(InputError, match=r"another training \(data differ\)"):
        trained(other, SETTINGS["own"], tmp_path / "c.pt")


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04"])
def test_a_damaged_checkpoint_is_named(content, few, tmp_path):
    path = tmp_path / "c.pt"
    path.write_bytes(content)
    with pytest.raises(
        InputError, match=r"c\.pt: not a sound checkpoint .*; delete it to start this training from the"
    ):
        trained(few, SETTINGS["own"], path)


def test_a_folder_in_place_of_a_checkpoint_is_named(few, tmp_path):
    (tmp_path / "c.pt").mkdir()
    with pytest.raises(InputError, match=r"c\.pt: cannot be read \(Is a directory\); delete it"):
        trained(few, SETTINGS["own"], tmp_path / "c.pt")


def test_a_file_of_something_else_is_named(few, tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "c.pt")
    with pytest.raises(InputError, match="not a checkpoint of this version"):
        trained(few, SETTINGS["own"], tmp_path / "c.pt")


def test_a_training_that_stopped_in_memory_continues_from_the_disk(tmp_path, monkeypatch):
    held, mapped = (load_data("digits", resolution=9, held_out=0.9, on_disk=disk) for disk in (False, True))
    settings, path, save = SETTINGS["adamw, everything random"], tmp_path / "c.pt", Checkpoints.save

    def stop(self, state):
        save(self, state)
        if len(state["losses"]) == 1:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", stop)
        with pytest.raises(Stopped):
            trained(held, settings, path)
    assert mapped.train.file is not None
    assert same(trained(mapped, settings, path), trained(held, settings))
