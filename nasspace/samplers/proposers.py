"""Samplers that propose whole architectures from the record, outside Optuna, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from nasspace.samplers.brute_force import BruteForceSampler
from nasspace.samplers.gain_sampler import GainSampler
from nasspace.samplers.mnasnet import MnasNetSampler
from nasspace.samplers.netadapt import NetAdaptSampler
from nasspace.samplers.spos import SposSampler
from nasspace.samplers.uniform import UniformSampler

if TYPE_CHECKING:
    from nasspace.architecture import Architecture
    from nasspace.samplers.observation import Bounds, Observation


class Proposer(Protocol):
    """Proposes from the observations and the number of the next trial, and from nothing else that changes.

    It is made from the space, the objectives, the limits, the known figures and the seed, like `GainSampler`, and its
    own options by name.
    """

    ignores_limits: bool  # networks over a limit are trained, too; the front shows none
    accepts_rejections: bool  # many rejected networks in a row do not end the search

    def propose(self, observations: Sequence[Observation], number: int) -> Architecture | None:
        """The architecture of trial `number`; None if there is none at present."""
        ...

    def bounds(self, observations: Sequence[Observation]) -> Bounds | None:
        """The values with which candidates are still trained; None: the limits."""
        ...

    def end(self, observations: Sequence[Observation]) -> str:
        """Why `propose` has nothing more, for a message."""
        ...


PROPOSERS: dict[str, Callable[..., Proposer]] = {
    "gain": GainSampler,
    "brute-force": BruteForceSampler,
    "mnasnet": MnasNetSampler,
    "netadapt": NetAdaptSampler,
    "spos": SposSampler,
    "uniform": UniformSampler,
}


def proposer(name: str, *arguments: Any, **options: Any) -> Proposer | None:
    """The sampler of a name; None if Optuna draws its candidates."""
    return PROPOSERS[name](*arguments, **options) if name in PROPOSERS else None
