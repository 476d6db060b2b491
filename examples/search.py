"""Search with a custom evaluator: a function from an architecture to its objectives.

    python examples/search.py

The evaluator here is a stand-in for your trainer or your table: it rewards depth and width, with diminishing returns.
The study is written to reports/NAME in the current folder.
"""

from __future__ import annotations

import math

import nasspace


def evaluate(architecture: nasspace.Architecture) -> dict[str, float]:
    """Accuracy as a fraction; train and validate your network here."""
    cost = nasspace.cost(architecture)
    return {"accuracy": 1 - 1 / (1 + 0.2 * math.log1p(cost.params) + 0.02 * len(architecture.layers))}


def main() -> None:
    study = nasspace.search(
        nasspace.Space.load("shuffle", classes=10),
        trials=10,
        seed=0,
        objectives=["accuracy", "flops"],
        evaluator=evaluate,
        known={"flops": lambda architecture: nasspace.cost(architecture).flops},
    )
    print(study.front()[["id", "accuracy", "flops", "params"]])
    print(f"The study is in {study.folder}; `nas report {study.name}` writes its report.")


if __name__ == "__main__":
    main()
