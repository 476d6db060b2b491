"""Choices of flags in help and completion: they come from the registries, and need no PyTorch."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys

import pytest
import typer

import nasspace
from nasspace import cli
from nasspace.cli import choices
from nasspace.engine import loop
from nasspace.exporting.export import FORMATS
from nasspace.studies.recipe import Recipe

COMPLETE = """
import sys
from nasspace.cli import main
try:
    main()
except SystemExit:
    pass
print("HEAVY", {"torch", "optuna", "ray", "pandas"} & set(sys.modules))
"""


def help_of(capsys, verb):
    assert cli.run([verb, "--help"]) == 0
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize("kind", choices.CHOICES)
def test_help_lists_the_choices(capsys, monkeypatch, kind):
    monkeypatch.setenv("COLUMNS", "300")
    text = help_of(capsys, {"scores": "score", "logs": "train"}.get(kind, "search"))
    assert not re.search(r"\{[a-z]", text)  # the usage has {ARCH}
    names = choices.CHOICES[kind]()
    assert ", ".join(names) in text
    assert len(names) > 1


def test_help_of_export_lists_the_formats(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert ", ".join(FORMATS) in help_of(capsys, "export")


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("nas sea", {"search"}),
        ("nas search --sampler g", {"gain", "gp"}),
        ("nas latency net --runtime onn", {"onnxruntime", "onnxruntime-int8"}),
        ("nas spaces s", {"sandglass", "shuffle", "spos"}),
        ("nas show alex", {"alexnet", "alexnet_grouped"}),
        ("nas show ph", {"photos:3", "photos:12", "photos:recommended"}),
        ("nas resume p", {"photos", "planned"}),  # `planned` has no front yet
        ("nas search --learn-from=p", {"photos", "planned"}),
        # as bash splits the words
        ("nas search --space = m", {"mixed", "mnasnet", "mobile"}),
        ("nas show photos :", {"3", "12", "recommended"}),
        ("nas search --start-from = photos : 1", {"12"}),
        ("nas train photos :", {"3", "12", "recommended", "front"}),
        ("nas search --data imagefolder : ph", set()),  # bash then completes file names
    ],
)
def test_the_shell_completes_verbs_and_choices_without_pytorch(tmp_path, words, completions):
    for study in ("photos", "planned"):
        (tmp_path / "reports" / study).mkdir(parents=True)
        (tmp_path / "reports" / study / "study.yaml").touch()
    (tmp_path / "reports/photos/front.csv").write_text("id,digest\n3,a1\n12,b2\n")
    variables = {"_NAS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    command = [sys.executable, "-c", COMPLETE]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=True)
    *found, heavy = done.stdout.splitlines()
    assert {*found} - {""} == completions, done.stderr
    assert heavy == "HEAVY set()"


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_the_script_completes_in_bash(tmp_path):
    """The function that `complete` registers gets the words that bash split."""
    command = tmp_path / "nas"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m nasspace.cli "$@"\n')
    command.chmod(0o755)
    script = (
        'eval "$(nas --show-completion bash)"; complete -p nas;'
        "COMP_WORDS=(nas search --space = shu) COMP_CWORD=4; _nas_completion nas; echo ${COMPREPLY[@]}"
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines() == ["complete -o default -F _nas_completion nas", "shuffle"], done.stderr


def test_completion_can_be_installed(capsys):
    assert cli.run(["--help"]) == 0
    text = capsys.readouterr().out
    assert "--install-completion" in text
    assert "--show-completion" in text


def test_the_version_is_printed(capsys):
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"nasspace {nasspace.__version__}\n"


def test_the_python_api_has_a_parameter_for_every_flag_and_setting():
    parameters = inspect.signature(nasspace.search).parameters
    targets = {"latency_target", "flops_target", "params_target", "memory_target", "flash_target"}
    flags = {flag.name for flag in typer.main.get_command(cli.app).commands["search"].params} - {"json", "help"}
    assert {f"{name}_ms" if name == "latency_target" else name for name in flags} <= parameters.keys()
    assert Recipe.model_fields.keys() - {"name", "description", "limits", "accuracy_of"} <= parameters.keys()
    assert targets <= flags
    resumed = inspect.signature(loop.resume).parameters
    flags = {flag.name for flag in typer.main.get_command(cli.app).commands["resume"].params} - {
        "json",
        "help",
        "study",
    }
    assert flags <= resumed.keys()
