"""The record of a search: an Optuna study in a database, read as data frames; the files beside it.

A trial's Optuna state says what became of a candidate: COMPLETE, its accuracy was evaluated; PRUNED, it was rejected
at a limit after a measurement and never trained; FAIL, the sampler only considered it, its training failed, or its
process died; RUNNING, it is under way, or was when its process ended, and is taken up again. Every figure of a trial
is in its user attributes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace import files
from nasspace.errors import InputError
from nasspace.samplers import pareto
from nasspace.studies import storage
from nasspace.studies.objectives import OBJECTIVES, directions
from nasspace.studies.paths import folder_of, known_studies
from nasspace.studies.schema import AGAIN, DEPLOYED, LAST_RUNG, PREDICTOR, check_attributes, check_trials
from nasspace.studies.schema import study_settings as checked_settings
from nasspace.studies.storage import errors_of_storage
from nasspace.studies.trial_table import (
    AGAIN_COLUMNS,
    FRONT_COLUMNS,
    TRIAL_COLUMNS,
    is_there,
    machine_of,
    plain,
    ranges,
    row,
    ties,
)
from nasspace.studies.weight_store import Weights

if TYPE_CHECKING:
    import optuna
    import pandas

    from nasspace.architecture import Architecture
    from nasspace.data.loading import DataSet

SEARCHED = "searched"  # study attribute: the search has ended, so what remains is the last rung and the exports
FINISHED = "finished"  # study attribute: the search came to its own end
ENDED = "ended"  # study attribute: why the search ended before its trials were used up
ASKED = "nasspace_settings"  # study attribute in a shared storage: study.yaml, for whoever joins from elsewhere
AGAIN_KEYS = ("median_ms", "low_ms", "high_ms")  # of a latency measured again
JOINING = 10.0  # seconds that a process waits for the settings of a study that another one is making


class Study:
    """One search and all it found, in `folder`: `study.yaml` says what was asked, the database what came."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], record: optuna.Study):
        self.folder = folder
        self.settings = settings
        self.record = record
        self.name = folder.resolve().name
        self.data: DataSet | None = None  # the data set, where this process holds it already
        self.deadline: float | None = None  # of time.monotonic(): when the time budget of this process is used up

    @property
    def objectives(self) -> tuple[str, ...]:
        return tuple(self.settings["recipe"]["objectives"])

    @property
    def limits(self) -> dict[str, float]:
        """Milliseconds and counts."""
        return dict(self.settings["limits"])

    def frozen(self, *states: str) -> list[optuna.trial.FrozenTrial]:
        """Trials in the order they were asked for; of some states, or all."""
        trials = self.record.get_trials(deepcopy=False)
        return [trial for trial in trials if not states or trial.state.name in states]

    @property
    def is_shared(self) -> bool:
        """Whether other processes may search it at the same time: its storage is one behind a URL."""
        return self.settings.get("storage") is not None

    def unfinished(self, mine: Container[int] = ()) -> optuna.Trial | None:
        """A trial that a killed process left behind (but see `heartbeat`); `mine` are under way here."""
        from nasspace.optuna_adapter import reopened_trial

        running = () if self.is_shared else self.frozen("RUNNING")
        left = next((trial for trial in running if trial.number not in mine), None)
        return None if left is None else reopened_trial(self.record, left)

    def told(self, trial: optuna.Trial | int, state: str, values: list[float] | None = None) -> bool:
        """Finish a trial: COMPLETE with the objectives' values, PRUNED, or FAIL; False if another process has."""
        import optuna

        try:
            self.record.tell(trial, values, state=None if values else optuna.trial.TrialState[state])
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            number = trial if isinstance(trial, int) else trial.number
            told = self.record.get_trials(deepcopy=False)[number]
            if not (self.is_shared and told.state.is_finished()):
                raise
            return told.state.name == state and told.values == values  # the answer to the first attempt was lost
        return True

    def lost(self, trial: optuna.trial.FrozenTrial) -> None:
        """A trial whose process died is asked again, by whoever finds it first."""
        if self.told(trial.number, "FAIL"):
            storage.ask_again(self.record, trial)

    @property
    def evaluated(self) -> int:
        """How many candidates' accuracy was evaluated."""
        return len(self.frozen("COMPLETE"))

    @property
    def rejected(self) -> int:
        """How many were stopped at a limit after a measurement."""
        return len(self.frozen("PRUNED"))

    def trial_rows(self) -> list[dict[str, Any]]:
        """Every evaluated and rejected candidate, in the order of the search; `trials` without pandas."""
        deployed, last_rung = self.deployed(), self.has_last_rung
        return [
            row(trial, self.latency(trial), deployed.get(trial.number), last_rung)
            for trial in self.frozen("COMPLETE", "PRUNED")
        ]

    def trials(self) -> pandas.DataFrame:
        """Every evaluated and rejected candidate, a row each, in the order of the search."""
        import pandas

        return pandas.DataFrame(self.trial_rows(), columns=TRIAL_COLUMNS)

    def front_rows(self) -> list[dict[str, Any]]:
        """The members of the front, best accuracy first; `front` without pandas, which takes a while to import."""
        members, again = set(self.front_numbers()), self.again()
        rows = [one for one in self.trial_rows() if one["id"] in members]
        searched = self.has_last_rung and not any(is_there(one["accuracy"]) for one in rows)
        order = {
            name: "search_accuracy" if searched and name == "accuracy" else OBJECTIVES[name].column
            for name in self.objectives
        }

        def rank(one: Mapping[str, Any]) -> list[tuple[bool, float]]:
            figures = [(name, one[column]) for name, column in order.items()]
            return [
                (False, OBJECTIVES[name].to_minimize(value)) if is_there(value) else (True, 0.0)
                for name, value in figures
            ]

        rows.sort(key=rank)
        tied = ties(rows)
        for one, others in zip(rows, tied, strict=True):
            found = again.get(str(one["id"]), {})
            one |= {column: found.get(key) for column, key in zip(AGAIN_COLUMNS, AGAIN_KEYS, strict=True)}
            one |= {"latency_ties": others, "architecture": self._named(one["id"])}
            del one["state"], one["reason"]
        return rows

    def front(self) -> pandas.DataFrame:
        """The Pareto front of the evaluated candidates inside the limits, best accuracy first.

        Accuracy is that of the shipped files. Before any member was trained at its deployment resolution the front is
        that of the search, with `search_accuracy` alone. A member that was over its latency limit when measured again
        from its exported file is not in it. `print` shows the columns that fit; `architecture` (JSON) is never shown.
        """
        from nasspace.studies.frames import Front

        frame, kinds = Front(self.front_rows(), columns=FRONT_COLUMNS), self.trials().dtypes
        return Front(frame.astype({name: kind for name, kind in kinds.items() if name in frame}))

    @property
    def origin(self) -> dict[str, Any] | None:
        """The data that it searches with, as an export records them; None of a study without images.

        Name, seed, held_out, and the fingerprint at `resolution`.
        """
        data, recipe = self.settings.get("data"), self.settings["recipe"]
        if not data:
            return None
        split = {"seed": recipe.get("seed", 0), "held_out": recipe.get("held_out", 0.2)}
        at = {"fingerprint": data["fingerprint"], "resolution": self.settings["task"]["resolution"]}
        return {"name": recipe["data"], **split, **at}

    @property
    def has_last_rung(self) -> bool:
        """Whether what a search found is trained at the deployment resolution before it is reported."""
        return bool(self.settings.get("data")) and "accuracy" in self.objectives

    @property
    def is_out_of_time(self) -> bool:
        """Whether the time budget of this process is used up."""
        return self.deadline is not None and time.monotonic() > self.deadline

    @property
    def searched(self) -> bool:
        """Whether the search has ended but not what follows it: a process that goes on does not ask for more trials."""
        attributes = self.record.user_attrs
        return bool(attributes.get(SEARCHED)) and not attributes.get(FINISHED)

    @property
    def is_finished(self) -> bool:
        """Whether the search came to its own end, exports included."""
        return bool(self.record.user_attrs.get(FINISHED))

    @property
    def is_writable(self) -> bool:
        """Whether the folder may be written; a finished study is read on a read-only disk, too."""
        return os.access(self.folder, os.W_OK)

    def search_ended(self) -> None:
        """Record that the search has ended and its last rung begins; others may still search a shared study."""
        if self.settings.get("data") and not self.is_shared:
            self.record.set_user_attr(SEARCHED, True)

    def ends_early(self, why: str) -> None:
        """Record why a search ended before its trials were used up; an empty text where it goes on after all."""
        if self.ended_early != why:
            self.record.set_user_attr(ENDED, why)

    @property
    def ended_early(self) -> str:
        """Why the search ended before its trials were used up; empty where it did not."""
        why = self.record.user_attrs.get(ENDED)
        return why if isinstance(why, str) else ""

    def deployed(self) -> dict[int, dict[str, Any]]:
        """Trial number to what its last rung found: `accuracy` of the shipped file, `resolution`, `epochs`, ..."""
        return {number: found for number, found in self._numbered(DEPLOYED).items() if "accuracy" in found}

    def undeployable(self) -> dict[int, str]:
        """Trial number to why its last rung failed: these are in no front."""
        return {number: found["failed"] for number, found in self._numbered(DEPLOYED).items() if "failed" in found}

    def last_rung(self, number: int) -> dict[str, Any] | None:
        """What the last rung's training recorded before its export: `accuracy` in training, `resolution`, ..."""
        return self.record.user_attrs.get(f"{LAST_RUNG}{number}")

    def _numbered(self, prefix: str) -> dict[int, dict[str, Any]]:
        """The study's attributes of one kind by trial number; those that were taken back are None."""
        found = self.record.user_attrs.items()
        return {int(key[len(prefix) :]): value for key, value in found if key.startswith(prefix) and value}

    def front_numbers(self) -> list[int]:
        """The numbers of the front's trials: of those trained at the deployment resolution, once there are any."""
        inside, deployed = self._inside(), self.deployed()
        if not self.has_last_rung or not (deployed or self.undeployable()):
            return self._front_of(inside, {})
        reported = [trial for trial in inside if trial.number in deployed]
        return self._front_of(reported, {number: found["accuracy"] for number, found in deployed.items()})

    def promoted(self) -> list[int]:
        """Trials that are to be trained at the deployment resolution next; none where the front is stable.

        Those that no member of the front, and no other trial that may still become one, dominates by what the search
        found: like is compared with like. So when a member leaves the front, what it had dominated comes back.
        """
        if not self.has_last_rung:
            return []
        deployed, members = self.deployed(), set(self.front_numbers())
        rivals = [trial for trial in self._inside() if trial.number in members or trial.number not in deployed]
        return [number for number in self._front_of(rivals, {}) if number not in deployed]

    def beyond_layers(self, count: int) -> set[int]:
        """Evaluated trials outside the limits, or dominated by `count` others one after the other."""
        evaluated = {trial.number for trial in self.frozen("COMPLETE")}
        left = self._inside()
        for _ in range(count):
            layer = set(self._front_of(left, {}))
            left = [trial for trial in left if trial.number not in layer]
            evaluated -= layer
        return evaluated

    def _inside(self) -> list[optuna.trial.FrozenTrial]:
        """Evaluated trials inside the limits, by the re-measurement too, whose last rung did not fail."""
        again = self.again()
        failed = self.undeployable() if self.has_last_rung else ()
        evaluated = [trial for trial in self.frozen("COMPLETE") if trial.number not in failed]
        return [t for t in evaluated if self.over_limit(t) <= 0 and self._stays(t.number, again)]

    def _front_of(self, trials: list[optuna.trial.FrozenTrial], accuracy: Mapping[int, float]) -> list[int]:
        """Those that no other one dominates; `accuracy` replaces the search's."""
        if not trials:
            return []
        values = [{**t.user_attrs["values"]} for t in trials]
        for trial, figures in zip(trials, values, strict=True):
            if "latency" in figures and (latency := self.latency(trial)):
                figures["latency"] = latency["median_ms"]
            if trial.number in accuracy:
                figures["accuracy"] = accuracy[trial.number]
        points = [[OBJECTIVES[name].to_minimize(figures[name]) for name in self.objectives] for figures in values]
        return [trial.number for trial, member in zip(trials, pareto.front(points), strict=True) if member]

    def latency_machine(self) -> dict[str, Any] | None:
        """The machine of the study's latencies: that of the first one taken; None before."""
        return machine_of(self.frozen())

    def over_limit(self, trial: optuna.trial.FrozenTrial) -> float:
        """By what share of a limit a trial is over it, at its worst; 0 or less is inside."""
        values = dict(trial.user_attrs.get("values", {}))
        if latency := self.latency(trial):
            values["latency"] = latency["high_ms"]  # the end that decides
        over = [values[name] / limit - 1 for name, limit in self.limits.items() if name in values]
        return max(over, default=0.0)

    def latency(self, trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
        """A trial's latency as `Latency.to_json` gives it; empty where none was measured."""
        return trial.user_attrs.get("latency_interval") or {}

    def _stays(self, number: int, again: Mapping[str, Any]) -> bool:
        limit = self.limits.get("latency")
        measured = again.get(str(number))
        return limit is None or measured is None or measured["contended"] or measured["median_ms"] <= limit

    def again(self) -> dict[str, Any]:
        """Trial number (as text) to the latency of its exported file, measured in a fresh process."""
        return self.record.user_attrs.get(AGAIN, {})

    def architecture(self, number: int) -> Architecture:
        """The architecture of one trial; an unknown number is an `InputError`."""
        from nasspace.architecture import Architecture  # and with it PyTorch: tables do without

        architecture = Architecture.from_json(self._recorded(number), f"{self.name}:{number}")
        return architecture.with_name(f"{self.name}-{number}")

    def _named(self, number: int) -> str:
        """The JSON of a trial's architecture, with its name; as `Architecture.to_json` writes it."""
        document = json.loads(self._recorded(number))
        layers = ",\n  ".join(json.dumps(layer) for layer in document.pop("layers"))
        document = {"nasspace": document.pop("nasspace"), "name": f"{self.name}-{number}", **document}
        return json.dumps(document)[:-1] + ',\n "layers": [\n  ' + layers + "]}\n"

    def _recorded(self, number: int) -> str:
        """The JSON of a trial's architecture as it is in the record; an unknown number is an `InputError`."""
        for trial in self.frozen("COMPLETE", "PRUNED"):
            if trial.number == number:
                return trial.user_attrs["architecture"]
        if failure := self.failure(number):
            remedy = f"`nas show {self.name}:{number}` has its traceback"
            raise InputError(f"trial {number} of study '{self.name}' {failure['failure']}; {remedy}")
        known = [trial.number for trial in self.frozen("COMPLETE", "PRUNED")]
        raise InputError(f"study '{self.name}' has no trial {number}; it has {ranges(known)}")

    def failure(self, number: int) -> dict[str, Any] | None:
        """Why a trial failed, in the search or later at its deployment resolution; None for others.

        `failure`, `traceback`, `digest`, `architecture`, and `state`: FAIL, or COMPLETE for a later failure.
        """
        trial = next((trial for trial in self.frozen() if trial.number == number), None)
        if trial is None:
            return None
        about = trial.user_attrs
        if trial.state.name == "FAIL" and str(about.get("reason", "")).startswith("failed"):
            why, traceback = str(about["reason"]), about.get("traceback")
        elif "failed" in (later := self._numbered(DEPLOYED).get(number, {})):
            size = f" {later['resolution']}x{later['resolution']}" if later.get("resolution") else ""
            why, traceback = f"failed at the deployment resolution{size}: {later['failed']}", later.get("traceback")
        else:
            return None
        kept = {"digest": about.get("digest"), "traceback": traceback, "architecture": about.get("architecture")}
        texts = {key: str(kept[key] or "") for key in kept}
        return {"study": self.name, "id": number, "state": trial.state.name, "failure": why, **texts}

    def weights(self, number: int) -> Path | None:
        """Where the trained weights of a trial are kept: those of its deployment resolution, else the search's."""
        deployed = self.deployed_weights.path(number)
        if deployed is None and number in self.deployed():  # the search's are not those whose accuracy is shown
            exported = self.folder / "exports" / str(number) / "weights.safetensors"
            return exported if exported.is_file() else None
        return deployed or self.kept_weights.path(number)

    @property
    def kept_weights(self) -> Weights:
        """The store of weights that the search trained: the folder's, and with `--storage-path` a copy there."""
        return self._store("weights")

    @property
    def deployed_weights(self) -> Weights:
        """The store of weights that the last rung trained at the deployment resolution."""
        return self._store("weights/deployed")

    def _store(self, name: str) -> Weights:
        place, said = self.settings["recipe"].get("storage_path"), self.settings
        own = f"{said['name']}-{said.get('identity', '')}".rstrip("-")  # names are not unique in a storage of many
        return Weights(self.folder / name, place and f"{place.rstrip('/')}/{own}/{name}")

    def searched_accuracy(self, number: int) -> float | None:
        """The accuracy of a trial at the search's own fidelity; None where there is none."""
        values = next((t.user_attrs.get("values", {}) for t in self.frozen() if t.number == number), {})
        return values.get("accuracy")

    def fidelity(self, number: int) -> dict[str, Any] | None:
        """What a trial's `search_accuracy` was found with; None where the evaluator was a function."""
        if not self.settings.get("data"):
            return None
        fidelity = self.settings["recipe"]["fidelity"]
        size = min(fidelity["resolution"], *json.loads(self._recorded(number))["input"][1:])
        return {**fidelity, "resolution": size}

    def budget_use(self) -> str:
        """Why a front ends far below its latency target, in a sentence; empty where it does not."""
        limit = self.limits.get("latency")
        front = [one["latency_ms"] for one in self.front_rows() if is_there(one["latency_ms"])]
        evaluated = [one["latency_ms"] for one in self.trial_rows() if one["state"] == "evaluated"]
        # a function may evaluate what is over the limit
        latencies = [value for value in evaluated if is_there(value) and value <= (limit or 0.0)]
        if limit is None or not front or not latencies or not max(front) < limit / 2:
            return ""
        slowest, tried = max(front), max(latencies)
        return (
            f"the slowest network of the front takes {slowest:.3g} ms of {limit:.4g} ms: nothing slower was found to "
            f"be better among {len(latencies)} networks tried, the slowest of which takes {tried:.3g} ms"
        )

    def document(self) -> dict[str, Any]:
        """The JSON document of `search`, `resume` and `front`."""
        front = [self._member(plain(member)) for member in self.front_rows()]
        return {
            "study": self.name,
            "space": self.settings["space"]["name"],
            "evaluated": self.evaluated,
            "rejected": self.rejected,
            "limits": self.limits,
            "objectives": list(self.objectives),
            "accuracy_is_of": self.settings["accuracy_is_of"],
            "flops_are": "multiply-adds of convolutions and linear layers at batch 1",
            "folder": str(self.folder),
            "latency_predictor": self.record.user_attrs.get(PREDICTOR),
            "finished": self.is_finished,
            "resolution": self.settings.get("task", {}).get("resolution"),
            "resolution_why": self.settings.get("resolution_why"),
            "untrained": len(self.promoted()),
            "budget_use": self.budget_use() or None,
            "ended_early": self.ended_early or None,
            "recommended": None,
            "knee": None,
            "fidelity_tau": None,
            "front": front,
        }

    def _member(self, member: dict[str, Any]) -> dict[str, Any]:
        """A member of the front as the document has it; what is not there yet is None."""
        size = min(member["architecture"]["input"][1:])
        ties = [int(number) for number in member["latency_ties"].split(", ") if number]
        return {
            **member,
            "latency_ties": ties,
            "resolution": size,
            "fidelity": self.fidelity(member["id"]),
            "accuracy_int8": self.deployed().get(member["id"], {}).get("accuracy_int8"),
            "accuracy_low": None,
            "accuracy_high": None,
            "accuracy_ties": None,
            "accuracy_expected": member["accuracy"],
        }


def create(folder: Path, settings: dict[str, Any], sampler: Any) -> Study:
    """A new study in `folder`; `settings` become its study.yaml, or those of the study that a shared storage has.

    The caller holds the folder's lock (`paths.alone`).
    """
    if set("?%#") & set(str(folder.resolve())):
        raise InputError(f"{folder}: a study's path cannot hold ?, % or #; choose another name or folder")
    if settings["storage"] is None:  # the database first: a study.yaml without one is a study whose record was lost
        _make_own(folder, settings)
        files.write_yaml(folder / "study.yaml", settings)
        with errors_of_storage(folder):
            return _connect(folder, settings, sampler)
    with errors_of_storage(folder):
        study = _joined(folder, settings, sampler)
    files.write_yaml(folder / "study.yaml", study.settings)
    return study


def _make_own(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the folder's own database, in which nothing is recorded yet, whole or not at all."""
    path = folder / "study.db"
    if path.exists() and (path.stat().st_size == 0 or storage.recorded(path)):
        raise InputError(
            f"{folder}: study.db is there, but study.yaml is missing; restore it, or choose another --study name"
        )
    with errors_of_storage(folder):
        objectives = list(settings["recipe"]["objectives"])
        storage.make(path, settings["name"], _directions(settings), objectives)


def _joined(folder: Path, settings: dict[str, Any], sampler: Any) -> Study:
    """The study of this name in a shared storage: made, or the one that is there with its settings.

    Of several processes that start at once one makes it, and the others wait for its settings.
    """
    import optuna

    try:
        study = _connect(folder, settings, sampler, new=True)
    except optuna.exceptions.DuplicatedStudyError:
        study = _connect(folder, settings, sampler)
        end = time.monotonic() + JOINING
        while time.monotonic() < end:
            if earlier := study.record.user_attrs.get(ASKED):
                return Study(folder, {**earlier, "storage": settings["storage"]}, study.record)
            time.sleep(0.2)
        if study.frozen() or [way.name.lower() for way in study.record.directions] != _directions(settings):
            raise  # of other software
    study.record.set_user_attr(ASKED, {**settings, "storage": None})  # a URL may hold a password
    return study  # one that was there: its maker was killed between two writes


def load(name: str | Path, sampler: Any = None) -> Study:
    """The study of a name or folder; a missing, damaged or foreign one is an `InputError`."""
    folder = folder_of(name)
    path = folder / "study.yaml"
    if not path.is_file():
        raise InputError(f"there is no study '{name}' ({path} is missing){known_studies(folder.parent)}")
    settings = checked_settings(files.load_yaml(path))
    if settings["storage"] is None and not (folder / "study.db").is_file():
        if any((folder / part).exists() for part in ("trials.csv", "weights", "exports")):
            raise InputError(f"{folder / 'study.db'} is missing: the study's record is lost; {storage.REMEDY}")
        _make_own(folder, settings)  # an older nasspace that was killed between study.yaml and study.db
    with errors_of_storage(folder):
        study = _connect(folder, settings, sampler)
        _check(study)
    return study


def _check(study: Study) -> None:
    """Refuse a database whose content cannot be read, or is not what a search writes."""
    place = storage.shown(study.settings["storage"] or str(study.folder / "study.db"))
    with storage.errors_of_reading(place):
        trials, attributes, record = study.frozen(), study.record.user_attrs, study.record
        found = [direction.name.lower() for direction in record.directions]
    if found != _directions(study.settings):
        raise InputError(
            f"{study.folder}: the objectives of study.yaml ({', '.join(study.objectives)}) are not those of its "
            f"database; {storage.REMEDY}"
        )
    check_trials(trials, study.objectives, place)
    check_attributes(attributes, len(trials), place)
    _check_resolution(study)


def _check_resolution(study: Study) -> None:
    """Refuse a study.yaml whose deployment resolution is not that of the networks in the database."""
    given, asked = study.settings["task"].get("resolution"), study.settings["recipe"]["resolution"]
    chosen = asked is None and isinstance(study.settings["space"]["document"].get("resolution"), list)
    trials = study.frozen("COMPLETE", "PRUNED")
    sizes = [json.loads(trial.user_attrs["architecture"])["input"][1] for trial in (trials if chosen else trials[:1])]
    if given is not None and sizes and (max(sizes) > given or not (chosen or given in sizes)):
        raise InputError(
            f"{study.folder / 'study.yaml'}: task.resolution is {given}, but networks of the database take images of "
            f"{max(sizes)}x{max(sizes)}; the file was changed: write {max(sizes)} there again, or {storage.REMEDY}"
        )


def _connect(folder: Path, settings: Mapping[str, Any], sampler: Any, new: bool = False) -> Study:
    """Open the record; a `new` study is made in a shared storage."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # nasspace shows its own progress
    name, url = settings["name"], settings.get("storage")
    database = storage.shared(url) if url else storage.own(folder / "study.db")
    if not new:
        place = f"--storage {storage.shown(url)}" if url else str(folder / "study.db")
        try:
            with storage.errors_of_reading(place):
                return Study(folder, settings, optuna.load_study(study_name=name, storage=database, sampler=sampler))
        except KeyError:
            raise InputError(f"{place} holds no study '{name}' any more; {storage.REMEDY}") from None
    record = optuna.create_study(study_name=name, storage=database, sampler=sampler, directions=_directions(settings))
    storage.name_objectives(record, list(settings["recipe"]["objectives"]))
    return Study(folder, settings, record)


def _directions(settings: Mapping[str, Any]) -> list[str]:
    return directions(settings["recipe"]["objectives"])


def extend(study: Study, settings: dict[str, Any]) -> None:
    """Go on with a finished or stopped study under a larger (or smaller) number of trials."""
    study.record.set_user_attr(FINISHED, False)
    study.record.set_user_attr(SEARCHED, False)
    files.write_yaml(study.folder / "study.yaml", settings)
    study.settings = settings


def write_tables(study: Study) -> None:
    """`trials.csv`, `front.csv` and `front.json`, each moved into place whole."""
    files.write_text(study.folder / "trials.csv", study.trials().to_csv(index=False))
    front = study.front()
    files.write_text(study.folder / "front.csv", front.drop(columns="architecture").to_csv(index=False))
    files.write_json(study.folder / "front.json", study.document())
