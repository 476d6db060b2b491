"""The energy of a search is what the processor's counters say, also when they start again at zero."""

from __future__ import annotations

import functools
import time

import pytest

import nasspace
from nasspace.reporting import provenance
from nasspace.studies import energy
from nasspace.studies import study as records
from nasspace.studies.energy import EnergyMeter


def zone(root, name, label, microjoules, largest=1_000_000_000):
    folder = root / name
    folder.mkdir(parents=True)
    for file, content in (("name", label), ("energy_uj", microjoules), ("max_energy_range_uj", largest)):
        (folder / file).write_text(f"{content}\n")
    return folder / "energy_uj"


def test_packages_are_added_and_counters_may_overflow(tmp_path):
    first = zone(tmp_path, "intel-rapl:0", "package-0", 999_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 5)
    core = zone(tmp_path, "intel-rapl:0:0", "core", 0)
    meter = EnergyMeter(tmp_path)
    assert meter.joules() == 0
    first.write_text("2000000\n")
    second.write_text("4000005\n")
    core.write_text("9000000\n")
    assert meter.joules() == pytest.approx(3 + 4)
    second.write_text("5000005\n")
    assert meter.joules() == pytest.approx(8)


@pytest.mark.parametrize("kind", ["missing", "unreadable", "damaged"])
def test_a_machine_without_a_counter_has_no_energy(tmp_path, kind):
    if kind != "missing":
        counter = zone(tmp_path, "intel-rapl:0", "package-0", "?")
        if kind == "unreadable":
            counter.unlink()
            counter.mkdir()
    with EnergyMeter(tmp_path) as meter:
        assert meter.joules() is None


@pytest.mark.parametrize("largest", ["?", 10])
def test_a_counter_that_falls_without_a_range_is_not_counted(tmp_path, largest):
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000_000, largest)
    meter = EnergyMeter(tmp_path)
    counter.write_text("0\n")
    assert meter.joules() is None


def test_a_thread_reads_before_a_counter_overflows(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "SECONDS", 0.001)
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    with EnergyMeter(tmp_path) as meter:
        for microjoules in (900_000_000, 100_000_000):
            counter.write_text(f"{microjoules}\n")
            while meter._counters[counter.parent] != microjoules:
                time.sleep(0.001)
    assert meter.joules() == pytest.approx(1100)


def test_the_energy_of_all_runs_is_kept_and_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counter = zone(tmp_path / "powercap", "intel-rapl:0", "package-0", 0, 10**12)
    monkeypatch.setattr(records, "EnergyMeter", functools.partial(EnergyMeter, tmp_path / "powercap"))
    asked = []

    def evaluated(architecture):
        counter.write_text(str(int(counter.read_text()) + 1_800_000_000))
        asked.append(architecture)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return {"accuracy": 0.5, "flops": 1.0}

    def search(trials, **changes):
        settings = {"objectives": ["accuracy", "flops"], "sampler": "random", "study": "metered", **changes}
        nasspace.search("shuffle", trials=trials, evaluator=evaluated, **settings)

    with pytest.raises(KeyboardInterrupt):
        search(2)
    search(2)
    front = records.load("metered").snapshot()
    assert front.energy_joules == pytest.approx(3 * 1800)
    assert "1.5 Wh" in dict(provenance.facts(front))["Energy"].values()
    search(1, study="shared", storage="sqlite:///shared.db")
    assert records.load("shared").snapshot().energy_joules is None
