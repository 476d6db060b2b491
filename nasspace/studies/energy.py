"""Energy that the processor consumed, where RAPL can be read: the counters in Linux's `/sys/class/powercap`."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

ROOT = Path("/sys/class/powercap")
SECONDS = 20.0  # between two readings: a counter of 65 kJ overflows after five minutes at 200 W
MICRO = 1e-6


class EnergyMeter:
    """Joules of all processor packages inside of a `with`; of the whole machine, not of a process.

    The counters are of Intel's and AMD's processors (Linux kernel documentation, power/powercap). They start again at
    zero after `max_energy_range_uj`, so a thread reads them in time.
    """

    def __init__(self, root: Path = ROOT):
        self._ranges = {zone: _number(zone / "max_energy_range_uj") for zone in _packages(root)}
        self._counters = {zone: _number(zone / "energy_uj") for zone in self._ranges}
        self._joules = 0.0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read_in_time, daemon=True)

    def __enter__(self) -> EnergyMeter:
        if self._counters:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._counters:
            self._thread.join()

    def joules(self) -> float | None:
        """The energy so far; None if this user may not read a counter, or if one cannot be understood."""
        with self._lock:
            for zone, before in self._counters.items():
                now, largest = _number(zone / "energy_uj"), self._ranges[zone]
                if before is None or now is None:
                    return None
                used = now - before if now >= before else now - before + (largest or 0)
                if used < 0:
                    return None
                self._joules += used * MICRO
                self._counters[zone] = now
            return self._joules if self._counters else None

    def _read_in_time(self) -> None:
        while not self._ended.wait(SECONDS):
            self.joules()


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
