"""One group instead of several in the layers of a network, with narrower maps between them at equal FLOPs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nasspace import blocks
from nasspace.architecture import Architecture
from nasspace.counting import cost
from nasspace.errors import InputError
from nasspace.guidelines.counterfactuals import LayerReplacement, layer_dicts
from nasspace.guidelines.equal_flops import Rounding, nearest_width, ratio_at_flops
from nasspace.guidelines.runs import flops_of, kinds_of

if TYPE_CHECKING:
    from nasspace.guidelines.context import NetworkContext

WEIGHTED = {"pointwise", "dense", "grouped", "depthwise", "linear"}  # kinds of operations with weights
SHUFFLE = "clone"  # kind of operation by which a channel shuffle appears; one group needs none


@dataclass(frozen=True)
class LayerNarrowing:
    """One group in layers `start` to `stop` - 1, whose widths shrink in proportion; later layers take what comes.

    A change is the ratio of the widths after it to those before.
    """

    context: NetworkContext
    start: int
    stop: int

    def settled(self) -> LayerNarrowing | None:
        """Return the narrowing with as many more layers as keep their shortcuts and projections; None if none does."""
        narrowing = self if self.wide else None
        while narrowing and (changed := narrowing._first_changed_form()) is not None:
            if changed == narrowing.start > 0:
                narrowing = LayerNarrowing(self.context, narrowing.start - 1, narrowing.stop)
            elif narrowing.stop <= changed < len(self.context.layers) - 1:
                narrowing = LayerNarrowing(self.context, narrowing.start, changed + 1)
            else:
                return None
        return narrowing

    def _first_changed_form(self) -> int | None:
        """Return the first layer whose operations differ in more than widths and groups, None if there is none."""
        now = kinds_of(self.layers_at(self.exact), self.context.in_shapes[0])
        pairs = zip(map(_form, self.forms), map(_form, now), strict=True) if now else ()
        differ = [before != after or "grouped" in kinds for (before, after), kinds in zip(pairs, now, strict=True)]
        return next((i for i, one in enumerate(differ) if one), None) if now else -1

    @cached_property
    def forms(self) -> list[list[str]]:
        """The kinds of operations of each layer of the network."""
        return kinds_of(self.context.layers, self.context.in_shapes[0])

    @cached_property
    def wide(self) -> list[int]:
        """The layers whose output shrinks: all with weights but the classifier."""
        classifier = max(i for i in range(len(self.context.layers)) if self._has_weights(i))
        return [i for i in range(self.start, self.stop) if self._has_weights(i) and i != classifier]

    @property
    def narrowest(self) -> int:
        """The narrowest of their widths."""
        return min(self.context.layers[i]["out"] for i in self.wide)

    @cached_property
    def target(self) -> float:
        """The FLOPs of the network."""
        return flops_of(self.context.layers, self.context.in_shapes[0])

    @cached_property
    def exact(self) -> float:
        """The ratio at which the network has as many FLOPs."""
        return ratio_at_flops(lambda ratio: flops_of(self.layers_at(ratio), self.context.in_shapes[0]), self.target)

    def flops_at(self, ratio: float) -> float:
        """Return the FLOPs of the changed network."""
        return flops_of(self.layers_at(ratio, nearest_width), self.context.in_shapes[0])

    def _has_weights(self, layer: int) -> bool:
        return not WEIGHTED.isdisjoint(self.forms[layer])

    def layers_at(self, ratio: float, rounding: Rounding = round) -> list[dict[str, Any]]:
        """Return the layers of the changed network."""
        changed, channels = [], self.context.in_shapes[0][0]
        for i, before in enumerate(self.context.layers):
            layer = dict(before)
            if not self._has_weights(i):
                layer.pop("out", None)  # a pool takes the width of its input
            if i in self.wide:
                layer["out"] = max(1, rounding(layer["out"] * ratio))
            if self.start <= i < self.stop:
                layer |= self._one_group(i, channels)
            changed.append(layer)
            channels = layer.get("out", channels)
        return changed

    def _one_group(self, index: int, channels: int) -> dict[str, Any]:
        """Return the options of a layer with one group and `channels` in its input.

        A depthwise convolution stays depthwise. A bottleneck's inner width is a multiple of its groups.
        """
        layer = self.context.layers[index]
        groups = layer.get("groups", 1)
        if layer["block"] == "conv" and groups == self.context.in_shapes[index][0]:
            return {"groups": channels}
        if "grouped" not in self.forms[index]:
            return {}
        options = {key: 1 for key in ("groups", "first_groups") if key in blocks.get(layer["block"]).defaults}
        if layer["block"] == "bottleneck":
            options["base_width"] = groups * layer.get("base_width", 64)
        return options

    def narrower(self, ratio: float) -> str:
        """Describe the widths before and after the change."""
        before = dict.fromkeys(self.context.layers[i]["out"] for i in self.wide)
        after = [max(1, nearest_width(out * ratio)) for out in before]
        return f"widths {':'.join(map(str, before))} -> {':'.join(map(str, after))}"

    def part(self, ratio: float) -> LayerReplacement | None:
        """Return the replacement of the layers whose widths change; None if the network cannot be built."""
        try:
            changed = Architecture.of(self.layers_at(ratio, nearest_width), input=self.context.in_shapes[0])
            shapes = [one.in_shape for one in cost(changed).layers]
        except InputError:
            return None
        after, before = layer_dicts(changed), self.context.layers
        same = (i for i in range(self.stop, len(before)) if shapes[i] == self.context.in_shapes[i])
        stop = next(same, len(before))
        surroundings = self.context.surroundings(self.start, stop)
        return LayerReplacement(
            self.start, tuple(before[self.start : stop]), tuple(after[self.start : stop]), surroundings
        )


def _form(kinds: list[str]) -> list[str]:
    """Return the kinds of a layer's operations without those that one group changes.

    >>> _form(["grouped", "clone", "depthwise", "pointwise", "add"])
    ['convolution', 'depthwise', 'convolution', 'add']
    """
    dense = {"grouped", "pointwise", "dense"}
    return ["convolution" if kind in dense else kind for kind in kinds if kind != SHUFFLE]
