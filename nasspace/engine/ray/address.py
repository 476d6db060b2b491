"""Checks of a cluster's address before any work, in a separate process, since Ray may wait forever."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from nasspace.errors import InputError

ANSWER_TIMEOUT = 5.0  # seconds for an address to accept a connection
CONNECT_TIMEOUT = 12.0  # seconds for Ray to connect, after its import: that alone is slow on a busy machine
CLIENT = "ray://"
TOKEN = {"RAY_AUTH_MODE": "token"}  # needed for a cluster that was started on a machine with a token
PROBE = """
import json, sys
try:
    import ray
    print(flush=True)
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="CRITICAL")
    print(json.dumps(""))
except BaseException as error:
    print(json.dumps(f"{error}" or type(error).__name__))
"""


@functools.cache
def connection_environment(address: str) -> Mapping[str, str]:
    """Environment variables that a connection needs; raise `InputError` if no connection is possible."""
    check_address(address)
    if address == "auto":
        return {}
    message = _try_connecting(address, {})
    if message and "ersion mismatch" not in message and _has_token():
        message = _try_connecting(address, TOKEN)
        if not message:
            return TOKEN
    if message:
        raise connection_error(address, message)
    return {}


def check_address(address: str) -> None:
    """Raise `InputError` for an invalid address, and for one that does not answer; `auto` is resolved by Ray."""
    if address.startswith(CLIENT):
        raise InputError(
            f"--ray {address}: a search runs on a node of its cluster, where its record is kept; start `nas` there, "
            "with --ray auto"
        )
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
        raise InputError(f"--ray {address}: not an address; write HOST:PORT (6379 unless it was chosen), auto, or none")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_TIMEOUT).close()
    except OSError as error:
        raise InputError(
            f"--ray {address}: nothing answers there ({error}); is the cluster started (`ray start --head`)?"
        ) from None


def _try_connecting(address: str, environment: Mapping[str, str]) -> str:
    """Connect in a subprocess; return Ray's error message, empty on success."""
    command = [sys.executable, "-W", "ignore", "-c", PROBE, address]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "bufsize": 0}
    with subprocess.Popen(command, env={**os.environ, **environment}, **pipes) as process:
        first_line = process.stdout.readline()  # printed after the import of Ray
        try:
            rest, _ = process.communicate(timeout=CONNECT_TIMEOUT)
            return json.loads((first_line + rest).decode().strip().splitlines()[-1])
        except subprocess.TimeoutExpired:
            process.kill()
            return f"no connection within {CONNECT_TIMEOUT:.0f} s"
        except (ValueError, IndexError):
            return "Ray ends without a message"
        except BaseException:  # such as Ctrl-C
            process.kill()
            raise


def _has_token() -> bool:
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(given) or _token().is_file()


def _token() -> Path:
    return Path.home() / ".ray" / "auth_token"


@contextlib.contextmanager
def private_token() -> Iterator[None]:
    """Make Ray's token readable for its owner only: Ray writes it with the umask, which mostly lets everyone read.

    A new folder for it is made for the owner only.
    """
    with contextlib.suppress(OSError, RuntimeError):
        _token().parent.mkdir(mode=0o700, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, RuntimeError):
            status = _token().lstat()
            if stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and status.st_mode & 0o077:
                _token().chmod(0o600)


def connection_error(address: str, message: str) -> InputError:
    """Explain Ray's error message of a failed connection."""
    text = " ".join(message.split())
    if "ersion mismatch" in text:
        remedy = "install the same Ray and Python on all nodes"
        return InputError(f"--ray {address}: the cluster runs other versions ({text}); {remedy}")
    if address == "auto":
        return InputError("--ray auto: no cluster runs on this machine; start one with `ray start --head`")
    return InputError(
        f"--ray {address}: no Ray cluster can be used there ({text[:300]}); if it asks for a token, it must lie in "
        "~/.ray/auth_token on every node, or be in RAY_AUTH_TOKEN"
    )
