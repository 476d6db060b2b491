"""Which entries of a network's weights belong to one channel.

A channel of a feature map is made by some weights, scaled by others and read by more. A shortcut's addition makes two
channels one; a depthwise convolution keeps them; a concatenation, a split or a shuffle only moves them. A network is
run once on PyTorch's meta device. With every tensor goes a map of labels, a number for each channel: an operation that
only moves data is applied to the labels themselves.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nasspace.errors import InputError

aten = torch.ops.aten
MOVES = {  # operations that move elements, without computing
    *("view", "_unsafe_view", "reshape", "permute", "transpose", "clone", "slice", "cat", "split", "chunk", "select"),
    *(
        "expand",
        "squeeze",
        "unsqueeze",
        "flatten",
        "alias",
        "contiguous",
        "split_with_sizes",
        "detach",
        "_reshape_alias",
    ),
}
SPATIAL = {  # operations that change the map's size and keep its channels
    *(
        "max_pool2d_with_indices",
        "avg_pool2d",
        "_adaptive_avg_pool2d",
        "mean",
        "adaptive_avg_pool2d",
        "constant_pad_nd",
    ),
}
ELEMENTWISE = {  # operations on each element, whatever its channel
    *("relu", "hardtanh", "hardswish", "silu", "gelu", "elu", "leaky_relu", "sigmoid", "hardsigmoid", "tanh", "mish"),
    *("clamp", "clamp_min", "clamp_max", "neg", "abs", "pow", "sqrt", "exp", "softplus", "native_dropout", "_to_copy"),
}
JOINING = {"add", "mul", "sub", "div"}  # channel by channel, of two maps, or of a map and a number

Entry = tuple[str, int]  # a tensor of the network and one of its dimensions


@dataclass(frozen=True)
class Channel:
    """One channel: for each dimension of a tensor, the positions at which the channel stands there."""

    places: tuple[tuple[Entry, tuple[int, ...]], ...]

    @property
    def role(self) -> frozenset[tuple[Entry, int]]:
        """Where it stands and how often: channels of equal role can be exchanged."""
        return frozenset((entry, len(positions)) for entry, positions in self.places)


@dataclass(frozen=True)
class Channels:
    """The channels of a network, and those of its input and of each layer's output, by number."""

    all: tuple[Channel, ...]
    of_input: frozenset[int]
    of_layers: tuple[frozenset[int], ...]

    def by_role(self) -> dict[frozenset[tuple[Entry, int]], list[int]]:
        """The numbers of the channels of each role, in order."""
        found = defaultdict(list)
        for number, channel in enumerate(self.all):
            found[channel.role].append(number)
        return dict(found)


def channels(network: nn.Sequential, in_shape: tuple[int, int, int]) -> Channels:
    """Find the channels of a chain of blocks for an input of (C, H, W).

    Raises `InputError` for a block with an operation whose channels are not known.
    """
    model = copy.deepcopy(network).to("meta").eval()
    trace = _Trace(model)
    outputs = []
    with torch.no_grad(), trace:
        x = torch.empty(1, *in_shape, device="meta")
        trace.label(x, trace.new(in_shape[0]))
        outputs.append(x)
        for block in model:
            x = block(x)
            outputs.append(x)
    return trace.found([trace.labels[id(each)] for each in outputs])


class _Trace(TorchDispatchMode):
    """Follows the labels of channels through the operations of a network on the meta device.

    `labels` has the label tensor of each tensor of the run by id; all of them are kept alive, so that ids stay unique.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.names = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        self.labels: dict[int, Tensor] = {}
        self.alive: list[Tensor] = []
        self.parents: list[int] = []
        self.uses: dict[Entry, Tensor] = {}  # the labels along a dimension

    def new(self, count: int) -> Tensor:
        """Labels of new channels."""
        first = len(self.parents)
        self.parents += range(first, first + count)
        return torch.arange(first, first + count)

    def root(self, label: int) -> int:
        """The label that stands for all that were joined with this one."""
        while self.parents[label] != label:
            self.parents[label] = label = self.parents[self.parents[label]]
        return label

    def join(self, some: Tensor, others: Tensor) -> None:
        """Make channels one, pair by pair."""
        for one, other in zip(some.tolist(), others.tolist(), strict=True):
            first, second = sorted((self.root(one), self.root(other)))
            self.parents[second] = first

    def label(self, x: Tensor, vector: Tensor) -> None:
        """Label a map (1, C, ...) by channel."""
        self.alive.append(x)
        self.labels[id(x)] = vector.view(1, -1, *[1] * (x.dim() - 2)).expand(x.shape)

    def vector(self, x: Tensor) -> Tensor:
        """The labels of a map's channels (C,)."""
        full = self.labels[id(x)]
        return full.reshape(*full.shape[:2], -1)[0, :, 0]

    def use(self, weight: Tensor | None, dimension: int, vector: Tensor) -> None:
        """Note whose channels a dimension of a tensor of the network holds; a second use joins them."""
        if weight is None:
            return
        entry = (self.names[id(weight)], dimension)
        if entry in self.uses:
            self.join(self.uses[entry], vector)
        self.uses[entry] = vector

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.removesuffix("_")
        inputs = [each for each in _tensors(args) if id(each) in self.labels]
        if not inputs:
            if isinstance(out, Tensor) and len(args) and id(args[0]) in self.names:  # a linear layer's weight.t()
                self.names[id(out)] = self.names[id(args[0])]
                self.alive.append(out)
            return out
        handler: Callable[..., None] | None = getattr(self, f"_{name.strip('_')}", None)
        if handler:
            handler(out, *args)
        elif name in MOVES:
            move = torch.reshape if name in ("view", "_unsafe_view") else func
            moved = move(*_replaced(args, self.labels), **(kwargs or {}))
            for one, labels in zip(_tensors([out]), _tensors([moved]), strict=True):
                self.alive.append(one)
                self.labels[id(one)] = labels
        elif name in SPATIAL | ELEMENTWISE | JOINING and len(inputs) <= 2:
            for other in inputs[1:]:
                self.join(self.vector(inputs[0]), self.vector(other))
            self.label(out[0] if isinstance(out, tuple) else out, self.vector(inputs[0]))
        else:
            raise InputError(f"the operation {name} mixes channels in a way that pruning does not know")
        return out

    def _convolution(self, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *others: Any) -> None:
        """A convolution makes new channels; a depthwise one keeps them; groups must stay equally wide."""
        groups, source = others[-1], self.vector(x)
        if groups == len(source) == len(weight):
            made = source
        else:
            made = self.new(len(weight))
            self.use(weight, 1, self._as_one_group(source, groups))
            self._as_one_group(made, groups)
        self.use(weight, 0, made)
        self.use(bias, 0, made)
        self.label(out, made)

    def _as_one_group(self, vector: Tensor, groups: int) -> Tensor:
        """Join the channels at one position of every group."""
        first, *rest = vector.view(groups, -1)
        for group in rest:
            self.join(first, group)
        return first

    def _native_batch_norm_legit_no_training(self, out: Any, x: Tensor, *others: Any) -> None:
        """Batch norm: weight, bias, mean and variance by channel."""
        for tensor in others[:4]:
            self.use(tensor, 0, self.vector(x))
        self.label(out[0], self.vector(x))

    _native_batch_norm = _cudnn_batch_norm = _native_batch_norm_legit_no_training

    def _addmm(self, out: Tensor, bias: Tensor, x: Tensor, weight: Tensor) -> None:
        """A linear layer: x (1, in) times weight.t() (in, out)."""
        made = self.new(weight.shape[1])
        self.use(weight, 1, self.vector(x))
        self.use(weight, 0, made)
        self.use(bias, 0, made)
        self.label(out, made)

    def _mm(self, out: Tensor, x: Tensor, weight: Tensor) -> None:
        """A linear layer without a bias."""
        made = self.new(weight.shape[1])
        self.use(weight, 1, self.vector(x))
        self.use(weight, 0, made)
        self.label(out, made)

    def found(self, outputs: Sequence[Tensor]) -> Channels:
        """The channels after the run; `outputs` are the labels of the input and of the layers' outputs."""
        places: dict[int, dict[Entry, list[int]]] = defaultdict(lambda: defaultdict(list))
        for entry, vector in sorted(self.uses.items()):
            for position, label in enumerate(vector.tolist()):
                places[self.root(label)][entry].append(position)
        roots = sorted(places)
        numbers = {root: number for number, root in enumerate(roots)}
        made = (
            Channel(tuple((entry, tuple(positions)) for entry, positions in sorted(places[root].items())))
            for root in roots
        )
        of_input, *layers = (
            frozenset(
                numbers[root] for label in set(labels.flatten().tolist()) if (root := self.root(label)) in numbers
            )
            for labels in outputs
        )
        return Channels(tuple(made), of_input, tuple(layers))


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among arguments, also in lists."""
    found = []
    for value in values:
        found += _tensors(value) if isinstance(value, list | tuple) else [value] if isinstance(value, Tensor) else []
    return found


def _replaced(values: Any, labels: dict[int, Tensor]) -> Any:
    """Arguments with each tensor replaced by its labels."""
    return type(values)(
        _replaced(value, labels)
        if isinstance(value, list | tuple)
        else labels[id(value)]
        if isinstance(value, Tensor)
        else value
        for value in values
    )


def kept_channels(before: Channels, after: Channels, importance: Sequence[float]) -> list[int] | None:
    """For each channel of a smaller network, the channel of the larger one that it keeps: the most important of a role.

    The order of the channels stays. None if a role of the smaller network has more channels than in the larger one:
    their functions differ in more than widths.
    """
    larger, smaller = before.by_role(), after.by_role()
    if any(len(numbers) > len(larger.get(role, ())) for role, numbers in smaller.items()):
        return None
    kept = [0] * len(after.all)
    for role, numbers in smaller.items():
        best = sorted(larger[role], key=lambda number: -importance[number])[: len(numbers)]
        for number, chosen in zip(numbers, sorted(best), strict=True):
            kept[number] = chosen
    return kept


def selected(
    state: dict[str, Tensor], shapes: dict[str, torch.Size], before: Channels, after: Channels, kept: Sequence[int]
) -> dict[str, Tensor]:
    """The weights of the kept channels, of the given shapes."""
    index = {name: [torch.arange(size) for size in shape] for name, shape in shapes.items()}
    for number, channel in enumerate(after.all):
        old = dict(before.all[kept[number]].places)
        for (name, dimension), positions in channel.places:
            index[name][dimension][list(positions)] = torch.tensor(old[name, dimension])
    result = {}
    for name, tensor in state.items():
        for dimension, positions in enumerate(index[name]):
            tensor = tensor.index_select(dimension, positions)
        result[name] = tensor
    return result
