"""Choices of flags in help and completion: they come from the registries, and need no PyTorch."""

from __future__ import annotations

import inspect
import os
import re
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
    ],
)
def test_the_shell_completes_verbs_and_choices_without_pytorch(tmp_path, words, completions):
    variables = {"_NAS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    command = [sys.executable, "-c", COMPLETE]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=True)
    *found, heavy = done.stdout.splitlines()
    assert set(found) == completions, done.stderr
    assert heavy == "HEAVY set()"


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
