"""The belief about accuracies after full training: simulated studies, whose truth is known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from nasspace.samplers.accuracy_belief import AccuracyBelief, Look, Prior, missing_doublings, missing_early_doublings

SHORT, LONG = ((4, 0.5),), ((4, 0.5), (12, 1.0))
PRIOR = Prior()


def odds(accuracy):
    return np.log(accuracy / (1 - accuracy))


def simulated(rng, networks=20, images=400, prior=PRIOR):
    """A study drawn from the prior: sizes, looks of every network at SHORT and a third at LONG, and test accuracies."""
    flops = 10 ** rng.uniform(6, 8, networks)
    sizes = np.column_stack([flops, np.sqrt(flops) * 10 ** rng.uniform(1, 2, networks)])  # with activations
    size = np.log2(sizes) - np.log2(sizes).mean(axis=0)
    level = 1.2 + 0.3 * rng.standard_normal()
    slopes = (prior.slope_sd, prior.activation_slope_sd) * rng.standard_normal(2)
    truth = level + prior.trend(size) + size @ slopes + prior.spread * rng.standard_normal(networks)
    gain = prior.gain + prior.gain_sd * rng.standard_normal()
    looks = []
    common = rng.standard_normal()
    for epochs, chosen in ((SHORT, range(networks)), (LONG, range(0, networks, 3))):
        missing = missing_doublings(epochs, 25, prior)
        gap = prior.gap_sd * rng.standard_normal()
        for i in chosen:
            own = math.hypot(prior.seed_sd, prior.drift_sd * missing) * rng.standard_normal()
            value = truth[i] - gain * missing + gap * min(1, missing) + own
            share = 1 / (1 + math.exp(-value))
            variance = 1 / (images * share * (1 - share))
            value += math.sqrt(prior.shared * variance) * common
            value += math.sqrt((1 - prior.shared) * variance) * rng.standard_normal()
            looks.append(Look(i, epochs, epochs, float(1 / (1 + math.exp(-value))), images))
    final = 1 / (1 + np.exp(-truth - prior.seed_sd * rng.standard_normal(networks)))
    return sizes, looks, rng.binomial(images, final) / images, 1 / (1 + np.exp(-truth))


def test_intervals_hold_the_test_accuracy_of_full_trainings():
    rng = np.random.default_rng(0)
    inside, total = 0, 0
    for _ in range(40):
        sizes, looks, found, _ = simulated(rng)
        low, high = AccuracyBelief(sizes, looks, 25, 400).interval()
        inside += int(((low <= found) & (found <= high)).sum())
        total += len(found)
    assert 0.9 <= inside / total <= 0.99


def test_networks_of_equal_flops_differ_by_their_activations():
    looks = [Look(i, SHORT, SHORT, 0.7, 400) for i in range(5)]
    activations = [1e4, 2e4, 4e4, 8e4, 16e4]
    expected = AccuracyBelief([(1e6, each) for each in activations], looks, 25, 400).expected
    assert np.all(np.diff(expected) > 0)
    assert AccuracyBelief([(1e6,)] * 5, looks, 25, 400).expected == pytest.approx([expected[2]] * 5, abs=0.01)


def test_the_best_of_many_is_not_flattered():
    """The expected accuracy of the network with the best expectation is right on average, its look is too high."""
    rng = np.random.default_rng(1)
    flattered, believed = [], []
    for _ in range(60):
        sizes, looks, _, truth = simulated(rng)
        short = [look for look in looks if look.budget == SHORT]
        belief = AccuracyBelief(sizes, looks, 25, 400)
        best = int(belief.expected.argmax())
        believed.append(odds(belief.expected[best]) - odds(truth[best]))
        luckiest = max(short, key=lambda look: look.accuracy).network
        above = odds(np.array([look.accuracy for look in short])) - odds(truth)
        flattered.append(above[luckiest] - above.mean())
    assert abs(np.mean(believed)) < 3 * np.std(believed) / math.sqrt(len(believed))
    assert np.mean(flattered) > 3 * np.std(flattered) / math.sqrt(len(flattered))


def test_a_longer_training_narrows_the_interval():
    sizes = [1e6, 1e6, 1e6]
    short = [Look(i, SHORT, SHORT, 0.6, 400) for i in range(3)]
    full = ((25, 1.0),)
    longer = [Look(0, full, full, 0.75, 400)]
    before = AccuracyBelief(sizes, short, 25, 400).interval()
    after = AccuracyBelief(sizes, short + longer, 25, 400).interval()
    widths = [(high - low).tolist() for low, high in (before, after)]
    assert widths[1][0] < widths[1][1] < widths[0][0]


def test_log_losses_tell_equal_accuracies_apart():
    losses = [1.2, 1.1, 1.0, 0.9, 1.3]
    looks = [Look(i, SHORT, SHORT, 0.6, 400, loss) for i, loss in enumerate(losses)]
    expected = AccuracyBelief([1e6] * 5, looks, 25, 400).expected
    assert expected.argmax() == 3
    assert expected.argmin() == 4


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_accuracies_of_none_and_all_give_finite_intervals(accuracy):
    belief = AccuracyBelief([1e6], [Look(0, SHORT, SHORT, accuracy, 50, 0.0)], 25, 50)
    (low,), (high,) = belief.interval()
    assert 0 <= low < belief.expected[0] < high <= 1


def test_equal_networks_are_tied_and_distant_ones_are_not():
    full = ((25, 1.0),)
    looks = [Look(i, full, full, accuracy, 5000) for i, accuracy in enumerate((0.9, 0.901, 0.7))]
    belief = AccuracyBelief([1e6, 1e6, 1e6], looks, 25, 5000)
    assert belief.tied(0, 1)
    assert not belief.tied(0, 2)
    assert belief.tied(2, 2)


def test_draws_have_the_mean_and_the_differences_of_the_belief():
    rng = np.random.default_rng(2)
    sizes, looks, *_ = simulated(rng)
    belief = AccuracyBelief(sizes, looks, 25, 400)
    drawn = belief.draws(4000)
    assert drawn.shape == (4000, 20)
    assert np.median(drawn, axis=0) == pytest.approx(belief.expected, abs=0.01)
    assert np.array_equal(belief.draws(10), belief.draws(10))


def test_twice_the_training_is_one_doubling():
    assert missing_doublings(((12.5, 1.0),), 25, PRIOR) == pytest.approx(1)
    assert missing_doublings(((25, 0.5),), 25, PRIOR) == pytest.approx(1)
    less = dataclasses.replace(PRIOR, resolution_power=2.0)
    assert missing_doublings(((25, 0.5),), 25, less) == pytest.approx(2)
    assert missing_doublings(((50, 2.0),), 25, PRIOR) == pytest.approx(-1), "a larger resolution counts as the same"


def test_many_looks_are_fast_enough_to_print():
    rng = np.random.default_rng(3)
    sizes, looks, *_ = simulated(rng, networks=600)
    low, high = AccuracyBelief(sizes, looks, 25, 400).interval()
    assert ((low < high) & np.isfinite(low)).all()


def test_a_prior_learned_from_two_lengths_knows_the_gain():
    """With looks at two lengths the gain per doubling is learned, and another study's intervals are narrower."""
    rng = np.random.default_rng(4)
    truth = dataclasses.replace(PRIOR, gain=0.4, gain_sd=1e-6, gap_sd=1e-6)
    sizes, looks, *_ = simulated(rng, networks=60, images=4000, prior=truth)
    learned = AccuracyBelief(sizes, looks, 25, 4000).learned_prior()
    assert learned.gain == pytest.approx(0.4, abs=2.5 * learned.gain_sd)
    assert learned.gain_sd < PRIOR.gain_sd
    short = [look for look in looks if look.budget == SHORT]
    widths = [np.subtract(*AccuracyBelief(sizes, short, 25, 4000, one).interval()[::-1]) for one in (PRIOR, learned)]
    assert widths[1].mean() < widths[0].mean()


def test_a_network_without_flops_has_an_interval():
    low, high = AccuracyBelief([0, 1e6], [Look(i, SHORT, SHORT, 0.6, 400) for i in range(2)], 25, 400).interval()
    assert (np.isfinite(low) & np.isfinite(high) & (low < high)).all()


@pytest.mark.parametrize(
    ("look", "full_epochs", "full"),
    [(0.468, 8, 0.9861), (0.5905, 4, 0.9861), (0.8412, 8, 0.9944), (0.7382, 25, 0.9916)],
)
def test_trainings_of_a_few_steps_say_little_of_the_full_one(look, full_epochs, full):
    """A network of `mobile` on digits (359 validation images) after 1 or 2 epochs of 22 steps, and after more."""
    epochs = ((1.0 if look < 0.6 else 2.0, 1.0),)
    low, high = AccuracyBelief([1e6], [Look(0, epochs, epochs, look, 359)], full_epochs, 359, steps=22).interval()
    assert low[0] <= full <= high[0]
    _, high = AccuracyBelief([1e6], [Look(0, epochs, epochs, look, 359)], full_epochs, 359).interval()
    assert high[0] < full, "as if the accuracy rose as slowly as in longer trainings"


def test_early_doublings_end_at_the_steps_of_the_full_training():
    assert missing_early_doublings(((1, 1.0),), full_epochs=4, steps=22) == 2
    assert missing_early_doublings(((1, 0.5), (2, 1.0)), full_epochs=4, steps=22) == 1
    assert missing_early_doublings(((1, 1.0),), full_epochs=100, steps=32) == 2
    assert missing_early_doublings(((1, 1.0),), full_epochs=100, steps=300) == 0
    assert missing_early_doublings(((1, 1.0),), full_epochs=100, steps=math.inf) == 0


def test_two_lengths_of_early_training_teach_the_early_gain():
    rng = np.random.default_rng(5)
    looks = []
    for i in range(12):
        for count, value in ((1.0, 0.0), (2.0, 1.6)):
            epochs = ((count, 1.0),)
            accuracy = 1 / (1 + math.exp(-value - 0.05 * rng.standard_normal()))
            looks.append(Look(i, epochs, epochs, accuracy, 2000))
    learned = AccuracyBelief([1e6] * 12, looks, 25, 2000, steps=22).learned_prior()
    assert learned.early_gain > PRIOR.early_gain
    assert learned.early_gain_sd < PRIOR.early_gain_sd


def inherited_looks(rng, truth, correlation, networks):
    """Looks with shared weights: far below the truth, with this correlation with it."""
    noise = rng.standard_normal(networks)
    value = -1.4 + 0.4 * (correlation * truth + math.sqrt(1 - correlation**2) * noise)
    return [Look(i, (), (), float(1 / (1 + math.exp(-one))), 400) for i, one in enumerate(value)]


def test_shared_weights_tell_an_order_but_no_level():
    rng = np.random.default_rng(3)
    sizes = np.full(30, 1e7)
    looks = inherited_looks(rng, rng.standard_normal(30), 0.3, 30)
    belief = AccuracyBelief(sizes, looks, 25, 400)
    low, high = belief.interval()
    assert (low < 0.05).all()
    assert (high > 0.99).all()
    best, worst = (pick(range(30), key=lambda i: looks[i].accuracy) for pick in (max, min))
    assert belief.expected[best] > belief.expected[worst]
    assert belief.tied(best, worst)


@pytest.mark.parametrize("spread", [0.05, 0.12, 0.4])
def test_trained_networks_tell_the_level_of_those_judged_with_shared_weights(spread):
    """Simulated studies: 60 networks with shared weights, 12 of them trained; the intervals of the others hold."""
    rng = np.random.default_rng(4)
    inside = total = 0
    for _ in range(40):
        deviation = rng.standard_normal(60)
        truth = 1.2 + spread * deviation
        looks = inherited_looks(rng, deviation, 0.3, 60)
        missing = missing_doublings(LONG, 25, PRIOR)
        gain = PRIOR.gain + PRIOR.gain_sd * rng.standard_normal()
        for i in range(0, 60, 5):
            right = 1 / (1 + math.exp(-(truth[i] - gain * missing)))
            looks.append(Look(i, LONG, LONG, rng.binomial(400, right) / 400, 400))
        low, high = AccuracyBelief(np.full(60, 1e7), looks, 25, 400).interval()
        untrained = [i for i in range(60) if i % 5]
        found = rng.binomial(400, 1 / (1 + np.exp(-truth))) / 400
        inside += sum(low[i] <= found[i] <= high[i] for i in untrained)
        total += len(untrained)
        assert (high - low).max() < 0.6
    assert inside / total >= 0.9


def test_networks_of_each_resolution_have_their_own_level_with_shared_weights():
    """Networks of one resolution are judged 10 points lower; that says nothing of them."""
    looks = [Look(i, ("shared weights", 24 + 8 * (i % 2)), (), 0.1 + 0.1 * (i % 2) + 0.001 * i, 400) for i in range(20)]
    expected = AccuracyBelief(np.full(20, 1e7), looks, 25, 400).expected
    assert abs(expected[::2].mean() - expected[1::2].mean()) < 0.002


def test_the_trend_of_shared_weights_over_flops_is_not_taken_over():
    sizes = 10 ** np.linspace(6, 8, 20)
    looks = [Look(i, (), (), 0.1 + 0.02 * i, 400) for i in range(20)]
    expected = odds(AccuracyBelief(sizes, looks, 25, 400).expected)
    slope = np.polyfit(np.log2(sizes), expected, 1)[0]
    assert slope == pytest.approx(PRIOR.slope, abs=0.02)
