"""Temperature scaling, against SciPy's minimum."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional

from nasspace.training.calibration import inverse_temperature, scaled_log_loss


@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0, 5.0, 50.0])
def test_the_log_loss_is_smallest(scale):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(300, 10, generator=generator)
    labels = (logits + 2 * torch.randn(300, 10, generator=generator)).argmax(1)
    logits = scale * logits
    found = minimize_scalar(
        lambda log: float(functional.cross_entropy(math.exp(log) * logits.double(), labels)), bounds=(-7, 7)
    )
    assert inverse_temperature(logits, labels) == pytest.approx(math.exp(found.x), rel=1e-3)
    assert scaled_log_loss(logits, labels) == pytest.approx(found.fun)


def test_without_a_minimum_the_factor_stays_within_limits():
    assert scaled_log_loss(torch.eye(10), torch.arange(10)) < 1e-6, "every image is right"
    assert inverse_temperature(-torch.eye(3), torch.arange(3)) == pytest.approx(1e-3), "every image is wrong"
    assert scaled_log_loss(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])) == pytest.approx(math.log(2))


def test_logits_that_are_not_finite_have_no_log_loss():
    assert math.isnan(scaled_log_loss(torch.tensor([[math.inf, 0.0]]), torch.tensor([0])))
