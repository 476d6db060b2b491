"""The objectives of a search: one definition for recipes, evaluators, tables, plots and command-line flags."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from nasspace.formatting import memory, significant


@dataclass(frozen=True)
class Objective:
    """What an objective is called, how it is recorded, and how it is shown.

    Latencies are recorded in milliseconds, accuracy as a fraction, memory in bytes, everything else as a count.
    `factor` turns the recorded value into the unit shown, which tables and plots write as `unit` and messages spell out
    as `unit_name`. A counted objective is known before training: it is the attribute of that name of `nasspace.cost`,
    or, of memory with an int8 runtime, the attribute with `_int8`. An objective that can be limited has the flag that
    limits it, and the flag's help.
    """

    name: str  # in recipes, documents and what an evaluator returns
    label: str  # in tables and sentences
    column: str  # in trials.csv, front.csv and the documents
    axis_title: str
    unit: str
    unit_name: str
    factor: float = 1.0
    kind: Literal["fraction", "latency", "count", "memory"] = "count"
    is_maximized: bool = False
    is_counted: bool = False
    limit_flag: str | None = None
    limit_help: str = ""

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """The direction, as Optuna names it."""
        return "maximize" if self.is_maximized else "minimize"

    def to_minimize(self, value: float) -> float:
        """Negate the value of a maximized objective."""
        return -value if self.is_maximized else value

    def format(self, value: float) -> str:
        """A recorded value for tables and plots.

        >>> OBJECTIVES["accuracy"].format(0.93), OBJECTIVES["latency"].format(5), OBJECTIVES["flops"].format(12.3e6)
        ('93.00%', '5.00 ms', '12.3 M')
        """
        return memory(value) if self.kind == "memory" else self.format_scaled(value * self.factor)

    def format_scaled(self, value: float) -> str:
        """As `format`, for a value that is already in the unit shown."""
        return f"{value:.2%}" if self.kind == "fraction" else f"{significant(value)} {self.unit}"

    def describe(self, value: float) -> str:
        """A recorded value for messages.

        >>> OBJECTIVES["latency"].describe(5.0), OBJECTIVES["params"].describe(1.5e6)
        ('5 ms', '1.5 million parameters')
        """
        if self.kind == "memory":
            return memory(value)
        return f"{value:.2%}" if self.kind == "fraction" else f"{value * self.factor:.4g} {self.unit_name}"


OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective(
            name="accuracy",
            label="accuracy",
            column="accuracy",
            axis_title="accuracy",
            unit="%",
            unit_name="%",
            kind="fraction",
            is_maximized=True,
        ),
        Objective(
            name="latency",
            label="latency",
            column="latency_ms",
            axis_title="latency, ms",
            unit="ms",
            unit_name="ms",
            kind="latency",
            limit_flag="--latency-target",
            limit_help="Latency limit with its unit, such as 20ms.",
        ),
        Objective(
            name="flops",
            label="FLOPs",
            column="flops",
            axis_title="FLOPs, millions of multiply-adds",
            unit="M",
            unit_name="million multiply-adds",
            factor=1e-6,
            is_counted=True,
            limit_flag="--flops-target",
            limit_help="FLOPs (multiply-adds) limit, such as 150M.",
        ),
        Objective(
            name="params",
            label="parameters",
            column="params",
            axis_title="parameters, millions",
            unit="M",
            unit_name="million parameters",
            factor=1e-6,
            is_counted=True,
            limit_flag="--params-target",
            limit_help="Parameter limit, such as 2M.",
        ),
        Objective(
            name="memory_access",
            label="memory access",
            column="memory_access",
            axis_title="memory access, millions of elements",
            unit="M",
            unit_name="million elements",
            factor=1e-6,
            is_counted=True,
        ),
        Objective(
            name="peak_memory",
            label="peak memory",
            column="peak_memory_bytes",
            axis_title="peak memory, KB",
            unit="KB",
            unit_name="KB",
            kind="memory",
            factor=1 / 1024,
            is_counted=True,
            limit_flag="--memory-target",
            limit_help="Limit of the peak memory of the network's tensors, such as 512KB (of 1024 bytes).",
        ),
        Objective(
            name="flash",
            label="flash",
            column="flash_bytes",
            axis_title="flash, KB",
            unit="KB",
            unit_name="KB",
            kind="memory",
            factor=1 / 1024,
            is_counted=True,
            limit_flag="--flash-target",
            limit_help="Limit of the weights as they ship, such as 1MB (of 1024 KB).",
        ),
    )
}
COUNTED_COLUMNS = tuple(objective.column for objective in OBJECTIVES.values() if objective.is_counted)
COUNTED = tuple(name for name, objective in OBJECTIVES.items() if objective.is_counted)
LIMITED = tuple(name for name, objective in OBJECTIVES.items() if objective.limit_flag)


def directions(names: Iterable[str]) -> list[str]:
    """The directions of some objectives, as Optuna takes them."""
    return [OBJECTIVES[name].direction for name in names]
