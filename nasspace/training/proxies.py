"""Training-free scores: how a network may rank, from its counts or from one minibatch at its initial weights.

A larger score stands for a network that is expected to be more accurate. Counts take microseconds once each block of
a network is known. The other scores build the network, and run it on a minibatch without training: `naswot` and
`trace_ratio` forward, `gradient_norm` forward and backward, `zico` so for each of its parts, `synflow` forward and
backward on one image of ones. `benchmarks/scores.py` measures how each ranks trained networks, and its seconds
(reports/benchmarks/scores.md): on each of four sets of networks a count had the highest rank correlation.

Batch norm uses the statistics of the minibatch, as in the papers, and dropout is off. The network that is given and
the global random state do not change.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from nasspace import counting
from nasspace.architecture import Architecture
from nasspace.blocks.layers import ACTIVATIONS, SqueezeExcite
from nasspace.blocks.plain import LocalResponseNorm
from nasspace.counting import RECTIFICATIONS, RECTIFIERS
from nasspace.errors import InputError, nearest
from nasspace.initialization import DEFAULT
from nasspace.network import build
from nasspace.training.depthwise import fast_tiny_maps

ZICO_PARTS = 2  # minibatches that ZiCo compares: the fewest whose gradients have a spread
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
SCALES = (0, 500, 1000)  # powers of two by which synflow divides, the smallest without overflow


@dataclass(frozen=True)
class Minibatch:
    """Normalized images, float [N, C, H, W], and their classes, int64 [N]; two images or more."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Score:
    """A training-free score: its source, what it is computed from, and the function of a network and a minibatch.

    `needs` is `counts` (the architecture alone), `weights` (an initialization), or `minibatch` (images as well).
    """

    name: str
    source: str
    needs: str
    of_network: Callable[[nn.Module, Minibatch], float] | None = None


def counts(architecture: Architecture) -> dict[str, int]:
    """The scores that are counted: a plain function of the architecture, for features and baselines.

    `flops`, `params`, `memory_access`, `activations` and `units` are those of `nasspace.cost`; `depth` is the number
    of convolutions and linear layers. Raises `InputError` as `nasspace.cost` does.
    """
    cost = counting.cost(architecture)
    depth = sum(
        bool(operation.weight_shape)
        for layer, counted in zip(architecture.layers, cost.layers, strict=True)
        for operation in counting.operations(layer, counted.in_shape)
    )
    return {
        **{name: getattr(cost, name) for name in ("flops", "params", "memory_access", "activations", "units")},
        "depth": depth,
    }


def naswot(network: nn.Module, images: Tensor) -> float:
    """Log-determinant of the kernel of binary codes: ln |K|, K[i, j] = units - Hamming distance of the codes.

    The code of an image has a bit for each unit of the network's rectifiers: whether its input is positive, also for
    ReLU6, hard swish and the other rectifiers of `counting.RECTIFICATIONS`. Sigmoids, which serve as gates, have none.
    -inf if two images have one code. Source: Mellor et al. 2021, Neural Architecture Search without Training, eq. 2.
    """
    with _Codes(len(images)) as codes:
        _run(network, images)
    sign, logarithm = torch.linalg.slogdet((codes.units + codes.products) / 2)
    return float(logarithm) if sign > 0 else -math.inf


def trace_ratio(network: nn.Module, images: Tensor) -> float:
    """Sum over the outputs of rectifiers of ln((tr C)^2 / tr(C^2)), C the covariance of their channels.

    The ratio is the participation ratio of the eigenvalues of C: the number of dimensions that the channels fill, from
    1 to their number. Each image and position is an observation. Source: the geometric capacity of InTrain, Zhou et al.
    2026 (arXiv 2606.18676), without the paper's second factor, the health of gradients.
    """
    with _Dimensions() as dimensions:
        _run(network, images)
    return dimensions.total


def gradient_norm(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Sum over the weights of convolutions and linear layers of the Euclidean norm of the loss's gradient.

    Source: Abdelfattah et al. 2021, Zero-Cost Proxies for Lightweight NAS, section 3.2.
    """
    return sum(float(gradient.norm()) for gradient in _gradients(network, images, labels))


def zico(network: nn.Module, images: Tensor, labels: Tensor, parts: int = ZICO_PARTS) -> float:
    """Sum over layers of ln(sum over weights of E|g| / std(g)), over the gradients of `parts` equal minibatches.

    The images are divided into the minibatches. Weights whose gradient does not vary are left out, as in the official
    code. Source: Li et al. 2023, ZiCo: Zero-shot NAS via Inverse Coefficient of Variation on Gradients, section 3.
    """
    size = len(images) // parts
    chunks = [slice(size * i, size * (i + 1)) for i in range(parts)]
    gradients = [[each.cpu() for each in _gradients(network, images[chunk], labels[chunk])] for chunk in chunks]
    total = 0.0
    for layer in zip(*gradients, strict=True):
        stacked = torch.stack(layer)
        spread = stacked.std(0, correction=0)
        ratios = torch.where(spread > 0, stacked.abs().mean(0) / spread, 0.0)
        ratio = float(ratios.sum(dtype=torch.double))
        total += math.log(ratio) if ratio > 0 else 0.0
    return total


def synflow(network: nn.Module, shape: tuple[int, ...]) -> float:
    """ln of the sum over weights of |w| dR/d|w|, R the sum of outputs for one image of ones with all weights |w|.

    Computed in double precision on the CPU, without batch norm, response normalization, biases and dropout, which is
    how the score is defined for plain ReLU networks. There no value is negative and ReLU does nothing; so no activation
    does anything here (ReLU6 and hard swish would saturate), and gates of squeeze-and-excitation are 1. `shape` is
    that of one image. Sources: Tanaka et al. 2020, Pruning Neural Networks without any Data by Iteratively Conserving
    Synaptic Flow, eq. 2; as a score, and its logarithm, Abdelfattah et al. 2021.
    """
    linear = copy.deepcopy(network).to("cpu", torch.double)
    _linearize(linear)
    weights = _weights(linear)
    for scale in SCALES:
        ones = torch.full((1, *shape), 2.0**-scale, dtype=torch.double)
        out = linear(ones)
        gradients = torch.autograd.grad(out, weights, torch.full_like(out, 2.0**-scale), allow_unused=True)
        flow = sum(float((w * g).sum().detach()) for w, g in zip(weights, gradients, strict=True) if g is not None)
        if math.isfinite(flow):
            return math.log(flow) + 2 * scale * math.log(2) if flow > 0 else -math.inf
    return math.nan


SCORES = {
    score.name: score
    for score in (
        Score("flops", "multiply-adds, as nas show", "counts"),
        Score("params", "parameters, as nas show", "counts"),
        Score("memory_access", "Ma et al. 2018, section 2", "counts"),
        Score("activations", "Radosavovic et al. 2020, section 3.2", "counts"),
        Score("units", "outputs of ReLU and the other rectifiers", "counts"),
        Score("depth", "convolutions and linear layers", "counts"),
        Score(
            "synflow", "Tanaka et al. 2020", "weights", lambda net, batch: synflow(net, tuple(batch.images.shape[1:]))
        ),
        Score("naswot", "Mellor et al. 2021", "minibatch", lambda net, batch: naswot(net, batch.images)),
        Score(
            "trace_ratio", "InTrain, Zhou et al. 2026", "minibatch", lambda net, batch: trace_ratio(net, batch.images)
        ),
        Score(
            "gradient_norm",
            "Abdelfattah et al. 2021",
            "minibatch",
            lambda net, batch: gradient_norm(net, batch.images, batch.labels),
        ),
        Score("zico", "Li et al. 2023", "minibatch", lambda net, batch: zico(net, batch.images, batch.labels)),
    )
}


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names; an unknown one raises `InputError` with the nearest known score."""
    checked = tuple(dict.fromkeys(names))
    for name in checked:
        if name not in SCORES:
            raise InputError(f"'{name}' is not a score{nearest(name, SCORES)}")
    if not checked:
        raise InputError(f"no score is named; give some of {', '.join(SCORES)}")
    return checked


def scores(
    architecture: Architecture,
    minibatch: Minibatch | None = None,
    *,
    names: Iterable[str] = tuple(SCORES),
    seed: int = 0,
    initialization: str = DEFAULT,
    device: str = "cpu",
) -> dict[str, float]:
    """The named scores of an architecture, with initial weights of `seed` and the scheme `initialization`.

    A score may be infinite or NaN: -inf where a network does not tell two images apart, for example. The same seed and
    minibatch give the same scores on the CPU of one machine with one number of threads. Without a minibatch only counts
    can be computed; other names, unknown ones and minibatches of another shape raise `InputError`.
    """
    names = check_names(names)
    counted: Mapping[str, float] = counts(architecture)
    computed = [name for name in names if name not in counted]
    found: dict[str, float] = {name: counted[name] for name in names if name in counted}
    if computed:
        if minibatch is None:
            raise InputError(f"'{computed[0]}' needs a minibatch of images; only counts do without")
        _check(architecture, minibatch)
        network = build(architecture, seed=seed, initialization=initialization).to(device)
        moved = Minibatch(minibatch.images.to(device), minibatch.labels.to(device))
        with _kept_random_state(seed, device):
            found |= {name: SCORES[name].of_network(network, moved) for name in computed}  # type: ignore[misc]
    return {name: found[name] for name in names}


def _check(architecture: Architecture, minibatch: Minibatch) -> None:
    """Refuse a minibatch that does not fit the architecture."""
    count, shape = len(minibatch.images), tuple(minibatch.images.shape[1:])
    if shape != architecture.input:
        raise InputError(f"the minibatch has images of {shape}, the network takes {architecture.input}")
    if count < 2 * ZICO_PARTS:
        raise InputError(f"a minibatch of {count} images is too small; give {2 * ZICO_PARTS} or more")
    if int(minibatch.labels.max()) >= architecture.classes:
        raise InputError(
            f"the images have a class {int(minibatch.labels.max())}, the network has {architecture.classes} classes"
        )


@contextmanager
def _kept_random_state(seed: int, device: str) -> Iterator[None]:
    """Seed torch's global generators, from which a user's block may draw, and restore them."""
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        yield


def _training_copy(network: nn.Module) -> nn.Module:
    """A copy whose batch norm uses the minibatch's statistics and whose dropout is off."""
    copied = copy.deepcopy(network).train()
    for part in copied.modules():
        if isinstance(part, DROPOUTS):
            part.eval()
    return copied


def _run(network: nn.Module, images: Tensor) -> None:
    """Run a copy of the network forward."""
    with torch.no_grad():
        _training_copy(network)(images)


def _weights(network: nn.Module) -> list[nn.Parameter]:
    """The weights of convolutions and linear layers: every parameter with two dimensions or more."""
    return [parameter for parameter in network.parameters() if parameter.dim() > 1]


def _gradients(network: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    """The gradient of the cross-entropy of a minibatch for each weight; zeros for weights that are not used."""
    copied = _training_copy(network)
    weights = _weights(copied)
    with torch.enable_grad(), fast_tiny_maps(copied, images.device.type):
        loss = functional.cross_entropy(copied(images), labels)
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients, strict=True)]


def _linearize(network: nn.Module) -> None:
    """Make a network linear in its input, with weights |w|, no biases, and none of what bounds or normalizes values."""
    for part in network.modules():
        if isinstance(part, (*NORMS, *DROPOUTS, *RECTIFIERS, *ACTIVATIONS.values())):
            part.forward = _same
        elif isinstance(part, LocalResponseNorm):
            part.forward = part.project.forward
    for part in network.modules():
        if isinstance(part, SqueezeExcite):
            part.gate.forward = torch.ones_like
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_() if parameter.dim() > 1 else parameter.zero_()


def _same(x: Tensor) -> Tensor:
    """Return the input."""
    return x


class _Rectifiers(TorchDispatchMode):
    """Call `before` with the input and `after` with the output of every rectifier, a module's or a function's."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in RECTIFICATIONS:
            return func(*args, **(kwargs or {}))
        self.before(args[0])  # an operation in place overwrites it
        out = func(*args, **(kwargs or {}))
        self.after(out)
        return out

    def before(self, x: Tensor) -> None:
        """See an input, (batch, channels, ...)."""

    def after(self, x: Tensor) -> None:
        """See an output, (batch, channels, ...)."""


class _Codes(_Rectifiers):
    """Inner products of the codes of all pairs of images, with bits of 1 and -1, and the number of bits."""

    def __init__(self, images: int):
        super().__init__()
        self.products = torch.zeros(images, images, dtype=torch.double)
        self.units = 0

    def before(self, x: Tensor) -> None:
        """Add the bits of one rectifier."""
        signs = torch.where(x > 0, 1.0, -1.0).to(torch.float32).flatten(1)
        self.products += (signs @ signs.T).cpu().double()
        self.units += signs.shape[1]


class _Dimensions(_Rectifiers):
    """The sum over rectifiers of the logarithm of their outputs' participation ratio."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def after(self, x: Tensor) -> None:
        """Add one rectifier; one whose channels do not vary adds nothing."""
        rows = x.movedim(1, -1).flatten(0, -2).float()
        rows = rows - rows.mean(0)
        products = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows  # either has the covariance's traces
        trace, squares = (float(part) for part in (products.diagonal().sum(), products.square().sum()))
        self.total += math.log(trace**2 / squares) if squares > 0 else 0.0
