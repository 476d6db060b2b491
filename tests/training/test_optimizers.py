"""Optimizer steps against computations by hand, and which parameters decay."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nasspace.training.optimizers import averaged, optimizer
from nasspace.training.settings import TrainingSettings


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.Flatten(), nn.Linear(4, 2)
    )


FLAT = {"0.bias", "1.weight", "1.bias", "4.bias"}


@pytest.mark.parametrize(
    ("decayed", "exempt"), [("weights", FLAT), ("all", set()), ("weights-but-depthwise", {*FLAT, "2.weight"})]
)
@pytest.mark.parametrize("kind", ["sgd", "rmsprop", "adamw"])
def test_decayed_parameters(kind, decayed, exempt):
    model = network()
    made = optimizer(model, TrainingSettings(optimizer=kind, weight_decay=0.1, decayed=decayed))
    decays = {id(p): group["weight_decay"] for group in made.param_groups for p in group["params"]}
    expected = {name: 0.0 if name in exempt else 0.1 for name, _ in model.named_parameters()}
    assert {name: decays[id(p)] for name, p in model.named_parameters()} == expected


def test_rmsprop_by_hand():
    """Two steps of one weight whose gradients are 3 and -1, at rates 0.1 and 0.01, with weight decay 0.5."""
    weight = nn.Linear(1, 1, bias=False)
    nn.init.constant_(weight.weight, 2.0)
    settings = TrainingSettings(
        optimizer="rmsprop", learning_rate=0.1, square_decay=0.8, momentum=0.7, epsilon=0.25, weight_decay=0.5
    )
    made = optimizer(weight, settings)
    value, square, moved = 2.0, 1.0, 0.0
    for given, rate in ((3.0, 0.1), (-1.0, 0.01)):
        for group in made.param_groups:
            group["lr"] = rate
        weight.weight.grad = torch.full_like(weight.weight, given)
        made.step()
        gradient = given + 0.5 * value
        square = 0.8 * square + 0.2 * gradient**2
        moved = 0.7 * moved + rate * gradient / math.sqrt(square + 0.25)
        value -= moved
        assert weight.weight.item() == pytest.approx(value, rel=1e-5)


def test_rmsprop_equals_pytorch_s_where_both_agree():
    """Without momentum and epsilon, and with the same initial mean square."""
    one, other = network(), network()
    other.load_state_dict(one.state_dict())
    settings = TrainingSettings(optimizer="rmsprop", learning_rate=0.01, momentum=0, epsilon=1e-30, weight_decay=0)
    mine = optimizer(one, settings)
    theirs = torch.optim.RMSprop(other.parameters(), lr=0.01, alpha=0.9, eps=0)
    for parameter in other.parameters():
        theirs.state[parameter] = {"step": torch.zeros(()), "square_avg": torch.ones_like(parameter)}
    for step in range(4):
        for made, model in ((mine, one), (theirs, other)):
            generator = torch.Generator().manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            made.step()
    assert all(torch.allclose(p, q, rtol=1e-5) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_parameters_without_gradient_stay():
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer(model, TrainingSettings(optimizer="rmsprop")).step()
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(("nesterov", "momentum"), [(True, 0.9), (False, 0.9), (True, 0.0)])
def test_sgd_s_momentum(nesterov, momentum):
    made = optimizer(network(), TrainingSettings(nesterov=nesterov, momentum=momentum))
    assert made.defaults["momentum"] == momentum
    assert made.defaults["nesterov"] == (nesterov and momentum > 0)


def test_the_average_by_hand():
    """Decays 2/11, 3/12, then the limit 0.3; batch norm statistics are averaged like weights."""
    model = nn.BatchNorm2d(1)
    average = averaged(model, 0.3)
    weight, mean = 1.0, 0.0
    for step, decay in enumerate((2 / 11, 3 / 12, 0.3, 0.3), 1):
        with torch.no_grad():
            model.weight.fill_(10.0 * step)
            model.running_mean.fill_(-step)
        average.update_parameters(model)
        weight = decay * weight + (1 - decay) * 10 * step
        mean = decay * mean - (1 - decay) * step
        assert average.module.weight.item() == pytest.approx(weight, rel=1e-5)
        assert average.module.running_mean.item() == pytest.approx(mean, rel=1e-5)
