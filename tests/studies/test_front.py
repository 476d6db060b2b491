"""The frozen front of a study: its order, its ties, its rows and its documents."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import random
import re
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas
import pytest

from nasspace.engine import arch_reference
from nasspace.errors import InputError
from nasspace.exporting.members import export_front
from nasspace.studies import front as fronts
from nasspace.studies import study as records
from nasspace.studies.trial_table import FRONT_COLUMNS, RECORD, TRIAL_COLUMNS, WHOLE_COLUMNS, ties, whole

RECORDED = Path(__file__).parents[1] / "recorded" / "study"


@pytest.fixture
def study(restore_study, tmp_path, monkeypatch) -> records.Study:
    """A finished search on digits."""
    monkeypatch.chdir(tmp_path)
    restore_study(tmp_path)
    return records.load("real")


def test_a_snapshot_holds_what_the_study_holds(study):
    front = study.snapshot()
    assert [member.id for member in front.members] == study.front()["id"].tolist()
    assert {member.id for member in front.members} == set(study.front_numbers())
    assert (front.evaluated, front.rejected) == (study.evaluated, study.rejected)
    assert front.document() == study.document()
    assert list(front.frame()) == FRONT_COLUMNS
    assert list(front.trials_frame()) == TRIAL_COLUMNS
    with pytest.raises(dataclasses.FrozenInstanceError):
        front.members = ()


def test_a_member_has_the_figures_of_its_trial(study):
    for member in study.snapshot().members:
        assert member.load_architecture() == study.architecture(member.id)
        assert member.architecture == study.architecture(member.id).to_json()
        assert member.row["digest"] == study.architecture(member.id).digest
        assert study.member(member.id).row == member.row
    with pytest.raises(InputError, match="no trial 999"):
        study.member(999)


def test_rows_carry_the_records_of_their_trials(study):
    """Tables and documents do not show them."""
    front = study.snapshot()
    for row, trial in zip(front.trials, study.frozen("COMPLETE", "PRUNED"), strict=True):
        record = row[RECORD]
        assert record.choices.keys() == trial.params.keys()
        assert record.layers_ms == trial.user_attrs["layers_ms"]
        assert record.started.utcoffset() == timedelta(0)
        assert record.started < record.finished
        assert record.architecture == trial.user_attrs["architecture"]
    assert front.trials[0][RECORD].deployed["accuracy"] == front.members[0].row["accuracy"]
    assert RECORD not in front.csv() + front.trials_csv() + json.dumps(front.document())


def test_members_are_ordered_by_the_first_objective_then_the_next():
    figures = [(0.9, 3.0), (0.8, 1.0), (0.9, 2.0), (None, 1.0)]
    rows = [{"accuracy": accuracy, "latency_ms": latency, "search_accuracy": None} for accuracy, latency in figures]
    ordered = fronts.ordered(rows, ("accuracy", "latency"))
    assert [(row["accuracy"], row["latency_ms"]) for row in ordered] == [
        (0.9, 2.0),
        (0.9, 3.0),
        (0.8, 1.0),
        (None, 1.0),
    ]
    searched = [{"accuracy": None, "search_accuracy": accuracy} for accuracy in (0.5, 0.7)]
    assert fronts.ordered(searched, ("accuracy",)) == searched[::-1]


def test_overlapping_latency_intervals_are_ties():
    intervals = [(1.0, 2.0), (1.5, 3.0), (2.5, 4.0), (None, None)]
    rows = [{"id": i, "latency_low_ms": low, "latency_high_ms": high} for i, (low, high) in enumerate(intervals)]
    assert ties(rows) == [(1,), (0, 2), (1,), ()]


def by_pandas(frame: pandas.DataFrame) -> str:
    """A frame as pandas writes it, with its counts as integers."""
    frame = pandas.DataFrame(frame).drop(columns="architecture", errors="ignore")
    counts = {name: [whole(value) for value in frame[name].astype(object)] for name in WHOLE_COLUMNS}
    return frame.assign(**{n: pandas.Series(each, frame.index, object) for n, each in counts.items()}).to_csv(
        index=False
    )


def test_tables_are_what_pandas_writes(study):
    front = study.snapshot()
    assert front.csv() == by_pandas(front.frame())
    assert front.trials_csv() == by_pandas(front.trials_frame())
    empty = dataclasses.replace(front, members=(), trials=())
    assert empty.csv() == by_pandas(empty.frame())
    assert empty.trials_csv() == by_pandas(empty.trials_frame())


# Columns without a unit in their names: ids and texts, flags, fractions, counts, pixels.
UNITLESS = {
    *("id", "digest", "state", "reason", "architecture", "accuracy_ties", "latency_ties", "latency_contended"),
    *("accuracy", "search_accuracy", "accuracy_expected", "accuracy_low", "accuracy_high"),
    *("flops", "params", "memory_access", "resolution"),
}


def test_columns_have_their_units_in_their_names():
    with_unit = {name for name in (*TRIAL_COLUMNS, *FRONT_COLUMNS) if name.endswith(("_ms", "_bytes"))}
    assert {*TRIAL_COLUMNS, *FRONT_COLUMNS} == UNITLESS | with_unit | {"seconds"}
    measured = [
        name for name in (*TRIAL_COLUMNS, *FRONT_COLUMNS) if re.match("latency_(low|high|again)|latency$", name)
    ]
    assert all(name.endswith("_ms") for name in measured)


@pytest.mark.parametrize(("name", "table"), [("trials.csv", "trials_frame"), ("front.csv", "frame")])
def test_the_tables_are_read_by_pandas(study, name, table):
    records.write_tables(study)
    texts = {"digest": str, "accuracy_ties": str, "latency_ties": str}
    found = pandas.read_csv(study.folder / name, dtype=texts)
    written = pandas.DataFrame(getattr(study.snapshot(), table)()).drop(columns="architecture", errors="ignore")
    assert list(found) == list(written)
    assert len(found) >= 1
    numbers = [
        column for column in found if column.endswith(("_ms", "_bytes")) or column in ("id", "accuracy", "flops")
    ]
    assert all(pandas.api.types.is_numeric_dtype(found[column]) for column in numbers)
    empty = written.isna() | (written == "")
    pandas.testing.assert_frame_equal(found.isna(), empty)
    pandas.testing.assert_frame_equal(found[~empty], written[~empty], check_dtype=False)


CELLS = [
    *(None, math.nan, 0, 7, -1, 2**53, 0.1, 1.0, 1e-7, 1e16, 1e22, -0.0, math.inf, True, False),
    *("", "a", "1, 2", 'say "so"', "two\nlines", "nan", "1.0", " "),
]


def test_any_cells_are_written_as_pandas_writes_them(study):
    """Columns of one kind, with and without missing cells, and of all kinds; members have some of the rows."""
    kinds = [CELLS, CELLS[2:6], CELLS[:6], CELLS[:13], CELLS[6:13], CELLS[13:15], [*CELLS[:2], *CELLS[13:]], CELLS[15:]]
    snapshot, chosen = study.snapshot(), random.Random(0)
    for _ in range(300):
        columns = {name: chosen.choice(kinds) for name in [*TRIAL_COLUMNS, "added"]}
        rows = [{name: chosen.choice(kind) for name, kind in columns.items()} for _ in range(chosen.randint(1, 5))]
        shown = chosen.sample(rows, chosen.randint(1, len(rows)))
        members = tuple(dataclasses.replace(snapshot.members[0], row=row, ties=(3, 5)) for row in shown)
        front = dataclasses.replace(snapshot, trials=tuple(rows), members=members)
        assert front.trials_csv() == by_pandas(front.trials_frame())
        assert front.csv() == by_pandas(front.frame())


@pytest.mark.parametrize("missing", [False, True])
def test_counts_are_integers(study, missing):
    """Also where the record has floats, and where a network has none, as one that an evaluator did not count."""
    snapshot = study.snapshot()
    rows = [{**row, "params": None} if missing and row["id"] else dict(row) for row in snapshot.trials]
    text = dataclasses.replace(snapshot, trials=tuple(rows)).trials_csv()
    for line in text.splitlines()[1:]:
        cells = dict(zip(text.splitlines()[0].split(","), line.split(","), strict=True))
        assert re.fullmatch(r"\d+", cells["flops"])
        assert re.fullmatch(r"\d*", cells["params"])
    found = pandas.read_csv(io.StringIO(text))
    assert found["flops"].dtype == found["id"].dtype == found["resolution"].dtype == "int64"
    assert found["params"].isna().sum() == (len(rows) - 1 if missing else 0)
    assert isinstance(study.front()["flops"][0], np.integer)


def test_digests_of_digits_need_their_type(study):
    """Nothing in a CSV file says that digits are a text; docs/search.md gives the type."""
    front = study.snapshot()
    row = {**front.trials[0], "digest": "012345678901"}
    text = dataclasses.replace(front, trials=(row,)).trials_csv()
    assert pandas.read_csv(io.StringIO(text), dtype={"digest": str})["digest"][0] == "012345678901"


def test_an_empty_front_is_not_exported(study, tmp_path):
    empty = dataclasses.replace(study.snapshot(), members=())
    with pytest.raises(InputError, match=r"no front yet; run `nas resume real`"):
        export_front(empty, tmp_path / "out")


def test_the_recommended_network_has_a_name(study, monkeypatch, capsys):
    assert arch_reference.parse_trial("real:recommended") == ("real", 0)
    assert arch_reference.resolve_arch("real:recommended").name == "real-0"
    with pytest.raises(InputError, match="there is no study"):
        arch_reference.parse_trial("unknown:recommended")
    assert arch_reference.settled("real:recommended") == "real:0"
    assert [arch_reference.settled(given) for given in ("real:0", "a.onnx", None)] == ["real:0", "a.onnx", None]
    monkeypatch.setattr(fronts.Front, "recommended", None)
    with pytest.raises(InputError, match="real:recommended: the study recommends no network, so far; give STUDY:ID"):
        arch_reference.resolve_arch("real:recommended")
    monkeypatch.setattr(records.Study, "_front_numbers", lambda *_: [])
    with pytest.raises(InputError, match="no network on its front; run `nas resume real`, or widen"):
        arch_reference.resolve_arch("real:recommended")
