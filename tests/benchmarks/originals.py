"""The published networks by value: weights put into an original and into ours, layer by layer, give one output.

    python tests/benchmarks/originals.py FOLDER [NAME...]

needs torchvision, timm and pytorchcv, and in FOLDER the official code where those three do not have it:
ShuffleNetV1/ and ShuffleNetV2/ (blocks.py, network.py) of megvii-model/ShuffleNet-Series, and MobileNeXt/mnext.py of
yitu-opensource/MobileNeXt. Prints one row a network; ends with 1 if a difference is above 1e-4 of the largest output,
or if the same weights with other activations would not have shown.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nasspace import InputError, build, zoo

TOLERANCE = 1e-4
LEAVES = nn.Conv2d | nn.BatchNorm2d | nn.Linear
OTHERS = {  # what counting cannot tell from it
    nn.ReLU6: nn.ReLU,
    nn.Hardswish: nn.SiLU,
    nn.Hardsigmoid: nn.Sigmoid,
    nn.Sigmoid: nn.Hardsigmoid,
    nn.ReLU: nn.ReLU6,
}


@dataclass(frozen=True)
class Pair:
    """A network of the zoo and its original. `late` names the parts of the original that run in front of their unit's
    other layers, and in ours behind them; `scale` is that of the image, `options` those of the zoo.
    """

    name: str
    source: str
    original: Callable[[], nn.Module]
    resolution: int = 64
    late: str = ""
    scale: float = 1.0
    options: dict[str, float] = field(default_factory=dict)


def executed(network: nn.Module, image: Tensor, late: str = "") -> list[tuple[str, nn.Module]]:
    """The convolutions, batch norms and linear layers in the order in which they run, by name."""
    names, found, handles = {part: name for name, part in network.named_modules()}, [], []
    for part in network.modules():
        if isinstance(part, LEAVES):
            handles.append(part.register_forward_hook(lambda part, *_: found.append((names[part], part))))
    with torch.no_grad():
        network(image)
    for handle in handles:
        handle.remove()
    assert len(dict(found)) == len(found), "a layer runs twice"
    for unit in dict.fromkeys(name.partition(late)[0] for name, _ in found if late and late in name):
        moved = [pair for pair in found if pair[0].startswith(unit + late)]
        found = [pair for pair in found if pair not in moved]
        end = max(i for i, (name, _) in enumerate(found) if name.startswith(unit)) + 1
        found[end:end] = moved
    return found


def fill(network: nn.Module, image: Tensor, seed: int) -> None:
    """Random weights and statistics at which every layer counts and every limit of an activation is passed: the outputs
    of a convolution have deviation 1, or 3 in a network without batch norm, which then scales by 1 to 3 itself.
    """
    rng = torch.Generator().manual_seed(seed)
    aim = 1 if any(isinstance(part, nn.BatchNorm2d) for part in network.modules()) else 3

    def normal(like: Tensor, mean: float, deviation: float) -> Tensor:
        return mean + deviation * torch.randn(like.shape, generator=rng)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=rng)

    def scaled(part: nn.Module, _: Any, out: Tensor) -> Tensor:
        scale = aim / out.std() if out.std() > 0 else torch.ones(())
        part.weight.data *= scale
        return out * scale

    handles, biased = [], []
    for part in (part for part in network.modules() if isinstance(part, LEAVES)):
        if isinstance(part, nn.BatchNorm2d):
            part.weight.data, part.bias.data = uniform(part.weight, 1, 3), normal(part.bias, 0, 0.5)
            part.running_mean, part.running_var = normal(part.bias, 0, 0.3), uniform(part.bias, 0.5, 1.5)
            continue
        part.weight.data = normal(part.weight, 0, 1)
        handles.append(part.register_forward_hook(scaled))
        if part.bias is not None:
            part.bias.data.zero_()
            biased.append(part.bias)
    with torch.no_grad():
        network(image)
    for handle in handles:
        handle.remove()
    for bias in biased:
        bias.data = normal(bias, 0, 0.3)


def copy(source: nn.Module, target: nn.Module) -> None:
    """All values of one layer; a 1x1 convolution and a linear layer are one."""
    values, places = source.state_dict(), target.state_dict()
    shapes = [{key: value.squeeze().shape for key, value in state.items()} for state in (values, places)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{source} is not {target}")
    for key, value in values.items():
        places[key].copy_(value.reshape(places[key].shape))


def exchanged(network: nn.Module) -> nn.Module:
    """The network with every activation another one that has the same counts."""
    for part in list(network.modules()):
        for name, child in part.named_children():
            if type(child) in OTHERS:
                setattr(part, name, OTHERS[type(child)]())
    return network


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest one, as a share of the largest output."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def parameters(network: nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


def compared(pair: Pair, seed: int = 0) -> tuple[list[str], bool]:
    """A row of the table, and whether it is as it should be."""
    arch = zoo.load(pair.name, resolution=pair.resolution, **pair.options)
    image = pair.scale * torch.randn(2, *arch.input, generator=torch.Generator().manual_seed(seed))
    ours, theirs = build(arch).eval(), pair.original().eval()
    fill(theirs, image, seed)
    steps = matched(ours, theirs, image, pair.late)
    for mine, original in steps:
        copy(original, mine)
    with torch.no_grad():
        result, as_it_is = ours(image), theirs(image)
        note = same_epsilons(steps)
        expected = theirs(image)
        found, other = difference(result, expected), difference(exchanged(ours)(image), expected)
    note = f"{note} (unchanged: {difference(result, as_it_is):.0e})" if note else "as ours"
    equal = parameters(ours) == parameters(theirs)
    in_order = "yes" if registered(ours, theirs) == [(id(mine), id(original)) for mine, original in steps] else "no"
    options = "".join(f", {key} {value:.3g}" for key, value in pair.options.items())
    row = [pair.name + options, pair.source, note, str(equal), f"{found:.1e}", f"{other:.1e}", in_order]
    return row, equal and found < TOLERANCE < other


def matched(ours: nn.Module, theirs: nn.Module, image: Tensor, late: str) -> list[tuple[nn.Module, nn.Module]]:
    """Our layers and the original's, in the order in which ours run."""
    steps, originals = executed(ours, image), executed(theirs, image, late)
    if len(steps) != len(originals):
        raise ValueError(f"{len(steps)} layers, {len(originals)} in the original")
    return [(mine, original) for (_, mine), (_, original) in zip(steps, originals, strict=True)]


def registered(ours: nn.Module, theirs: nn.Module) -> list[tuple[int, int]]:
    """The layers' identities in the order of `modules()`, as a checkpoint has them."""
    orders = ([id(part) for part in network.modules() if isinstance(part, LEAVES)] for network in (ours, theirs))
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
    print(" | ".join(["network", "original", "epsilon", "parameters equal", "difference", "other acts", "in order"]))
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
