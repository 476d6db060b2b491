"""A tampered cache is measured again: no mutation raises an error, and none is used as it is."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import random
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest

from nasspace.architecture import Architecture
from nasspace.errors import InputError
from nasspace.guidelines import counterfactuals
from nasspace.latency import benchmark, layerwise
from nasspace.latency.benchmark import Latency, measure_latency
from nasspace.latency.cache import LatencyCache
from nasspace.latency.conditions import Conditions, machine
from nasspace.latency.reference import machine_history, reference_conditions
from nasspace.network import build

SHAPE = (3, 16, 16)
LAYERS = [{"block": "conv", "out": 8, "stride": 2}, {"block": "global_pool"}, {"block": "linear", "out": 4}]
ARCHITECTURE = Architecture.of(LAYERS, input=SHAPE)
VALID = {
    **{"runtime": "onnxruntime", "device": "cpu", "threads": 1, "batch_size": 1, "input": list(SHAPE)},
    **{"median_ms": 1.0, "low_ms": 0.9, "high_ms": 1.1, "rounds": 12, "contended": False},
    **{"samples_ms": [1.0, 1.1, 0.9] * 4, "reference_ms": [2.0, 2.1, 1.9] * 4, "reference_usual_ms": 2.0},
    **{"machine": machine(), "versions": {"torch": "2"}, "measured_at": "2026-11-27T12:00:00+00:00"},
}
DEEP: Any = []
for _ in range(50):
    DEEP = [DEEP]
HOSTILE = [
    *(None, True, False, 0, 0.0, -1, -1.5, 1e-400, 1e13, 10**400, 2**63, math.nan, math.inf, -math.inf, "", "1.5"),
    *("\x1b[31m", "\ud800", "x" * 10_000, [], {}, [0], [None], ["a"], {"a": 1}, {"a": DEEP}, DEEP, [1.0] * 5),
]


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yield every path in a document."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    if isinstance(value, list):
        for i in range(min(len(value), 3)):
            yield from places(value[i], (*path, i))


def mutated(document: Any, draw: random.Random) -> Any:
    """Return a document with one to three values changed, removed or moved."""
    document = copy.deepcopy(document)
    for _ in range(draw.randint(1, 3)):
        path = draw.choice([one for one in places(document) if one] or [()])
        if not path:
            return draw.choice(HOSTILE)
        inside = document
        for key in path[:-1]:
            inside = inside[key]
        if draw.random() < 0.2:
            del inside[path[-1]]
        else:
            inside[path[-1]] = copy.deepcopy(draw.choice(HOSTILE))
        if not document:
            break
    return document


class MeasuredAgain(Exception):
    """A stand-in for a measurement."""


@pytest.fixture
def cache(tmp_path, monkeypatch) -> LatencyCache:
    def measure(*_, **__):
        raise MeasuredAgain

    monkeypatch.setattr(benchmark, "measure", measure)
    monkeypatch.setattr(benchmark, "load_reference", lambda *_: None)
    monkeypatch.setattr(benchmark.runtimes.OnnxRuntime, "load", lambda *_: benchmark)
    monkeypatch.setattr(benchmark.runtimes, "check_outputs", lambda *_: None)
    return LatencyCache(tmp_path / "latency.db")


KEY = Conditions.on_this_machine(ARCHITECTURE.digest, "onnxruntime", input=SHAPE)


def write(cache: LatencyCache, text: str | bytes) -> None:
    cache.put(KEY, VALID)
    connection = sqlite3.connect(cache.path)
    with connection:
        connection.execute("UPDATE latency_2 SET document = ?", (text,))
    connection.close()


def test_the_unchanged_document_is_used(cache):
    write(cache, json.dumps(VALID))
    assert measure_latency(ARCHITECTURE, cache=cache).samples_ms == tuple(VALID["samples_ms"])


@pytest.mark.parametrize("name", sorted(VALID))
@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:12])
def test_a_changed_value_is_an_input_error_or_a_measurement(name, value):
    document = {**VALID, name: value}
    with contextlib.suppress(InputError):
        found = Latency.from_json(document)
        again = found.normalized(machine_history(reference_conditions(1, "cpu"), "onnxruntime", LatencyCache()))
        assert 0 < again.low_ms <= again.median_ms <= again.high_ms < math.inf


@pytest.mark.parametrize("name", sorted(VALID))
@pytest.mark.parametrize("value", [None, DEEP, math.nan, ["\x1b[31m" * 99]], ids=["null", "deep", "nan", "escape"])
def test_the_error_names_the_value(name, value):
    with pytest.raises(InputError, match=rf"^{name}: .*measure again$") as caught:
        Latency.from_json({**VALID, name: value})
    assert len(str(caught.value)) < 200
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("missing", sorted(VALID))
def test_a_document_with_a_missing_value_is_refused(missing):
    with pytest.raises(InputError, match=missing):
        Latency.from_json({name: value for name, value in VALID.items() if name != missing})


def test_a_mutated_cache_is_measured_again(cache):
    draw, believed = random.Random(0), 0
    for _ in range(150):
        document = mutated(VALID, draw)
        write(cache, json.dumps(document))
        try:
            found = measure_latency(ARCHITECTURE, cache=cache)
        except MeasuredAgain:
            continue
        believed += 1
        assert 0 < found.low_ms <= found.median_ms <= found.high_ms < 1e3
        assert found.samples_ms == tuple(document["samples_ms"])
    assert believed < 30, "versions, a machine's name, a median: what is not used to normalize"


@pytest.mark.parametrize(
    "text",
    [
        *("", "nonsense", "null", "[1, 2]", '"text"', "1" * 5000, "[" * 100_000, '{"a":' * 50_000, "NaN"),
        *(b"\xff\xfe\x00", b"\x00" * 100, json.dumps(VALID)[:-5]),
    ],
    ids=lambda text: repr(text[:10]),
)
def test_an_invalid_text_is_measured_again(text, cache):
    write(cache, text)
    with pytest.raises(MeasuredAgain):
        measure_latency(ARCHITECTURE, cache=cache)


@pytest.mark.parametrize(
    "change", [{"runtime": "eager"}, {"threads": 2}, {"batch_size": 8}, {"input": [3, 32, 32]}, {"contended": True}]
)
def test_a_document_of_other_conditions_is_measured_again(change, cache):
    write(cache, json.dumps({**VALID, **change}))
    with pytest.raises(MeasuredAgain):
        measure_latency(ARCHITECTURE, cache=cache)


@pytest.mark.parametrize("value", ["fast", b"\x01\x02", 0, -2.0, math.inf, 1e300, ""], ids=repr)
def test_an_invalid_reading_is_ignored(value, cache):
    reference = reference_conditions(1, "cpu")
    cache.add_reading(reference, 2.0)
    cache.add_ratio(reference, KEY, 0.5)
    connection = sqlite3.connect(cache.path)
    with connection:
        connection.execute("INSERT INTO reference_1 VALUES (?, ?, ?)", (reference.json_text(), 1e9, value))
        connection.execute("INSERT INTO reference_1 VALUES (?, ?, ?)", (reference.json_text(), value, 2.5))
        key = json.dumps(["onnxruntime", reference.json_text()])
        connection.execute("INSERT INTO ratio_1 VALUES (?, ?, ?, ?)", (key, KEY.json_text(), 1e9, value))
        connection.execute("INSERT INTO ratio_1 VALUES (?, ?, ?, ?)", (key, value, value, value))
    connection.close()
    found = machine_history(reference, "onnxruntime", cache)
    assert [milliseconds for _, milliseconds in found.readings] == [2.0]
    assert found.repeats == ()


def test_mutated_times_of_layers_are_measured_again(cache, monkeypatch):
    latency, model, draw = Latency.from_json(VALID), build(ARCHITECTURE), random.Random(1)
    monkeypatch.setattr(layerwise, "_profile_layers", lambda *_: [0.1, 0.2, 0.3])
    for value in [*HOSTILE, [1.0, 2.0], [1.0, 2.0, "3"], [1.0, 2.0, -3.0], [1.0, math.nan, 2.0], [10**400, 1, 1]]:
        cache.put(layerwise._conditions(ARCHITECTURE, model, latency), {"layers_ms": value})
        assert layerwise.measure_layers(ARCHITECTURE, model, latency, cache=cache) == [0.1, 0.2, 0.3]
    for _ in range(100):
        document = mutated({"layers_ms": [0.5, 0.25, 0.0]}, draw)
        cache.put(layerwise._conditions(ARCHITECTURE, model, latency), document)
        assert all(0 <= ms < 1e12 for ms in layerwise.measure_layers(ARCHITECTURE, model, latency, cache=cache))


def test_mutated_sides_of_a_prediction_are_not_used():
    good = [{"ms": 1.0, "scatter": 0.0}, {"ms": 0.5, "scatter": 0.1}]
    assert counterfactuals._are_sides(good)
    for value in HOSTILE:
        assert not counterfactuals._are_sides(value)
        assert not counterfactuals._are_sides([good[0], value])
        assert not counterfactuals._are_sides([good[0], {"ms": value, "scatter": 0.0}]) or value in (1e-400, 2**63)
