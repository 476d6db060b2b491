"""Mixed precision: weights stay float32, a stopped training continues, and devices that cannot are refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from nasspace.data.loading import load_data
from nasspace.engine.checks import check_recipe
from nasspace.errors import InputError
from nasspace.studies.recipe import Recipe
from nasspace.training import precision
from nasspace.training.precision import Precision, check_precision
from nasspace.training.settings import Fidelity, TrainingSettings, check_for_sharing
from nasspace.training.trainer import train


def network() -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(16)
    return nn.Sequential(nn.Conv2d(1, 16, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))


@pytest.fixture
def float16_on_the_cpu(monkeypatch):
    """The scaler also works on the CPU, where nobody would use it."""
    monkeypatch.setattr(precision, "check_precision", lambda *_: None)
    monkeypatch.setattr("nasspace.training.trainer.check_precision", lambda *_: None)


@pytest.mark.usefixtures("float16_on_the_cpu")
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_only_training_is_in_the_precision(kind):
    model, digits, dtypes = network(), load_data("digits"), set()
    model[0].register_forward_hook(lambda part, _, out: dtypes.add((part.training, out.dtype)))
    settings = TrainingSettings(precision=kind, norm_statistics="running")
    result = train(model, digits, Fidelity(8, 4), settings)
    assert dtypes == {(True, getattr(torch, kind)), (False, torch.float32)}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    usual = train(network(), digits, Fidelity(8, 4), dataclasses.replace(settings, precision="float32"))
    assert result.accuracy == pytest.approx(usual.accuracy, abs=0.05)
    assert result.losses == pytest.approx(usual.losses, rel=0.05)


@pytest.mark.usefixtures("float16_on_the_cpu")
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_a_stopped_training_continues(kind, tmp_path):
    digits, settings = load_data("digits", held_out=0.9), TrainingSettings(16, precision=kind)
    whole, stopped, resumed = network(), network(), network()
    train(whole, digits, Fidelity(8, 3), settings)

    def stop(epoch):
        if epoch.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stopped, digits, Fidelity(8, 3), settings, on_epoch=stop, checkpoint=tmp_path / "c.pt")
    saved = torch.load(tmp_path / "c.pt", weights_only=True)["state"]["step"]
    assert ("scaler" in saved) == (kind == "float16")
    train(resumed, digits, Fidelity(8, 3), settings, checkpoint=tmp_path / "c.pt")
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), resumed.parameters(), strict=True))


@pytest.mark.usefixtures("float16_on_the_cpu")
def test_an_infinite_gradient_is_no_step():
    weight = nn.Parameter(torch.ones(2))
    optimizer, mixed = torch.optim.SGD([weight], lr=0.1), Precision("float16", "cpu")
    for factor, expected in ((float("inf"), 1.0), (1.0, 0.9)):
        before = mixed.scaler.get_scale()
        optimizer.zero_grad()
        mixed.backward((weight * factor).sum())
        mixed.unscale(optimizer)
        mixed.step(optimizer)
        assert weight.tolist() == pytest.approx([expected] * 2)
        assert mixed.scaler.get_scale() == (before / 2 if factor > 1 else before)


def test_what_does_not_work_is_refused():
    with pytest.raises(InputError, match="float16 needs a GPU with CUDA; on cpu, choose float32 or bfloat16"):
        train(network(), load_data("digits"), Fidelity(8, 1), TrainingSettings(precision="float16"))
    with pytest.raises(InputError, match="float16 needs a GPU"):
        check_recipe(Recipe(training=TrainingSettings(precision="float16")))
    with pytest.raises(InputError, match="on mps"):
        check_precision("float16", "mps")
    with pytest.raises(InputError, match="is for a single network"):
        check_for_sharing(TrainingSettings(precision="bfloat16"))
    with pytest.raises(InputError, match="float32, bfloat16 or float16"):
        TrainingSettings(precision="half")


def test_a_gpu_without_bfloat16_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    with pytest.raises(InputError, match="has no bfloat16"):
        check_precision("bfloat16", "cuda:1")
