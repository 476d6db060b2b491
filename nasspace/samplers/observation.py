"""A trial as the samplers see it: plain values, without a study or storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nasspace.architecture import Architecture


@dataclass(frozen=True)
class Bounds:
    """The largest values with which a candidate is trained, instead of the limits; `name` is for messages."""

    values: Mapping[str, float]
    name: str = "the limit"


@dataclass(frozen=True)
class Observation:
    """A trial's architecture and its `values` so far (accuracy as a fraction, latency in ms, FLOPs, ...).

    Without accuracy it was rejected at a limit. Without any value it `failed` or is still running: it is not proposed
    again, and counts with its expected accuracy. `layers_ms` is the measured time of each layer, if
    there is one. `margin` is the upper end of the latency's interval, which decides about a limit, over the latency.
    """

    architecture: Architecture
    values: Mapping[str, float] = field(default_factory=dict)
    layers_ms: Sequence[float] | None = None
    margin: float = 1.0
    failed: bool = False

    def limited_value(self, name: str) -> float:
        """The value that is compared with a limit: the upper end of a latency's interval; 0 if unknown."""
        return self.values.get(name, 0) * (self.margin if name == "latency" else 1)
