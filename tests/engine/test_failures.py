"""Candidates whose blocks or trainings fail: each is a failed trial with a traceback, and the search continues."""

from __future__ import annotations

import json
import math
import signal

import pytest
import torch
from torch import nn

import nasspace
from nasspace import cli, cost, failures
from nasspace.blocks import registry
from nasspace.engine.evaluator import Outcome, TrainingEvaluator, evaluate
from nasspace.errors import InputError
from nasspace.space.space import Space
from nasspace.studies import study as records

SPACE = """
name: little
input: [1, 16, 16]
stages: [{depth: [1, 2, 3], out: [8, 12, 16], stride: 2, each: {block: [conv: {kernel: [1, 3]}, brittle]}}]
"""


class Brittle(nn.Module):
    """A block with a bug: it does not run at a width of 12."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.layer = nn.Conv2d(in_channels, out_channels, 1, stride)
        self.out = out_channels

    def forward(self, x):
        if self.out == 12:
            return self.layer(x) + self.offset  # no such attribute
        return self.layer(x)


class Late(Brittle):
    """A block that fails only in training."""

    def forward(self, x):
        if self.training and self.out == 12 and x.device.type != "meta":
            raise KeyError("late")
        return self.layer(x)


class Unresolved(Brittle):
    """A block whose width arithmetic fails at a width of 12."""

    @staticmethod
    def resolve(in_channels: int, out_channels: int, stride: int, **options) -> dict:
        return {"share": 1 // (out_channels - 12)}

    def forward(self, x):
        return self.layer(x)


@pytest.fixture
def own(own_blocks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def register(block):
        name = block.__name__.lower()  # a new name per block: counts are cached by name
        registry.register(name, block)
        return Space.from_text(SPACE.replace("brittle", name), "little.yaml")

    return register


def search(space, **settings):
    fidelity = {"resolution": 8, "epochs": 1, "share": 0.1}
    settings = {"trials": 6, "objectives": ["accuracy", "flops"], "resolution": 16, "study": "s", **settings}
    return nasspace.search(space, data="digits", fidelity=fidelity, deliver=False, **settings)


@pytest.mark.parametrize(("sampler", "limit"), [("gain", None), ("tpe", 1e9)])
def test_a_block_that_does_not_run_at_one_width_is_skipped(own, sampler, limit):
    study = search(own(Brittle), sampler=sampler, flops_target=limit, trials=8)
    assert study.evaluated == 8
    layers = [layer for number in study.trials()["id"] for layer in study.architecture(number).layers]
    assert 12 not in [layer.out for layer in layers if layer.block == "brittle"]


@pytest.mark.parametrize("sampler", ["gain", "random"])
def test_a_block_whose_width_arithmetic_fails_is_that_trials_failure(own, capsys, sampler):
    study = search(own(Unresolved), sampler=sampler, trials=12)
    assert study.evaluated == 12
    layers = [layer for number in study.trials()["id"] for layer in study.architecture(number).layers]
    assert 12 not in [layer.out for layer in layers if layer.block == "unresolved"]
    failed = [trial for trial in study.frozen("FAIL") if trial.user_attrs["reason"].startswith("failed")]
    if sampler == "random":
        assert failed, "the seed gives some of this width"
        capsys.readouterr()
        assert cli.run(["show", f"s:{failed[0].number}"]) == 0
        out = capsys.readouterr().out
        assert "ZeroDivisionError" in out
        assert "in resolve" in out


def test_an_architecture_whose_width_arithmetic_fails_is_one_message(own, capsys, tmp_path):
    own(Unresolved)
    layers = [{"block": "conv", "out": 8}, {"block": "unresolved", "out": 12}, {"block": "linear", "out": 2}]
    path = tmp_path / "net.json"
    path.write_text(json.dumps({"nasspace": 1, "input": [1, 8, 8], "classes": 2, "layers": layers}))
    assert cli.run(["show", str(path)]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "unresolved" in err
    assert "8 channels in, 12 out" in err


def test_a_block_that_fails_in_training_is_that_trials_failure(own, capsys):
    study = search(own(Late), sampler="random", trials=10)
    assert study.evaluated == 10
    failed = [trial for trial in study.frozen("FAIL") if trial.user_attrs["reason"].startswith("failed")]
    assert failed, "the seed gives some of this width"
    assert cli.run(["show", f"s:{failed[0].number}"]) == 0
    out = capsys.readouterr().out
    assert "KeyError: 'late'" in out
    assert "test_failures.py" in out
    assert cli.run(["show", f"s:{failed[0].number}", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["failure"] == "failed: KeyError: 'late'"
    assert document["traceback"].rstrip().endswith("KeyError: 'late'")
    assert cli.run(["export", f"s:{failed[0].number}"]) == 2
    assert "nas show" in capsys.readouterr().err


def test_a_space_in_which_no_network_runs_is_refused(own):
    own(Brittle)
    text = SPACE.replace("[8, 12, 16]", "12").replace("conv: {kernel: [1, 3]}, ", "")
    with pytest.raises(InputError, match=r"no network of this space runs.*offset"):
        search(Space.from_text(text, "t.yaml"), sampler="gain")


def test_an_internal_error_stops_the_search(own, monkeypatch):
    made: dict = {"__name__": "nasspace.engine.evaluator"}  # as if it were written there
    exec("def called(*_):\n    raise TypeError('unexpected keyword')", made)
    monkeypatch.setattr(TrainingEvaluator, "_find_accuracy", made["called"])
    with pytest.raises(TypeError, match="unexpected"):
        search(own(Brittle))


def raised(code, module):
    """An error of a function in a module of this name."""
    made: dict = {"__name__": module, "torch": torch, "InputError": InputError}
    exec(compile(f"def called():\n    {code}\n", f"{module}.py", "exec"), made)
    try:
        made["called"]()
    except Exception as caught:
        return caught
    raise AssertionError("it raises")


@pytest.mark.parametrize(
    ("code", "module", "of_candidate"),
    [
        ("torch.zeros(2) @ torch.zeros(3)", "nasspace.training.trainer", True),  # raised by PyTorch
        ("raise RuntimeError('out of memory')", "nasspace.training.trainer", True),
        ("raise MemoryError", "numpy.core", True),
        ("{}['a']", "nasspace.training.trainer", False),
        ("1 / 0", "nasspace.training.trainer", False),
        ("1 / 0", "nasspace.blocks.fire", True),
        ("[][3]", "torch.nn.functional", False),
        ("raise OSError(28, 'No space left')", "torch.serialization", False),
        ("raise InputError('start the node')", "nasspace.engine.ray.actors", False),
        ("raise InputError('does not run')", "nasspace.counting", True),
    ],
)
def test_errors_are_attributed_to_the_candidate_or_to_nasspace(code, module, of_candidate):
    assert failures.is_candidate_fault(raised(code, module)) is of_candidate


def test_an_evaluators_error_is_the_callers(own):
    def evaluator(architecture):
        raise KeyError("table")

    with pytest.raises(KeyError, match="table"):
        nasspace.search(own(Brittle), evaluator=evaluator, trials=3, study="s", objectives=["accuracy", "flops"])


@pytest.mark.parametrize(
    "returned",
    [
        {"accuracy": 10**400, "flops": 1},
        {"accuracy": 0.5, "flops": 10**5000},
        {"accuracy": "0.5", "flops": 1},
        {"accuracy": 0.5, "flops": b"1"},
        {"accuracy": True, "flops": 1},
        {"accuracy": 0.5, "flops": -3},
        {"accuracy": torch.zeros(2), "flops": 1},
        {"accuracy": None, "flops": 1},
        {"accuracy": math.inf, "flops": 1},
        {1: 0.5, 2: 3},
        {("accuracy",): 0.5},
        [0.5],
        "0.5",
    ],
    ids=lambda returned: str(type(returned).__name__),
)
def test_an_invalid_result_of_an_evaluator_is_refused_in_one_message(own, returned):
    with pytest.raises(InputError) as caught:
        nasspace.search(
            Space.load("fire", resolution=32),
            evaluator=lambda architecture: returned,
            trials=3,
            study="s",
            objectives=["accuracy", "flops"],
        )
    assert len(str(caught.value)) < 500
    assert "evaluator" in str(caught.value)


def test_numbers_of_other_libraries_are_numbers(own):
    import numpy

    def evaluator(architecture):
        return {"accuracy": numpy.float32(0.5), "latency": torch.tensor(2.0), "flops": cost(architecture).flops}

    study = nasspace.search(Space.load("fire", resolution=32), evaluator=evaluator, trials=2, study="s")
    assert study.evaluated == 2


def test_an_early_end_names_its_reason(own):
    notes = []

    def on_event(kind, **event):
        notes.extend([event["text"]] if kind == "note" else [])

    space = Space.from_text(
        "input: [3, 8, 8]\nstages: [{out: [4, 8], block: [conv: {kernel: [1, 3]}, fire]}]", "t.yaml"
    )
    settings = {"trials": 100, "study": "s", "on_event": on_event, "objectives": ["accuracy", "flops"]}
    nasspace.search(space, evaluator=lambda a: {"accuracy": 0.5, "flops": cost(a).flops}, **settings)
    assert any("no new network" in note for note in notes)
    assert "no new network" in records.load("s").document()["ended_early"]


def test_an_outcome_of_an_evaluator_is_kept():
    class Constant:
        def __call__(self, architecture):
            return Outcome({"accuracy": 1.0})

    assert evaluate(Constant(), None).values == {"accuracy": 1.0}


KILLING = """
import os, signal, sys
import nasspace

def evaluated(architecture):
    if architecture.layers[0].out == 12:
        os.kill(os.getpid(), signal.SIGSEGV)
    return {"accuracy": 0.5}

space = nasspace.Space.from_text(sys.argv[1], "little.yaml")
nasspace.search(space, evaluator=evaluated, trials=9, retries=1, study="s", objectives=["accuracy", "flops"])
"""


@pytest.mark.slow
def test_a_candidate_that_kills_its_process_fails_after_some_attempts(tmp_path, monkeypatch, forked):
    """Each run continues the study; with one retry a candidate may kill its process twice."""
    monkeypatch.chdir(tmp_path)
    text = "{name: little, input: [1, 8, 8], stages: [{depth: 1, out: [8, 12], block: conv}]}"
    ended = [forked(KILLING, text).wait() for _ in range(3)]
    assert ended == [-signal.SIGSEGV, -signal.SIGSEGV, 0]
    study = records.load("s")
    assert study.evaluated == 1
    (failed,) = [trial for trial in study.frozen("FAIL") if trial.user_attrs["reason"].startswith("failed")]
    assert failed.user_attrs["reason"] == "failed: it crashed its process 2 times (such as by a segmentation fault)"
    assert "in evaluated" in failed.user_attrs["traceback"]
    assert not list((study.folder / "checkpoints").glob("*"))


@pytest.mark.slow
def test_a_process_that_is_killed_from_outside_is_not_the_candidates_fault(tmp_path, monkeypatch, forked):
    """By a batch system, for lack of memory, or by a power cut: the candidate is always tried again."""
    monkeypatch.chdir(tmp_path)
    text = "{name: little, input: [1, 8, 8], stages: [{depth: 1, out: [8, 12], block: conv}]}"
    killing = KILLING.replace("SIGSEGV", "SIGKILL").replace("layers[0].out == 12", "layers[0].out == 12 and DIE")
    ended = [forked(f"DIE = {die}\n{killing}", text).wait() for die in (True, True, True, True, False)]
    assert ended == [-signal.SIGKILL] * 4 + [0]
    assert records.load("s").evaluated == 2


def test_an_interrupted_evaluation_is_no_attempt(own):
    """After Ctrl-C the process exits normally: the candidate did not kill it."""
    space = own(Late)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingEvaluator, "_find_accuracy", interrupted)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                search(space, sampler="random", retries=0)
    study = search(space, sampler="random", retries=0, trials=1)
    assert study.evaluated == 1
    assert not [trial for trial in study.frozen("FAIL") if "died" in trial.user_attrs["reason"]]


def interrupted(*_):
    raise KeyboardInterrupt
