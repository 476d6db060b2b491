"""Compare published networks with their originals: with equal weights, layer by layer, outputs must be equal.

    python benchmarks/originals.py FOLDER [NAME...]

needs torchvision, timm, pytorchcv and pytest, and in FOLDER the official code where those three do not have it:
ShuffleNetV1/ and ShuffleNetV2/ (blocks.py, network.py) of megvii-model/ShuffleNet-Series, and MobileNeXt/mnext.py of
yitu-opensource/MobileNeXt. Prints one row a network:

    epsilon      if an original's differs from ours, it is set to ours; the difference without that follows
    difference   the largest one of an output, relative to the largest output, also after re-parameterized blocks are
                 folded
    exchanged    the same with all activations of one kind exchanged (ReLU6 for ReLU, ...), smallest over the kinds
    in order     whether layers are registered in the same order, so that checkpoints can be loaded by position

The exit status is 1 if a difference is above 1e-4, or if an exchange would not be detected.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from nasspace import InputError, build, zoo
from nasspace.latency.convert import deployed

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import test_values as values


@dataclass(frozen=True)
class Pair:
    """A network of the zoo and its original.

    `late` names the parts that run before their unit's other layers in the original and after them in ours; `scale` is
    that of the image, `options` those of the zoo.
    """

    name: str
    source: str
    original: Callable[[], nn.Module]
    resolution: int = 64
    late: str = ""
    scale: float = 1.0
    options: dict[str, float] = field(default_factory=dict)


def executed(network: nn.Module, image: Tensor, late: str = "") -> list[nn.Module]:
    """The convolutions, batch norms and linear layers in the order in which they run, but for `late` as in `Pair`."""
    names = {part: name for name, part in network.named_modules()}
    found = values.executed(network, image)
    assert len(set(found)) == len(found), "a layer runs twice"
    for unit in dict.fromkeys(names[part].partition(late)[0] for part in found if late and late in names[part]):
        moved = [part for part in found if names[part].startswith(unit + late)]
        found = [part for part in found if part not in moved]
        end = max(i for i, part in enumerate(found) if names[part].startswith(unit)) + 1
        found[end:end] = moved
    return found


def fill(network: nn.Module, image: Tensor, seed: int) -> None:
    """Random weights and statistics at which every layer counts and activations are on both sides of their limits."""
    rng = torch.Generator().manual_seed(seed)
    for part in network.modules():
        if isinstance(part, values.LEAVES):
            randomise(part, rng)
    values.level(network, image)


def randomise(layer: nn.Module, rng: torch.Generator) -> None:
    """One layer's weights, and the statistics of a batch norm."""

    def normal(like: Tensor, deviation: float = 1.0) -> Tensor:
        return deviation * torch.randn(like.shape, generator=rng)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=rng)

    if isinstance(layer, nn.BatchNorm2d):
        layer.weight.data, layer.bias.data = uniform(layer.weight, 1, 3), normal(layer.bias, 0.5)
        layer.running_mean, layer.running_var = normal(layer.bias, 0.3), uniform(layer.bias, 0.5, 1.5)
        return
    layer.weight.data = normal(layer.weight)
    if layer.bias is not None:
        layer.bias.data = normal(layer.bias, 0.3 * layer.weight[0].numel() ** 0.5)


def copy(source: nn.Module, target: nn.Module) -> None:
    """All values of one layer; a 1x1 convolution and a linear layer are one."""
    given, places = source.state_dict(), target.state_dict()
    shapes = [{key: value.squeeze().shape for key, value in state.items()} for state in (given, places)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{source} is not {target}")
    for key, value in given.items():
        places[key].copy_(value.reshape(places[key].shape))


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest one, as a share of the largest output."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def parameters(network: nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


@torch.no_grad()
def compared(pair: Pair, seed: int = 0) -> tuple[list[str], bool]:
    """A row of the table, and whether it is as it should be."""
    arch = zoo.load(pair.name, resolution=pair.resolution, **pair.options)
    image = pair.scale * torch.randn(2, *arch.input, generator=torch.Generator().manual_seed(seed))
    ours, theirs = build(arch).eval(), pair.original().eval()
    fill(theirs, image, seed)
    steps = matched(ours, theirs, image, pair.late)
    for mine, original in steps:
        copy(original, mine)
    result, as_it_is = ours(image), theirs(image)
    epsilon = same_epsilons(steps)
    expected = theirs(image)
    found = max(difference(out, expected) for out in (result, deployed(ours)(image)))
    least = least_exchanged(ours, image, expected)
    equal = parameters(ours) == parameters(theirs)
    options = "".join(f", {key} {value:.3g}" for key, value in pair.options.items())
    row = [
        pair.name + options,
        pair.source,
        f"{epsilon} (else {difference(result, as_it_is):.0e})" if epsilon else "as ours",
        "yes" if equal else "NO",
        f"{found:.1e}",
        f"{least:.1e}",
        "yes" if set(registered(ours, theirs)) == {(id(mine), id(original)) for mine, original in steps} else "no",
    ]
    return row, equal and found < values.TOLERANCE < least


def least_exchanged(network: nn.Module, image: Tensor, expected: Tensor) -> float:
    """The smallest difference that the exchange of one kind of activation makes."""
    kinds = values.OTHERS.keys() & {type(part) for part in network.modules()}
    return min(difference(values.with_other_activation(network, kind)(image), expected) for kind in kinds)


def matched(ours: nn.Module, theirs: nn.Module, image: Tensor, late: str) -> list[tuple[nn.Module, nn.Module]]:
    """Our layers and the original's, in the order in which ours run."""
    steps, originals = executed(ours, image), executed(theirs, image, late)
    if len(steps) != len(originals):
        raise ValueError(f"{len(steps)} layers, {len(originals)} in the original")
    return list(zip(steps, originals, strict=True))


def registered(ours: nn.Module, theirs: nn.Module) -> list[tuple[int, int]]:
    """The layers' identities in the order of `modules()`, as a checkpoint has them."""
    orders = ([id(part) for part in network.modules() if isinstance(part, values.LEAVES)] for network in (ours, theirs))
    return list(zip(*orders, strict=True))


def same_epsilons(steps: list[tuple[nn.Module, nn.Module]]) -> str:
    """Give the original's batch norms our epsilon, and say so."""
    changed = set()
    for mine, original in steps:
        if isinstance(mine, nn.BatchNorm2d) and mine.eps != original.eps:
            changed.add(f"{original.eps:g} set to {mine.eps:g}")
            original.eps = mine.eps
    return ", ".join(sorted(changed))


def main(folder: str, *names: str) -> None:
    from originals_list import pairs

    torch.set_num_threads(1)  # threads that wait for each other make small layers many times slower
    good = True
    print(" | ".join(["network", "original", "epsilon", "parameters equal", "difference", "exchanged", "in order"]))
    for pair in pairs(Path(folder)):
        if not names or pair.name in names:
            try:
                row, fine = compared(pair)
            except (ValueError, RuntimeError, InputError) as error:
                row, fine = [pair.name, pair.source, str(error)], False
            good &= fine
            print(" | ".join(row), "" if fine else "<- WRONG", flush=True)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
