"""Live display of a search: trials, time left, running trials, the front so far."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nasspace.cli import printing

SHOWN = 12  # members of the front in the live table


@contextmanager
def display() -> Iterator[Callable[..., None]]:
    """Yield the function that the search reports to: a live display on a terminal, a line per event elsewhere."""
    if not sys.stderr.isatty():
        yield Display().report_line
        return
    from rich.live import Live

    shown = Display()
    with Live(console=printing.console(stderr=True), refresh_per_second=4, get_renderable=shown.render, transient=True):
        yield shown.report


def _limit(name: str, value: float) -> str:
    """A limit with its unit."""
    return f"{value:g} ms" if name == "latency" else printing.count(value)


class Display:
    """State of a running search, from its events."""

    def __init__(self) -> None:
        self.study: Any = None
        self.trials: int | None = 0  # None where time alone ends the search
        self.started_at = time.monotonic()
        self.evaluated_before = 0
        self.now = "reading the data"
        self.last = ""
        self.done = self.rejected = 0
        self._front: Any = ""
        self._running: list[int] = []

    def report(self, kind: str, **event: Any) -> None:
        """Handle one event of the search."""
        handler = getattr(self, f"_{kind}", None)
        if handler:
            handler(**event)

    def report_line(self, kind: str, **event: Any) -> None:
        """Handle one event, and print a line if it is of interest."""
        self.report(kind, **event)
        if kind in ("outcome", "left", "note", "start", "finishing"):
            printing.say(self.last)
        elif kind == "trial":
            printing.say(self.now)

    def _start(self, study: Any, problem: Any) -> None:
        recipe, deployment = problem.recipe, problem.deployment
        self.study, self.trials = study, recipe.trials if recipe.is_bounded else None
        self.done, self.rejected = study.evaluated, study.rejected
        self.evaluated_before = self.done
        self.started_at = time.monotonic()
        skipped = getattr(problem.data, "skipped", ())
        if skipped:
            printing.say(f"skipped, unreadable or in no class: {', '.join(map(str, skipped))}")
        limits = ", ".join(f"{name} <= {_limit(name, limit)}" for name, limit in study.limits.items()) or "no limits"
        until = f"{self.trials} trials" if self.trials else f"{recipe.time_budget:g} s"
        self.last = f"{study.name}: {problem.space.name} on {recipe.data}, {limits}, {until}"
        if deployment:
            sizes = " or ".join(f"{size}x{size}" for size in deployment.sizes)
            self.last += f"; deployed at {sizes} ({deployment.why})"

    def _trial(self, number: int, architecture: Any) -> None:
        self._running.append(number)
        self.now = f"trial {number} ({architecture.digest}): counting and measuring"

    def _epoch(self, epoch: int, epochs: int, loss: float) -> None:
        self.now = f"{self.now.split(':')[0]}: training, epoch {epoch} of {epochs}, loss {loss:.3f}"

    def _outcome(self, number: int, outcome: Any, architecture: Any) -> None:
        self.done, self.rejected = self.study.evaluated, self.study.rejected  # read once: drawing is frequent
        self._running = [other for other in self._running if other != number]
        values = outcome.values
        figures = [f"search accuracy {values['accuracy']:.4f}"] if "accuracy" in values else []
        figures += [f"{values['latency']:.3g} ms"] if "latency" in values else []
        figures += [f"{printing.count(values['flops'])} FLOPs"] if "flops" in values else []
        verdict = f"rejected: {outcome.reason}" if outcome.reason else ", ".join(figures)
        self.last = f"[{self._count()}] trial {number}: {verdict}{self._time_left()}"
        self._front = ""

    def _left(self, number: int, text: str) -> None:
        self._running = [other for other in self._running if other != number]
        self.last = text

    def _note(self, text: str) -> None:
        self.last = text

    def _finishing(self, text: str) -> None:
        self.now = self.last = text

    def _count(self) -> str:
        return f"{self.done}/{self.trials}" if self.trials else str(self.done)

    def _time_left(self) -> str:
        done = self.done - self.evaluated_before
        if self.trials and not done:
            return ""
        if self.trials:
            seconds = (time.monotonic() - self.started_at) / done * max(0, self.trials - self.done)
        else:
            seconds = max(0.0, self.study.deadline - time.monotonic())
        return f" (about {seconds / 60:.0f} min left)" if seconds >= 90 else f" (about {seconds:.0f} s left)"

    def render(self) -> Any:
        """The display as a Rich renderable."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        if self.study is None:
            return Text(printing.shown(self.now))
        head = f"{self.study.name}  {self._count()} evaluated, {self.rejected} rejected{self._time_left()}"
        bar = ProgressBar(total=self.trials, completed=self.done, width=60, pulse=self.trials is None)
        several = len(self._running) > 1  # workers do not report epochs
        now = f"trials {', '.join(map(str, self._running))} running" if several else self.now
        return Group(
            Text(printing.shown(head), style="bold"),
            bar,
            Text(printing.shown(now)),
            Text(printing.shown(self.last), style="dim"),
            self._table(),
        )

    def _table(self) -> Any:
        if not self._front and self.done:
            front = self.study.snapshot().rows()[:SHOWN]
            width = printing.console(stderr=True).width
            self._front = printing.front_table(front, self.study.settings["accuracy_is_of"], "the front so far", width)
        return self._front
