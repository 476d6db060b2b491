"""Violations of guidelines, the proposed changes, and their savings."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest

from nasspace import Architecture, InputError, cost
from nasspace.guidelines import LayerTime, counterfactuals, elementwise, explain, explanation, fragments, widths
from nasspace.guidelines.counterfactuals import (
    GraphEdit,
    LayerReplacement,
    MeasurementSettings,
    OperatorReplacement,
    Operators,
    Saving,
    Surroundings,
)
from nasspace.guidelines.equal_flops import nearest_width, next_multiple_of_16
from nasspace.latency import reference, runtimes
from nasspace.latency.cache import LatencyCache
from nasspace.latency.convert import to_onnx
from nasspace.latency.graph import Graph
from nasspace.latency.profile import Profile, TimedOperator


def pointwise(out, **options):
    return {"block": "conv", "kernel": 1, "out": out, **options}


@pytest.mark.parametrize("size", [(8, 8), (56, 56)])
@pytest.mark.parametrize(("c1", "c2"), [(32, 32), (22, 44), (9, 108)])
def test_memory_access_is_minimal_at_equal_widths(size, c1, c2):
    access, bound = widths.memory_access(size, c1, c2)
    assert access == math.prod(size) * (c1 + c2) + c1 * c2
    assert access >= bound - 1e-6
    assert (access == pytest.approx(bound)) == (c1 == c2)


def test_widths_keep_the_flops_or_fill_the_vector_units():
    for width in range(1, 500):
        assert abs(nearest_width(width) ** 2 / width**2 - 1) <= 0.05
        assert next_multiple_of_16(width) % 16 == 0 <= next_multiple_of_16(width) - width < 16


def test_a_plain_network_has_no_violation(context_of):
    context = context_of(pointwise(16), pointwise(32), {"block": "depthwise_separable", "out": 32}, {"block": "conv"})
    assert [one for guideline in explanation.GUIDELINES for one in guideline(context)] == []


def test_g1_a_run_of_unequal_widths_gets_equal_ones_at_the_same_flops(context_of, changed):
    context = context_of(*[pointwise(out) for out in (128, 16, 128, 16, 128, 16)])
    first, second, *_ = widths.find_unequal_widths(context)
    assert (first.guideline, set(first.layers)) == ("G1", {1, 2, 3, 4, 5, 6})
    assert "memory access" in first.text
    outs = [[layer["out"] for layer in violation.parts[0].after] for violation in (first, second)]
    assert outs[0] == [nearest_width(51.4)] * 5 + [16]
    assert outs[1] == [64] * 5 + [16]
    before, after = cost(context.architecture).flops, cost(changed(context, first.parts)).flops
    assert after == pytest.approx(before, rel=0.06)


def test_g1_a_ratio_of_2_counts_where_it_leads_back(context_of):
    growing = context_of(pointwise(16), pointwise(32), pointwise(64))
    assert list(widths.find_unequal_widths(growing)) == []
    first = next(widths.find_unequal_widths(context_of(*[pointwise(out) for out in (32, 16, 32, 16)])))
    assert set(first.layers) == {1, 2, 3, 4}


def test_g1_layers_around_a_run_change_their_width_too(context_of, changed):
    """The total FLOPs stay; the layer between two runs belongs to the first of them."""
    runs = [pointwise(out) for out in (64, 8, 64, 8)], [pointwise(out) for out in (80, 10, 80, 10)]
    context = context_of(pointwise(16), *runs[0], {"block": "conv", "out": 16}, *runs[1], pointwise(16), pointwise(16))
    first = next(one for one in widths.find_unequal_widths(context) if "at their ends" in one.change)
    assert [(part.start, len(part.before)) for part in first.parts] == [(1, 6), (7, 5)]
    after = changed(context, first.parts)
    widths_now = [layer.out for layer in after.layers]
    assert widths_now[1:6] == [widths_now[1]] * 5
    assert widths_now[7:11] == [widths_now[7]] * 4
    assert [widths_now[i] for i in (0, 6, 11, 12, 13)] == [16, 16, 16, 16, 3]
    flops = [cost(one).flops for one in (after, context.architecture)]
    assert flops[0] == pytest.approx(flops[1], rel=0.06)


def test_g1_a_unit_with_internal_widths_is_compared_as_operators(context_of):
    violation = next(widths.find_unequal_widths(context_of({"block": "inverted_residual", "out": 16, "expansion": 4})))
    assert [type(part) for part in violation.parts] == [OperatorReplacement, OperatorReplacement]
    part = violation.parts[0]
    assert part.before.convolutions == ((16, 64, 1, 1), (64, 16, 1, 1))
    assert part.after.convolutions == ((32, 32, 1, 1), (32, 32, 1, 1))
    assert part.before.flops == part.after.flops
    assert part.saved(2.0, 1.0) == pytest.approx(part.time_ms / 2)


def test_g3_a_fire_module_is_two_fragments(context_of):
    (violation,) = fragments.find_fragments(context_of({"block": "fire", "out": 32}))
    (part,) = violation.parts
    assert (violation.guideline, violation.kind) == ("G3", "parallel")
    assert part.before == Operators(((4, 16, 1, 1), (4, 16, 3, 1)), "Concat", activated=True)
    assert part.after.convolutions == ((4, 18, 3, 1),)


@pytest.mark.parametrize("options", [{"block": "inception_v1"}, {"block": "inception_b", "stride": 2, "padding": 0}])
def test_g3_a_module_of_branches_gets_one_branch_of_the_same_flops(context_of, changed, options):
    context = context_of({"block": "conv", "out": 32}, {"out": 128, **options})
    found = next(one for one in fragments.find_fragments(context) if one.kind == "branches")
    assert (found.guideline, found.layers, found.parts[0].start) == ("G3", (2,), 2)
    assert f"up to {4 if options['block'] == 'inception_v1' else 3} in a layer" in found.text
    before, after = cost(context.architecture), cost(changed(context, found.parts))
    assert after.flops == pytest.approx(before.flops, rel=0.07)
    assert after.layers[3].out_shape == before.layers[2].out_shape


def test_g3_every_module_of_a_network_gets_one_branch(context_of):
    context = context_of(*[{"block": "inception_v1", "out": out} for out in (32, 64, 48)])
    found = next(one for one in fragments.find_fragments(context) if one.kind == "branches")
    changed = context.changed_architecture(found.parts)
    assert [layer.block for layer in changed.layers] == ["conv"] * 7 + ["linear"]
    assert [layer.out for layer in changed.layers][2::2] == [32, 64, 48]
    assert cost(changed).flops == pytest.approx(cost(context.architecture).flops, rel=0.07)


def test_g4_each_kind_of_element_wise_work_is_one_violation(context_of):
    layer = {"block": "conv", "out": 16, "se": 0.25, "activation": "elu"}
    found = {one.kind: one for one in elementwise.find_elementwise(context_of(layer, layer))}
    assert {kind: set(one.layers) for kind, one in found.items()} == {"se": {1, 2}, "activation": {1, 2}}
    assert all(isinstance(part, GraphEdit) for one in found.values() for part in one.parts)


def test_an_operator_too_fast_to_be_timed_still_runs_separately(context_of):
    """The profiler's overhead is subtracted: on a fast machine nothing may be left of a small operator's time."""
    context = context_of({"block": "conv", "out": 16, "activation": "elu"})
    timed = dataclasses.replace(
        context.profile, operators=[dataclasses.replace(one, ms=0.0) for one in context.profile.operators]
    )
    (violation,) = elementwise.find_elementwise(dataclasses.replace(context, profile=timed))
    assert violation.time_ms == 0
    assert "1 run separately, 0 fused" in violation.text


def test_a_part_starts_with_a_convolution_if_layers_precede_it(context_of, tmp_path):
    """Otherwise the shortcut of the preceding layer would add the file's input, which has another memory layout."""
    context = context_of(*[pointwise(16, skip=True)] * 3)
    leads = [context.surroundings(start, start + 1).lead for start in range(4)]
    assert [len(lead) for lead in leads] == [0, 1, 2, 2]
    assert leads[3] == (pointwise(16), context.layers[2])
    (part,) = context.graph_edits("add", [3])
    kinds = [[node.op_type for node in Graph(path).nodes] for path in part.write(tmp_path, 1)]
    assert [one.count("Conv") for one in kinds] == [3, 3]
    assert [one.count("Add") for one in kinds] == [2, 1]


def test_parts_are_measured_once_and_add_up(monkeypatch, tmp_path):
    calls = []
    sides = [{"ms": 3.0, "scatter": 0.3}, {"ms": 1.0, "scatter": 0.4}]
    monkeypatch.setattr(counterfactuals, "_measure_part", lambda part, folder, settings: calls.append(part) or sides)
    operators = Operators(((8, 8, 1, 1),))
    parts = [OperatorReplacement(operators, operators, (4, 4), ms) for ms in (3.0, 6.0)]
    saved = counterfactuals.measure_saving(parts, tmp_path, MeasurementSettings())
    assert len(calls) == 1, "equal operators on equal maps are one measurement"
    assert saved.ms == pytest.approx(6.0)
    assert saved.plus_minus > 0
    assert counterfactuals.estimate_saving(parts, tmp_path, MeasurementSettings()) >= 6.0


@pytest.mark.parametrize(
    ("before", "after", "convolutions"),
    [
        (Operators(((8, 8, 1, 1),) * 2, "Add", activated=True), Operators(((12, 12, 1, 1),)), (8, 4)),
        (Operators(((8, 4, 1, 1),) * 2, "Concat"), Operators(((8, 8, 3, 1),)), (8, 4)),
        (Operators(((8, 4, 1, 1), (8, 4, 3, 1)), "Concat"), Operators(((8, 7, 3, 1),)), (2, 1)),
        (Operators(((8, 16, 1, 1), (16, 8, 1, 1))), Operators(((12, 12, 1, 1),) * 2), (8, 8)),
    ],
)
def test_operators_are_repeated_if_their_widths_allow_it(before, after, convolutions, tmp_path):
    """This reduces the weight of ONNX Runtime's reordering at both ends of a file."""
    graphs = [Graph(path) for path in OperatorReplacement(before, after, (4, 4), 1.0).write(tmp_path, 1)]
    assert tuple(len(graph.convolutions()) for graph in graphs) == convolutions
    relus = [sum(node.op_type == "Relu" for node in graph.nodes) for graph in graphs]
    assert relus == [convolutions[0] if before.activated else 0, 0]


def test_g3_operators_are_activated_as_in_the_network(context_of):
    """ONNX Runtime fuses an addition into a convolution only if no operator lies between them."""
    (violation,) = fragments.find_fragments(context_of({"block": "fire", "out": 32}))
    (part,) = violation.parts
    assert part.before.activated
    assert part.after.activated


@pytest.mark.parametrize(("layers", "loads"), [(1, 1), (4, 1), (9, 2), (16, 4), (60, 4)])
def test_the_more_of_a_network_changes_the_more_often_it_is_loaded(layers, loads):
    """Most of the saving then depends on one part, and a network's time differs from load to load."""
    part = LayerReplacement(0, ({"block": "conv"},) * layers, (), Surroundings((), (), (8, 6, 6)))
    assert counterfactuals._loads(part) == loads
    operators = Operators(((8, 8, 1, 1),))
    assert counterfactuals._loads(OperatorReplacement(operators, operators, (4, 4), 100.0)) == 1


def test_each_load_of_each_file_is_a_network_of_its_own(tmp_path, monkeypatch):
    paths = [to_onnx(Operators(((8, out, 1, 1),)).module(), (8, 6, 6), tmp_path / f"{out}.onnx") for out in (4, 5)]
    loaded = []

    def measured(networks, seconds):
        loaded.extend(network.outputs(np.ones((1, 8, 6, 6), np.float32)).shape for network in networks.values())
        return {name: SimpleNamespace(median_ms=1.0, samples_ms=(1.0,) * 12) for name in networks}

    monkeypatch.setattr(counterfactuals.benchmark, "measure", measured)
    sides = counterfactuals.measure_in_turn(paths, MeasurementSettings(), 3)
    assert loaded == [(1, 4, 6, 6), (1, 5, 6, 6)] * 3
    assert sides == [{"ms": 1.0, "scatter": 0.0}] * 2


def test_the_uncertainty_includes_the_differences_between_loads():
    found = [SimpleNamespace(median_ms=ms, samples_ms=(ms,) * 12) for ms in (1.0, 1.2, 1.4, 1.6)]
    side = counterfactuals._one_side(found)
    assert side["ms"] == pytest.approx(1.3)
    assert side["scatter"] == pytest.approx(2 * 0.2582 / 2, rel=1e-3)
    noisy = [SimpleNamespace(median_ms=1.0, samples_ms=(0.9, 1.0, 1.1) * 4)] * 2
    assert counterfactuals._one_side(noisy)["scatter"] == pytest.approx(counterfactuals._scatter((0.9, 1.0, 1.1) * 8))


def test_measured_parts_are_cached(tmp_path, monkeypatch):
    operators = Operators(((8, 8, 1, 1),)), Operators(((8, 4, 1, 1),))
    part, settings = OperatorReplacement(*operators, (4, 4), 1.0), MeasurementSettings(seconds=0.01)
    first = counterfactuals.measure_saving([part], tmp_path, settings)
    monkeypatch.setattr(counterfactuals, "measure_in_turn", None)
    assert counterfactuals.measure_saving([part], tmp_path, settings) == first


def test_a_part_with_wrong_outputs_is_not_measured(tmp_path, monkeypatch):
    """Outputs are compared before the measurement, for both sides of every kind of part."""
    monkeypatch.setattr(counterfactuals, "measure_in_turn", lambda *_: pytest.fail("it was measured"))
    outputs = runtimes.OnnxRuntime.outputs
    monkeypatch.setattr(runtimes.OnnxRuntime, "outputs", lambda self, batch: 1.01 * outputs(self, batch))
    layer = {"block": "conv", "out": 8, "se": 0.25}
    surroundings = Surroundings((), (), (8, 6, 6))
    operators = Operators(((8, 8, 1, 1),)), Operators(((8, 4, 1, 1),))
    for part in (
        OperatorReplacement(*operators, (4, 4), 1.0),
        LayerReplacement(0, (layer,), ({**layer, "kernel": 3},), surroundings),
    ):
        with pytest.raises(InputError, match="outputs differ from PyTorch's"):
            counterfactuals.measure_saving([part], tmp_path, MeasurementSettings(seconds=0.01))
    path = tmp_path / "changed.onnx"
    to_onnx(Operators(((8, 8, 3, 1),)).module(), (8, 6, 6), path)
    with pytest.raises(InputError, match="outputs change with its optimizations"):
        runtimes.check_optimized(path, 1)


@pytest.mark.parametrize(
    ("saved", "expected"), [((4.0, 1.0), True), ((2.0, 0.1), False), ((4.0, 5.0), False), ((-4.0, 0.1), False)]
)
def test_a_saving_must_be_noticeable_and_above_its_uncertainty(saved, expected):
    assert explanation.is_noticeable(Saving(*saved), 100.0) is expected


def test_times_have_a_row_for_each_layer_and_the_rest():
    taken = Profile((TimedOperator("/0/Conv", "Conv", 0, 3.0),), 1.0, 4.0, 20)
    layer = SimpleNamespace(block="conv", flops=600, memory_access=200)
    assert explanation._times([layer], taken) == (
        LayerTime(0, "conv", 3.0, 0.75, 600, 200, 3.0),
        LayerTime(None, "rest", 1.0, 0.25),
    )


def test_the_latency_is_measured_as_by_nas_latency(tmp_path):
    """It is measured next to the reference network, whose reading is stored; invalid settings are refused."""
    architecture = Architecture.of([pointwise(8), {"block": "linear", "out": 3}], input=(3, 8, 8))
    cache = LatencyCache(tmp_path / "latency.db")
    found = explain(architecture, seconds=0.02, cache=cache)
    assert sum(row.ms for row in found.time) == pytest.approx(found.latency_ms)
    assert found.contended or cache.readings(reference.reference_conditions(1, "cpu"))
    with pytest.raises(InputError, match="threads: 0"):
        explain(architecture, threads=0)


@pytest.mark.slow
def test_a_planted_violation_comes_first_and_is_measured_in_the_network():
    layers = [pointwise(32), *[pointwise(32, activation="elu")] * 4]
    architecture = Architecture.of([*layers, {"block": "linear", "out": 3}], input=(3, 56, 56))
    found = explain(architecture, measure=True, seconds=0.2)
    assert sum(row.share for row in found.time) == pytest.approx(1, abs=1e-6)
    first = found.findings[0]
    assert (first.guideline, first.kind, first.layers) == ("G4", "activation", (1, 2, 3, 4))
    assert first.measured_on == "network"
    assert first.saving_ms > 0
    assert first.measured_ms > 0
    assert dataclasses.asdict(first).items() <= found.to_json()["findings"][0].items()
