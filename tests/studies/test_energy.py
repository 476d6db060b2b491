"""The energy meter adds what the processor's counters tell, also when they start again at zero."""

from __future__ import annotations

import pytest

import nasspace
from nasspace.reporting import provenance
from nasspace.studies import study as records
from nasspace.studies.energy import EnergyMeter


def zone(root, name, label, microjoules):
    folder = root / name
    folder.mkdir(parents=True)
    for file, content in (("name", label), ("energy_uj", microjoules), ("max_energy_range_uj", 1_000_000_000)):
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
def test_a_machine_that_does_not_tell_has_no_energy(tmp_path, kind):
    if kind != "missing":
        counter = zone(tmp_path, "intel-rapl:0", "package-0", "?")
        if kind == "unreadable":
            counter.unlink()
            counter.mkdir()
    assert EnergyMeter(tmp_path).joules() is None


def test_the_energy_of_all_runs_is_kept_and_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counter = zone(tmp_path / "powercap", "intel-rapl:0", "package-0", 0)
    monkeypatch.setattr(EnergyMeter.__init__, "__defaults__", (tmp_path / "powercap",))

    def evaluated(architecture):
        counter.write_text(str(int(counter.read_text()) + 1_800_000_000))
        return {"accuracy": 0.5, "flops": 1.0}

    for trials in (1, 2):
        settings = {"objectives": ["accuracy", "flops"], "sampler": "random", "study": "metered"}
        nasspace.search("shuffle", trials=trials, evaluator=evaluated, **settings)
    front = records.load("metered").snapshot()
    assert front.energy_joules == pytest.approx(3600)
    assert "1 Wh" in dict(provenance.facts(front))["Energy"].values()
