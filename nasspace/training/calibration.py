"""Temperature scaling (Guo et al. 2017), and the log loss after it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

STEPS = 30  # of Newton's method; about six are needed
COLDEST, WARMEST = 1e-3, 1e3  # limits of the inverse temperature


def inverse_temperature(logits: Tensor, labels: Tensor) -> float:
    """The factor of the logits with the smallest log loss; logits float [N, classes], labels int64 [N].

    The log loss is convex in the factor. Newton's method is kept within limits, since the loss has no minimum if every
    image is right.
    """
    logits = logits.double()
    right = logits.gather(1, labels[:, None]).squeeze(1)
    factor = 1.0
    for _ in range(STEPS):
        shares = (factor * logits).softmax(1)
        mean = (shares * logits).sum(1)
        slope = float((mean - right).mean())
        curvature = float(((shares * logits.square()).sum(1) - mean.square()).mean())
        step = slope / curvature if curvature > 1e-12 else math.copysign(math.inf, slope)
        # At most a factor of four at a time: far from the minimum, the curvature is that of a flat tail.
        new = min(max(factor - step, factor / 4), 4 * factor, WARMEST)
        if abs(new - factor) <= 1e-6 * factor or new < COLDEST:
            return max(new, COLDEST)
        factor = new
    return factor


def scaled_log_loss(logits: Tensor, labels: Tensor) -> float:
    """The mean log loss after temperature scaling; NaN if a logit is not finite."""
    if not bool(torch.isfinite(logits).all()):
        return math.nan
    return float(functional.cross_entropy(inverse_temperature(logits, labels) * logits.double(), labels))
