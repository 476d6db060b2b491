"""Latency on another device over a real SSH connection: measurement, cache, and one message for each failure."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

import nasspace
from nasspace.architecture import Architecture
from nasspace.errors import InputError
from nasspace.latency import conditions, convert, remote
from nasspace.latency.cache import LatencyCache
from nasspace.latency.connection import Address, Connection, connection_error
from nasspace.latency.remote import RemoteDevice
from nasspace.network import build

SHAPE = (3, 16, 16)
HEAD = [{"block": "global_pool"}, {"block": "linear", "out": 4}]
PYTHON = "/opt/venv/bin/python"
MEASURE_FROM_ZIP = """
import sys

sys.modules.update(dict.fromkeys(("torch", "yaml", "onnx", "optuna", "scipy")))  # a device may lack them
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path.insert(0, sys.argv[1])
from nasspace.latency import remote_server, subprocess_benchmark

assert sys.argv[1] in subprocess_benchmark.__file__
print(subprocess_benchmark.measure_files([sys.argv[2]], seconds=0.05)[0].median_ms)
"""


def network(width: int = 8) -> Architecture:
    return Architecture.of([{"block": "conv", "out": width, "stride": 2}, *HEAD], input=SHAPE)


@pytest.mark.parametrize(
    ("text", "target", "port", "python"),
    [
        ("ssh://pi", "pi", None, "python3"),
        ("ssh://me@Pi.local:2222", "me@Pi.local", 2222, "python3"),
        (f"ssh://me@pi:22{PYTHON}", "me@pi", 22, PYTHON),
        (f"ssh://[fe80::1%eth0]:22{PYTHON}", "fe80::1%eth0", 22, PYTHON),
        ("ssh://pi/", "pi", None, "python3"),
    ],
)
def test_addresses(text, target, port, python):
    address = Address.parse(text)
    assert (address.target, address.port, address.python) == (target, port, python)
    assert address.command()[-2:-1] == [target]
    assert text.startswith(str(address))


@pytest.mark.parametrize("text", ["pi", "ssh://", "ssh://-oProxyCommand=x", "ssh://a b", "http://pi", "ssh://pi:port"])
def test_invalid_addresses_are_refused(text):
    with pytest.raises(InputError, match="ssh://user@host"):
        remote.check_device(text, "onnxruntime")


def test_runtimes_that_cannot_load_files_are_refused_before_connecting():
    remote.check_device("local", "eager")
    remote.check_device("ssh://pi", "onnxruntime-int8")
    with pytest.raises(InputError, match=r"'eager'.*onnxruntime-int8"):
        remote.check_device("ssh://pi", "eager")


def test_the_pushed_code_needs_only_numpy_and_onnxruntime(tmp_path):
    (tmp_path / "pushed.zip").write_bytes(remote._pushed_code())
    convert.to_onnx(build(network()), SHAPE, tmp_path / "network.onnx")
    ran = subprocess.run(
        [sys.executable, "-I", "-c", MEASURE_FROM_ZIP, tmp_path / "pushed.zip", tmp_path / "network.onnx"],
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert float(ran.stdout) > 0


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "onnxruntime-int8"])
def test_a_network_is_measured_remotely_and_cached_locally(runtime, board):
    with RemoteDevice(board.address()) as device:
        found = device.measure_latency(network(), runtime, seconds=0.05)
        again = device.measure_latency(network(), runtime, seconds=0.05)
        fresh = device.measure_latency(network(), runtime, seconds=0.05, fresh=True)
    assert found.contended or again == found, "only a disturbed measurement is repeated"
    assert fresh != found
    assert 0 < found.low_ms <= found.median_ms <= found.high_ms
    assert len(found.samples_ms) == len(found.reference_ms) == found.rounds >= 8
    assert (found.runtime, found.input) == (runtime, SHAPE)
    assert found.device == f"ssh://{board.address().split('/')[2]}"
    assert found.machine == conditions.machine()
    assert {"python", "numpy", "onnxruntime", "torch", "nasspace"} <= found.versions.keys()
    assert "unknown" not in found.versions.values()


@pytest.mark.slow
def test_the_public_function_measures_remotely(board):
    found = nasspace.measure_latency(network(), resolution=24, latency_device=board.address(), seconds=0.05)
    assert (found.device, found.input) == (f"ssh://{board.address().split('/')[2]}", (3, 24, 24))
    with pytest.raises(InputError, match="resolution"):
        nasspace.measure_latency(network(), resolution=0, latency_device=board.address())


@pytest.mark.slow
def test_files_come_in_groups(board, tmp_path):
    path = convert.to_onnx(build(network()), SHAPE, tmp_path / "network.onnx")
    with RemoteDevice(board.address()) as device:
        found = device.measure_files([path] * 5, seconds=0.02)
        assert next(found).input == SHAPE
        assert len(list(found)) == 4
        with pytest.raises(InputError, match=r"127\.0\.0\.1.*batch of 1, not 2"):
            list(device.measure_files([path], batch_size=2))
        assert len(list(device.measure_files([path], seconds=0.02))) == 1


@pytest.mark.slow
def test_nothing_is_left_on_the_device(board, tmp_path, monkeypatch):
    (tmp_path / "python").write_text(f'#!/bin/sh\nTMPDIR={tmp_path} exec {board.folder / "python"} "$@"\n')
    (tmp_path / "python").chmod(0o755)
    address = board.address().removesuffix(str(board.folder / "python")) + str(tmp_path / "python")
    with RemoteDevice(address) as device:
        assert device.machine
        assert any(path.name.startswith("nasspace-") for path in tmp_path.iterdir())
    assert not any(path.name.startswith("nasspace-") for path in tmp_path.iterdir())


@pytest.mark.slow
def test_a_lost_connection_is_reported_and_the_cache_stays(board, monkeypatch):
    device = RemoteDevice(board.address())
    first = device.measure_latency(network(8), seconds=0.05)
    send = Connection._send

    def then_cut(connection, *parts):
        send(connection, *parts)
        assert board.cut() == 1

    monkeypatch.setattr(Connection, "_send", then_cut)
    with pytest.raises(InputError, match=r"lost while it was measuring.*nas resume"):
        device.measure_latency(network(16), seconds=0.05)
    monkeypatch.setattr(Connection, "_send", send)
    again = device.measure_latency(network(8))  # over a new connection
    assert first.contended or again == first, "from the cache, except where other work disturbed the first"
    assert device.measure_latency(network(16), seconds=0.05).rounds >= 8
    device.close()


def test_a_missing_runtime_is_reported_with_its_install_command(board):
    with pytest.raises(InputError, match=r"has no onnxruntime; run there: .* -m pip install numpy onnxruntime"):
        _ = RemoteDevice(board.address("bare")).machine


def test_a_missing_python_is_reported(board):
    with pytest.raises(InputError, match=r"nowhere not found; install Python"):
        _ = RemoteDevice(board.address("nowhere")).machine


@pytest.mark.parametrize(("known", "message"), [("other", "host key has changed"), (None, "not known yet")])
def test_a_wrong_host_key_is_reported(known, message, board, tmp_path, monkeypatch):
    key = (board.folder / f"{known}.pub").read_text().split()[1] if known else ""
    (tmp_path / "known").write_text(f"[127.0.0.1]:{board.port} ssh-ed25519 {key}\n" if known else "")
    monkeypatch.setenv("NASSPACE_SSH", f"ssh -o UserKnownHostsFile={tmp_path / 'known'} -F {board.folder / 'client'}")
    with pytest.raises(InputError, match=message):
        _ = RemoteDevice(board.address()).machine


def test_a_refused_user_key_is_reported(board, monkeypatch):
    monkeypatch.setenv(
        "NASSPACE_SSH", f"ssh -i {board.folder / 'other'} -o IdentityAgent=none -F {board.folder}/client"
    )
    accepted = (board.folder / "authorized").read_text()
    (board.folder / "authorized").write_text("")
    try:
        with pytest.raises(InputError, match="ssh-copy-id"):
            _ = RemoteDevice(board.address()).machine
    finally:
        (board.folder / "authorized").write_text(accepted)


def test_an_unreachable_device_is_reported(board):
    with pytest.raises(InputError, match=r"ssh://127\.0\.0\.1:1: cannot be reached: .*refused"):
        _ = RemoteDevice("ssh://127.0.0.1:1").machine


def test_a_missing_ssh_is_reported(monkeypatch):
    monkeypatch.setenv("NASSPACE_SSH", "no-such-ssh")
    with pytest.raises(InputError, match="install openssh-client"):
        _ = RemoteDevice("ssh://pi").machine


def test_an_old_python_and_a_remote_failure_are_reported():
    address = Address.parse("ssh://pi")
    old = connection_error(address, 1, "Python 3.11 or newer is needed, this is 3.9.2\n", "while it was reached")
    assert "3.11 or newer is needed, this is 3.9.2" in str(old)
    assert "exit status 3" in str(connection_error(address, 3, "", "while it was measuring"))


def test_a_failed_connection_does_not_change_the_cache(board, tmp_path):
    cache = LatencyCache(tmp_path / "latency.db")
    start = time.monotonic()
    with pytest.raises(InputError):
        RemoteDevice("ssh://127.0.0.1:1").measure_latency(network(), cache=cache)
    assert time.monotonic() - start < 30
    assert not cache.path.exists()
