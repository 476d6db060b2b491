"""The deployment resolution: what size of input the networks of a study are trained, measured and shipped for."""

from __future__ import annotations

from dataclasses import dataclass

from nasspace.plan import Plan

SMALLEST = 16  # pixels a side that images smaller than this are enlarged to


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

    Images below 16 pixels are enlarged to 16. Of a space's own choices those stay that are not above the images' size,
    else the smallest.
    """
    if asked is not None:
        images = f"; the images have {native}" if native != asked else ""
        return Deployment((asked,), f"as asked for{images}")
    side = max(native, SMALLEST)
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
