"""Which machines count as the same, and on which a study may be continued."""

from __future__ import annotations

import pytest

from nasspace.engine.checks import check_same_settings
from nasspace.errors import InputError
from nasspace.studies.trial_table import is_same_machine

MACHINE = {"processor": "one", "cores": 2, "system": "Linux x86_64", "memory_gib": 24}
RECIPE = {"latency_device": "local", "ray": None}


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"memory_gib": 25}, True),
        ({"memory_gib": 48}, False),
        ({"memory_gib": None}, True),
        ({"cores": 4}, False),
        ({"processor": "other"}, False),
    ],
)
def test_machines_are_compared_except_for_reserved_memory(changes, same):
    assert is_same_machine(MACHINE, {**MACHINE, **changes}) is same
    assert is_same_machine({**MACHINE, **changes}, MACHINE) is same


def settings(**machine):
    parts = {"space": {"document": {}, "name": "s"}, "task": {}, "data": {}, "limits": {}, "evaluator": None}
    return {**parts, "storage": None, "recipe": RECIPE, "machine": {**MACHINE, **machine}}


def test_a_study_without_latencies_continues_on_another_machine(tmp_path):
    check_same_settings(tmp_path, settings(), settings(processor="other"), None)
    check_same_settings(tmp_path, settings(), settings(memory_gib=25), MACHINE)
    with pytest.raises(InputError, match=r"another machine \(processor one"):
        check_same_settings(tmp_path, settings(), settings(processor="other"), MACHINE)
