"""Printing the data frame of a front."""

from __future__ import annotations

import io
import json

import pandas
import pytest

from nasspace.studies.frames import FrontFrame

MEMBER = {
    "id": 3,
    "digest": "0123456789ab",
    "accuracy": 0.93,
    "latency_ms": 12.5,
    "flops": 2_505_888.0,
    "params": 293_434.0,
    "memory_access": 395_626.0,
    "search_accuracy": float("nan"),
    "latency_low_ms": 12.0,
    "latency_high_ms": 13.0,
    "latency_ties": "4",
    "architecture": json.dumps({"layers": [{"block": "conv"}] * 40}),
}


@pytest.fixture
def front():
    return FrontFrame([MEMBER, {**MEMBER, "id": 4, "latency_ties": "3"}])


@pytest.mark.parametrize("width", [20, 60, 80, 200])
def test_a_front_prints_whole_columns_side_by_side(front, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = str(front).splitlines()
    assert all(len(line) <= max(width, 21) for line in lines)  # the longest name of a column
    shown = lines[0].split()
    assert shown[0] == "id"
    assert "..." not in str(front)
    assert "architecture" not in shown
    assert "search_accuracy" not in shown, "it is empty"
    left_out = " ".join(lines[lines.index("") + 1 :]).rstrip("]").split("not shown: ")[1].split(", ")
    assert {*shown, *left_out, "search_accuracy"} == set(front.columns)
    assert ("2505888" in str(front)) == ("flops" in shown)


def test_a_front_is_a_data_frame_with_all_its_columns(front):
    assert front.columns[-1] == "architecture"
    assert json.loads(front["architecture"][0])["layers"]
    assert type(front.sort_values("id")) is pandas.DataFrame
    again = pandas.read_csv(io.StringIO(front.to_csv(index=False)), dtype={"digest": str, "latency_ties": str})
    pandas.testing.assert_frame_equal(again, pandas.DataFrame(front), check_dtype=False)


def test_an_empty_front_prints():
    assert "Empty" in str(FrontFrame(columns=list(MEMBER)))
