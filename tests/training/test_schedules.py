"""Learning rates against their closed forms."""

from __future__ import annotations

import math

import pytest

from nasspace.training.schedules import Plateau, rate
from nasspace.training.settings import TrainingSettings


def rates(steps: int, per_epoch: int = 1, **settings) -> list[float]:
    settings = TrainingSettings(**{"learning_rate": 2.0, "warm_up": 0.0, **settings})
    return [rate(settings, step, steps, per_epoch) for step in range(steps)]


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
@pytest.mark.parametrize(("warm_up", "steps"), [(0.2, 100), (0.0, 7), (0.9, 10), (0.5, 1)])
def test_the_rate_rises_linearly_and_falls_to_almost_zero(schedule, warm_up, steps):
    found = rates(steps, warm_up=warm_up, schedule=schedule)
    rising = max(1, round(warm_up * steps))
    assert found[:rising] == pytest.approx([2 * (step + 1) / rising for step in range(rising)])
    assert found[rising - 1 :] == sorted(found[rising - 1 :], reverse=True)
    assert min(found) > 0
    if steps == 100:
        assert found[-1] < 0.03
        middle = 2 * (60.5 / 81 if schedule == "one-cycle" else (1 - math.cos(math.pi * 60.5 / 81)) / 2)
        assert (found[39] + found[40]) / 2 == pytest.approx(middle, rel=1e-3)


def test_without_a_warm_up_one_cycle_is_linear_to_0():
    assert rates(50, schedule="one-cycle") == pytest.approx([2 * (1 - step / 50) for step in range(50)])


def test_without_a_warm_up_cosine_is_half_a_cosine_to_the_last_rate():
    found = rates(50, last_rate=0.5)
    assert found == pytest.approx([0.5 + 0.75 * (1 + math.cos(math.pi * step / 50)) for step in range(50)])


def test_a_warm_up_in_epochs():
    found = rates(100, per_epoch=10, warm_up=2.5, warm_up_in="epochs")
    assert found[:25] == pytest.approx([2 * (step + 1) / 25 for step in range(25)])
    assert found[25] < 2
    assert rates(20, per_epoch=10, warm_up=5, warm_up_in="epochs")[-1] == pytest.approx(2 * 20 / 50), "cut short"


@pytest.mark.parametrize(
    ("factor", "every", "per_epoch"), [(0.94, 2, 7), (0.98, 1, 10), (0.97, 2.4, 5), (0.9, 0.1, 10)]
)
def test_exponential_drops_after_a_number_of_epochs(factor, every, per_epoch):
    found = rates(20 * per_epoch, per_epoch, schedule="exponential", factor=factor, every=every)
    tenths = round(10 * every)
    expected = [2 * factor ** (10 * step // (per_epoch * tenths)) for step in range(20 * per_epoch)]
    assert found == pytest.approx(expected)


def test_exponential_counts_the_epochs_of_the_warm_up():
    found = rates(60, 10, schedule="exponential", factor=0.5, every=2.4, warm_up=5, warm_up_in="epochs")
    assert found[49] == 2
    assert found[50] == 2 * 0.5**2


def test_steps_drop_at_their_epochs():
    found = rates(400, 2, schedule="steps", milestones=(60, 120, 160), factor=0.2)
    at = {epoch: found[2 * epoch] for epoch in (59, 60, 119, 120, 159, 160, 199)}
    drops = {59: 0, 60: 1, 119: 1, 120: 2, 159: 2, 160: 3, 199: 3}
    assert at == pytest.approx({epoch: 2 * 0.2**count for epoch, count in drops.items()})


def test_no_rate_is_below_the_last_rate():
    assert min(rates(50, schedule="exponential", factor=0.1, last_rate=0.01)) == 0.01


def test_plateaus_are_counted():
    plateau = Plateau(patience=2)
    counts = []
    for accuracy in (0.1, 0.2, 0.2, 0.15, 0.3, 0.3, 0.3, 0.3, 0.3, 0.4):
        plateau.update(accuracy)
        counts.append(plateau.drops)
    assert counts == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3]
    settings = TrainingSettings(schedule="plateau", learning_rate=0.01, warm_up=0.0, last_rate=1e-5)
    assert [rate(settings, 5, 10, 1, drops) for drops in range(5)] == pytest.approx([1e-2, 1e-3, 1e-4, 1e-5, 1e-5])
