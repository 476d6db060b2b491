"""Training and evaluation on real digits: it learns, repeats bit by bit, and restores global state."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from nasspace import Architecture, build
from nasspace.data.loading import DataSet, Images, load_data
from nasspace.errors import InputError
from nasspace.training import schedules
from nasspace.training.trainer import (
    Fidelity,
    TrainingSettings,
    batches_per_epoch,
    evaluate,
    normalized,
    predictions,
    train,
)


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load_data("digits")


@pytest.fixture(scope="module")
def few(digits) -> DataSet:
    """97 training and 29 validation images: batches of 16 would leave a single one."""
    return dataclasses.replace(
        digits, train=digits.train.at(torch.arange(97)), validation=digits.validation.at(torch.arange(29))
    )


def network(channels: int = 1, dropout: float = 0.0, stride: int = 1) -> nn.Module:
    """conv, BN, ReLU -> depthwise, BN -> 1x1, BN, ReLU -> mean -> dropout -> linear, with seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(channels, 24, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(inplace=True),
            nn.Conv2d(24, 24, 3, stride, padding=1, groups=24, bias=False),
            nn.BatchNorm2d(24),
            nn.Conv2d(24, 64, 1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(64, 10),
        )


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.slow
def test_a_tiny_network_learns_digits(digits):
    model = network()
    trained = train(model, digits, Fidelity(8, 8))
    assert trained.accuracy > 0.9
    assert trained.accuracy == evaluate(model, digits.validation, digits, 8)
    assert (len(trained.losses), trained.images, trained.diverged) == (8, 8 * 1438, False)
    assert trained.losses[-1] < trained.losses[0]
    assert 0 < trained.seconds < 60


def test_a_seed_repeats_bit_by_bit_and_another_one_differs(few):
    results = []
    for seed in (3, 3, 4):
        model = network(dropout=0.5)
        trained = train(model, few, Fidelity(8, 2, share=0.7), seed=seed)
        results.append((trained.losses, trained.accuracy, weights(model)))
    assert results[0][:2] == results[1][:2]
    assert same(results[0][2], results[1][2])
    assert not same(results[0][2], results[2][2])


def test_global_state_is_restored(few):
    torch.manual_seed(11)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    model = network(dropout=0.5)
    train(model, few, Fidelity(8, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert not model.training
    assert all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in model.state_dict().values())


def test_maps_of_one_pixel_and_any_size_of_batch_train(few):
    for batch_size in (2, 16, 96, 1000):
        for settings in (TrainingSettings(batch_size=batch_size), TrainingSettings(batch_size, optimizer="adamw")):
            trained = train(network(stride=8), few, Fidelity(8, 1), settings)
            assert math.isfinite(trained.losses[0])
            assert trained.images == 97


def test_three_images_make_one_batch(few):
    three = dataclasses.replace(few, train=few.train.at(torch.arange(3)))
    assert train(network(), three, Fidelity(8, 1), TrainingSettings(batch_size=2)).images == 3


def test_a_share_of_the_data_is_stratified(few, digits):
    assert train(network(), digits, Fidelity(8, 1, share=0.1)).images == pytest.approx(144, abs=5)
    seen = set()
    model = network()
    model.register_forward_pre_hook(lambda module, given: seen.update(map(float, given[0].sum((1, 2, 3)))))
    plain = TrainingSettings(crop_padding=0, flip=False)
    train(model, dataclasses.replace(few, validation=few.validation.at(torch.arange(1))), Fidelity(8, 3, 0.5), plain)
    assert len(seen) == pytest.approx(0.5 * 97 + 1, abs=5)


def test_a_diverged_training_ends_quietly(few):
    model = network()
    with torch.no_grad():
        model[-1].weight.fill_(math.nan)
    calls = []
    trained = train(model, few, Fidelity(8, 5), on_epoch=lambda epoch: calls.append(epoch.number))
    assert trained.diverged
    assert (calls, len(trained.losses)) == ([1], 1)
    assert 0 <= trained.accuracy < 0.5


def test_an_absurd_rate_does_not_raise(few):
    for rate in (1e6, 1e30):
        trained = train(network(), few, Fidelity(8, 3), TrainingSettings(learning_rate=rate))
        assert 0 <= trained.accuracy <= 1


def test_norms_take_the_mean_over_training_images(few):
    model = nn.Sequential(nn.BatchNorm2d(1, momentum=0.3), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(1, 10))
    train(model, few, Fidelity(8, 1), TrainingSettings(1000))
    pixels = (few.train.pixels.float() - few.mean[0]) / few.std[0]
    assert float(model[0].running_mean) == pytest.approx(float(pixels.mean()), abs=1e-5)
    assert float(model[0].running_var) == pytest.approx(float(pixels.var()), rel=1e-4)
    assert model[0].momentum == 0.3


def test_progress_is_reported_after_each_epoch(few):
    calls = []
    settings = TrainingSettings(norm_statistics="running")
    model = network()
    trained = train(model, few, Fidelity(8, 3), settings, on_epoch=calls.append, validate_from=2)
    assert [(epoch.number, epoch.epochs, epoch.loss) for epoch in calls] == [
        (number, 3, loss) for number, loss in enumerate(trained.losses, 1)
    ]
    per_epoch = batches_per_epoch(len(few.train), settings.batch_size)
    last = [schedules.rate(settings, epoch * per_epoch - 1, 3 * per_epoch, per_epoch) for epoch in (1, 2, 3)]
    assert [epoch.rate for epoch in calls] == last
    assert calls[0].accuracy is None
    assert 0 <= calls[1].accuracy <= 1
    assert calls[2].accuracy == trained.accuracy


def test_validation_between_epochs_does_not_change_the_training(few):
    weights = []
    for first in (None, 1):
        model = network()
        train(model, few, Fidelity(8, 2), validate_from=first)
        weights.append(list(model.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_the_schedule_plateau_measures_each_epoch(few):
    calls = []
    train(network(), few, Fidelity(8, 2), TrainingSettings(schedule="plateau"), on_epoch=calls.append)
    assert None not in [epoch.accuracy for epoch in calls]


def test_another_resolution_is_trained_as_if_prepared(few):
    from nasspace.data.loading import prepared

    losses = [train(network(), data, Fidelity(16, 1)).losses for data in (few, prepared(few, 16))]
    assert losses[0] == losses[1]


def test_the_validation_and_test_splits_are_not_trained_on(few):
    other = few.train.at(torch.arange(50))
    swapped = dataclasses.replace(few, validation=Images(255 - other.pixels, other.labels), test=other)
    models = [network(), network()]
    for model, data in zip(models, (few, swapped), strict=True):
        train(model, data, Fidelity(8, 1))
    assert same(*map(weights, models))


def test_evaluate_counts_correct_predictions(digits):
    class Brightness(nn.Module):
        """Predicts 1 for images brighter than the training split's mean, else 0."""

        def forward(self, x):
            return torch.stack([torch.zeros(len(x)), x.mean((1, 2, 3))], 1)

    pixels = digits.validation.pixels
    bright = (pixels.double().mean((1, 2, 3)) > digits.mean[0]).long()
    images = Images(pixels, bright)
    assert evaluate(Brightness(), images, digits, 8) == 1
    images.labels[:100] = 1 - images.labels[:100]
    for batch_size in (1, 64, 1000):
        assert evaluate(Brightness(), images, digits, 8, batch_size=batch_size) == pytest.approx(1 - 100 / len(images))


def test_batches_are_normalized_and_flipped_only_in_color(few):
    color = {
        split: Images(getattr(few, split).pixels.expand(-1, 3, -1, -1), getattr(few, split).labels)
        for split in ("train", "validation")
    }
    sets = {1: few, 3: DataSet("color", few.classes, 3, **color, test=None, resolution=8)}
    for channels, flip, mirrors in [(1, None, False), (3, None, True), (1, True, True), (3, False, False)]:
        batches = []
        model = network(channels)
        model.register_forward_pre_hook(lambda module, given, seen=batches: seen.append(given[0].clone()))
        train(model, sets[channels], Fidelity(8, 1), TrainingSettings(1000, crop_padding=0, flip=flip))
        batch = batches[0]
        assert float(batch.mean()) == pytest.approx(
            (float(few.train.pixels.double().mean()) - sets[channels].mean[0]) / sets[channels].std[0], abs=1e-4
        )
        originals = {tuple(image.flatten().tolist()) for image in few.train.pixels[:, 0]}
        restored = (batch[:, 0] * sets[channels].std[0] + sets[channels].mean[0]).round()
        found = [tuple(image.flatten().tolist()) in originals for image in restored]
        assert (not all(found)) == mirrors


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in `train` by default: another number of threads adds in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_the_defaults_equal_a_plain_loop_of_torch(few):
    """Nesterov's SGD, no decay of biases and norms, cosine after a warm-up of a fifth of the steps: bit by bit."""
    settings = TrainingSettings(crop_padding=0)
    expected, trained = network().to(memory_format=torch.channels_last), network()
    parameters = list(expected.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 5e-4},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.2, momentum=0.9, nesterov=True, fused=True)
    generator = torch.Generator().manual_seed(5)
    expected.train()
    for epoch in range(5):
        for part, chosen in enumerate(torch.randperm(97, generator=generator).tensor_split(2)):
            step = 2 * epoch + part
            left = (10 - step) / 9
            for group in optimizer.param_groups:
                group["lr"] = 0.2 * (step + 1) / 2 if step < 2 else 0.2 * (1 - math.cos(math.pi * left)) / 2
            batch = normalized(few.train.pixels[chosen], few)
            labels = few.train.labels[chosen]
            optimizer.zero_grad()
            nn.functional.cross_entropy(expected(batch), labels, label_smoothing=0.1).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
    train(trained, few, Fidelity(8, 5), settings, seed=5)
    for (name, one), other in zip(expected.named_parameters(), trained.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_the_average_is_the_result(few):
    """The average of every step's weights by hand, with the decay (1 + n) / (10 + n) of a short training."""
    settings = TrainingSettings(average=0.9999, norm_statistics="running")
    plain, model, seen = network(), network(), []
    plain.register_forward_pre_hook(
        lambda module, given: seen.append([p.detach().clone() for p in module.parameters()])
    )
    train(plain, few, Fidelity(8, 2), dataclasses.replace(settings, average=0.0), seed=1)
    train(model, few, Fidelity(8, 2), settings, seed=1)
    after = [*seen[1:4], list(plain.parameters())]
    for at, averaged in enumerate(model.parameters()):
        expected = seen[0][at]
        for n, weights_of_step in enumerate(after, 1):
            share = (1 + n) / (10 + n)
            expected = share * expected + (1 - share) * weights_of_step[at]
        assert torch.allclose(averaged, expected, rtol=1e-4, atol=1e-6)


def test_running_statistics_follow_the_momentum(few):
    settings = TrainingSettings(1000, crop_padding=0, norm_momentum=0.25, norm_statistics="running")
    model = nn.Sequential(nn.BatchNorm2d(1), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(1, 10))
    train(model, few, Fidelity(8, 2), settings)
    pixels = (few.train.pixels.float() - few.mean[0]) / few.std[0]
    assert model[0].momentum == 0.25
    assert float(model[0].running_mean) == pytest.approx((1 - 0.75**2) * float(pixels.mean()), abs=1e-5)
    assert float(model[0].running_var) == pytest.approx(0.75**2 + (1 - 0.75**2) * float(pixels.var()), rel=1e-4)


def test_a_plateau_lowers_the_rate(few, monkeypatch):
    import nasspace.training.trainer as training

    rates = []
    monkeypatch.setattr(training, "rate", lambda *given: rates.append(given[-1]) or 1e-30)  # nothing is learned
    settings = TrainingSettings(1000, schedule="plateau", patience=2, norm_statistics="running", norm_momentum=1e-12)
    train(network(), few, Fidelity(8, 6), settings)
    assert rates == [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    "settings",
    [
        TrainingSettings(optimizer="rmsprop", learning_rate=0.02, schedule="exponential", factor=0.9, every=0.5),
        TrainingSettings(nesterov=False, decayed="all", schedule="steps", milestones=(1,), gradient_norm=0),
        TrainingSettings(momentum=0.0, decayed="weights-but-depthwise", warm_up=1, warm_up_in="epochs"),
        TrainingSettings(schedule="plateau", patience=1, average=0.99),
    ],
    ids=lambda settings: settings.schedule,
)
def test_every_setting_trains(few, settings):
    trained = train(network(), few, Fidelity(8, 3), settings)
    assert not trained.diverged
    assert trained.losses[-1] < trained.losses[0]


def test_frozen_norms_keep_their_weights_and_statistics(few):
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, few, Fidelity(8, 2), TrainingSettings(frozen_norms=True))
    kept = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
    norms = [f"{place}." for place, part in enumerate(model) if isinstance(part, nn.BatchNorm2d)]
    assert kept == {name for name in before if name.startswith(tuple(norms))}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_last_layer_is_trained_first(few):
    settings = TrainingSettings(16, head_first=0.5)
    models = {epochs: network() for epochs in (1, 2)}
    initial, bodies = list(network().parameters()), {}
    for epochs, model in models.items():
        bodies[epochs] = []

        def note(_, of=model, seen=bodies[epochs]):
            seen.append([parameter.detach().clone() for parameter in of.parameters()])

        train(model, few, Fidelity(8, epochs), settings, on_epoch=note)
    after_half = bodies[2][0]
    assert all(torch.equal(one, other) for one, other in zip(after_half[:-2], initial[:-2], strict=True))
    assert not torch.equal(after_half[-2], initial[-2])
    assert not torch.equal(bodies[2][1][0], initial[0])
    assert all(parameter.requires_grad for parameter in models[2].parameters())


def test_parts_of_a_batch_have_the_gradient_of_the_whole(few):
    """Without batch norm, whose statistics are those of a part."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    parted = copy.deepcopy(plain)
    losses = [
        train(model, few, Fidelity(8, 2), TrainingSettings(32, accumulation=parts)).losses
        for model, parts in ((plain, 1), (parted, 3))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for one, other in zip(plain.parameters(), parted.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def uneven(data: DataSet) -> DataSet:
    """Nine in ten images of classes 1 to 9 left out."""
    rare = data.train.labels > 0
    kept = ~rare | (torch.arange(len(rare)) % 10 == 0)
    return dataclasses.replace(data, train=data.train.at(kept.nonzero()[:, 0]))


def test_sampling_draws_every_class_equally_often(digits, monkeypatch):
    data, counts, images = uneven(digits), torch.zeros(10), Images.at

    def counted(self, indices):
        found = images(self, indices)
        counts.index_add_(0, found.labels, torch.ones(len(found)))
        return found

    monkeypatch.setattr(Images, "at", counted)
    train(network(), data, Fidelity(8, 40), TrainingSettings(balance="sampling", norm_statistics="running"))
    assert (counts / counts.sum()).tolist() == pytest.approx([0.1] * 10, abs=0.015)


def test_weights_give_every_class_the_same_part_of_the_loss(digits):
    """With smoothing, mixed labels and parts of a batch, beside the formula: weights of images, mean 1."""
    import nasspace.training.trainer as training

    data = uneven(digits)
    labels = data.train.labels[:200]
    weights = len(data.train) / 10 / data.train.labels.bincount(minlength=10)
    assert (weights[data.train.labels].mean(), 1) == (pytest.approx(1, abs=1e-5), 1)
    torch.manual_seed(0)
    pixels, model = torch.randn(200, 1, 8, 8), network()
    for targets in (labels, nn.functional.one_hot(labels, 10) * 0.7 + 0.03):
        settings = TrainingSettings(balance="weights", accumulation=1)
        step = training._Step(model.eval(), settings, 1, 1, weights)
        shares = targets if targets.ndim > 1 else nn.functional.one_hot(labels, 10).float()
        each = -((0.9 * shares + 0.01) * model(pixels).log_softmax(1)).sum(1)
        expected = ((shares @ weights) * each).mean()
        torch.testing.assert_close(step._backward(pixels, targets), expected.detach())
        whole = model[-1].weight.grad.clone()
        model.zero_grad()
        parts = training._Step(model, dataclasses.replace(settings, accumulation=3), 1, 1, weights)
        parts._backward(pixels, targets)
        torch.testing.assert_close(model[-1].weight.grad, whole)
        model.zero_grad()


def test_a_balanced_training_resumes_bit_by_bit(few, tmp_path):
    settings = TrainingSettings(16, balance="sampling", head_first=0.5, frozen_norms=True, accumulation=2)
    whole, stopped = network(), network()
    train(whole, few, Fidelity(8, 3), settings, seed=3)

    def stop(epoch):
        if epoch.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stopped, few, Fidelity(8, 3), settings, seed=3, on_epoch=stop, checkpoint=tmp_path / "c.pt")
    resumed = network()
    train(resumed, few, Fidelity(8, 3), settings, seed=3, checkpoint=tmp_path / "c.pt")
    assert same(weights(whole), weights(resumed))


@pytest.mark.parametrize(
    ("values", "message"),
    [((0, 1), "resolution"), ((8, 0), "epochs"), ((8, 1, 0.0), "share"), ((8, 1, 1.5), "share")],
)
def test_an_invalid_fidelity_is_refused(values, message):
    with pytest.raises(InputError, match=f"fidelity.{message}"):
        Fidelity(*values)


def test_predictions_are_the_classes_of_the_highest_scores(few):
    model = network()
    found = predictions(model, few.validation, few, 8, batch_size=10)
    with torch.no_grad():
        expected = model(normalized(few.validation.pixels, few)).argmax(1)
    assert torch.equal(found, expected)
    assert evaluate(model, few.validation, few, 8) == float((found == few.validation.labels).double().mean())


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"mixup": 0.2}, {"cutmix": 1.0}, {"policy": "trivialaugment"}, {"rotation": 15}])
def test_a_network_learns_from_augmented_images(changes, digits):
    """0.93 to 0.98 in 8 epochs, as without augmentation."""
    assert train(network(), digits, Fidelity(8, 8), TrainingSettings(**changes)).accuracy > 0.88


def test_auxiliary_classifiers_add_a_share_of_their_loss(few):
    """The loss of a first batch is that of the initial weights."""
    start = [{"block": "conv", "out": 8}, {"block": "auxiliary", "size": 2, "hidden": 16, "p": 0}]
    settings = TrainingSettings(batch_size=128, label_smoothing=0.0, crop_padding=0.0)

    def first_loss(weight: float) -> float:
        layers = [start[0], {**start[1], "weight": weight}, {"block": "linear", "out": 10}]
        network = build(Architecture.of(layers, input=(1, 8, 8)))
        classifier = copy.deepcopy(network[1].classifier)
        loss = train(network, few, Fidelity(8, 1), settings).losses[0]
        assert not torch.equal(network[1].classifier[-1].weight, classifier[-1].weight)
        assert not any(part._forward_hooks for part in network.modules())
        return loss

    network = build(Architecture.of([*start, {"block": "linear", "out": 9}], input=(1, 8, 8)))
    network[-1] = nn.Linear(8, 10)
    with pytest.raises(InputError, match="auxiliary classifier has 9 classes, the network 10"):
        train(nn.Sequential(*network[:2], nn.AdaptiveAvgPool2d(1), nn.Flatten(), network[2]), few, Fidelity(8, 1))
    tenth, half, whole = map(first_loss, (0.1, 0.5, 1.0))
    assert (whole - half) / (half - tenth) == pytest.approx(0.5 / 0.4, rel=1e-3)
    assert whole - half > 0.5  # half of about ln 10
