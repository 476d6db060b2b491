"""Weight sharing: one set of weights for all networks of a space, trained once.

Each parameter of a block at a place of the space (stage and layer in it) is a slice of one shared tensor, which is as
large as the largest of the options there: the first output channels, the first input channels (of each group), and the
center of the kernel. A network of the space is its ordinary blocks, run on such slices by
`torch.func.functional_call`; blocks have no code for it. Batch norm uses the statistics of the batch in training, and
statistics of its own for every network that is evaluated.

Sampling: `fair` (FairNAS, Chu et al. 2019, strict fairness), `sandwich` (BigNAS, Yu et al. 2020, without its
distillation), `uniform` (Single Path One-Shot, Guo et al. 2019). Learning rates and momenta by complexity are after
Jeon et al. 2025 ("Subnet-aware dynamic supernet training", CaLR and momentum separation): the rate of a more complex
network falls later, and networks of different complexity have momenta of their own. The formulas are ours, and we
group networks by FLOPs where the paper groups them by structure.
"""

from __future__ import annotations

import bisect
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from nasspace import blocks
from nasspace.architecture import Architecture, Layer
from nasspace.blocks.layers import SqueezeExcite
from nasspace.counting import OnMeta, cost
from nasspace.data.images import DataSet, prepared
from nasspace.errors import InputError
from nasspace.initialization import is_depthwise, kaiming
from nasspace.network import Network, build, make_block
from nasspace.space.bounds import PlacedLayer, placed_layers, reachable_layers
from nasspace.space.space import Space
from nasspace.training import checkpoints
from nasspace.training.calibration import scaled_log_loss
from nasspace.training.checkpoints import Checkpoints
from nasspace.training.depthwise import fast_tiny_maps
from nasspace.training.optimizers import optimizer
from nasspace.training.schedules import rate, warm_up_steps
from nasspace.training.settings import Fidelity, Sharing, TrainingSettings, check_for_sharing
from nasspace.training.trainer import Epoch, Fit, batches_per_epoch, logits, re_estimate, seeded, subset, threads

COUNTED = 256  # networks sampled for the distribution of FLOPs
CLIMBED = 32  # networks sampled, of which the largest and the smallest start a climb
INITIALIZED = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)  # modules of the library's blocks with an initialization scheme
Slices = tuple[slice, ...]


@dataclass(frozen=True)
class Shared:
    """A shared tensor: its shape, a module that has such a parameter, the layers that have it and its name there."""

    shape: tuple[int, ...]
    part: nn.Module
    examples: tuple[tuple[PlacedLayer, str], ...]


@dataclass(frozen=True)
class Block:
    """A block without weights, and for each of its parameters the shared tensor and the slice of it."""

    module: nn.Module
    parts: tuple[tuple[str, str, Slices], ...]  # name in the block, key, slice


@dataclass(frozen=True)
class Evaluation:
    """A network with inherited weights: accuracy on the validation split, log loss after temperature scaling.

    `model` is in evaluation mode, with batch norm statistics of its own.
    """

    accuracy: float
    log_loss: float
    model: Network


class Supernet(nn.Module):
    """The shared weights of a space: parameters named by place, block and parameter, initialized from `seed`."""

    def __init__(self, space: Space, seed: int = 0):
        super().__init__()
        self.space = space
        self.depthwise: list[nn.Parameter] = []
        self._blocks: dict[tuple[str, Layer, int, torch.device], Block] = {}
        self._reachable = {_identity(placed): placed for placed in reachable_layers(space)}
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            for key, shared in _shared(self._reachable.values()).items():
                parameter = nn.Parameter(_initial(key, shared))
                self.register_parameter(key, parameter)
                if is_depthwise(shared.part) and parameter.ndim == 4:
                    self.depthwise.append(parameter)

    @property
    def device(self) -> torch.device:
        """The device of the shared weights."""
        return next(self.parameters()).device

    def blocks_of(self, architecture: Architecture) -> list[Block]:
        """The blocks of a network of the space, without weights; one of another space raises `InputError`."""
        return [self._block(placed) for placed in placed_layers(self.space, architecture)]

    def network(self, architecture: Architecture) -> Network:
        """Build the network on the CPU with a copy of its weights; batch norm statistics are the initial ones."""
        network = build(architecture)
        own = dict(network.named_parameters())
        with torch.no_grad():
            for name, key, slices in _named(self.blocks_of(architecture)):
                own[name].copy_(self.get_parameter(key)[slices])
        return network

    def take(self, architecture: Architecture, state: Mapping[str, Tensor]) -> None:
        """Replace the slices of a network by its own weights, a state dict of `nasspace.build(architecture)`."""
        with torch.no_grad():
            for name, key, slices in _named(self.blocks_of(architecture)):
                self.get_parameter(key)[slices].copy_(state[name])

    def weights(self, architecture: Architecture) -> dict[str, Tensor]:
        """The state dict of `network`, which `nasspace.build(architecture)` loads."""
        return dict(self.network(architecture).state_dict())

    def evaluate(
        self,
        architecture: Architecture,
        data: DataSet,
        resolution: int,
        settings: TrainingSettings | None = None,
        *,
        seed: int = 0,
        device: str = "cpu",
    ) -> Evaluation:
        """Evaluate a network with its slice of the weights, after re-estimating its batch norm statistics.

        The setting `norm_statistics` has no effect: no network has running statistics of its own.
        """
        settings = settings or TrainingSettings()
        model, data = self.network(architecture), prepared(data, resolution)
        with threads(settings.threads), seeded(seed, device):
            re_estimate(model, data, settings.batch_size, seed, device)
            size = settings.evaluation_batch_size
            found = logits(model, data.validation, data, resolution, device=device, batch_size=size)
            model.to("cpu")
        labels = data.validation.labels
        return Evaluation(int((found.argmax(1) == labels).sum()) / len(labels), scaled_log_loss(found, labels), model)

    def add_gradients(
        self, architecture: Architecture, pixels: Tensor, labels: Tensor, smoothing: float, weight: float = 1.0
    ) -> Tensor:
        """Add `weight` times the gradient of a network's loss on a batch to the shared weights'; returns the loss."""
        blocks = self.blocks_of(architecture)
        network = Network(*[block.module for block in blocks]).train()
        taken = {name: (self.get_parameter(key), slices) for name, key, slices in _named(blocks)}
        leaves = {name: _copy(shared, slices) for name, (shared, slices) in taken.items()}
        with fast_tiny_maps(network, str(pixels.device)):
            scores = functional_call(network, leaves, (pixels,))
        loss = functional.cross_entropy(scores, labels, label_smoothing=smoothing)
        gradients = torch.autograd.grad(weight * loss, list(leaves.values()), allow_unused=True)
        for (shared, slices), gradient in zip(taken.values(), gradients, strict=True):
            if shared.grad is None:
                shared.grad = torch.zeros_like(shared)
            if gradient is not None:
                shared.grad[slices] += gradient
        return loss.detach()

    def _block(self, placed: PlacedLayer) -> Block:
        """The block of a layer, built once for its place and input width."""
        if _identity(placed) not in self._reachable:
            raise InputError(f"{placed.place}: the layer {placed.layer.block} is not one of '{self.space.name}'")
        identity = (*_identity(placed), self.device)
        if identity not in self._blocks:
            with torch.random.fork_rng(devices=[]):
                module = make_block(placed.layer, _channels(placed)).to(self.device)
            self._blocks[identity] = Block(module, tuple(self._parts(placed, module)))
            _drop_state(module)
        return self._blocks[identity]

    def _parts(self, placed: PlacedLayer, module: nn.Module) -> Iterator[tuple[str, str, Slices]]:
        """Name, key and slice of each parameter of a block."""
        for name, key, parameter, _ in _parameters(placed, module):
            yield name, key, _slices(self.get_parameter(key).shape, parameter.shape)


def train_supernet(
    supernet: Supernet,
    data: DataSet,
    fidelity: Fidelity,
    sharing: Sharing | None = None,
    settings: TrainingSettings | None = None,
    *,
    seed: int = 0,
    device: str = "cpu",
    on_epoch: Callable[[Epoch], None] | None = None,
    checkpoint: Path | None = None,
    deadline: float = math.inf,
) -> SupernetTraining:
    """Train shared weights in place and leave them on the CPU.

    An epoch is one pass over the training images; each batch trains the networks of a round. Determinism, divergence
    and `checkpoint` are those of `nasspace.training.trainer.train`. The training ends at `deadline`, in seconds of
    `time.monotonic()`; the learning rate then falls with the time, so that it is low at the end. A moving average of
    weights and the schedule `plateau`, which need a single network, raise `InputError`.
    """
    sharing, settings = sharing or Sharing(), settings or TrainingSettings()
    check_for_sharing(settings)
    start = time.perf_counter()
    identity = checkpoints.identity(supernet, data, fidelity, settings, seed, device) if checkpoint else {}
    saved = Checkpoints(checkpoint, {**identity, "weight sharing": repr(sharing)}) if checkpoint else None
    data = subset(prepared(data, fidelity.resolution), fidelity.share, seed)
    with threads(settings.threads), seeded(seed, device):
        supernet.to(device)
        per_epoch = batches_per_epoch(len(data.train), settings.batch_size)
        step = _SharedStep(supernet, settings, sharing, fidelity.epochs, per_epoch, seed, deadline)
        fit = Fit(supernet, data, fidelity, settings, seed, device, saved, step)
        fit.run(on_epoch, deadline=deadline)
        supernet.to("cpu")
    seconds = fit.seconds_before + time.perf_counter() - start
    return SupernetTraining(tuple(fit.losses), seconds, step.networks, fit.diverged)


@dataclass(frozen=True)
class SupernetTraining:
    """The training of shared weights: mean loss of each whole epoch, seconds, networks trained on a batch each."""

    losses: tuple[float, ...]
    seconds: float
    networks: int
    diverged: bool


class _SharedStep:
    """A training step of shared weights: the networks of a round on one batch, then a step for each momentum."""

    def __init__(
        self,
        supernet: Supernet,
        settings: TrainingSettings,
        sharing: Sharing,
        epochs: int,
        per_epoch: int,
        seed: int,
        deadline: float = math.inf,
    ):
        self.supernet = supernet
        self.parameters = list(supernet.parameters())
        self.settings = settings
        self.per_epoch = per_epoch
        self.steps = epochs * per_epoch
        self.done = self.networks = 0
        self.start, self.deadline = time.monotonic(), deadline
        self.rate = 0.0  # the schedule's, of the last step
        self.sampler = Sampler(supernet.space, sharing, seed)
        self.complexity = Complexity(supernet.space, sharing, seed)
        self.optimizers = [optimizer(supernet, settings, supernet.depthwise) for _ in range(sharing.momenta)]

    def __call__(self, pixels: Tensor, labels: Tensor, drops: int) -> Tensor:
        """Train a round of networks on a batch; returns their mean detached loss."""
        networks = self.sampler.round()
        at = self._place()
        self.rate = rate(self.settings, at, self.steps, self.per_epoch, drops)
        falling = at >= warm_up_steps(self.settings, self.steps, self.per_epoch)
        groups: dict[int, list[tuple[Architecture, float]]] = {}
        for network in networks:
            share = self.complexity.share(network)
            exponent = self.complexity.exponent(share) if falling else 1.0
            groups.setdefault(self.complexity.group(share), []).append((network, self._rate(self.rate, exponent)))
        total = torch.zeros((), device=pixels.device)
        for group, members in sorted(groups.items()):
            total += self._step(self.optimizers[group], members, pixels, labels)
        self.done += 1
        self.networks += len(networks)
        return total / len(networks)

    def _place(self) -> int:
        """The step of the schedule: that of the training, or a later one by the share of the time that has passed."""
        passed = (time.monotonic() - self.start) / max(self.deadline - self.start, math.ulp(1.0))
        return max(self.done, min(int(passed * self.steps), self.steps - 1))

    def _rate(self, current_rate: float, exponent: float) -> float:
        """The learning rate of a network: the schedule's share of the peak, to the power of `exponent`."""
        last, peak = self.settings.last_rate, self.settings.learning_rate
        if exponent == 1 or peak == last:
            return current_rate
        return last + (peak - last) * ((current_rate - last) / (peak - last)) ** exponent

    def _step(
        self,
        optimizer: torch.optim.Optimizer,
        members: Sequence[tuple[Architecture, float]],
        pixels: Tensor,
        labels: Tensor,
    ) -> Tensor:
        """One step of an optimizer along the mean gradient, weighted by the networks' rates; returns summed losses."""
        for parameter in self.parameters:
            parameter.grad = None
        rates = sum(network_rate for _, network_rate in members)
        smoothing = self.settings.label_smoothing
        losses = [
            self.supernet.add_gradients(
                network, pixels, labels, smoothing, network_rate / rates if rates else 1 / len(members)
            )
            for network, network_rate in members
        ]
        used = [parameter for parameter in self.parameters if parameter.grad is not None]
        if self.settings.gradient_norm:
            nn.utils.clip_grad_norm_(used, self.settings.gradient_norm)
        for parameters in optimizer.param_groups:
            parameters["lr"] = rates / len(members)
        if isinstance(optimizer, torch.optim.SGD) and self.settings.momentum:
            for parameter in used:  # the fused step needs the momenta of all or of none
                optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
        optimizer.step()
        return torch.stack(losses).sum()

    def state(self) -> dict[str, Any]:
        """The state of optimizers and sampler, for checkpoints."""
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        counts = {"done": self.done, "networks": self.networks}
        return {**counts, "optimizers": optimizers, "sampler": self.sampler.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.done, self.networks = state["done"], state["networks"]
        for own, saved in zip(self.optimizers, state["optimizers"], strict=True):
            own.load_state_dict(saved)
        self.sampler.restore(state["sampler"])

    def finish(self) -> None:
        """Drop the gradients."""
        self.supernet.zero_grad(set_to_none=True)


class Sampler:
    """The networks of each round, from a seed.

    Strict fairness: the options of a choice are taken in a random order, and again in another one once all were taken,
    so that their counts never differ by more than one. A choice that is not reached waits.
    """

    def __init__(self, space: Space, sharing: Sharing, seed: int):
        self.space = space
        self.sharing = sharing
        self.rng = random.Random(seed)
        self.left: dict[str, list[int]] = {}  # numbers of the options that are not taken yet
        self.ends = extremes(space, seed) if sharing.sampling == "sandwich" else ()

    def round(self) -> list[Architecture]:
        """The networks that train on the next batch."""
        fair = self.sharing.sampling == "fair"
        drawn = (
            self.space.architecture(self._next) if fair else self.space.sample(self.rng)
            for _ in range(self.sharing.networks)
        )
        return [*self.ends, *drawn]

    def _next(self, name: str, options: Sequence[Any]) -> Any:
        """An option of a choice that was taken least often."""
        if not self.left.get(name):
            self.left[name] = self.rng.sample(range(len(options)), len(options))
        return options[self.left[name].pop()]

    def state(self) -> dict[str, Any]:
        """The state of the random numbers and of the options, for checkpoints."""
        return {"random": self.rng.getstate(), "left": {name: list(left) for name, left in self.left.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.rng.setstate(state["random"])
        self.left = {name: list(left) for name, left in state["left"].items()}


class Complexity:
    """The place of a network among random ones of the space by FLOPs, and what follows for its training."""

    def __init__(self, space: Space, sharing: Sharing, seed: int):
        self.sharing = sharing
        rng = random.Random(seed)
        self.flops = sorted(cost(space.sample(rng)).flops for _ in range(COUNTED))

    def share(self, architecture: Architecture) -> float:
        """The share of random networks with fewer FLOPs, from 0 to 1."""
        return bisect.bisect_left(self.flops, cost(architecture).flops) / len(self.flops)

    def exponent(self, share: float) -> float:
        """The exponent of the learning rate's decay: `rate_ratio` at 0, 1 in the middle, its reciprocal at 1."""
        return float(self.sharing.rate_ratio ** (1 - 2 * share))

    def group(self, share: float) -> int:
        """The number of the momentum."""
        return min(int(share * self.sharing.momenta), self.sharing.momenta - 1)


def extremes(space: Space, seed: int = 0) -> tuple[Architecture, Architecture]:
    """Networks with the most and the fewest FLOPs that changes of single choices lead to."""
    rng = random.Random(seed)
    drawn = [space.sample(rng) for _ in range(CLIMBED)]
    return _climbed(space, drawn, lambda one: cost(one).flops), _climbed(space, drawn, lambda one: -cost(one).flops)


def _climbed(space: Space, drawn: Sequence[Architecture], height: Callable[[Architecture], float]) -> Architecture:
    """Change single choices of the highest network while that makes it higher."""
    best = max(drawn, key=height)
    while True:
        higher = max(space.neighbors(best), key=height, default=best)
        if height(higher) <= height(best):
            return best
        best = higher


def _shared(layers: Iterable[PlacedLayer]) -> dict[str, Shared]:
    """Every shared tensor of blocks at their places, by key."""
    found: dict[str, Shared] = {}
    for placed in layers:
        for name, key, parameter, part in _parameters(placed, _weightless(placed)):
            earlier = found.get(key) or Shared(tuple(parameter.shape), part, ())
            shape = tuple(map(max, earlier.shape, parameter.shape))
            found[key] = Shared(shape, earlier.part, (*earlier.examples, (placed, name)))
    return found


def _identity(placed: PlacedLayer) -> tuple[str, Layer, int]:
    """What a block without weights depends on."""
    return placed.place, placed.layer, _channels(placed)


def _weightless(placed: PlacedLayer) -> nn.Module:
    """The block of a layer on the meta device, if it can be built there."""
    try:
        with OnMeta():
            return make_block(placed.layer, _channels(placed))
    except InputError:  # a user's constructor may need values
        with torch.random.fork_rng(devices=[]):
            return make_block(placed.layer, _channels(placed))


def _channels(placed: PlacedLayer) -> int:
    """The input width that the block is built with."""
    return math.prod(placed.in_shape) if blocks.get(placed.layer.block).flattens else placed.in_shape[0]


def _parameters(placed: PlacedLayer, module: nn.Module) -> Iterator[tuple[str, str, nn.Parameter, nn.Module]]:
    """Name, key, parameter and its module, for each parameter of a block.

    The kind of the module is part of the key: options of a block may put another module in the same position.
    """
    for path, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            kind = f"{type(part).__name__}{'-depthwise' if is_depthwise(part) else ''}-{parameter.ndim}"
            key = "/".join((placed.place, placed.layer.block, full, kind)).replace(".", "/")
            yield full, key, parameter, part


def _slices(shape: Sequence[int], part: Sequence[int]) -> Slices:
    """The part of a tensor that a smaller one is: the first channels, the center of the kernel."""
    starts = [0 if i < 2 else (whole - taken) // 2 for i, (whole, taken) in enumerate(zip(shape, part, strict=True))]
    return tuple(slice(start, start + taken) for start, taken in zip(starts, part, strict=True))


def _initial(key: str, shared: Shared) -> Tensor:
    """Initial values of a shared tensor: as in a network with the largest shape."""
    shape, part = shared.shape, shared.part
    if type(part) not in INITIALIZED or not all(_is_own(placed.layer) for placed, _ in shared.examples):
        return _constructed(shared)
    if len(shape) == 1:
        return torch.ones(shape) if isinstance(part, nn.BatchNorm2d) and "/weight/" in key else torch.zeros(shape)
    largest: nn.Conv2d | nn.Linear
    if isinstance(part, nn.Linear):
        largest = nn.Linear(shape[1], shape[0], bias=False)
    else:
        groups = shape[0] if is_depthwise(part) else 1
        largest = nn.Conv2d(shape[1] * groups, shape[0], (shape[2], shape[3]), groups=groups, bias=False)
    kaiming([largest])
    weight = largest.weight.detach()
    if "/reduce/" in key and any(_squeezes(placed, name) for placed, name in shared.examples):
        weight[0].abs_()  # as `initialization.activate_squeeze`: ReLU never zeroes all units
    return weight


def _is_own(layer: Layer) -> bool:
    """Whether a block is the library's."""
    return blocks.get(layer.block).cls.__module__.startswith("nasspace.blocks.")


def _squeezes(placed: PlacedLayer, name: str) -> bool:
    """Whether a parameter is that of a squeeze-and-excitation."""
    return isinstance(_weightless(placed).get_submodule(name.rpartition(".reduce.")[0]), SqueezeExcite)


def _constructed(shared: Shared) -> Tensor:
    """The values of a user's constructors, those of larger blocks over those of smaller ones."""
    values = torch.zeros(shared.shape)
    found = [make_block(placed.layer, _channels(placed)).get_parameter(name) for placed, name in shared.examples]
    for parameter in sorted(found, key=Tensor.numel):
        values[_slices(shared.shape, parameter.shape)] = parameter.detach()
    return values


def _drop_state(module: nn.Module) -> None:
    """Move the parameters to the meta device, and let batch norm use the statistics of each batch."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(parameter.detach().to("meta")))
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean = part.running_var = part.num_batches_tracked = None


def _named(blocks: Sequence[Block]) -> Iterator[tuple[str, str, Slices]]:
    """Name in the network, key and slice of each parameter."""
    for number, block in enumerate(blocks):
        for name, key, slices in block.parts:
            yield f"{number}.{name}", key, slices


def _copy(shared: Tensor, slices: Slices) -> Tensor:
    """A copy of a slice that has a gradient; channels-last as in `trainer`."""
    taken = shared.detach()[slices]
    order = torch.channels_last if taken.ndim == 4 and taken.device.type != "mps" else torch.contiguous_format
    return taken.clone(memory_format=order).requires_grad_()
