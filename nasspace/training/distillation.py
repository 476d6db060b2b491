"""Knowledge distillation: a network learns a teacher's probabilities in addition to labels (Hinton et al. 2015)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Teacher:
    """A trained network that another one learns from.

    `scores` maps images, float32 [N, C, H, W] with values from 0 to 255, to logits [N, classes] in the order of the
    data's classes. `fingerprint` identifies its weights.
    """

    scores: Callable[[Tensor], Tensor]
    fingerprint: str


def loss(scores: Tensor, teacher: Tensor, of_labels: Tensor, share: float, temperature: float) -> Tensor:
    """(1 - share) x the labels' loss + share x T² x the divergence of the student's from the teacher's probabilities.

    `scores` and `teacher` are logits [N, classes], divided by the temperature T; the factor T² keeps the size of the
    gradient (Hinton et al. 2015, section 2.1).
    """
    student = functional.log_softmax(scores / temperature, 1)
    target = functional.log_softmax(teacher.detach() / temperature, 1)
    divergence = functional.kl_div(student, target, reduction="batchmean", log_target=True)
    return (1 - share) * of_labels + share * temperature**2 * divergence


def are_shares(outputs: Tensor) -> bool:
    """Whether outputs [N, classes] of a network are probabilities; those of a quantized softmax sum to 1 roughly."""
    return bool((outputs >= 0).all()) and torch.allclose(outputs.sum(1), outputs.new_ones(()), atol=0.03)


def as_logits(shares: Tensor) -> Tensor:
    """Probabilities as logits: their logarithms."""
    return shares.clamp(min=1e-7).log()
