"""Which family of blocks is better within a budget, and what a larger kernel does at equal cost.

    python examples/families.py photos

`photos` has a folder of images for each class. Without an argument, handwritten digits and very few networks are used,
so that the answer is that so few cannot tell. Each comparison is written to a folder in ./reports with a page to look
at, comparison.html.
"""

from __future__ import annotations

import sys

import nasspace


def main() -> None:
    own = len(sys.argv) > 1
    data, networks, recipe = (f"imagefolder:{sys.argv[1]}", 24, "standard") if own else ("digits", 2, "quick")
    resolution = None if own else 8  # the deployment's

    families = nasspace.compare(
        ["shuffle", "mobile"],
        budget={"flops": "300k..900k" if own else "100k..300k"},
        data=data,
        networks=networks,
        recipe=recipe,
        resolution=resolution,
        study="families",
    )
    print(families.sentence)
    print(families.frame().groupby("space")["error"].describe())

    kernels = nasspace.compare(
        "mobile",
        vary="stages.*.kernel",
        budget={"flops": "300k..900k" if own else "100k..300k"},
        data=data,
        networks=networks,
        recipe=recipe,
        resolution=resolution,
        study="kernels",
    )
    print(kernels.sentence)


if __name__ == "__main__":
    main()
