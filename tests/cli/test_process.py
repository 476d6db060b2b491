"""`nas` as a process: signals, closed streams, internal errors."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nasspace import cli
from nasspace.studies import study as records

NAS = [sys.executable, "-W", "ignore", "-m", "nasspace.cli"]
SPACE = """
name: small
input: [3, 8, 8]
stages: [{depth: 1, out: [8, 16], stride: 2, block: [inverted_residual: {expansion: [2, 3]}]}]
"""
RECIPE = (
    "trials: 2\nsampler: random\nobjectives: [accuracy, flops]\nfidelity: {{resolution: 8, epochs: {}, share: 0.2}}\n"
)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SPACE)
    Path("long.yaml").write_text(RECIPE.format(5000))
    Path("tiny.yaml").write_text(RECIPE.format(1).replace("trials: 2", "trials: 1"))


def searching(recipe):
    return [*NAS, "search", "--space", "small.yaml", "--recipe", recipe, "--resolution", "8", "--study", "s"]


def started():
    """A search in the middle of its first training."""
    pipe = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}

    def reset_signals() -> None:
        for each in (signal.SIGINT, signal.SIGHUP):  # `nohup pytest &` would pass on that they are ignored
            signal.signal(each, signal.SIG_DFL)

    process = subprocess.Popen(searching("long.yaml"), preexec_fn=reset_signals, **pipe)
    for line in process.stderr:
        if line.startswith("trial 0"):
            break
    time.sleep(1)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interrupted_search_names_the_command_to_continue(name):
    process = started()
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1] == "nas: interrupted; what is finished is kept; run `nas resume s` to continue"
    assert "Traceback" not in err
    assert records.load("s").evaluated == 0


@pytest.mark.slow
def test_the_second_signal_exits_immediately():
    process = started()
    os.kill(process.pid, signal.SIGSTOP)  # both arrive together
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1].endswith("what is finished is kept; run `nas resume` to continue")


@pytest.mark.slow
@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", "2>&1 | head -1 >first.txt"])
def test_a_search_outlives_its_streams(streams):
    command = " ".join(searching("tiny.yaml"))
    done = subprocess.run(["bash", "-o", "pipefail", "-c", f"{command} {streams}"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "Traceback" not in done.stdout + done.stderr
    study = records.load("s")
    assert study.is_finished
    assert study.evaluated == 1
    assert (study.folder / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("streams", [">&-", "2>&-", "| head -1"])
def test_a_table_needs_no_stream(streams):
    done = subprocess.run(["bash", "-c", f"{' '.join(NAS)} spaces {streams}"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_full_disk_on_standard_output_is_reported():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    done = subprocess.run(["bash", "-c", f"{' '.join(NAS)} --help >/dev/full"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_internal_error_keeps_its_traceback_in_a_file(monkeypatch, capsys):
    def broken(*_, **__):
        raise KeyError("speed")

    monkeypatch.setattr(cli.spaces, "_list_all", broken)
    assert cli.run(["spaces"]) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    path = Path(re.search(r"its traceback is in (\S+),", err)[1])
    assert "in broken" in path.read_text()
    path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("width", [45, 80])
def test_a_terminal_breaks_no_word(width):
    if shutil.which("script") is None:
        pytest.skip("needs a terminal (util-linux script)")
    command = f"stty cols {width}; {' '.join(NAS)} spaces; {' '.join(NAS)} show nothing_of_this_name"
    wide = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    done = subprocess.run(
        ["script", "-qec", command, os.devnull], capture_output=True, text=True, env=wide, check=False
    )
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", done.stdout).replace("\r", "")
    assert max(map(len, plain.splitlines())) <= width
    assert "nothing_of_this_name" in plain
    assert {"sandglass", "squeeze-and-excitation."} <= set(plain.split())
