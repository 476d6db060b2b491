"""The address of a cluster, tried before any work: in a process of its own, since Ray may wait there without end."""

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

REACHED = 5.0  # seconds in which an address must answer
TRIED = 12.0  # seconds in which Ray must have connected, once it is imported: a busy machine takes long for that
CLIENT = "ray://"
TOKEN = {"RAY_AUTH_MODE": "token"}  # a cluster that was started where a token lies asks for it
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
def reached(address: str) -> Mapping[str, str]:
    """What the environment must hold to connect; an `InputError` says why nothing can."""
    check_address(address)
    if address == "auto":
        return {}
    said = _tried(address, {})
    if said and "ersion mismatch" not in said and _has_token():
        other = _tried(address, TOKEN)
        if not other:
            return TOKEN
        said = other
    if said:
        raise explained(address, said)
    return {}


def check_address(address: str) -> None:
    """Refuse what is no address, or one at which nothing answers; `auto` is looked up by Ray itself."""
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
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED).close()
    except OSError as error:
        raise InputError(
            f"--ray {address}: nothing answers there ({error}); is the cluster started (`ray start --head`)?"
        ) from None


def _tried(address: str, environment: Mapping[str, str]) -> str:
    """What Ray says when a process connects; nothing if it could."""
    command = [sys.executable, "-W", "ignore", "-c", PROBE, address]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "bufsize": 0}
    with subprocess.Popen(command, env={**os.environ, **environment}, **pipes) as process:
        begun = process.stdout.readline()
        try:
            said, _ = process.communicate(timeout=TRIED)
            return json.loads((begun + said).decode().strip().splitlines()[-1])
        except subprocess.TimeoutExpired:
            process.kill()
            return f"no connection within {TRIED:.0f} s"
        except (ValueError, IndexError):
            return "Ray ends without a word"
        except BaseException:  # such as Ctrl-C
            process.kill()
            raise


def _has_token() -> bool:
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(given) or _token().is_file()


def _token() -> Path:
    return Path.home() / ".ray" / "auth_token"


@contextlib.contextmanager
def closed_token() -> Iterator[None]:
    """Keep Ray's token readable for its owner only: Ray writes it as the umask has it, which is mostly for everyone.

    Its folder is made for the owner only, where there is none yet.
    """
    with contextlib.suppress(OSError, RuntimeError):
        _token().parent.mkdir(mode=0o700, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, RuntimeError):
            found = _token().lstat()
            if stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and found.st_mode & 0o077:
                _token().chmod(0o600)


def explained(address: str, said: str) -> InputError:
    """What Ray said at the door, as one message."""
    text = " ".join(said.split())
    if "ersion mismatch" in text:
        remedy = "install the same Ray and Python on all nodes"
        return InputError(f"--ray {address}: the cluster runs other versions ({text}); {remedy}")
    if address == "auto":
        return InputError("--ray auto: no cluster runs on this machine; start one with `ray start --head`")
    return InputError(
        f"--ray {address}: no Ray cluster can be used there ({text[:300]}); if it asks for a token, it must lie in "
        "~/.ray/auth_token on every node, or be in RAY_AUTH_TOKEN"
    )
