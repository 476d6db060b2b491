"""Energy that the processor consumed, where the Linux kernel tells it: RAPL's counters in `/sys/class/powercap`."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/class/powercap")
MICRO = 1e-6


class EnergyMeter:
    """Joules of all processor packages since the meter was made; of the whole machine, not of a process.

    The counters are of Intel's and AMD's processors (Linux kernel documentation, power/powercap). They start again at
    zero after `max_energy_range_uj`, in an hour or less, so `joules` must be called more often than that.
    """

    def __init__(self, root: Path = ROOT):
        self._zones = {zone: value for zone in _packages(root) if (value := _number(zone / "energy_uj")) is not None}
        self._joules = 0.0

    def joules(self) -> float | None:
        """The energy so far; None if there is no counter that this user may read."""
        for zone, before in self._zones.items():
            now = _number(zone / "energy_uj")
            if now is None:  # the file went away, as with a driver that is unloaded
                return None
            used = now - before
            if used < 0:
                used += _number(zone / "max_energy_range_uj") or 0
            self._joules += used * MICRO
            self._zones[zone] = now
        return self._joules if self._zones else None


def _packages(root: Path) -> list[Path]:
    """The folders of the processor packages; their cores and their memory are parts of these."""
    found = []
    for zone in sorted(root.glob("intel-rapl:*")):
        try:
            name = (zone / "name").read_text().strip()
        except OSError:
            continue
        if name.startswith("package"):
            found.append(zone)
    return found


def _number(path: Path) -> int | None:
    """The number in a file; None if it cannot be read."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
