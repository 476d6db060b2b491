"""The deployment resolution: what size of input the networks of a study are trained, measured and shipped for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nasspace.space.tree import Plan

SMALL = 32  # images below so many pixels may be enlarged, at most to these


@dataclass(frozen=True)
class Deployment:
    """The sizes in pixels that networks may be deployed at, more than one where the space chooses; and why these."""

    sizes: tuple[int, ...]
    why: str

    @property
    def resolution(self) -> int:
        """The largest of them: images are held at this size."""
        return max(self.sizes)


def deployment(asked: int | None, plan: Plan, native: int) -> Deployment:
    """What `--resolution` asked for, else the smaller of the space's input and `native`, the size of the images.

    Images below 32 pixels are enlarged where the strides of the stages would leave less than one pixel of them (those
    of the stem go first: see `space.unstrided`). Of a space's own choices those stay that are not above the images'
    size, else the smallest.
    """
    if asked is not None:
        images = f"; the images have {native}" if native != asked else ""
        return Deployment((asked,), f"as asked for{images}")
    side = max(native, min(SMALL, _strides(plan)))
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


def _strides(plan: Plan) -> int:
    """By how much the stages shrink a map at most."""
    parts = [stage.direct.parts.get("stride") for stage in plan.parts["stages"]]
    return math.prod(max(part.options) for part in parts if part is not None)
