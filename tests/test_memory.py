"""Peak memory equals brute force, placements in an arena, and ONNX Runtime; flash equals the files that ship."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy
import onnx
import pytest
import torch
from torch import Tensor, nn

from nasspace import blocks, counting, zoo
from nasspace.architecture import Architecture, Layer
from nasspace.latency.convert import to_onnx
from nasspace.latency.quantization import digit_images, to_int8
from nasspace.memory import Lifetimes, Step, peak
from nasspace.network import build, fold, make_block

MEASURED = ("mobilenet_v2_1.0", "se_resnet50", "shufflenet_v1_g8_0.5", "squeezenet_1.0_bypass", "mobilenext_1.0")
SHIPPED = (
    "mobilenet_v2_0.35",
    "shufflenet_v2_0.5",
    "squeezenet_1.1",
    "mobilenet_v3_small_0.75",
    "mnasnet_small",
    "mobileone_s0",
)


def random_graph(rng: random.Random) -> tuple[list[int], list[Step]]:
    """A graph of two to six operations: with one input, in place, with two inputs, or with two outputs."""
    sizes, steps = [rng.randint(1, 6)], []
    for _ in range(rng.randint(2, 6)):
        kind, tensors = rng.random(), list(range(len(sizes)))
        source = rng.choice(tensors[-2:])
        if kind < 0.3:
            written, reads = [rng.randint(1, 6)], (source,)
        elif kind < 0.6:
            written, reads = [sizes[source]], (source,)
        elif kind < 0.85:
            reads = tuple(rng.sample(tensors, min(2, len(tensors))))
            written = [rng.choice([sum(sizes[tensor] for tensor in reads), sizes[source]])]
        else:
            written, reads = [rng.randint(1, 3), rng.randint(1, 3)], (source,)
        steps.append(Step(reads, tuple(range(len(sizes), len(sizes) + len(written))), 0.3 <= kind < 0.6))
        sizes += written
    return sizes, steps


def smallest_arena(sizes: Sequence[int], steps: Sequence[Step], inputs: set[int], outputs: set[int]) -> int:
    """The smallest arena, by trying every choice of what is written in place and every placement."""
    first, last = dict.fromkeys(inputs, 0), dict.fromkeys(inputs, 0)
    for time, step in enumerate(steps, 1):
        first |= dict.fromkeys(step.writes, time)
        last |= dict.fromkeys((*step.writes, *step.reads), time)
    last |= dict.fromkeys(outputs, len(steps) + 1)
    choices = [
        [
            (tensor, source)
            for source in (None, *step.reads)
            if source is None or (step.in_place and last[source] == time and sizes[source] == sizes[tensor])
        ]
        for time, step in enumerate(steps, 1)
        for tensor in step.writes
    ]
    best = sum(sizes)
    for choice in itertools.product(*choices):
        root = {tensor: tensor for tensor in first}
        for tensor, source in choice:  # in the order of execution
            root[tensor] = tensor if source is None else root[source]
        spans: dict[int, tuple[int, int]] = {}
        for tensor, start in first.items():
            begin, end = spans.get(root[tensor], (start, 0))
            spans[root[tensor]] = (min(begin, start), max(end, last[tensor]))
        best = min(best, smallest_placement(spans, sizes))
    return best


def smallest_placement(spans: dict[int, tuple[int, int]], sizes: Sequence[int]) -> int:
    """The smallest top of all placements of tensors that exist during `spans`; two that overlap in time may not touch.

    Ends early at a placement no larger than what exists at one time, below which there is none.
    """
    times = {time for span in spans.values() for time in span}
    least = max(sum(sizes[t] for t, (a, b) in spans.items() if a <= time <= b) for time in times)
    best = sum(sizes[tensor] for tensor in spans) + 1

    def place(left: list[int], placed: dict[int, int], top: int) -> None:
        nonlocal best
        if top >= best or best == least:
            return
        if not left:
            best = top
        for tensor in left:
            begin, end = spans[tensor]
            busy = [(at, at + sizes[t]) for t, at in placed.items() if spans[t][0] <= end and begin <= spans[t][1]]
            for at in {0, *(high for _, high in busy)}:
                if all(high <= at or at + sizes[tensor] <= low for low, high in busy):
                    rest = [other for other in left if other != tensor]
                    place(rest, {**placed, tensor: at}, max(top, at + sizes[tensor]))

    place(list(spans), {}, 0)
    return best


@pytest.mark.parametrize("seeds", [range(start, start + 50) for start in range(0, 200, 50)], ids=str)
def test_peak_is_the_smallest_arena_of_random_graphs(seeds: range):
    for seed in seeds:
        sizes, steps = random_graph(random.Random(seed))
        outputs = set(range(len(sizes))) - {tensor for step in steps for tensor in step.reads}
        assert peak(sizes, steps, {0}, outputs) == smallest_arena(sizes, steps, {0}, outputs), seed


def whole(architecture: Architecture) -> tuple[Lifetimes, int]:
    """The operations of a whole network, and the number of its output."""
    recorder = counting._Recorder()
    chain, shape = [], architecture.input
    for layer in architecture.layers:
        with counting.OnMeta():
            channels = math.prod(shape) if blocks.get(layer.block).flattens else shape[0]
            chain.append(fold(make_block(layer, channels).eval()))
        for part in chain[-1].modules():
            if type(part) in counting.UNCOUNTED:
                part.forward = recorder.stand_in(part)
        shape = counting.layer_cost(layer, shape).out_shape
    x = torch.empty(1, *architecture.input, device="meta")
    recorder.lifetimes.start(x)
    with torch.no_grad(), recorder, counting._FastConvolutions(recorder):
        for block in chain:
            x = block(x)
    return recorder.lifetimes, recorder.lifetimes._numbers[id(x)]


@pytest.mark.parametrize("family", sorted({name.partition("_")[0] for name in zoo.names()}))
def test_every_published_network_fits_an_arena_of_its_peak(family: str):
    for name in zoo.names():
        if name.partition("_")[0] == family:
            architecture = zoo.load(name)
            lifetimes, out = whole(architecture)
            counted = counting.cost(architecture).peak_memory_int8  # a byte an element
            assert counted == peak(lifetimes.sizes, lifetimes.steps, {0}, {out})
            assert fits(lifetimes.sizes, lifetimes.steps, {out}, counted), name


def fits(sizes: Sequence[int], steps: Sequence[Step], outputs: set[int], arena: int) -> bool:
    """Whether the tensors fit into an arena: the largest first, each at the lowest free place; then other orders."""
    last = {tensor: time for time, step in enumerate(steps) for tensor in (*step.writes, *step.reads)}
    last |= dict.fromkeys(outputs, len(steps))
    spans, root = {0: (-1, last[0])}, {0: 0}
    for time, step in enumerate(steps):
        for tensor in step.writes:
            source = step.reads[0]
            shares = step.in_place and last[source] == time and sizes[source] == sizes[tensor]
            root[tensor] = root[source] if shares else tensor
            begin, end = spans.get(root[tensor], (time, time))
            spans[root[tensor]] = (begin, max(end, last[tensor]))
    order = sorted(spans, key=lambda tensor: -sizes[tensor])
    rng, lowest = random.Random(0), top_of(order, spans, sizes)
    for _ in range(1000):
        if lowest <= arena:
            return True
        other = order.copy()
        other.insert(rng.randrange(30), other.pop(rng.randrange(min(30, len(order)))))
        if (top := top_of(other, spans, sizes)) <= lowest:
            order, lowest = other, top
    return False


def top_of(order: Sequence[int], spans: dict[int, tuple[int, int]], sizes: Sequence[int]) -> int:
    """The size of the arena if each tensor in turn takes the lowest free place."""
    placed: list[tuple[int, int]] = []
    for tensor in order:
        begin, end = spans[tensor]
        at = 0
        for low, high in sorted((a, a + sizes[t]) for t, a in placed if spans[t][0] <= end and begin <= spans[t][1]):
            if at + sizes[tensor] <= low:
                break
            at = max(at, high)
        placed.append((tensor, at))
    return max(at + sizes[tensor] for tensor, at in placed)


@pytest.mark.parametrize("name", MEASURED)
def test_peak_is_what_onnx_runtime_holds(name: str, tmp_path: Path):
    """With the graph as exported, and each tensor freed after its last reader."""
    import onnxruntime

    architecture = zoo.load(name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    options.enable_mem_pattern = options.enable_mem_reuse = False
    path = to_onnx(build(architecture), architecture.input, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    session.run(None, {"input": numpy.zeros((1, *architecture.input), numpy.float32)})
    events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [event["args"] for event in sorted(events, key=lambda event: event["ts"]) if event["cat"] == "Node"]
    if "mem_bytes_requested_in_use" not in nodes[0]:
        pytest.skip("this ONNX Runtime does not report its memory")
    before = int(nodes[0]["mem_bytes_requested_in_use"]) - int(nodes[0]["mem_requested_in_use_delta"])
    held = [int(node["mem_bytes_requested_in_use"]) - before for node in nodes]
    held[0] += 4 * math.prod(architecture.input)  # the image is the caller's, and the first node reads it
    assert max(held) == counting.cost(architecture).peak_memory


@pytest.mark.parametrize("name", SHIPPED)
def test_flash_is_what_the_files_hold(name: str, tmp_path: Path):
    architecture = zoo.load(name).with_resolution(64)
    network, rng = build(architecture), torch.Generator().manual_seed(0)
    for values in network.parameters():  # the exporter stores equal biases once
        if values.dim() == 1:
            values.data.normal_(generator=rng)
    counted = counting.cost(architecture)
    path = to_onnx(network, architecture.input, tmp_path / "model.onnx")
    assert sum(array.nbytes for array in weights(path)) == counted.flash
    int8 = to_int8(path, tmp_path / "int8.onnx", digit_images(architecture.input, 4))
    shipped = sum(array.nbytes for array in weights(int8) if array.size > 1)  # without the scales of the activations
    assert shipped == pytest.approx(counted.flash_int8, rel=0.002)


def weights(path: Path) -> list[numpy.ndarray]:
    """The weights in an ONNX file, without the shapes of reshapes."""
    arrays = [onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer]
    return [array for array in arrays if array.dtype != numpy.int64]


class Preactivated(nn.Module):
    """Batch norm, ReLU, convolution, and the input added: the activation cannot write over the input."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(in_channels), nn.ReLU(), nn.Conv2d(in_channels, out_channels, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def test_an_activation_before_a_convolution_needs_a_copy_of_the_shortcut():
    layer = counting.layer_cost(_layer(Preactivated), (8, 4, 4))
    tensors = 3  # input, activated copy, output of the convolution; then input, output, sum
    assert layer.peak_memory == 4 * tensors * 8 * 4 * 4
    assert layer.flash == 4 * (8 * 8 + 4 * 8)  # the batch norm cannot be folded: scale, shift, mean, variance


class Split(nn.Module):
    """Two halves of the channels, exchanged."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        return torch.cat([second, first.flatten(2).relu().reshape(first.shape)], 1)


def test_splits_and_concatenations_copy_and_views_do_not():
    assert counting.layer_cost(_layer(Split), (8, 4, 4)).peak_memory == 4 * 2 * 8 * 4 * 4


class InPlace(nn.Module):
    """A shortcut that is added in place, and a batch norm without parameters, as people write them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, in_place: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, affine=False)
        self.relu = nn.ReLU(inplace=in_place)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv(x))
        if self.in_place:
            out += x
        else:
            out = out + x
        return self.relu(out)


def test_operations_in_place_count_as_in_onnx():
    plain, in_place = (counting.layer_cost(_layer(InPlace, in_place=each), (8, 4, 4)) for each in (False, True))
    assert plain.peak_memory == in_place.peak_memory == 4 * 3 * 8 * 4 * 4
    assert plain.flash == in_place.flash == 4 * (8 * 8 + 8)


class Attention(nn.Module):
    """A product of two activations, which is no weight."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.conv(x).flatten(2)
        return (torch.bmm(rows, rows.transpose(1, 2)) @ rows).reshape(x.shape)


def test_a_product_of_activations_is_no_weight():
    assert counting.layer_cost(_layer(Attention), (8, 4, 4)).flash_int8 == 8 * 8 + 8 * (5 + 12)


def _layer(block: type[nn.Module], **options: bool) -> Layer:
    """A layer of a block that is written here."""
    blocks.register(f"memory_{block.__name__.lower()}", block)
    return Layer(f"memory_{block.__name__.lower()}", out=8, options=options)
