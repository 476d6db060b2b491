"""The front of a study as an immutable value, from which tables, report and exports are made.

`Study.snapshot` makes a `Front`, which `reporting.report` and `exporting.members` read;
neither of them opens a study.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace.studies.objectives import OBJECTIVES
from nasspace.studies.trial_table import (
    FRONT_COLUMNS,
    RECORD,
    REMEASURED_COLUMNS,
    TRIAL_COLUMNS,
    float_columns,
    has_value,
    plain,
    to_csv,
)
from nasspace.studies.weight_store import StudyWeights

if TYPE_CHECKING:
    import pandas

    from nasspace.architecture import Architecture

REMEASURED_KEYS = ("median_ms", "low_ms", "high_ms")  # of a latency, in the order of REMEASURED_COLUMNS
MOST_NAMED = 5  # networks outside the front that a sentence names
FLOPS_ARE = "multiply-adds of convolutions and linear layers at batch 1"


@dataclass(frozen=True)
class Member:
    """One network of a study with all its figures.

    `row` is its row of trials.csv. `ties` are the other members whose latency intervals overlap with its own.
    `remeasured` is the latency of the exported file, empty if it was not measured again. `last_rung` is what its
    training at the deployment resolution recorded, and `deployed` what its exported file reached. `explained` is what
    the guidelines find in it, None if that was not measured.
    """

    study: str
    id: int
    row: Mapping[str, Any]
    architecture: str  # JSON, named STUDY-ID
    ties: tuple[int, ...] = ()
    accuracy_ties: tuple[int, ...] | None = None
    remeasured: Mapping[str, Any] = field(default_factory=dict)
    fidelity: Mapping[str, Any] | None = None  # of its search accuracy
    last_rung: Mapping[str, Any] | None = None
    deployed: Mapping[str, Any] | None = None
    explained: Mapping[str, Any] | None = None

    def load_architecture(self) -> Architecture:
        """The architecture as a value; a damaged one raises `InputError`."""
        from nasspace.architecture import Architecture  # imports PyTorch; tables work without it

        return Architecture.from_json(self.architecture, f"{self.study}:{self.id}")

    def front_row(self) -> dict[str, Any]:
        """Its row of front.csv, with the JSON of its architecture."""
        row = {name: value for name, value in self.row.items() if name not in ("state", "reason", RECORD)}
        row |= {name: self.remeasured.get(key) for name, key in zip(REMEASURED_COLUMNS, REMEASURED_KEYS, strict=True)}
        accuracy_ties = None if self.accuracy_ties is None else ", ".join(map(str, self.accuracy_ties))
        row |= {"accuracy_ties": accuracy_ties, "latency_ties": ", ".join(map(str, self.ties))}
        return {**row, "architecture": self.architecture}

    def document(self) -> dict[str, Any]:
        """The member in the JSON document; keys whose part does not exist yet are None."""
        row = plain(self.front_row())
        return {
            **row,
            "latency_ties": list(self.ties),
            "resolution": min(row["architecture"]["input"][1:]),
            "fidelity": self.fidelity,
            "accuracy_int8": (self.deployed or {}).get("accuracy_int8"),
            "accuracy_ties": None if self.accuracy_ties is None else list(self.accuracy_ties),
        }


@dataclass(frozen=True)
class Front:
    """The members of a study's front, best accuracy first, and all that is reported of the study.

    `settings` is the content of study.yaml, `trials` the rows of trials.csv, `machine` the one that measured the
    latencies, `untrained` how many members still wait for their training at the deployment resolution. `fidelity_tau`
    is the rank correlation expected between the search's accuracies and full trainings, and `largest_is_best` the
    probability that no network slower than the front is more accurate after full training. `may_belong` has the
    probabilities of trials that are not members but may be after full training, the highest first; None if accuracy is
    no objective or nothing is believed of it. `energy_joules` is what the searching machine's processor consumed, None
    if RAPL cannot be read.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    members: tuple[Member, ...]
    trials: tuple[Mapping[str, Any], ...]
    weights: StudyWeights
    machine: Mapping[str, Any] = field(default_factory=dict)
    latency_predictor: Mapping[str, Any] | None = None
    untrained: int = 0
    fidelity_tau: Mapping[str, float] | None = None
    largest_is_best: float | None = None
    may_belong: Mapping[int, float] | None = None
    energy_joules: float | None = None
    is_finished: bool = False
    ended_early: str = ""

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The recipe as plain values."""
        return self.settings["recipe"]

    @property
    def objectives(self) -> tuple[str, ...]:
        """The names of the objectives."""
        return tuple(self.recipe["objectives"])

    @property
    def limits(self) -> dict[str, float]:
        """The limits in milliseconds and counts."""
        return dict(self.settings["limits"])

    @property
    def data(self) -> Mapping[str, Any]:
        """The data set as study.yaml describes it; empty for a study whose evaluator was a function."""
        return self.settings.get("data") or {}

    @property
    def resolution(self) -> int | None:
        """The deployment resolution; None in studies of the first version."""
        return self.settings.get("task", {}).get("resolution")

    @property
    def accuracy_is_of(self) -> str:
        """The images that accuracy was taken on."""
        return self.settings["accuracy_is_of"]

    @property
    def is_explainable(self) -> bool:
        """Whether `nas report --explain` can measure findings: ONNX Runtime on the searching machine."""
        return self.recipe["runtime"] == "onnxruntime" and self.recipe.get("latency_device", "local") == "local"

    @property
    def has_last_rung(self) -> bool:
        """Whether members are trained at the deployment resolution before they are reported."""
        return has_last_rung(self.settings)

    @property
    def evaluated(self) -> int:
        """The number of evaluated candidates."""
        return self._count("evaluated")

    @property
    def rejected(self) -> int:
        """The number of candidates rejected at a limit after a measurement."""
        return self._count("rejected")

    def _count(self, state: str) -> int:
        return sum(row["state"] == state for row in self.trials)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of front.csv, and the JSON of the architectures."""
        return [member.front_row() for member in self.members]

    def csv(self) -> str:
        """The content of front.csv."""
        rows, columns = self.rows(), [name for name in FRONT_COLUMNS if name != "architecture"]
        # A count that one of the trials lacks is written equally in both tables.
        return to_csv(rows, columns, float_columns(rows, columns) | float_columns(self.trials, TRIAL_COLUMNS))

    def trials_csv(self) -> str:
        """The content of trials.csv."""
        columns = self._trial_columns()
        return to_csv(self.trials, columns, float_columns(self.trials, columns))

    def frame(self) -> pandas.DataFrame:
        """The front as a data frame that prints as many columns as fit."""
        from nasspace.studies.frames import FrontFrame

        frame, kinds = FrontFrame(self.rows(), columns=FRONT_COLUMNS), self.trials_frame().dtypes
        return FrontFrame(frame.astype({name: kind for name, kind in kinds.items() if name in frame}))

    def trials_frame(self) -> pandas.DataFrame:
        """Every evaluated and rejected candidate, one per row, in the order of the search."""
        import pandas

        return pandas.DataFrame(list(self.trials), columns=self._trial_columns())

    def _trial_columns(self) -> list[str]:
        """The columns of trials.csv, then others that the trials have."""
        known = (*TRIAL_COLUMNS, RECORD)
        return [*TRIAL_COLUMNS, *(name for row in self.trials[:1] for name in row if name not in known)]

    def document(self) -> dict[str, Any]:
        """The JSON document of `search`, `resume` and `front`."""
        return {
            "study": self.name,
            "space": self.settings["space"]["name"],
            "evaluated": self.evaluated,
            "rejected": self.rejected,
            "limits": self.limits,
            "objectives": list(self.objectives),
            "accuracy_is_of": self.accuracy_is_of,
            "flops_are": FLOPS_ARE,
            "folder": str(self.folder),
            "latency_predictor": self.latency_predictor,
            "finished": self.is_finished,
            "resolution": self.resolution,
            "resolution_why": self.settings.get("resolution_why"),
            "untrained": self.untrained,
            "budget_use": self.budget_note or None,
            "ended_early": self.ended_early or None,
            "recommended": self.recommended,
            "knee": self.knee,
            "fidelity_tau": self.fidelity_tau,
            "may_belong": self._may_belong_document(),
            "front": [member.document() for member in self.members],
        }

    @property
    def recommended(self) -> int | None:
        """The id of the fastest member whose accuracy cannot be told from the highest expected one.

        None without accuracy among the objectives, or before a member has one. Without latency, the first other
        objective counts.
        """
        candidates = [member for member in self.members if has_value(member.row["accuracy_expected"])]
        if "accuracy" not in self.objectives or not candidates:
            return None
        best = max(candidates, key=lambda member: (member.row["accuracy_expected"], -member.id))
        tied = [member for member in candidates if member is best or member.id in (best.accuracy_ties or ())]
        costs = [name for name in self.objectives if name != "accuracy"]
        cost = OBJECTIVES["latency" if "latency" in costs else costs[0]] if costs else None
        if cost is None:
            return best.id
        return min(tied, key=lambda member: (cost.to_minimize(member.row[cost.column]), member.id)).id

    @property
    def recommendation_note(self) -> str:
        """Which member is recommended, and why; empty without intervals of accuracy, and where there is no choice."""
        if len(self.members) < 2 or all(member.accuracy_ties is None for member in self.members):
            return ""
        costs = [name for name in self.objectives if name != "accuracy"]
        if not costs or self.recommended is None:
            return ""
        kind = "fastest one" if "latency" in costs else f"one with the lowest {OBJECTIVES[costs[0]].label}"
        return f"recommended: trial {self.recommended}, the {kind} of those that may be as accurate as the best"

    def _may_belong_document(self) -> list[dict[str, Any]] | None:
        """What the document says of `may_belong`."""
        if self.may_belong is None:
            return None
        return [{"id": number, "probability": round(one, 4)} for number, one in self.may_belong.items()]

    @property
    def may_belong_note(self) -> str:
        """Which other networks may be on the front after full training, the most probable first; empty without any."""
        if not self.may_belong:
            return ""
        named = [f"trial {number} ({one:.0%})" for number, one in [*self.may_belong.items()][:MOST_NAMED]]
        left = len(self.may_belong) - len(named)
        more = f", and {left} more" if left else ""
        return f"may also belong to the front after full training: {', '.join(named)}{more}"

    @property
    def knee(self) -> int | None:
        """The id of the member farthest from the line between the front's ends, in the first two objectives.

        Both are scaled to 0..1. Accuracy is the expected one. None with fewer than three members, if one member is both
        ends, or if these two objectives have no other nondominated member.
        """
        if len(self.objectives) < 2:
            return None
        columns = [self._column(name) for name in self.objectives[:2]]
        members = [member for member in self.members if all(has_value(member.row[column]) for column in columns)]
        if len(members) < 3:
            return None
        points = [
            [OBJECTIVES[name].to_minimize(member.row[column]) for member in members]
            for name, column in zip(self.objectives, columns, strict=False)
        ]
        lows, spans = [min(values) for values in points], [max(values) - min(values) for values in points]
        if not all(spans):
            return None
        x, y = ([(one - low) / span for one in values] for values, low, span in zip(points, lows, spans, strict=True))
        # The ends are the best in each objective, and the distance counts on the side of the better values.
        first, last = min(range(len(x)), key=lambda i: (x[i], y[i])), min(range(len(y)), key=lambda i: (y[i], x[i]))
        if first == last:
            return None
        across, along = x[last] - x[first], y[last] - y[first]

        def distance(i: int) -> float:
            return across * (y[first] - y[i]) - along * (x[first] - x[i])

        # With a third objective, a member of the front may be dominated in the first two: it is no knee.
        places = list(zip(x, y, strict=True))
        between = [
            i
            for i, (a, b) in enumerate(places)
            if i not in (first, last) and not any(c <= a and d <= b and (c, d) != (a, b) for c, d in places)
        ]
        return members[max(between, key=lambda i: (distance(i), -members[i].id))].id if between else None

    def _column(self, name: str) -> str:
        """The column of an objective; for accuracy, of the expected one."""
        return "accuracy_expected" if name == "accuracy" else OBJECTIVES[name].column

    @property
    def ranking_note(self) -> str:
        """How well the search's accuracies rank networks, in words; empty without an accuracy after full training."""
        if not any(row.get("accuracy_low") is not None for row in self.trials):
            return ""
        if tau := self.fidelity_tau:
            return (
                "Kendall's tau expected between the accuracies of the search and the true order of the networks after "
                f"full training: {tau['value']:.2f} ({tau['low']:.2f} to {tau['high']:.2f})"
            )
        return "how well the accuracies of the search rank networks is not known: fewer than five were evaluated"

    @property
    def budget_note(self) -> str:
        """Why the front ends far below the latency limit, as a sentence; empty if it does not."""
        limit = self.limits.get("latency")
        front = [member.row["latency_ms"] for member in self.members if has_value(member.row["latency_ms"])]
        evaluated = [row["latency_ms"] for row in self.trials if row["state"] == "evaluated"]
        # An evaluator that is a function may return latencies over the limit.
        inside = [value for value in evaluated if has_value(value) and value <= (limit or 0.0)]
        if limit is None or not front or not inside or not max(front) < limit / 2:
            return ""
        slowest, tried = max(front), max(inside)
        sure = "" if self.largest_is_best is None else f" ({self.largest_is_best:.0%} sure after full training)"
        return (
            f"the slowest network of the front takes {slowest:.3g} ms of {limit:.4g} ms: no slower network was better "
            f"among {len(inside)} networks tried, the slowest of which takes {tried:.3g} ms{sure}"
        )

    @property
    def origin(self) -> dict[str, Any] | None:
        """The data that the weights were trained on, as exports record it; None without images."""
        return origin(self.settings)


def has_last_rung(settings: Mapping[str, Any]) -> bool:
    """Whether a study trains what it found at the deployment resolution before it is reported."""
    return bool(settings.get("data")) and "accuracy" in settings["recipe"]["objectives"]


def search_fidelity(recipe: Mapping[str, Any], input_shape: Sequence[int] | None = None) -> dict[str, Any]:
    """What the search found accuracies with: the training of each network, or that of shared weights.

    `input_shape` (channels, height, width) is that of one network, which is trained at no higher resolution.
    """
    shared = recipe.get("supernet")
    found = {**{key: shared[key] for key in ("resolution", "epochs")}, "weights": "shared"} if shared else {}
    found = found or dict(recipe["fidelity"])
    return {**found, "resolution": min(found["resolution"], *input_shape[1:])} if input_shape else found


def runs_with(recipe: Mapping[str, Any]) -> str:
    """How a recipe measures latency: 'onnxruntime, 1 thread, batch 1'."""
    threads = f"{recipe['threads']} thread{'s' if recipe['threads'] != 1 else ''}"
    return f"{recipe['runtime']}, {threads}, batch {recipe['batch_size']}"


def origin(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Name, seed, held_out, and the fingerprint at `resolution`, of a study's data; None without images."""
    data, recipe = settings.get("data"), settings["recipe"]
    if not data:
        return None
    return {
        "name": recipe["data"],
        "seed": recipe.get("seed", 0),
        "held_out": recipe.get("held_out", 0.2),
        "fingerprint": data["fingerprint"],
        "resolution": settings["task"]["resolution"],
    }


def ordered(rows: Sequence[Mapping[str, Any]], objectives: Sequence[str]) -> list[Mapping[str, Any]]:
    """Rows of members, best first: by the first objective, then the next.

    Accuracy is the expected one. Without a belief, it is that of the search before any member was trained at the
    deployment resolution.
    """
    columns = {name: OBJECTIVES[name].column for name in objectives}
    if "accuracy" in columns:
        candidates = ("accuracy_expected", "accuracy", "search_accuracy")
        columns["accuracy"] = next((c for c in candidates if any(has_value(row.get(c)) for row in rows)), "accuracy")

    def rank(row: Mapping[str, Any]) -> list[tuple[bool, float]]:
        figures = [(name, row[column]) for name, column in columns.items()]
        return [
            (False, OBJECTIVES[name].to_minimize(value)) if has_value(value) else (True, 0.0) for name, value in figures
        ]

    return sorted(rows, key=rank)
