"""Signals that arrive where Python ignores exceptions."""

from __future__ import annotations

import signal
import threading

import pytest

from nasspace.cli import process
from nasspace.engine.ray import cluster


class Signaling:
    """Receives a signal in its destructor."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)
        for _ in range(1000):
            pass  # the handler runs between two instructions


def signal_ignored():
    Signaling()
    threading.Event().wait(120)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals interrupt no wait on Windows")
@pytest.mark.parametrize("handling", [process.signals, lambda: cluster._sigterm_as_interrupt(signal.SIG_DFL)])
def test_an_ignored_interrupt_is_raised_again(handling, capsys):
    with handling(), pytest.raises(KeyboardInterrupt):
        signal_ignored()
    assert capsys.readouterr().err == "", "it is not taken for a second signal"
