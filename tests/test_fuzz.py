"""Damaged and hostile documents end in success or in one message: some cases of each kind of `benchmarks/fuzz.py`,
and regression tests for the faults that the program found.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from nasspace import Space, cli
from nasspace.errors import InputError

pytest.importorskip("fcntl")  # limits of time and memory as on Unix
CASES = {"space": 50, "recipe": 40, "architecture": 50, "study": 30, "database": 20, "cache": 30, "export": 40}
PROGRAM = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"


@pytest.fixture(scope="module")
def program():
    found = importlib.util.spec_from_file_location("nasspace_fuzz", PROGRAM)
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # its dataclasses look up their own module
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def fuzz(program, tmp_path_factory):
    made = program.Fuzz(tmp_path_factory.mktemp("fuzz"), seed=1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with made.surroundings():
        made.build()
    return made


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_every_case_ends_in_success_or_one_message(fuzz, program, kind):
    found = [fuzz.run(kind, number) for number in range(CASES[kind])]
    faults = [str(result) for result in found if result.outcome == program.FAULT and not is_slow(result, program)]
    assert not faults, "\n".join(faults)
    counts = Counter(result.outcome for result in found)
    assert counts[program.SUCCESS] + counts[program.MESSAGE] + counts[program.FAULT] == CASES[kind]
    assert counts[program.SUCCESS] > 0, "not everything is refused"


def is_slow(result, program) -> bool:
    """Whether the only fault is slightly too much CPU time: the machine may be busy, and first cases import modules."""
    return result.why.startswith("took ") and result.seconds < 3 * program.SECONDS


def test_the_program_finds_faults(fuzz, program, monkeypatch):
    """A traceback, a message that is too long, a file elsewhere: each is detected, and the case is named."""

    def faulty(action):
        monkeypatch.setitem(program.KINDS, "space", lambda *_: ("as it is", [program.function("it", action)]))
        result = fuzz.run("space", 7)
        assert result.outcome == program.FAULT
        assert str(result).startswith("space 7 (as it is): ")
        return result.why

    def raises():
        raise KeyError("x")

    def long():
        error = program.NasspaceError("short")
        error.args = ("a" * 2000,)  # messages are shortened where they are created
        raise error

    assert "KeyError: 'x'" in faulty(raises)
    assert "a message of 2000 characters" in faulty(long)
    assert "wrote outside of its folder" in faulty(lambda: (fuzz.root / "elsewhere").write_text("x"))
    (fuzz.root / "elsewhere").unlink()
    assert "wrote outside of its folder" in faulty(lambda: Path(os.environ["TMPDIR"], "left").write_text("x"))
    monkeypatch.setattr(program, "SECONDS", 0.0)
    assert "s of CPU time" in faulty(lambda: sum(range(1000)))


LONG = "a" * 100_000


@pytest.mark.parametrize(
    "text",
    [
        f"input: [3, 8, 8]\nstages: [{{depth: {LONG}, out: 8, block: conv}}]",
        f"input: [3, 8, 8]\nstages: [{{out: 8, block: {LONG}}}]",
        f"input: [3, 8, 8]\n{LONG[:900]}: 1\nstages: [{{out: 8, block: conv}}]",
        f"input: [3, 8, 8]\nstages: [{{out: 8, block: {{conv: {{kernel: [{', '.join(['null'] * 5000)}]}}}}}}]",
        f"input: *{LONG}",
        f"input: !{LONG} 3",
    ],
    ids=["value", "block", "key", "list", "alias", "tag"],
)
def test_a_message_names_a_long_value_without_its_middle(text):
    with pytest.raises(InputError) as caught:
        Space.from_text(text, "space.yaml")
    assert 20 < len(str(caught.value)) < 1300
    assert str(caught.value).startswith("space.yaml:")


def test_any_error_leaves_out_the_middle_of_a_long_message(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = str(InputError(f"device: '{LONG}' is not a device; did you mean 'cpu'?"))
    assert len(message) < 1300
    assert message.startswith("device: 'aaa")
    assert message.endswith("did you mean 'cpu'?")
    Path("recipe.yaml").write_text(f"device: {LONG}")
    assert cli.run(["search", "--space", "shuffle", "--recipe", "recipe.yaml"]) == 2
    assert len(capsys.readouterr().err) < 1500
