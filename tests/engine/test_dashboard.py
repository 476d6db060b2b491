"""What a search leaves for optuna-dashboard, and that nothing of it changes the search."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import optuna
import pytest

from nasspace import cost, optuna_adapter
from nasspace.engine import dashboard, loop
from nasspace.engine.dashboard import network_text, picture
from nasspace.engine.searched import load_study
from nasspace.errors import InputError
from nasspace.space.space import Space
from nasspace.studies import study as records
from nasspace.studies.dashboard import Dashboard
from nasspace.zoo import load

SPACE = """
input: [1, 16, 16]
stages: [{depth: [1, 2, 3], out: [8, 12, 16], stride: 2, each: {block: [conv: {kernel: [1, 3]}, sandglass]}}]
"""
EVIL = "a|b\n# <script>alert(1)</script> `x` [y](z)"


def space() -> Space:
    return Space.from_text(SPACE, "little.yaml")


def evaluated(architecture) -> dict[str, float]:
    digits = int(architecture.digest, 16) / 16**12
    return {"accuracy": digits, "latency": 10 * digits, "flops": cost(architecture).flops}


def searched(name: Path, **settings):
    objectives = ["accuracy", "latency"]
    return loop.search(space(), evaluator=evaluated, objectives=objectives, study=name, seed=1, **settings)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A search with a function, in which candidates over the limit are evaluated, too."""
    return searched(tmp_path_factory.mktemp("dashboard") / "s", trials=10, latency_target_ms=7, sampler="random")


def record_of(folder: Path) -> optuna.Study:
    """The study as another program opens it."""
    return optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder / 'study.db'}")


def complete(record: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The evaluated trials; others were duplicates."""
    return record.get_trials(states=[optuna.trial.TrialState.COMPLETE])


def test_a_study_has_names_directions_and_readable_attributes(study):
    record = record_of(study.folder)
    assert record.metric_names == ["accuracy", "latency_ms"]
    assert [direction.name for direction in record.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert record.user_attrs["limits"] == "latency 7.00 ms"
    assert record.user_attrs["space"].startswith("little, ")
    for trial in complete(record):
        architecture = study.architecture(trial.number)
        assert trial.user_attrs["network"] == network_text(architecture)
        assert trial.user_attrs["flops"] == cost(architecture).flops
        assert type(trial.user_attrs["params"]) is int
        assert len(trial.user_attrs["digest"]) == 12


def test_best_trials_respect_the_limits(study):
    """Also where all are complete; `get_all_study_summaries` of Optuna ignores constraints (its issue 6825)."""
    record = record_of(study.folder)
    over = [trial.number for trial in complete(record) if trial.values[1] > 7]
    assert over
    best = {trial.number for trial in record.best_trials}
    assert best == set(study.front_numbers())
    assert not best & set(over)
    assert max(complete(record), key=lambda trial: trial.values[0]).number in over


def test_each_trial_has_a_note_with_its_network(study):
    board, trials = Dashboard(study.record), study.frozen("COMPLETE")
    for trial in trials:
        note = board.note(trial)
        assert picture(study.architecture(trial.number)) in note
        assert f"Network `{trial.user_attrs['digest']}`" in note
        assert ("**On the Pareto front**" in note) == (trial.number in study.front_numbers())
        if trial.values[1] > 7:
            assert note.startswith("Evaluated: latency")
    table = board.note()
    assert f"within latency 7.00 ms: {len(trials)} evaluated, 0 rejected" in table
    ids = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.startswith("| ")]
    assert ids[2:] == [str(number) for number in study.front()["id"]]


def test_the_figure_is_one_that_plotly_draws(study):
    import plotly.graph_objects

    attributes = optuna_adapter.study_system_attrs(study.record)
    figure = plotly.graph_objects.Figure(json.loads(attributes["dashboard:plot_data:front:0"]))
    assert [trace.name for trace in figure.data if trace.showlegend] == ["evaluated", "Pareto front"]
    assert len(figure.data[2].x) == len(study.front_numbers())


def test_a_search_goes_on_as_without_notes(study, tmp_path):
    """Interrupted or not, with notes or without: the same trials, the same front; notes are completed."""
    settings = {"latency_target_ms": 7, "sampler": "random"}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("describe_study", "describe_trial", "update"):
            patch.setattr(dashboard, name, lambda *_: None)
        bare = searched(tmp_path / "s", trials=5, **settings)
    assert Dashboard(bare.record).note() == ""
    longer = searched(tmp_path / "s", trials=10, **settings)
    fronts = [one.front().drop(columns="seconds") for one in (longer, study)]
    assert fronts[0].equals(fronts[1])
    notes = [[Dashboard(one.record).note(trial) for trial in one.frozen("COMPLETE")] for one in (longer, study)]
    unnamed = [
        [text.replace(str(one.folder), "").partition("[nasspace]")[0] for text in each]
        for one, each in zip((longer, study), notes, strict=True)
    ]
    assert unnamed[0] == unnamed[1]


def test_updating_twice_writes_nothing(study, monkeypatch):
    loaded = records.load(study.folder)
    monkeypatch.setattr(optuna_adapter, "set_study_system_attr", None)
    dashboard.update(loaded, loaded.snapshot())
    dashboard.describe_study(loaded)


def test_a_network_that_cannot_be_built_has_no_note(study, monkeypatch):
    def architecture(number):
        raise InputError(f"trial {number}: 'ghost' is not a block")

    monkeypatch.setattr(study, "architecture", architecture)
    before = [Dashboard(study.record).note(trial) for trial in study.frozen()]
    dashboard.update(study, study.snapshot())
    assert [Dashboard(study.record).note(trial) for trial in study.frozen()] == before


def test_names_of_others_stay_text(study, monkeypatch):
    architecture = study.architecture(0)
    figures = {**study.snapshot().trials[0], "reason": EVIL, "state": "rejected"}
    note = dashboard._trial_note(study, figures, architecture, dashboard._state(figures), study.record.user_attrs)
    settings = {**study.settings, "space": {**study.settings["space"], "name": EVIL}}
    monkeypatch.setattr(study, "settings", settings)
    for text in (note, dashboard._study_note(study.snapshot())):
        assert "<script" not in text.replace("\\<", "")
        assert "\n# " not in text
        assert " [y]" not in text


def test_a_picture_shows_each_layer():
    network = load("shufflenet_v2_1.0")
    lines = picture(network).splitlines()
    assert len(lines) == 2 + len(network.layers)
    assert lines[2] == "| conv | kernel 3, stride 2 | █ 24 | 112x112 | 6% |"
    assert lines[-1].startswith("| linear |")
    assert network_text(network).startswith("16 shuffle_v2, 2 conv, 1 max_pool; widths 24, 116, 232, 464, 1024")


@pytest.mark.slow
def test_a_search_on_images_records_intervals_and_rungs(tmp_path, monkeypatch):
    """Accuracies after each rung are intermediate values, though the trials have finished; intervals are readable."""
    monkeypatch.chdir(tmp_path)
    found = loop.search(
        Space.from_text(SPACE, "little.yaml", classes=10, channels=1, resolution=16),
        data="digits",
        trials=3,
        latency_target_ms=50,
        fidelity={"resolution": 8, "epochs": 1, "share": 0.2},
        rungs=[{"epochs": 2, "share": 0.2, "resolution": 16}, {"epochs": 3, "share": 0.2, "resolution": 16}],
        resolution=16,
        study="images",
    )
    record = record_of(found.folder)
    for trial in complete(record):
        assert "(" in trial.user_attrs["accuracy_95"]
        assert trial.user_attrs["latency_95_ms"].endswith(")")
        rungs = [found.rung(0, trial.number), found.last_rung(trial.number)]
        values = {sum(step[1] for step in rung["steps"]): rung["accuracy"] for rung in rungs if rung}
        assert trial.intermediate_values == {1: trial.user_attrs["values"]["accuracy"], **values}
        note = Dashboard(found.record).note(trial)
        assert "| trained in the search | 1 epoch at 8x8: " in note
        assert ("| last rung |" in note) == (rungs[1] is not None)
    assert any(len(trial.intermediate_values) == 3 for trial in complete(record))
    assert "latency (95 %)" in Dashboard(found.record).note()
    with sqlite3.connect(found.folder / "study.db") as connection:
        (size,) = connection.execute(
            "SELECT SUM(LENGTH(value_json)) FROM study_system_attributes WHERE key LIKE 'dashboard:%'"
        ).fetchone()
    connection.close()
    assert size < 20_000
    assert load_study("images").front()["id"].tolist() == found.front()["id"].tolist()


def test_the_accuracy_of_a_rung_that_a_kill_left_out_is_recorded_later(tmp_path):
    study = searched(tmp_path / "s", trials=2)
    number = complete(study.record)[0].number
    training = {"accuracy": 0.5, "resolution": 16, "epochs": 2, "seconds": 1.0, "losses": [1.0]}
    for key, steps in (("rung:0:", [[8, 1, 1.0], [16, 2, 1.0]]), ("rung:1:", [[8, 1, 1.0], [16, 6, 1.0]])):
        study.record.set_user_attr(f"{key}{number}", {**training, "steps": steps})
    records.load(study.folder).report_missing_rungs()
    assert record_of(study.folder).trials[number].intermediate_values.items() >= {3: 0.5, 7: 0.5}.items()
