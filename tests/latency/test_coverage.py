"""Coverage and width of intervals on simulated machines with drifting speed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest

from nasspace.architecture import Architecture
from nasspace.latency import benchmark, reference, runtimes
from nasspace.latency.benchmark import measure, measure_latency
from nasspace.latency.cache import LatencyCache
from nasspace.latency.runtimes import Clocks
from nasspace.latency.statistics import (
    SESSION_GAP,
    History,
    Spread,
    UsualSpeed,
    half_interval,
    reference_interval,
    split_sessions,
)

DAY = 86_400.0
REFERENCE_MS = 2.4
STEADY = {"within": 0.005, "between": 0.01, "own": 0.006}
RESTLESS = {"within": 0.046, "between": 0.08, "own": 0.012}  # a shared machine: 2.2 to 2.9 ms within an hour


@dataclass
class Machine:
    """A machine whose log speed has a value per session and a drift within it (time constant: one minute).

    `own` is the variation between sessions of a network relative to the reference.
    """

    within: float
    between: float
    own: float
    draw: np.random.Generator
    now: float = 1e9
    _level: float = 0.0
    _drift: float = 0.0
    _moved: float = 1e9
    _own: dict[str, float] = field(default_factory=dict)

    def begin_session(self) -> None:
        self.now += DAY
        self._moved, self._level, self._own = self.now, self.draw.normal(0, self.between), {}
        self._drift = self.draw.normal(0, self.within)

    def speed(self) -> float:
        kept = math.exp(-(self.now - self._moved) / 60)
        self._drift = kept * self._drift + self.draw.normal(0, self.within * math.sqrt(1 - kept**2))
        self._moved = self.now
        return self._level + self._drift

    def takes(self, name: str) -> float:
        """Return how much slower than usual a network is now, in logarithms."""
        if name not in self._own:
            self._own[name] = 0.0 if name == "reference" else self.draw.normal(0, self.own)
        return self._own[name]


class Simulated:
    """A network on a simulated machine."""

    name, libraries, device, threads, batch_size, input = "onnxruntime", (), "cpu", 1, 1, (3, 16, 16)

    def __init__(self, machine: Machine, name: str, milliseconds: float) -> None:
        self.machine, self.called, self.milliseconds = machine, name, milliseconds

    def run(self) -> None:
        machine = self.machine
        slower = machine.speed() + machine.takes(self.called) + machine.draw.normal(0, 0.01)
        machine.now += self.milliseconds / 1e3 * math.exp(slower)


NETWORKS = {
    name: Architecture.of(
        [{"block": "conv", "out": width, "stride": 2}, {"block": "global_pool"}, {"block": "linear", "out": 4}],
        input=(3, 16, 16),
        name=name,
    )
    for name, width in {"small": 8, "large": 16}.items()
}
MILLISECONDS = {"small": 3.0, "large": 9.0}


@pytest.fixture
def simulate(monkeypatch, tmp_path):
    """A function that runs `measure_latency` on a simulated machine with its own cache."""

    def begin(seed: int, **kind: float):
        machine = Machine(**kind, draw=np.random.default_rng(seed))
        cache = LatencyCache(tmp_path / f"{seed}.db")
        clock = lambda: machine.now  # noqa: E731
        clocks = Clocks(clock, clock, lambda: 0.0, lambda: 0.0)
        monkeypatch.setattr("time.time", clock)
        monkeypatch.setattr("gc.collect", lambda: 0)  # takes longer than all the rest
        monkeypatch.setattr(benchmark, "measure", partial(measure, clocks=clocks))
        monkeypatch.setattr(reference, "reference_network", lambda *_: Simulated(machine, "reference", REFERENCE_MS))

        def find(name: str, **options):
            loaded = Simulated(machine, name, MILLISECONDS[name])
            monkeypatch.setattr(runtimes.OnnxRuntime, "load", lambda *_: loaded)
            return measure_latency(NETWORKS[name], cache=cache, seconds=0.3, **options)

        return machine, find

    return begin


def holds(printed, found) -> bool:
    return printed.low_ms <= found.median_ms <= printed.high_ms


def half(latency) -> float:
    return math.log(latency.high_ms / latency.low_ms) / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "widest_first", "widest_later"),
    [(STEADY, 0.17, 0.065), (RESTLESS, 0.17, 0.12)],
    ids=["steady", "restless"],
)
def test_printed_intervals_cover_the_same_session_and_later_days(kind, widest_first, widest_later, simulate):
    """Intervals that `measure_latency` prints on the first days, compared with measurements on later days."""
    same, next_day, later, read_again, first_widths, later_widths = ([] for _ in range(6))
    for seed in range(10):
        machine, find = simulate(seed, **kind)
        machine.begin_session()
        first = [find(name) for name in NETWORKS]
        again = [find(name, fresh=True) for name in NETWORKS]
        same += map(holds, first, again)
        first_widths += map(half, first)
        days = []
        for _ in range(3):
            machine.begin_session()
            cached = [find(name) for name in NETWORKS]
            assert [one.samples_ms for one in cached] == [one.samples_ms for one in (days[-1] if days else again)]
            days.append([find(name, fresh=True) for name in NETWORKS])
            read_again += map(holds, [find(name) for name in NETWORKS], days[-1])
            read_again += map(holds, cached, days[-1])
        next_day += map(holds, again, days[0])
        later += [holds(one, other) for one, other in zip(again, days[-1], strict=True)]
        later_widths += map(half, days[-1])
    shares = {"same": same, "next day": next_day, "later": later, "read again": read_again}
    shares = {name: float(np.mean(found)) for name, found in shares.items()}
    widths = {"first": float(np.median(first_widths)), "later": float(np.median(later_widths))}
    assert min(shares.values()) >= 0.85, shares
    assert widths["first"] < widest_first
    assert widths["later"] < widest_later


def days_of(machine: Machine, count: int, measured: int = 6) -> list[list[tuple[tuple[float, float], float]]]:
    """Simulate, for each day and measurement, the reference's reading and a network's ratio to it."""
    days = []
    for _ in range(count):
        machine.begin_session()
        own = machine.draw.normal(0, machine.own)
        day = []
        for _ in range(measured):
            machine.now += 5
            reading = machine.now, REFERENCE_MS * math.exp(machine.speed())
            day.append((reading, math.exp(own + machine.draw.normal(0, 0.004))))
        days.append(day)
    return days


def ends(ratio: float, speed: UsualSpeed) -> tuple[float, float]:
    """Return the logarithms of the ends of `reference_interval` for rounds that scatter by 1 %."""
    usual = math.log(ratio * speed.usual_ms)
    width = half_interval(Spread(2 * 0.0025**2, 24), speed.residual.times(2), speed.spread)
    return usual - width, usual + width


@pytest.mark.parametrize(
    ("kind", "widest"),
    [
        (STEADY, {1: 0.135, 2: 0.09, 5: 0.06, 20: 0.06}),
        (RESTLESS, {1: 0.16, 2: 0.14, 5: 0.11, 20: 0.075}),
        ({"within": 0.015, "between": 0.02, "own": 0.012}, {1: 0.135, 2: 0.09, 5: 0.065, 20: 0.06}),
    ],
    ids=["steady", "restless", "usual"],
)
def test_the_intervals_width_follows_the_machines_variation(kind, widest):
    """After one, two, five and twenty days, compared with the same day, the next, and a much later one."""
    shares, widths = {}, {}
    for seed in range(150):
        days = days_of(Machine(**kind, draw=np.random.default_rng(seed)), 26)
        everything = [reading for day in days for reading, _ in day]
        for known in widest:
            readings = [reading for day in days[:known] for reading, _ in day]
            low, high = ends(days[known - 1][-1][1], UsualSpeed.of(History(tuple(readings))))
            first = days[known][0]
            others = {
                "same day": days[known - 1][0][1] * UsualSpeed.of(History(tuple(readings[:-5]))).usual_ms,
                "next day": first[1] * UsualSpeed.of(History((*readings, first[0]))).usual_ms,
                "later": days[-1][-1][1] * UsualSpeed.of(History(tuple(everything))).usual_ms,
            }
            for name, value in others.items():
                shares.setdefault((known, name), []).append(low <= math.log(value) <= high)
            widths.setdefault(known, []).append((high - low) / 2)
    shares = {key: float(np.mean(found)) for key, found in shares.items()}
    halves = {known: float(np.median(found)) for known, found in widths.items()}
    within_a_day = {key: share for key, share in shares.items() if key[1] == "same day"}
    assert min(shares.values()) >= 0.85, shares
    assert min(within_a_day.values()) >= 0.95
    assert all(halves[known] <= most for known, most in widest.items()), halves


def test_an_unsteady_machine_has_wider_intervals_than_a_steady_one():
    def width(values) -> float:
        readings = tuple((DAY * (i + 1), value) for i, value in enumerate(values))
        _, low, high = reference_interval([2.5] * 20, UsualSpeed.of(History(readings)))
        return high - low

    steady, restless = width([2.0, 2.01, 1.99] * 4), width([1.7, 2.0, 2.3] * 4)
    assert steady < restless / 1.5
    assert width([2.0]) > steady, "what is not known makes it wider"


def half_of(values, apart: float = 10.0) -> float:
    """Return half of the interval of the usual speed after readings `apart` seconds apart."""
    return half_interval(
        UsualSpeed.of(History(tuple((apart * (i + 1), value) for i, value in enumerate(values)))).spread
    )


def test_drift_within_the_first_session_widens_the_interval():
    draw = np.random.default_rng(0)
    steady = 2 * np.exp(draw.normal(0, 0.004, 40))
    drifting = 2 * np.exp(0.05 * np.sin(np.arange(40) / 5))
    assert half_of(steady) < half_of([2.0]) < half_of(drifting)
    assert half_of(steady) < 0.09


def test_noise_of_single_readings_is_not_drift():
    """A machine under other load: consecutive readings differ by 7 %, their median does not change."""
    noisy = 2 * np.exp(np.random.default_rng(1).normal(0, 0.07, 40))
    assert half_of(noisy) < 0.16
    assert half_of(noisy) < 0.7 * half_of(np.sort(noisy)), "the same readings as a trend"
    assert half_of(noisy[:2]) > half_of(noisy[:8])


def test_repeated_networks_determine_the_residual_spread():
    def residual(*repeats) -> float:
        speed = UsualSpeed.of(History(((1.0, 2.0),), repeats))
        return half_interval(speed.residual)

    steady, restless = (0.5, 0.501, 0.499), (0.5, 0.56, 0.45)
    assert residual(*[steady] * 5) < residual() < residual(*[restless] * 5)


def test_a_gap_ends_a_session():
    timed = [
        (10.0, 1.0),
        (10.0 + 0.9 * SESSION_GAP, 2.0),
        (10.0 + 1.8 * SESSION_GAP, 3.0),
        (10.0 + 3 * SESSION_GAP, 4.0),
    ]
    assert split_sessions(reversed(timed)) == [timed[:3], timed[3:]]
    assert split_sessions([]) == []


def test_every_session_counts_once_in_the_usual_speed():
    one = [(10.0 * (i + 1), 2.0) for i in range(30)]
    two, three = [(DAY, 3.0)], [(2 * DAY, 2.5)]
    assert UsualSpeed.of(History((*one, *two, *three))).usual_ms == pytest.approx(2.5)


def test_students_quantile():
    for degrees, quantile in ((3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (1e9, 1.96)):
        assert half_interval(Spread(1.0, degrees)) == pytest.approx(quantile, rel=0.01)
    assert half_interval(Spread(0.0, 3)) == 0
