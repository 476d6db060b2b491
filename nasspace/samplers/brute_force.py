"""The sampler `brute-force`: every architecture of a space once, in the order of `Space.enumerate`.

The first choice of the space's file varies slowest. Networks over a known limit are passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nasspace.errors import InputError
from nasspace.samplers.known_figures import KnownFigures
from nasspace.samplers.observation import Bounds, Observation

if TYPE_CHECKING:
    from nasspace.architecture import Architecture


MAX_PASSED = 20_000  # networks over a known limit in a row, of which a second counts about a thousand


class BruteForceSampler:
    """Proposes the first architecture of the enumeration that no trial has."""

    ignores_limits = False
    accepts_rejections = True  # a run of large networks is no reason to stop

    def __init__(
        self,
        space: Any,
        objectives: Sequence[str],
        limits: Mapping[str, float],
        known: Mapping[str, Callable[[Architecture], float]],
        seed: int,
    ):
        self.space = space
        self._known = KnownFigures(known, limits)
        self._left: Iterator[Architecture] | None = None  # the enumeration, after the trials passed so far
        self._has_given_up = False

    def propose(self, observations: Sequence[Observation], number: int) -> Architecture | None:
        """The next architecture; None after the last one, or after too many over a limit."""
        if self._has_given_up:
            return None
        taken = {trial.architecture.digest for trial in observations}
        if self._left is not None and (found := self._next(self._left, taken)):
            return found
        if self._has_given_up:
            return None
        self._left = self.space.enumerate()  # also at the end: another process may have withdrawn a trial
        found = self._next(self._left, taken)
        if found is None and not observations and self._known.first_failure:
            raise InputError(f"no network of this space runs; the first one: {self._known.first_failure}")
        return found

    def _next(self, left: Iterator[Architecture], taken: set[str]) -> Architecture | None:
        """The first of the architectures that is new and within the known limits."""
        passed = 0
        for one in left:
            if one.digest in taken:
                continue
            if self._known.meets_limits(one):
                return one
            passed += 1
            if passed == MAX_PASSED:
                self._has_given_up = True
                break
        return None

    def bounds(self, observations: Sequence[Observation]) -> Bounds | None:
        """None: the limits of the search."""
        return None

    def end(self, observations: Sequence[Observation]) -> str:
        """Why `propose` has nothing more."""
        if self._has_given_up:
            return f"{MAX_PASSED:,} networks in a row are over a limit; --sampler gain looks for those that are not"
        return "every network of the space within the limits was tried"
