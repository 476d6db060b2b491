"""The deployment resolution: the input size that the networks of a study are trained, measured and shipped for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nasspace.space.tree import Plan

SMALL = 32  # images with fewer pixels a side may be enlarged, to this size at most


@dataclass(frozen=True)
class Deployment:
    """The deployment resolutions in pixels, more than one if the space has choices, and the reason for them."""

    sizes: tuple[int, ...]
    why: str

    @property
    def resolution(self) -> int:
        """The largest resolution: images are held at this size."""
        return max(self.sizes)


def choose_deployment(requested: int | None, plan: Plan, native: int) -> Deployment:
    """The requested resolution, or else the smaller of the space's input and `native`, the size of the images.

    Images below 32 pixels are enlarged if the strides of the stages would leave less than one pixel (the strides of
    the stem are removed first: see `space.unstrided`). Of the space's own choices, those not above the size of the
    images are kept, or else the smallest.
    """
    if requested is not None:
        images = f"; the images have {native}" if native != requested else ""
        return Deployment((requested,), f"as requested{images}")
    side = max(native, min(SMALL, _stage_strides(plan)))
    images = f"the images have {native}"
    if "resolution" in plan.top:
        options = plan.top["resolution"].options
        kept = tuple(size for size in options if size <= side) or (min(options),)
        return Deployment(kept, f"of the space's {', '.join(map(str, options))}; {images}")
    declared = min(plan.input[1:])
    if declared <= side:
        return Deployment((declared,), f"the space's input; {images}")
    if side > native:
        return Deployment((side,), f"{images}, enlarged to {side}; the space's input is {declared}")
    return Deployment((side,), f"the images' own size; the space's input is {declared}")


def _stage_strides(plan: Plan) -> int:
    """The largest factor by which the stages shrink a feature map."""
    parts = [stage.direct.parts.get("stride") for stage in plan.parts["stages"]]
    return math.prod(max(part.options) for part in parts if part is not None)
