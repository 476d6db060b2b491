"""Everything nasspace uses of Optuna that Optuna does not document; its presence is checked at import.

Like Optuna itself, this module is imported late.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb.models import TrialIntermediateValueModel
from optuna.trial import FrozenTrial

from nasspace.errors import NasspaceError

SUPPORTED = "optuna>=5.0,<6"  # as in pyproject.toml
STORAGE_LOGGER = "optuna.storages._rdb.storage"
# Methods that Optuna's cache calls on `RDBStorage`, in addition to those of `BaseStorage`.
BACKEND_METHODS = ("_create_new_trial", "_get_trials", "_set_trial_param", "record_heartbeat", "_get_stale_trial_ids")
METHODS = {
    optuna.Study: ("_get_trials",),
    RDBStorage: BACKEND_METHODS,
    TrialIntermediateValueModel: ("trial_id", "step", "intermediate_value_to_stored_repr"),
}
ATTRIBUTES = {
    optuna.Study: ("_storage", "_study_id"),
    optuna.Trial: ("_trial_id",),
    FrozenTrial: ("_trial_id",),
    _CachedStorage: ("_backend",),
}


def missing_names() -> list[str]:
    """The private names used here that the installed Optuna lacks."""
    methods = [(kind, name) for kind, names in METHODS.items() for name in names if not hasattr(kind, name)]
    attributes = [  # set in the constructor
        (kind, name) for kind, names in ATTRIBUTES.items() for name in names if name not in _assigned(kind)
    ]
    return [f"{kind.__name__}.{name}" for kind, name in (*methods, *attributes)]


def _assigned(kind: type) -> tuple[str, ...]:
    """The names that occur in a class's constructor."""
    return kind.__init__.__code__.co_names  # type: ignore[misc]


def check_names() -> None:
    """Raise a `NasspaceError` that names the supported versions if Optuna lacks a private name used here."""
    if missing := missing_names():
        raise NasspaceError(
            f"optuna {optuna.__version__} lacks {', '.join(missing)}, which nasspace uses; pip install '{SUPPORTED}'"
        )


check_names()


def trial_id(trial: optuna.Trial | FrozenTrial) -> int:
    """The trial's key in its storage, unique over all studies there."""
    return trial._trial_id


def reopened_trial(study: optuna.Study, trial: FrozenTrial) -> optuna.Trial:
    """A running trial of the record as one that this process continues."""
    return optuna.Trial(study, trial._trial_id)


def report(study: optuna.Study, trial: optuna.Trial, value: float, step: int) -> None:
    """Record an intermediate value, which `Trial.report` refuses in a study of several objectives."""
    study._storage.set_trial_intermediate_value(trial._trial_id, step, value)  # type: ignore[attr-defined]


def backend(study: optuna.Study) -> RDBStorage:
    """The database of a study, without the cache that Optuna puts in front of it."""
    return study._storage._backend  # type: ignore[attr-defined]


def report_finished(database: RDBStorage, trial: FrozenTrial, value: float, step: int) -> None:
    """Record an intermediate value of a finished trial in one transaction, or replace it.

    Optuna refuses to change finished trials, which it caches. Samplers read intermediate values of pruned trials only.
    A value that another process records at the same moment stands.
    """
    table, place = TrialIntermediateValueModel, {"trial_id": trial._trial_id, "step": step}
    stored, kind = table.intermediate_value_to_stored_repr(value)
    with contextlib.suppress(sqlalchemy.exc.IntegrityError), database.engine.begin() as connection:
        connection.execute(
            sqlalchemy.delete(table).where(table.trial_id == place["trial_id"], table.step == place["step"])
        )
        row = {**place, "intermediate_value": stored, "intermediate_value_type": kind}
        connection.execute(sqlalchemy.insert(table).values(**row))


def study_system_attrs(study: optuna.Study) -> dict[str, Any]:
    """The attributes of a study that Optuna and its dashboard keep for themselves."""
    return study._storage.get_study_system_attrs(study._study_id)


def set_study_system_attr(study: optuna.Study, key: str, value: Any) -> None:
    """Set an attribute of those; unlike a trial's, also after the trials have finished."""
    study._storage.set_study_system_attr(study._study_id, key, value)


def record_heartbeat(study: optuna.Study, trial_id: int) -> None:
    """Record in the storage that a trial's process is alive."""
    study._storage.record_heartbeat(trial_id)  # type: ignore[attr-defined]


def stale_trial_ids(study: optuna.Study) -> set[int]:
    """Running trials without a heartbeat for the storage's grace period."""
    return set(study._storage._get_stale_trial_ids(study._study_id))  # type: ignore[attr-defined]


def enqueued_params(trial: FrozenTrial) -> dict[str, Any] | None:
    """The parameters that a trial was enqueued with; None if it was not."""
    return trial.system_attrs.get("fixed_params")


def storage_methods() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every method by which Optuna reads from or writes to an `RDBStorage`, with its name."""
    for name in [*vars(BaseStorage), *BACKEND_METHODS]:
        method = getattr(RDBStorage, name, None)
        if callable(method) and not name.startswith("__"):
            yield name, method


class FinishedTrials:
    """A study as Optuna's samplers see it, without its unfinished trials."""

    def __init__(self, study: optuna.Study):
        self.study = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self.study, name)

    def _get_trials(self, *args: Any, **options: Any) -> list[FrozenTrial]:
        return [trial for trial in self.study._get_trials(*args, **options) if trial.state.is_finished()]
