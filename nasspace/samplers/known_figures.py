"""Figures that are known for every candidate before it is evaluated, such as FLOPs, and the limits on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from nasspace import failures

if TYPE_CHECKING:
    from nasspace.architecture import Architecture


class KnownFigures:
    """`known` are functions that compute a figure of any candidate, `limits` the largest allowed values."""

    def __init__(self, known: Mapping[str, Callable[[Architecture], float]], limits: Mapping[str, float]):
        self.known = dict(known)
        self.limits = dict(limits)
        self.first_failure = ""  # of a candidate that does not run

    def of(self, architecture: Architecture) -> dict[str, float] | None:
        """The figures of a candidate by name; None if one of its blocks raises."""
        try:
            with failures.as_candidate_failures():
                return {name: float(figure(architecture)) for name, figure in self.known.items()}
        except failures.CandidateFailed as error:
            self.first_failure = self.first_failure or str(error)
            return None

    def meets_limits(self, architecture: Architecture) -> bool:
        """Whether a candidate runs and is within the limits on known figures."""
        figures = self.of(architecture)
        return figures is not None and all(
            figures[name] <= limit for name, limit in self.limits.items() if name in figures
        )
