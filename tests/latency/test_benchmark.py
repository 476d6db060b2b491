"""The latency benchmark on networks whose time is known."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from nasspace.architecture import Architecture
from nasspace.errors import InputError, NasspaceError
from nasspace.latency import benchmark, conditions, convert, runtimes, subprocess_benchmark
from nasspace.latency.benchmark import Latency, measure, measure_latency
from nasspace.latency.cache import LatencyCache
from nasspace.latency.reference import Reference
from nasspace.latency.runtimes import Clocks, time_round, warm_up
from nasspace.latency.statistics import History, bootstrap_median, quartile_interval

SHAPE = (3, 16, 16)
LAYERS = [{"block": "conv", "out": 8, "stride": 2}, {"block": "global_pool"}, {"block": "linear", "out": 4}]


class FakeTime:
    """Clocks that only advance with the work of fake networks."""

    def __init__(self) -> None:
        self.wall = self.cpu = self.queue = self.stolen = 0.0
        self.clocks = Clocks(lambda: self.wall, lambda: self.cpu, lambda: self.queue, lambda: self.stolen)

    def network(self, milliseconds, share=1.0, **attributes):
        return FakeNetwork(self, milliseconds, share, **attributes)


class FakeNetwork:
    """A network that takes `milliseconds()` of wall time, of which the thread computes `share()`."""

    name, libraries, device, threads, batch_size, input = "fake", (), "cpu", 1, 1, SHAPE

    def __init__(self, time, milliseconds, share, **attributes) -> None:
        self.time, self.milliseconds, self.share = time, milliseconds, share
        self.runs = 0
        vars(self).update(attributes)

    def run(self) -> None:
        taken = (self.milliseconds() if callable(self.milliseconds) else self.milliseconds) / 1e3
        share = self.share() if callable(self.share) else self.share
        self.time.wall += taken
        self.time.cpu += taken * share
        self.time.queue += taken * (1 - share)
        self.runs += 1


def test_a_rounds_value_is_its_median_run():
    fake, taken = FakeTime(), iter([5, 9, 4, 5, 5] * 10)
    found = time_round(fake.network(lambda: next(taken)), fake.clocks)
    assert found.value_ms == pytest.approx(5)
    assert not found.contended


@pytest.mark.parametrize(("milliseconds", "runs"), [(0.5, 40), (5, 4), (8, 3), (300, 2)])
def test_a_round_lasts_about_20_ms_and_at_least_two_runs(milliseconds, runs):
    fake = FakeTime()
    network = fake.network(milliseconds)
    time_round(network, fake.clocks)
    assert network.runs in (runs, runs + 1)


@pytest.mark.parametrize(("share", "contended"), [(1.0, False), (0.9, False), (0.85, True), (0.5, True)])
def test_contention_if_cpu_time_is_less_than_wall_time(share, contended):
    fake = FakeTime()
    found = time_round(fake.network(4, share), fake.clocks)
    assert found.contended == contended
    assert found.value_ms == pytest.approx(4 * share if contended else 4)


def test_contention_of_several_threads_that_wait_for_a_core():
    fake, taken = FakeTime(), iter([9, 4, 6] * 10)
    found = time_round(fake.network(lambda: next(taken), 0.5, threads=2), fake.clocks)
    assert found.contended
    assert found.value_ms == pytest.approx(4)  # the run least disturbed
    assert not time_round(fake.network(4, 0.95, threads=2), fake.clocks).contended


def test_waiting_for_another_device_is_not_contention():
    fake = FakeTime()
    assert not time_round(fake.network(4, 0.01, device="cuda"), fake.clocks).contended


def test_warm_up_continues_while_runs_get_faster():
    fake = FakeTime()
    faster = iter([50.0, *(10 * 0.9**i for i in range(12)), *[3.0] * 100])
    network = fake.network(lambda: next(faster))
    warm_up(network, fake.clocks)
    assert 12 < network.runs < 30
    start, endless = fake.wall, fake.network(lambda: 15 * 0.98**endless.runs)
    warm_up(endless, fake.clocks)
    assert 0.5 < fake.wall - start < 0.55


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs to pin processes to a core")
def test_a_busy_process_on_the_same_core_is_detected():
    class Busy:
        device, threads = "cpu", 1

        def run(self) -> None:
            end = time.thread_time() + 0.008
            while time.thread_time() < end:
                pass

    allowed = os.sched_getaffinity(0)
    core = min(allowed)
    code = f"import os, time; os.sched_setaffinity(0, {{{core}}}); print(flush=True)\nwhile True: pass"
    neighbor = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        os.sched_setaffinity(0, {core})
        neighbor.stdout.readline()
        rounds = [time_round(Busy()) for _ in range(20)]
    finally:
        os.sched_setaffinity(0, allowed)
        neighbor.kill()
        neighbor.communicate()
    assert sum(one.contended for one in rounds) > 10
    assert all(8 <= one.value_ms < 8 * 1.16 for one in rounds)


@pytest.mark.parametrize("seed", range(5))
def test_median_of_a_noisy_network_and_its_interval(seed):
    fake, draw = FakeTime(), random.Random(seed)
    network = fake.network(lambda: 5 * draw.lognormvariate(0, 0.03))
    found = measure({"a": network}, clocks=fake.clocks, precision=0.001)["a"]
    assert found.low_ms < found.median_ms < statistics.median(found.samples_ms) < found.high_ms
    assert found.low_ms < 5 < found.high_ms
    assert found.median_ms == pytest.approx(np.quantile(found.samples_ms, 0.25))
    assert not found.contended
    assert 40 <= found.rounds == len(found.samples_ms) <= 55


def test_a_real_network_that_computes_for_a_known_time():
    class Busy(FakeNetwork):
        def run(self) -> None:
            end = time.thread_time() + 0.003
            while time.thread_time() < end:
                pass

    found = measure({"a": Busy(None, 0, 0)}, seconds=0.2)["a"]
    assert found.low_ms <= found.median_ms <= found.high_ms
    assert 3 <= found.median_ms < 3 * 1.16  # the interval's lower end may lie below the shortest run


def test_the_interval_covers_the_median_at_its_nominal_rate():
    generator, holds = np.random.default_rng(0), 0
    for i in range(200):
        middle, low, high = quartile_interval(generator.normal(10, 0.1, 40), seed=i, resamples=300)
        assert low <= middle <= high
        holds += low <= 10 <= high
    assert holds / 200 >= 0.95


def test_disturbances_only_raise_the_upper_end():
    generator = np.random.default_rng(0)
    for share in (0.0, 0.2, 0.4, 0.6):
        values = generator.normal(10, 0.1, 48) + (generator.random(48) < share) * generator.exponential(3, 48)
        middle, low, high = quartile_interval(values)
        assert abs(middle - 10) < 0.15
        assert low < 10 < high


def test_the_interval_widens_with_correlated_rounds():
    def width(values):
        _, low, high = quartile_interval(values, resamples=200)
        return high - low

    steps = np.random.default_rng(0).normal(10, 1, (50, 48))
    alone, alike = (statistics.mean(map(width, each)) for each in (steps, np.repeat(steps[:, ::4], 4, axis=1)))
    assert 1.2 < alike / alone < 2.5
    assert quartile_interval([3.0] * 8) == (3.0, 3.0, 3.0)
    assert quartile_interval([2.0]) == (2.0, 2.0, 2.0)


def test_the_machines_speed_cancels():
    """The machine, and the reference with it, gets slower by a quarter halfway through."""
    fake, draw = FakeTime(), random.Random(0)
    slow = lambda: 1.25 if fake.wall > 0.5 else 1.0  # noqa: E731
    network = fake.network(lambda: 5 * slow() * draw.lognormvariate(0, 0.01))
    known = History(tuple((1e5 * (i + 1), value) for i, value in enumerate((2.0, 2.02, 1.98, 2.0, 2.0))))
    reference = Reference(fake.network(lambda: 2 * slow() * draw.lognormvariate(0, 0.01)), known)
    options = {"clocks": fake.clocks, "precision": 1e-6, "seconds": 1.0}
    found = measure({"a": network}, reference=reference, **options)["a"]
    assert found.median_ms == pytest.approx(5, rel=0.01)
    assert found.low_ms < 5 < found.high_ms < 5.6
    assert found.reference_usual_ms == pytest.approx(2.0)
    assert 0.75 < found.speed < 0.95
    assert max(found.samples_ms) > 6
    assert len(found.reference_ms) == found.rounds


def test_without_history_the_usual_speed_is_the_current_one():
    fake = FakeTime()
    found = measure({"a": fake.network(5)}, reference=Reference(fake.network(2)), clocks=fake.clocks)["a"]
    assert (found.median_ms, found.reference_usual_ms, found.speed) == pytest.approx((5, 2, 1))
    assert Latency.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_the_reference_runs_after_at_most_four_rounds():
    fake, seen = FakeTime(), []
    networks = {name: fake.network(lambda name=name: seen.append(name) or 25) for name in "abcdef"}
    measure(networks, reference=Reference(fake.network(lambda: seen.append("R") or 25)), clocks=fake.clocks)
    turns = [name for i, name in enumerate(seen) if i == 0 or seen[i - 1] != name]
    between = "".join(turns[turns.index("R") :]).split("R")
    assert {len(part) for part in between[1:-1] if part} <= {2, 4}


def test_a_disturbed_reference_marks_adjacent_rounds_as_disturbed():
    fake = FakeTime()
    reference = Reference(fake.network(2, 0.5))
    assert measure({"a": fake.network(5)}, reference=reference, seconds=0.3, clocks=fake.clocks)["a"].contended


@pytest.mark.parametrize("rounds", [12, 24, 48])
def test_the_interval_within_a_session_covers_the_median(rounds):
    generator, holds = np.random.default_rng(rounds), 0
    for i in range(300):
        middle, half = bootstrap_median(np.exp(generator.normal(0, 0.03, rounds)), seed=i)
        holds += abs(np.log(middle)) <= half
    assert holds / 300 >= 0.83


def test_contended_measurements_are_neither_recorded_nor_reused(tmp_path, monkeypatch):
    cache, architecture = LatencyCache(tmp_path / "latency.db"), Architecture.of(LAYERS, input=SHAPE)
    fake, share = FakeTime(), [0.5]
    reference = Reference(fake.network(2, lambda: share[0]))
    monkeypatch.setattr(benchmark, "load_reference", lambda *_: reference)
    kept = []
    monkeypatch.setattr(benchmark, "record_rounds", lambda *arguments: kept.append(arguments))
    monkeypatch.setattr(runtimes.OnnxRuntime, "load", lambda *_: fake.network(5, lambda: share[0]))
    real = measure
    monkeypatch.setattr(benchmark, "measure", lambda networks, **options: real(networks, **options, clocks=fake.clocks))
    assert measure_latency(architecture, cache=cache).contended
    assert kept == []
    share[0] = 1.0
    assert not measure_latency(architecture, cache=cache).contended
    assert len(kept) == 1


def test_a_steady_network_finishes_early_and_a_noisy_one_on_time():
    fake, draw = FakeTime(), random.Random(0)
    steady, restless = fake.network(5), fake.network(lambda: draw.choice([2, 9]))
    found = measure({"steady": steady, "restless": restless}, seconds=0.5, clocks=fake.clocks)
    assert found["steady"].rounds == 12
    assert found["restless"].rounds > 15
    assert fake.wall < 1.5


def test_networks_are_measured_in_a_new_random_order_each_time():
    def order(seed):
        fake, seen = FakeTime(), []
        networks = {}
        for name in "abc":
            networks[name] = fake.network(lambda name=name: seen.append(name) or 25)
        measure(networks, seed=seed, clocks=fake.clocks)
        turns = [name for i, name in enumerate(seen) if i == 0 or seen[i - 1] != name]
        return seen, turns

    seen, turns = order(0)
    assert seen == order(0)[0] != order(1)[0]
    assert len(turns) > 15
    assert all(seen.count(name) == seen.count("a") for name in "abc")
    assert len({tuple(seen[i : i + 6]) for i in range(len(seen) - 48, len(seen), 6)}) > 2


def test_disturbed_rounds_are_replaced():
    fake = FakeTime()
    passing = fake.network(5, lambda: 0.5 if fake.wall < 0.6 else 1.0)
    found = measure({"a": passing}, clocks=fake.clocks)["a"]
    assert not found.contended
    assert found.samples_ms == pytest.approx([5] * 12)


@pytest.mark.parametrize(("share", "contended"), [(0.02, False), (0.1, True)])
def test_steal_time_is_reported(share, contended):
    fake = FakeTime()

    def milliseconds():
        fake.stolen += 5e-3 * share
        return 5

    assert measure({"a": fake.network(milliseconds)}, clocks=fake.clocks)["a"].contended == contended


@pytest.mark.parametrize("threads", [1, 2])
def test_lasting_contention_is_reported(threads):
    fake = FakeTime()
    found = measure({"a": fake.network(5, 0.5, threads=threads)}, seconds=0.5, clocks=fake.clocks)["a"]
    assert found.contended
    assert found.rounds >= 24
    assert found.median_ms == pytest.approx(2.5 if threads == 1 else 5)
    assert fake.wall < 1.5


def test_garbage_collection_is_restored(monkeypatch):
    fake = FakeTime()
    network = fake.network(lambda: 99 if gc.isenabled() else 5)
    assert measure({"a": network}, clocks=fake.clocks)["a"].median_ms == pytest.approx(5)
    assert gc.isenabled()


def test_json_round_trip():
    fake = FakeTime()
    found = measure({"a": fake.network(5)}, clocks=fake.clocks)["a"]
    document = json.loads(json.dumps(found.to_json()))
    assert Latency.from_json(document) == found
    required = {"runtime", "threads", "batch_size", "median_ms", "low_ms", "high_ms", "rounds", "contended", "machine"}
    assert required <= set(document)


@pytest.fixture
def counted(monkeypatch):
    """Counts actual measurements, each with a different result."""
    fake, calls = FakeTime(), []

    def stand_in(networks, **options):
        calls.append(networks["network"])
        found = measure({"a": fake.network(len(calls))}, clocks=fake.clocks)["a"]
        real = networks["network"]
        return {"network": replace(found, runtime=real.name, batch_size=real.batch_size, input=real.input)}

    monkeypatch.setattr(benchmark, "measure", stand_in)
    return calls


def test_measurements_are_cached(counted, tmp_path):
    cache, architecture = LatencyCache(tmp_path / "latency.db"), Architecture.of(LAYERS, input=SHAPE)
    first = measure_latency(architecture, cache=cache)
    assert first == measure_latency(architecture.with_name("other"), cache=LatencyCache(cache.path))
    assert len(counted) == 1
    again = measure_latency(architecture, cache=cache, fresh=True)
    assert again.median_ms != first.median_ms
    assert again == measure_latency(architecture, cache=cache)
    assert len(counted) == 2


@pytest.mark.parametrize("change", ["runtime", "threads", "batch_size", "resolution", "versions", "machine", "layers"])
def test_other_conditions_are_measured_again(change, counted, tmp_path, monkeypatch):
    cache, architecture = LatencyCache(tmp_path / "latency.db"), Architecture.of(LAYERS, input=SHAPE)
    measure_latency(architecture, cache=cache)
    changes = {"runtime": "eager", "threads": 2, "batch_size": 3, "resolution": 20}
    if change == "versions":
        monkeypatch.setattr(runtimes, "versions", lambda runtime: {"onnxruntime": "99"})
    if change == "machine":
        monkeypatch.setattr(conditions, "machine", lambda: {"processor": "abacus"})
    if change == "layers":
        architecture = Architecture.of([{"block": "conv", "out": 8}, *LAYERS], input=SHAPE)
    found = measure_latency(architecture, cache=cache, **({change: changes[change]} if change in changes else {}))
    assert len(counted) == 2
    assert found.input == (SHAPE if change != "resolution" else (3, 20, 20))
    assert found.batch_size == (3 if change == "batch_size" else 1)
    assert found.runtime == ("eager" if change == "runtime" else "onnxruntime")


def test_an_invalid_cache_entry_is_measured_again(counted, tmp_path, monkeypatch):
    cache, architecture = LatencyCache(tmp_path / "latency.db"), Architecture.of(LAYERS, input=SHAPE)
    monkeypatch.setattr(cache, "get", lambda conditions: {"median_ms": 3})
    assert measure_latency(architecture, cache=cache).median_ms == pytest.approx(1)


@pytest.mark.parametrize(
    "runtime",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "compile" else [])
        for name in runtimes.RUNTIMES
        if name != "ncnn" or importlib.util.find_spec("ncnn")
    ],
)
def test_a_real_architecture_is_measured(runtime, tmp_path):
    cache, architecture = LatencyCache(tmp_path / "latency.db"), Architecture.of(LAYERS, input=SHAPE)
    found = measure_latency(architecture, runtime, resolution=32, seconds=0.1, cache=cache)
    assert 0 < found.low_ms <= found.median_ms <= found.high_ms
    assert (found.runtime, found.threads, found.batch_size, found.input) == (runtime, 1, 1, (3, 32, 32))
    assert found.contended or measure_latency(architecture, runtime, resolution=32, cache=cache) == found


def test_a_given_network_is_measured_and_not_changed(counted, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    architecture = Architecture.of(LAYERS, input=SHAPE)
    measure_latency(architecture, model=model, runtime="eager", cache=LatencyCache(tmp_path / "latency.db"))
    assert model.training
    assert isinstance(counted[0]._model[1], nn.Identity)


@pytest.mark.parametrize(
    "settings",
    [{"threads": 0}, {"threads": True}, {"batch_size": -1}, {"batch_size": 1.5}, {"resolution": 0}, {"runtime": "x"}],
)
def test_invalid_settings_are_refused(settings, tmp_path):
    (name, value), cache = next(iter(settings.items())), LatencyCache(tmp_path / "latency.db")
    with pytest.raises(InputError, match=f"{name}.*{value}|{value}.*{name}"):
        measure_latency(Architecture.of(LAYERS, input=SHAPE), cache=cache, **settings)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "network.onnx"
    return convert.to_onnx(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), SHAPE, path)


def test_files_are_measured_in_a_subprocess(exported):
    here = subprocess_benchmark.measure_file(exported, seconds=0.05)
    both = subprocess_benchmark.measure_files_in_subprocess([exported, str(exported)], seconds=0.05)
    assert len(both) == 2
    for found in both:
        assert (found.input, found.batch_size, found.threads) == (SHAPE, 1, 1)
        assert found.versions == here.versions
        assert 0 < found.low_ms <= found.median_ms <= found.high_ms


def test_the_subprocess_does_not_import_torch():
    code = (
        "import nasspace.latency.subprocess_benchmark, sys; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_bad_file_is_reported_from_the_subprocess(exported, tmp_path):
    (tmp_path / "broken.onnx").write_text("not a network")
    for name, reason in (("missing.onnx", "no such file"), ("broken.onnx", "cannot load")):
        with pytest.raises(InputError, match=f"{name}: .*{reason}"):
            subprocess_benchmark.measure_files_in_subprocess([exported, tmp_path / name], seconds=0.05)
    with pytest.raises(InputError, match="threads"):
        subprocess_benchmark.measure_files_in_subprocess([exported], threads=0)


def test_a_crashed_subprocess_is_reported(exported, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false" if os.path.exists("/bin/false") else "false")
    with pytest.raises(NasspaceError, match="exit status 1"):
        subprocess_benchmark.measure_files_in_subprocess([exported])
