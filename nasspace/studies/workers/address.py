"""The address of a cluster, checked before any work."""

from __future__ import annotations

import socket

from nasspace.errors import InputError

REACHED = 10.0  # seconds in which an address must answer
CLIENT = "ray://"


def check_address(address: str) -> None:
    """Refuse an address at which nothing answers, within seconds; `auto` is looked up by Ray itself."""
    if address.startswith(CLIENT):
        raise InputError(
            f"--ray {address}: a search runs on a node of its cluster, where its record is kept; start `nas` there, "
            "with --ray auto"
        )
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
        raise InputError(f"--ray {address}: not an address; write HOST:PORT (6379 unless it was chosen), or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED).close()
    except OSError as error:
        raise InputError(
            f"--ray {address}: nothing answers there ({error}); is the cluster started (`ray start --head`)?"
        ) from None
