"""What optuna-dashboard shows of a study besides its trials: notes and figures, in the dashboard's own format.

It keeps them in system attributes of the study, which can be written at any time, also about trials that have finished,
and without the package. Nothing here is read back by a search.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

PART = 2045  # characters of an attribute with a part of a note, as the dashboard itself splits them
WRITING = "nasspace:writing:"  # and the key of a note: it is being replaced
FIGURE = "dashboard:plot_data:{}:0"  # in one part, so that nobody reads half a figure
SIGNATURE = re.compile(r"\n\n\[nasspace\]: # \(([0-9a-f]{8})\)\Z")  # a link that is not shown


class Dashboard:
    """Notes and figures of one study; `record` is that of Optuna.

    A note that somebody edited in the dashboard is not replaced: the last line of a note has a hash of its text.
    """

    def __init__(self, record: optuna.Study):
        from nasspace import optuna_adapter

        self._record = record
        self._attributes = dict(optuna_adapter.study_system_attrs(record))

    def note(self, trial: optuna.trial.FrozenTrial | None = None) -> str:
        """The note of a trial, or of the study; empty if there is none."""
        if f"{_note_key(trial)}ver" not in self._attributes:
            return ""
        return self._joined(f"{_note_key(trial)}str:")

    def write_note(self, text: str, trial: optuna.trial.FrozenTrial | None = None) -> None:
        """Write the note of a trial, or of the study, in Markdown, unless it is there or somebody edited it."""
        known, signed, key = self.note(trial), _signed(text), _note_key(trial)
        was_interrupted = self._attributes.get(f"{WRITING}{key}", False)  # its parts are of two notes
        if not was_interrupted and (known == signed or (known and not _is_own(known))):
            return
        if known:
            self._set(f"{WRITING}{key}", True)
        self._write(f"{key}str:", signed)
        self._set(f"{key}ver", int(self._attributes.get(f"{key}ver", 0)) + 1)  # last: without it, there is no note
        if known:
            self._set(f"{WRITING}{key}", False)

    def write_figure(self, name: str, figure: Mapping[str, Any]) -> None:
        """Write a figure, in the schema of Plotly, unless it is there."""
        self._set(FIGURE.format(name), json.dumps(figure, separators=(",", ":"), allow_nan=False))

    def _joined(self, prefix: str) -> str:
        """The text of the attributes with a prefix and their numbers."""
        numbers = range(sum(key.startswith(prefix) for key in self._attributes))
        return "".join(str(self._attributes.get(f"{prefix}{i}", "")) for i in numbers)

    def _write(self, prefix: str, text: str) -> None:
        """Write a text in parts, and empty the parts that it no longer needs."""
        parts = [text[i : i + PART] for i in range(0, len(text), PART)]
        before = sum(key.startswith(prefix) for key in self._attributes)
        for i, part in enumerate(parts + [""] * (before - len(parts))):
            self._set(f"{prefix}{i}", part)

    def _set(self, key: str, value: Any) -> None:
        from nasspace import optuna_adapter

        if self._attributes.get(key) != value:
            optuna_adapter.set_study_system_attr(self._record, key, value)
            self._attributes[key] = value


def _note_key(trial: optuna.trial.FrozenTrial | None) -> str:
    """The beginning of the keys of a note."""
    from nasspace.optuna_adapter import trial_id

    return "dashboard:note_" if trial is None else f"dashboard:{trial_id(trial)}:note_"


def _signed(text: str) -> str:
    """A note with a hash of its text at the end."""
    text = text.rstrip()
    return f"{text}\n\n[nasspace]: # ({_hash(text)})"


def _is_own(note: str) -> bool:
    """Whether a note is as it was written here."""
    found = SIGNATURE.search(note)
    return found is not None and found[1] == _hash(note[: found.start()])


def _hash(text: str) -> str:
    return f"{zlib.crc32(text.encode('utf-8', 'replace')):08x}"
