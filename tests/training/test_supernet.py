"""Weight sharing: a network on slices of shared weights equals the standalone network, and training resumes."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from nasspace import Architecture, Space, blocks, build, cost
from nasspace.blocks import registry
from nasspace.data.loading import DataSet, load_data
from nasspace.errors import InputError
from nasspace.network import Network
from nasspace.space.bounds import PlacedLayer, placed_layers, reachable_layers
from nasspace.training import checkpoints
from nasspace.training.settings import SAMPLINGS, Fidelity, Sharing, TrainingSettings
from nasspace.training.supernet import Complexity, Sampler, Supernet, extremes, train_supernet
from nasspace.training.trainer import Epoch

CHOICES = {  # options whose values are choices, where a block has them
    "kernel": "[3, 5]",
    "groups": "[1, 4]",
    "expansion": "[1, 3]",
    "se": "[0, 0.25]",
    "squeeze": "[0.25, 0.5]",
    "expand_3x3": "[0.5, 0.75]",
    "bypass": "[none, complex]",
    "reduction": "[2, 4]",
    "identity": "[0.5, 1.0]",
    "base_width": "[32, 64]",
    "repeats": "[1, 2]",
    "split": "[paper, half]",
}
FIXED = {"max_pool": {"kernel": "3"}, "avg_pool": {"kernel": "3"}}
HEADS = {"global_pool", "flatten", "dropout", "linear"}
MIXED = """
input: [1, 16, 16]
width: [0.5, 1.0]
stem: [{block: conv, out: 8, kernel: 3, stride: 2}]
stages:
  - {depth: [1, 2], out: [8, 16], stride: 2, each: {block: [shuffle_v2: {kernel: [3, 5]}, fire: {norm: bn}]}}
  - {out: [24, 16], block: [conv, inverted_residual: {expansion: [1, 4]}]}
head: [{block: conv, out: 32, kernel: 1}, {block: dropout, p: 0.0}]
"""


def space_of(name: str) -> Space:
    """A space in which every layer is the block, with several widths and values of its options."""
    options = {key: value for key, value in CHOICES.items() if key in blocks.get(name).types} | FIXED.get(name, {})
    written = "{" + ", ".join(f"{key}: {value}" for key, value in options.items()) + "}"
    if name in HEADS:
        head = f"head: [{{block: {name}, out: [12, 24]}}, {{block: linear}}]"
        stages = "stages: [{out: [8, 16], block: conv}]"
    else:
        head, block = "", f"{{{name}: {written}}}" if options else name
        stages = f"stages: [{{depth: [1, 2], out: [8, 12, 16], stride: 2, each: {{block: [{block}]}}}}]"
    stem = "stem: [{block: conv, out: [8, 12]}]"
    return Space.from_text(f"input: [3, 8, 8]\n{stem}\n{stages}\n{head}\n", "t.yaml", classes=4)


def shared_output(shared: Supernet, architecture: Architecture, images: torch.Tensor) -> torch.Tensor:
    """What the network's blocks return on slices of the shared weights."""
    parts = shared.blocks_of(architecture)
    slices = {
        f"{i}.{name}": shared.get_parameter(key)[taken]
        for i, part in enumerate(parts)
        for name, key, taken in part.parts
    }
    return functional_call(Network(*[part.module for part in parts]).train(), slices, (images,))


@pytest.mark.parametrize("name", blocks.known())
def test_every_block_runs_on_slices_as_the_standalone_network(name):
    shared = Supernet(space_of(name), seed=1)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    rng, digests = random.Random(0), set()
    for _ in range(8):
        architecture = shared.space.sample(rng)
        digests.add(architecture.digest)
        network = build(architecture)
        network.load_state_dict(shared.weights(architecture))
        with torch.random.fork_rng():  # dropout
            torch.manual_seed(0)
            expected = network.train()(images)
            torch.manual_seed(0)
            assert torch.equal(shared_output(shared, architecture, images), expected)
        assert expected.std() > 0
    assert len(digests) > 2


@pytest.fixture
def shared() -> Supernet:
    return Supernet(Space.from_text(MIXED, "t.yaml"), seed=0)


def test_gradients_are_those_of_the_standalone_network_at_its_slices(shared):
    images, labels = torch.randn(8, 1, 16, 16), torch.arange(8)
    architecture = shared.space.sample(random.Random(1))
    loss = shared.add_gradients(architecture, images, labels, smoothing=0.1, weight=0.5)
    network = shared.network(architecture).train()
    expected = functional.cross_entropy(network(images), labels, label_smoothing=0.1)
    (0.5 * expected).backward()
    torch.testing.assert_close(loss, expected.detach())
    total = 0.0
    for i, part in enumerate(shared.blocks_of(architecture)):
        for name, key, taken in part.parts:
            gradient = network.get_parameter(f"{i}.{name}").grad
            torch.testing.assert_close(shared.get_parameter(key).grad[taken], gradient, rtol=1e-4, atol=1e-6)
            total += float(gradient.abs().sum())
    everywhere = sum(
        float(parameter.grad.abs().sum()) for parameter in shared.parameters() if parameter.grad is not None
    )
    assert everywhere == pytest.approx(total, rel=1e-4), "no gradient outside the slices"


def test_a_smaller_kernel_is_the_center_and_fewer_channels_are_the_first():
    space = Space.from_text("input: [3, 16, 16]\nstages: [{block: conv, out: [8, 16], kernel: [3, 5]}]", "t.yaml")
    shared = Supernet(space)
    (key,) = [key for key, _ in shared.named_parameters() if key.startswith("stages/0/0/conv") and "weight/Conv" in key]
    largest = shared.get_parameter(key)
    assert largest.shape == (16, 3, 5, 5)
    small = space.replay({"stages.0.out": 8, "stages.0.kernel": 3})
    (own,) = [value for value in shared.weights(small).values() if value.shape == (8, 3, 3, 3)]
    assert torch.equal(own, largest[:8, :, 1:4, 1:4])


def test_weights_start_as_in_a_network_of_the_largest_shape():
    space = Space.from_text(
        "input: [3, 32, 32]\nstages: [{block: inverted_residual, out: [32, 64], se: [0, 0.25], expansion: [3, 6]}]", "t"
    )
    values = dict(Supernet(space).named_parameters())
    for key, parameter in values.items():
        value = parameter.detach()
        if "/weight/Conv2d" in key:
            fan = value.shape[0] * value.shape[2] * value.shape[3]
            assert float(value.std()) == pytest.approx((2 / fan) ** 0.5, rel=0.25), key
        elif "/weight/BatchNorm2d" in key:
            assert bool((value == 1).all())
        elif "/bias/" in key:
            assert bool((value == 0).all())
    reduce = next(value for key, value in values.items() if "/reduce/weight" in key)
    assert float(reduce.detach()[0].min()) >= 0, "the first unit of a squeeze-and-excitation is not always zero"


class Scaled(nn.Module):
    """1x1 convolution, times one number per channel: a user's block, with a parameter of its own."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, start: float = 0.5):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, stride)
        nn.init.constant_(self.conv.weight, 0.125)
        self.scale = nn.Parameter(torch.full((1, out_channels, 1, 1), start))
        self.register_buffer("shift", torch.arange(float(out_channels)).view(1, -1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) * self.scale + self.shift


def test_a_users_block_keeps_the_values_of_its_constructor(monkeypatch):
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))
    blocks.register("scaled", Scaled)
    text = "input: [3, 16, 16]\nstages: [{block: scaled, out: [4, 8]}]\nhead: [{block: dropout, p: 0.0}]"
    space = Space.from_text(text, "t.yaml", classes=3)
    shared = Supernet(space)
    values = dict(shared.named_parameters())
    assert [value.unique().tolist() for key, value in values.items() if "/scale/" in key] == [[0.5]]
    assert [value.unique().tolist() for key, value in values.items() if "scaled/conv/weight" in key] == [[0.125]]
    images = torch.randn(4, 3, 16, 16)
    for architecture in space.enumerate():
        expected = shared.network(architecture).train()(images)
        assert torch.equal(shared_output(shared, architecture, images), expected)


def test_options_are_taken_equally_often():
    space = Space.load("mixed", resolution=32)
    sampler = Sampler(space, Sharing("fair", networks=5), seed=3)
    rounds = [sampler.round() for _ in range(12)]
    blocks_of_round = [[one.choices["stages.0.block"] for one in networks] for networks in rounds]
    assert all(sorted(chosen) == [0, 1, 2, 3, 4] for chosen in blocks_of_round), "every block once in every round"
    assert len({tuple(chosen) for chosen in blocks_of_round}) > 1, "in another order"
    taken = Counter(item for networks in rounds for one in networks for item in one.choices.items())
    for name, options in space.options.items():
        counts = [taken[name, option] for option in options]
        assert max(counts) - min(counts) <= 1, name


def test_a_sampler_continues_from_its_state():
    space = Space.from_text(MIXED, "t.yaml")
    for sampling in SAMPLINGS:
        sampler, other = (Sampler(space, Sharing(sampling), seed) for seed in (0, 1))
        sampler.round()
        other.restore(sampler.state())
        assert sampler.round() == other.round()


def test_a_sandwich_has_the_largest_and_the_smallest_network():
    space = Space.from_text(MIXED, "t.yaml")
    largest, smallest, *others = Sampler(space, Sharing("sandwich", networks=3), seed=0).round()
    counts = [cost(one).flops for one in space.enumerate()]
    assert (cost(smallest).flops, cost(largest).flops) == (min(counts), max(counts))
    assert len(others) == 3
    assert extremes(space, seed=5) == (largest, smallest)


def test_the_rate_of_a_complex_network_falls_later():
    space = Space.from_text(MIXED, "t.yaml")
    complexity = Complexity(space, Sharing(rate_ratio=2, momenta=3), seed=0)
    largest, smallest = extremes(space)
    assert complexity.share(smallest) == 0
    assert complexity.share(largest) > 0.9
    assert [complexity.exponent(share) for share in (0, 0.5, 1)] == [2, 1, 0.5]
    assert [complexity.group(share) for share in (0, 0.3, 0.5, 0.9, 1)] == [0, 0, 1, 2, 2]


@pytest.fixture(scope="module")
def digits() -> DataSet:
    data = load_data("digits", resolution=16)
    return dataclasses.replace(
        data, train=data.train.at(torch.arange(400)), validation=data.validation.at(torch.arange(100))
    )


def trained(data: DataSet, sharing: Sharing, checkpoint: Path | None = None, stop_after: int = 0, **more) -> Supernet:
    """Shared weights after two epochs; `stop_after` epochs, the training is interrupted."""
    found = Supernet(Space.from_text(MIXED, "t.yaml"), seed=0)

    def on_epoch(epoch: Epoch) -> None:
        if epoch.number - 1 == stop_after > 0:
            raise KeyboardInterrupt

    settings = TrainingSettings(batch_size=50, **more)
    train_supernet(found, data, Fidelity(16, 3), sharing, settings, checkpoint=checkpoint, on_epoch=on_epoch)
    return found


@pytest.mark.parametrize(
    ("sharing", "optimizer"),
    [(Sharing("fair"), "sgd"), (Sharing("sandwich"), "adamw"), (Sharing("uniform", networks=2, momenta=1), "rmsprop")],
)
def test_an_interrupted_training_ends_in_the_same_weights(digits, tmp_path, sharing, optimizer):
    more = {"optimizer": optimizer, "learning_rate": 0.1 if optimizer == "sgd" else 0.002}
    whole = trained(digits, sharing, **more)
    with pytest.raises(KeyboardInterrupt):
        trained(digits, sharing, tmp_path / "c.pt", stop_after=1, **more)
    resumed = trained(digits, sharing, tmp_path / "c.pt", **more)
    start = Supernet(whole.space, seed=0)
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(whole.parameters(), start.parameters(), strict=True))


def test_a_training_continues_within_an_epoch(digits, tmp_path, monkeypatch):
    whole = trained(digits, Sharing("fair"))
    monkeypatch.setattr(checkpoints, "INTERVAL", 0.0)  # a checkpoint after every batch
    saved = []
    save = checkpoints.Checkpoints.save

    def stop(self, state):
        save(self, state)
        saved.append(state["batch"])
        if len(saved) == 11:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.Checkpoints, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        trained(digits, Sharing("fair"), tmp_path / "c.pt")
    assert saved[-1] > 0
    resumed = trained(digits, Sharing("fair"), tmp_path / "c.pt")
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_checkpoint_of_other_sharing_is_refused(digits, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(digits, Sharing("uniform"), tmp_path / "c.pt", stop_after=1)
    with pytest.raises(InputError, match="weight sharing"):
        trained(digits, Sharing("fair"), tmp_path / "c.pt")


def test_a_network_is_evaluated_with_statistics_of_its_own(digits):
    found = trained(digits, Sharing("uniform"))
    architecture = found.space.sample(random.Random(2))
    first, again = (found.evaluate(architecture, digits, 16, seed=1) for _ in range(2))
    assert (first.accuracy, first.log_loss) == (again.accuracy, again.log_loss)
    norms = [part for part in first.model.modules() if isinstance(part, nn.BatchNorm2d)]
    assert norms
    assert all(float(norm.running_mean.abs().max()) > 0 for norm in norms)
    for name, value in found.weights(architecture).items():
        if not any(word in name for word in ("running", "tracked")):
            assert torch.equal(value, first.model.state_dict()[name])


@pytest.mark.slow
def test_shared_weights_learn_digits():
    data = load_data("digits", resolution=16)
    found = Supernet(Space.from_text(MIXED, "t.yaml"), seed=0)
    done = train_supernet(
        found, data, Fidelity(16, 24), Sharing("fair", networks=2), TrainingSettings(learning_rate=0.5)
    )
    assert done.losses[-1] < done.losses[0]
    assert done.networks == 2 * 24 * round(len(data.train) / 64)
    accuracies = [found.evaluate(found.space.sample(random.Random(i)), data, 16).accuracy for i in range(4)]
    assert min(accuracies) > 0.6


def test_every_sampled_layer_is_reachable_at_its_place():
    space = Space.from_text(MIXED, "t.yaml")
    reachable = set(reachable_layers(space))
    met = {placed for architecture in space.enumerate() for placed in placed_layers(space, architecture)}
    assert met == reachable
    assert all(isinstance(placed, PlacedLayer) for placed in met)


@pytest.mark.parametrize("name", ["mixed", "shuffle", "mnasnet"])
def test_choices_are_found_for_a_network_without_them(name):
    space = Space.load(name, resolution=32)
    for seed in range(3):
        architecture = space.sample(random.Random(seed))
        read = Architecture.from_json(architecture.to_json())
        assert space.replay(space.choices_of(read)).digest == architecture.digest
        assert placed_layers(space, read) == placed_layers(space, architecture)


def test_a_network_of_another_space_is_refused(shared):
    other = Space.load("mixed", resolution=16, channels=1).sample(random.Random(0))
    with pytest.raises(InputError, match="not a network of the space"):
        shared.weights(Architecture.from_json(other.to_json()))
    with pytest.raises(InputError, match="not"):
        shared.weights(other)
    wider = Space.from_text(MIXED.replace("[8, 16]", "[8, 64]"), "t.yaml").replay({"stages.0.out": 64, "width": 1.0})
    with pytest.raises(InputError, match="is not one of 't'"):
        shared.weights(wider)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sampling": "greedy"}, "supernet.sampling: 'greedy' is not fair, sandwich or uniform"),
        ({"networks": 0}, "supernet.networks"),
        ({"rate_ratio": 0.5}, "supernet.rate_ratio"),
        ({"momenta": 0}, "supernet.momenta"),
        ({"momenta": True}, "supernet.momenta"),
    ],
)
def test_wrong_settings_name_themselves(wrong, message):
    with pytest.raises(InputError, match=message):
        Sharing(**wrong)


@pytest.mark.parametrize("settings", [{"average": 0.9}, {"schedule": "plateau"}])
def test_settings_of_a_single_network_are_refused(digits, shared, settings):
    with pytest.raises(InputError, match="training"):
        train_supernet(shared, digits, Fidelity(16, 1), settings=TrainingSettings(**settings))
