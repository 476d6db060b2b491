"""Peak memory of a network's tensors, from the order in which its operations read and write them.

A network runs one operation at a time. A tensor takes memory from the operation that writes it until the last one that
reads it; the input image counts from the start, the output to the end. Batch norm and activations write over their
input if nothing reads it later; every other operation writes a new tensor, additions and multiplications too, as in
ONNX Runtime and TensorFlow Lite Micro. The peak is the largest sum of the sizes of the tensors that exist at one time.
No arena can be smaller, and for every network of the zoo the tensors fit into one of exactly this size
(`tests/test_memory.py`). Not counted are weights, and the scratch memory of single operations, such as a convolution's
unfolded input: it depends on the runtime.

The operations are those of the network as it ships: batch norm is folded into the convolution before it, an activation
is one operation, views (reshape, flatten) cost nothing, splits, transpositions and concatenations copy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

aten = torch.ops.aten
VIEWS = {  # the output is the input in another shape
    *(aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten._reshape_alias.default),
    *(aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.expand.default),
    *(aten.alias.default, aten.detach.default, aten.clone.default, aten.lift_fresh.default),
    # A clone makes a transposed tensor contiguous; the transposition itself is counted as the copy.
}
NORMS = {
    *(aten.native_batch_norm.default, aten._native_batch_norm_legit_no_training.default),
    *(aten.cudnn_batch_norm.default, aten._native_batch_norm_legit.default),
}
UNTAGGED = {aten.hardswish.default, aten.hardswish_.default}  # element-wise, but PyTorch does not mark them


@dataclass(frozen=True)
class Step:
    """One operation: the tensors that it reads and writes, by number.

    `in_place` says that its only result may take the place of a tensor of the same size that nothing reads later.
    """

    reads: tuple[int, ...]
    writes: tuple[int, ...]
    in_place: bool = False


def peak(sizes: Sequence[int], steps: Sequence[Step], inputs: Collection[int], outputs: Collection[int]) -> int:
    """The largest sum of the sizes of the tensors that exist at one time.

    `sizes` has the size of each tensor. `inputs` exist before the first step, `outputs` after the last one. A tensor
    that nothing reads exists during the step that writes it only.

    >>> peak([4, 8, 8, 2], [Step((0,), (1,)), Step((1,), (2,), in_place=True), Step((2,), (3,))], {0}, {3})
    12
    """
    last = {tensor: i for i, step in enumerate(steps) for tensor in (*step.writes, *step.reads)}
    last |= dict.fromkeys(outputs, len(steps))
    alive = {tensor for tensor in inputs if tensor in last}
    most = held = sum(sizes[tensor] for tensor in alive)
    for i, step in enumerate(steps):
        during = held + sum(sizes[tensor] for tensor in step.writes)
        dying = {tensor for tensor in step.reads if last[tensor] == i}
        if step.in_place and sizes[step.writes[0]] in {sizes[tensor] for tensor in dying}:
            during -= sizes[step.writes[0]]
        most = max(most, during)
        alive = {tensor for tensor in (*alive, *step.writes) if last[tensor] > i}
        held = sum(sizes[tensor] for tensor in alive)
    return most


class Lifetimes:
    """The steps of one run of a module, recorded operation by operation; sizes are elements of one image."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.steps: list[Step] = []
        self.channels: dict[int, int] = {}  # of the tensors that convolutions and linear layers write
        self.biased: set[int] = set()  # those of them that have a bias
        self.norms: list[tuple[int, int, int]] = []  # of each batch norm: channels, parameters, the tensor it reads
        self._numbers: dict[int, int] = {}
        self._kept: list[Tensor] = []  # Python may give the id of a tensor that is gone to a new one

    def start(self, source: Tensor) -> None:
        """Take the input of the module."""
        self._new(source)

    def record(self, sources: Iterable[Tensor], outs: Iterable[Tensor], *, in_place: bool = False) -> None:
        """Record an operation; tensors that do not depend on the input (weights) take no part."""
        reads = tuple(dict.fromkeys(self._numbers[id(one)] for one in sources if id(one) in self._numbers))
        if reads:
            self.steps.append(Step(reads, tuple(self._new(one) for one in outs), in_place))

    def view(self, source: Tensor, out: Tensor) -> None:
        """Record an output that is its input in another shape."""
        number = self._numbers.get(id(source))
        if number is not None:
            self._name(out, number)

    def weighted(self, source: Tensor, weight: Tensor, out: Tensor, biased: bool) -> None:
        """Record a convolution or a linear layer."""
        self.record([source, weight], [out])
        if id(out) in self._numbers and id(weight) not in self._numbers:  # not a product of two activations
            number = self._numbers[id(out)]
            self.channels[number] = out.shape[1]
            if biased:
                self.biased.add(number)

    def norm(self, source: Tensor, out: Tensor, parameters: int) -> None:
        """Record a batch norm with so many parameters: two a channel, or none."""
        number = self._numbers.get(id(source))
        self.record([source], [out], in_place=True)
        if number is not None:
            self.norms.append((source.shape[1], parameters, number))

    def operation(self, func: torch._ops.OpOverload, args: Sequence[object], out: object) -> None:
        """Record an operation of PyTorch without a weight of its own."""
        sources = [one for part in args for one in (part if isinstance(part, list | tuple) else [part])]
        tensors = [one for one in sources if isinstance(one, Tensor)]
        outs = [one for one in (out if isinstance(out, list | tuple) else [out]) if isinstance(one, Tensor)]
        if not tensors or not outs:  # a number, or a tensor from nothing
            return
        if func in NORMS:
            self.norm(tensors[0], outs[0], sum(one.numel() for one in args[1:3] if isinstance(one, Tensor)))
        elif func in VIEWS:
            self.view(tensors[0], outs[0])
        else:  # PyTorch's own operations in place, too: ONNX has none
            several = outs if isinstance(out, list) else outs[:1]  # a tuple's others are indices, which ONNX leaves out
            unary = len({id(one) for one in tensors}) == 1
            is_elementwise = torch.Tag.pointwise in func.tags or func in UNTAGGED
            self.record(tensors, several, in_place=unary and is_elementwise)

    def peak(self, out: Tensor) -> int:
        """The peak in elements, of the module's input, output, and all tensors between them."""
        return peak(self.sizes, self.steps, {0}, {self._numbers[id(out)]} if id(out) in self._numbers else ())

    def vectors(self) -> tuple[int, int]:
        """What batch norms add to the vectors that ship, in values, and the channels that ship with a bias.

        A batch norm that alone reads a convolution's output becomes the convolution's bias; another one ships a scale,
        a shift, a mean and a variance. Its own parameters count with the block's, which the first figure corrects for.
        """
        readers = Counter(tensor for step in self.steps for tensor in step.reads)
        added, with_bias = 0, set(self.biased)
        for channels, parameters, source in self.norms:
            if source not in self.channels or readers[source] != 1:
                added += 4 * channels - parameters
                continue
            added -= parameters if source in with_bias else parameters - channels
            with_bias.add(source)
        return added, sum(self.channels[number] for number in with_bias)

    def _new(self, tensor: Tensor) -> int:
        """Number a tensor that an operation writes."""
        self.sizes.append(tensor.numel())
        self._name(tensor, len(self.sizes) - 1)
        return len(self.sizes) - 1

    def _name(self, tensor: Tensor, number: int) -> None:
        self._numbers[id(tensor)] = number
        self._kept.append(tensor)
