"""Distillation: the loss by its formula, and a small network that learns from a larger one."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from nasspace.data.loading import load_data
from nasspace.network import build
from nasspace.space.space import Space
from nasspace.training import distillation, trainer
from nasspace.training.distillation import Teacher
from nasspace.training.settings import Fidelity, TrainingSettings


def test_the_loss_is_that_of_the_paper():
    """Cross-entropy with the teacher's softened probabilities, times T squared, less their entropy."""
    scores, teacher = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    soft = (teacher / 3).softmax(1)
    cross = -(soft * (scores / 3).log_softmax(1)).sum(1).mean()
    entropy = -(soft * soft.log()).sum(1).mean()
    expected = 0.25 * torch.tensor(2.0) + 0.75 * 9 * (cross - entropy)
    torch.testing.assert_close(distillation.loss(scores, teacher, torch.tensor(2.0), 0.75, 3.0), expected)


def test_the_gradient_is_that_of_the_paper():
    """(q - p) T for each logit, over the number of images (section 2.1)."""
    scores = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    teacher = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    distillation.loss(scores, teacher, torch.tensor(0.0), 1.0, 2.0).backward()
    expected = 2 * ((scores / 2).softmax(1) - (teacher / 2).softmax(1)) / 4
    torch.testing.assert_close(scores.grad, expected.detach())


def test_probabilities_become_logits():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert distillation.are_shares(logits.softmax(1))
    assert not distillation.are_shares(logits)
    found = distillation.as_logits(logits.softmax(1))
    torch.testing.assert_close(found.softmax(1), logits.softmax(1))


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


def network(seed: int) -> torch.nn.Module:
    """A network of the space `shuffle` for digits."""
    space = Space.load("shuffle", classes=10, resolution=16)
    return build(space.architecture(lambda name, options: options[0]).with_input(channels=1), seed=seed)


def test_a_teacher_gets_the_augmented_images_and_is_learned_from(data):
    seen, answer = [], functional.one_hot(torch.arange(1797) % 10, 10).float() * 20

    def scores(images):
        seen.append(images)
        return answer[: len(images)]

    model = network(0)
    settings = TrainingSettings(teacher_share=1.0, temperature=1.0, crop_padding=0, label_smoothing=0)
    trained = trainer.train(model, data, Fidelity(16, 1), settings, teacher=Teacher(scores, "x"))
    images = torch.cat(seen)
    assert images.shape == (len(data.train), 1, 16, 16)
    assert 0 <= images.min() < 1
    assert 254 < images.max() < 255.5
    assert trained.losses[0] > 0


def test_a_checkpoint_of_another_teacher_is_refused(data, tmp_path):
    answer = torch.zeros(1, 10)
    ways = [None, Teacher(lambda images: answer.expand(len(images), -1), "one"), Teacher(lambda images: answer, "two")]

    def once(model, teacher):
        return trainer.train(model, data, Fidelity(16, 1), checkpoint=tmp_path / "c.pt", teacher=teacher)

    once(network(0), ways[1])
    for teacher in (ways[0], ways[2]):
        with pytest.raises(Exception, match=r"the checkpoint of another training \(teacher differ\)"):
            once(network(0), teacher)
