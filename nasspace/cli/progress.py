"""Live display of a search: trials, time left, running trials, the front so far."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nasspace.cli import printing
from nasspace.studies.objectives import OBJECTIVES

MAX_MEMBERS = 12  # members of the front in the live table


@contextmanager
def display() -> Iterator[Callable[..., None]]:
    """Yield the function that the search reports to: a live display on a terminal, a line per event elsewhere."""
    if not sys.stderr.isatty():
        yield Display().report_line
        return
    from rich.live import Live

    live = Display()
    with Live(console=printing.console(stderr=True), refresh_per_second=4, get_renderable=live.render, transient=True):
        yield live.report


def _limit(name: str, value: float) -> str:
    """A limit with its unit."""
    kind = OBJECTIVES[name].kind
    return OBJECTIVES[name].describe(value) if kind in ("latency", "memory") else printing.count(value)


class Display:
    """State of a running search, from its events."""

    def __init__(self) -> None:
        self.study: Any = None
        self.trials: int | None = 0  # None if only time ends the search
        self.started_at = time.monotonic()
        self.evaluated_before = 0
        self._has_trials = False
        self.current = "reading the data"
        self.message = ""
        self.evaluated = self.rejected = 0
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
            printing.print_message(self.message)
        elif kind == "trial":
            printing.print_message(self.current)

    def _start(self, study: Any, problem: Any) -> None:
        recipe, deployment = problem.recipe, problem.deployment
        self.study, self.trials = study, recipe.trials if recipe.is_bounded else None
        self.evaluated, self.rejected = study.evaluated, study.rejected
        self.evaluated_before = self.evaluated
        self.started_at = time.monotonic()
        skipped = getattr(problem.data, "skipped", ())
        if skipped:
            printing.print_message(f"skipped, unreadable or in no class: {', '.join(map(str, skipped))}")
        given = [f"{name} <= {_limit(name, limit)}" for name, limit in study.limits.items()]
        given += [f"{name} {_limit(name, low)} to {_limit(name, high)}" for name, (low, high) in recipe.budget.items()]
        limits = ", ".join(given) or "no limits"
        until = f"{self.trials} trials" if self.trials else f"{recipe.time_budget:g} s"
        self.message = f"{study.name}: {problem.space.name} on {recipe.data}, {limits}, {until}"
        if deployment:
            sizes = " or ".join(f"{size}x{size}" for size in deployment.sizes)
            self.message += f"; deployed at {sizes} ({deployment.why})"

    def _trial(self, number: int, architecture: Any) -> None:
        if not self._has_trials:  # the time left is of trials, not of what comes before them
            self._has_trials, self.started_at = True, time.monotonic()
        self._running.append(number)
        self.current = f"trial {number} ({architecture.digest}): counting and measuring"

    def _epoch(self, epoch: int, epochs: int, loss: float) -> None:
        self.current = f"{self.current.split(':')[0]}: training, epoch {epoch} of {epochs}, loss {loss:.3f}"

    def _outcome(self, number: int, outcome: Any, architecture: Any) -> None:
        self.evaluated, self.rejected = self.study.evaluated, self.study.rejected  # read once: drawing is frequent
        self._running = [other for other in self._running if other != number]
        values = outcome.values
        figures = [f"search accuracy {values['accuracy']:.4f}"] if "accuracy" in values else []
        figures += [f"{values['latency']:.3g} ms"] if "latency" in values else []
        figures += [f"{printing.count(values['flops'])} FLOPs"] if "flops" in values else []
        if outcome.reason:  # a sampler may train networks over the limit
            figures = [*figures, outcome.reason] if "accuracy" in values else [f"rejected: {outcome.reason}"]
        verdict = ", ".join(figures)
        self.message = f"[{self._count()}] trial {number}: {verdict}{self._time_left()}"
        self._front = ""

    def _left(self, number: int, text: str) -> None:
        self._running = [other for other in self._running if other != number]
        self.message = text

    def _note(self, text: str) -> None:
        self.message = text

    def _finishing(self, text: str) -> None:
        self.current = self.message = text

    def _count(self) -> str:
        return f"{self.evaluated}/{self.trials}" if self.trials else str(self.evaluated)

    def _time_left(self) -> str:
        done = self.evaluated - self.evaluated_before
        if self.trials and not done:
            return ""
        if self.trials:
            seconds = (time.monotonic() - self.started_at) / done * max(0, self.trials - self.evaluated)
        else:
            seconds = max(0.0, self.study.deadline - time.monotonic())
        return f" (about {seconds / 60:.0f} min left)" if seconds >= 90 else f" (about {seconds:.0f} s left)"

    def render(self) -> Any:
        """The display as a Rich renderable."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        if self.study is None:
            return Text(printing.escape(self.current))
        head = f"{self.study.name}  {self._count()} evaluated, {self.rejected} rejected{self._time_left()}"
        bar = ProgressBar(total=self.trials, completed=self.evaluated, width=60, pulse=self.trials is None)
        several = len(self._running) > 1  # workers do not report epochs
        current = f"trials {', '.join(map(str, self._running))} running" if several else self.current
        return Group(
            Text(printing.escape(head), style="bold"),
            bar,
            Text(printing.escape(current)),
            Text(printing.escape(self.message), style="dim"),
            self._table(),
        )

    def _table(self) -> Any:
        if not self._front and self.evaluated:
            front = self.study.snapshot().rows()[:MAX_MEMBERS]
            width = printing.console(stderr=True).width
            accuracy_is_of, asked = self.study.settings["accuracy_is_of"], (*self.study.objectives, *self.study.limits)
            self._front = printing.front_table(front, accuracy_is_of, "the front so far", width, asked)
        return self._front
