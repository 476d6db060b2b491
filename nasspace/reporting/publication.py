"""Whether the published files of a study still follow from it: its tables, its report, its pictures.

A report ends in a comment with the version that wrote it and four fingerprints: of the page itself, of what the study
held, and of its two tables. They show a page that was edited, cut off, or written from another front, without
rendering it again: a page may also show what depends on the machine that renders it. Pictures name in their metadata
what they were drawn from.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nasspace import __version__
from nasspace.documents import Document
from nasspace.errors import InputError, cut
from nasspace.exporting.check import Check, not_run
from nasspace.studies.front import Front
from nasspace.studies.objectives import OBJECTIVES
from nasspace.studies.paths import as_argument

TRIALS, FRONT, DOCUMENT, PAGE = "trials.csv", "front.csv", "front.json", "report.html"
PICTURES = SVG, PNG = "front.svg", "front.png"
FILES = (TRIALS, FRONT, DOCUMENT, PAGE, *PICTURES)
PRECISION = 1e-6  # relative difference of figures that count as equal: processors round differently
DIGITS = 6  # significant digits of figures in fingerprints, for the same reason
NOT_HASHED = {  # of Front and Member
    *("name", "folder", "settings", "weights", "is_finished", "study"),
    *("largest_is_best", "may_belong"),  # they follow from the trials, and versions before may not have had them
}
HASHED_SETTINGS = ("limits", "created", "accuracy_is_of")  # others cannot change after the search
UNSTABLE = {"folder", "study", "name"}  # keys of front.json that name the place of the study
MAX_SHOWN = 60  # characters of a value in a message
SOURCE = (
    r"nasspace (?P<version>\S+); study (?P<study>[0-9a-f]{16}); "
    r"front\.csv (?P<front>[0-9a-f]{16}); trials\.csv (?P<trials>[0-9a-f]{16})"
)
STAMP = re.compile(rf"<!-- {SOURCE}; page (?P<page>[0-9a-f]{{16}}) -->\s*\Z")
END = {SVG: "</svg>", PNG: "IEND"}  # of a whole picture
END_LENGTH = 20  # characters at the end of a picture that hold it
AGAIN = "`nas report` writes it again"


# Stamps


def stamped(page: str, front: Front) -> str:
    """Return the page with the comment at its end that says what it was written from."""
    page = page.rstrip() + "\n"
    return f"{page}<!-- {source(front)}; page {_hash(page)} -->\n"


def source(front: Front) -> str:
    """What a page or a picture is made of: the version, and fingerprints of the study and of its tables."""
    tables = f"front.csv {_table_hash(front.csv())}; trials.csv {_table_hash(front.trials_csv())}"
    return f"nasspace {__version__}; study {fingerprint(front)}; {tables}"


def fingerprint(front: Front) -> str:
    """16 hex digits of what is reported of a study; names of studies and folders do not count."""
    settings = {key: front.settings.get(key) for key in HASHED_SETTINGS}
    shown = {**_plain(front), "settings": _plain(settings), "objectives": list(front.objectives)}
    return _hash(json.dumps(shown, sort_keys=True))


def _plain(value: Any) -> Any:
    """A value with numbers rounded, for hashing; missing values are left out of mappings."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return _plain({name: part for name, part in fields.items() if name not in NOT_HASHED})
    if isinstance(value, Mapping):
        parts = {str(key): _plain(_unnamed(key, part)) for key, part in value.items()}
        return {key: part for key, part in parts.items() if part is not None}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, bool) or value is None:
        return value
    return _number(value) if isinstance(value, int | float) else str(value)


def _unnamed(key: Any, value: Any) -> Any:
    """The JSON of an architecture without its name, which holds that of the study; other values as they are."""
    if key != "architecture":
        return value
    document = json.loads(value) if isinstance(value, str) else value
    return {name: part for name, part in document.items() if name != "name"}


def _number(value: float) -> str | None:
    """A number as text with a few significant digits, whole ones in full; None for NaN."""
    if value != value:
        return None
    return str(int(value)) if math.isfinite(value) and value == int(value) else f"{value:.{DIGITS}g}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _table_hash(text: str) -> str:
    """A hash of the cells of a table, with numbers rounded."""
    return _hash(json.dumps([[_cell(cell) for cell in cells] for _, cells in _lines(text)]))


def _cell(text: str) -> str | None:
    """A cell for comparison: 192576.0 and 192576 are equal."""
    number = _float(text)
    return text if number is None else _number(number)


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


# Checks


def check(front: Front) -> list[Check]:
    """Compare the files in the folder of a study with what would be written now; a missing one is not checked."""
    found = _files(front.folder)
    return [
        _table_check(TRIALS, found[TRIALS], front.trials_csv()),
        _table_check(FRONT, found[FRONT], front.csv()),
        _document_check(found[DOCUMENT], front.document()),
        *_made_of(found, _Known(fingerprint(front), _table_hash(front.csv()), _table_hash(front.trials_csv()))),
    ]


def check_files(folder: Path, settings: Mapping[str, Any]) -> list[Check]:
    """Compare published files with each other and with study.yaml, for a folder without the study's database."""
    found = _files(folder)
    trials, members = found[TRIALS], found[FRONT]
    return [
        not_run("the study", "study.db was not published: the files are compared with each other"),
        _front_of_trials(trials, members),
        _document_of_front(found[DOCUMENT], members, trials, settings),
        *_made_of(found, _Known(None, members and _table_hash(members), trials and _table_hash(trials))),
    ]


def _files(folder: Path) -> dict[str, str | None]:
    """The texts of the published files; None for one that is not there."""
    found = {name: _read(folder / name) for name in FILES}
    if not any(text is not None for text in found.values()):
        raise InputError(f"{folder}: holds none of {', '.join(FILES)}; `nas report {as_argument(folder)}` writes them")
    return found


def _read(path: Path) -> str | None:
    """The text of a file, whatever its bytes are; None if it does not exist."""
    if not path.is_file():
        return None
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table with the numbers of their last lines; a damaged row ends the table."""
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        yield reader.line_num, [f"not a CSV file ({error})"]


def _table_check(name: str, there: str | None, now: str) -> Check:
    """Compare a table with the one that would be written now."""
    title = f"{name} follows from the study"
    if there is None:
        return not_run(title, "is not there")
    lines, expected = list(_lines(there)), [cells for _, cells in _lines(now)]
    header = expected[0]
    if not lines or lines[0][1] != header:
        columns = lines[0][1] if lines else []
        return Check(title, False, f"line 1: {_other_columns(columns, header)}", AGAIN)
    if len(lines) != len(expected):
        return Check(title, False, _number_of("row", len(lines) - 1), _number_of("row", len(expected) - 1))
    differences = [
        (line, column, cell, should)
        for (line, cells), row in zip(lines, expected, strict=True)
        for column, cell, should in _cells(header, cells, row)
        if not _equal_cells(cell, should)
    ]
    return _cells_check(title, differences, _number_of("row", len(expected) - 1))


def _cells_check(title: str, differences: Sequence[tuple[int, str, str, str]], ok: str) -> Check:
    """A check that names the first of some differences: its line and column, the cell, and what it should be."""
    if not differences:
        return Check(title, True, ok, "")
    line, column, cell, should = differences[0]
    more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
    return Check(title, False, f"line {line}, {column}: {_short(cell)}{more}", _short(should))


def _cells(header: Sequence[str], cells: Sequence[str], expected: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """The cells of a row and the expected ones, with their columns; a row of another length as a whole."""
    if len(cells) != len(expected):
        yield "row", ",".join(cells), ",".join(expected)
        return
    yield from zip(header, cells, expected, strict=True)


def _other_columns(columns: Sequence[str], expected: Sequence[str]) -> str:
    """How the columns of a table differ from the expected ones."""
    missing, added = [c for c in expected if c not in columns], [c for c in columns if c not in expected]
    parts = [f"without {', '.join(missing)}" if missing else "", f"with {', '.join(added)}" if added else ""]
    return _short("; ".join(part for part in parts if part) or "columns in another order")


def _equal_cells(cell: str, other: str) -> bool:
    numbers = _float(cell), _float(other)
    if cell == other or None in numbers:
        return cell == other
    return math.isclose(*numbers, rel_tol=PRECISION)


def _document_check(there: str | None, now: Mapping[str, Any]) -> Check:
    """Compare front.json with the document that would be written now."""
    title = f"{DOCUMENT} follows from the study"
    if there is None:
        return not_run(title, "is not there")
    try:
        document = json.loads(there)
    except (ValueError, RecursionError) as error:
        return Check(title, False, f"not JSON ({error})", AGAIN)
    difference = next(_differences(document, json.loads(json.dumps(now)), ""), None)
    if difference is None:
        return Check(title, True, _number_of("member", len(now["front"])), "")
    place, value, should = difference
    return Check(title, False, f"{place}: {value}", should)


def _differences(there: Any, now: Any, place: str) -> Iterator[tuple[str, str, str]]:
    """Where two documents differ, with the values there and now; names of studies and folders do not count."""
    if isinstance(there, dict) and isinstance(now, dict):
        for key in [*now, *(key for key in there if key not in now)]:
            if key not in UNSTABLE:
                yield from _differences(there.get(key), now.get(key), f"{place}.{key}".lstrip("."))
    elif isinstance(there, list) and isinstance(now, list) and len(there) == len(now):
        for i, (part, other) in enumerate(zip(there, now, strict=True)):
            yield from _differences(part, other, f"{place}[{i}]")
    elif not _equal(there, now):
        yield place or "document", _described(there), _described(now)


def _equal(one: Any, other: Any) -> bool:
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other)):
        return math.isclose(one, other, rel_tol=PRECISION)
    return type(one) is type(other) and one == other


def _described(value: Any) -> str:
    """A value in a message; lists and mappings by their number of parts."""
    if isinstance(value, list | dict):
        return f"{len(value)} parts"
    return _short(json.dumps(value, ensure_ascii=False))


def _number_of(noun: str, number: int) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


def _short(text: str) -> str:
    return cut(text, MAX_SHOWN)


@dataclass(frozen=True)
class _Known:
    """The fingerprints that a page or picture should name; None for what is not known."""

    study: str | None
    front: str | None
    trials: str | None

    def difference(self, stated: Mapping[str, str]) -> str:
        """What a page or picture was made of instead; empty if it was made of this."""
        by = f"by nasspace {stated['version']}"
        if self.front is not None and stated["front"] != self.front:
            return f"was made of another front, {by}"
        if self.trials is not None and stated["trials"] != self.trials:
            return f"was made of other trials, {by}"
        # Another version may hash more of a study.
        if self.study is not None and stated["study"] != self.study and stated["version"] == __version__:
            return "was made of other measurements or trainings of this study"
        return ""


def _made_of(found: Mapping[str, str | None], known: _Known) -> list[Check]:
    """Whether the report and the pictures were made of this front, and the report is as it was written."""
    checks = [_made_check(PAGE, found[PAGE], STAMP, known)]
    return checks + [_made_check(name, found[name], re.compile(SOURCE), known) for name in PICTURES]


def _made_check(name: str, there: str | None, pattern: re.Pattern[str], known: _Known) -> Check:
    title = f"{name} was made of this front"
    if there is None:
        return not_run(title, "is not there")
    stated = pattern.search(there)
    if stated is None:
        is_cut = name == PAGE and "</html>" not in there[-2000:]
        return Check(title, False, "is cut off" if is_cut else "does not say what it was made of", AGAIN)
    if END.get(name, "") not in there[-END_LENGTH:]:
        return Check(title, False, "is cut off", AGAIN)
    if name == PAGE and _hash(there[: stated.start()]) != stated["page"]:
        return Check(title, False, "was changed after it was written", AGAIN)
    if difference := known.difference(stated.groupdict()):
        return Check(title, False, difference, AGAIN)
    if known.front is known.trials is None:
        return not_run(title, f"neither {FRONT} nor {TRIALS} is there")
    return Check(title, True, f"{'unchanged, ' if name == PAGE else ''}by nasspace {stated['version']}", "")


# Without the study


def _front_of_trials(trials: str | None, members: str | None) -> Check:
    """Compare each row of front.csv with the row of its trial."""
    title = f"{FRONT} follows from {TRIALS}"
    if trials is None or members is None:
        return not_run(title, f"{TRIALS if trials is None else FRONT} is not there")
    if not next(_records(members), None) and "id" not in members.partition("\n")[0].split(","):
        return Check(title, False, "line 1: without id", AGAIN)
    rows = {row.get("id", ""): row for _, row in _records(trials)}
    differences = []
    for line, row in _records(members):
        trial = rows.get(row.get("id", ""))
        if trial is None or trial.get("state") != "evaluated":
            differences.append((line, "id", row.get("id", ""), f"an evaluated trial of {TRIALS}"))
            continue
        shared = [column for column in row if column in trial]
        differences += [(line, c, row[c], trial[c]) for c in shared if not _equal_cells(row[c], trial[c])]
    return _cells_check(title, differences, _number_of("member", len(list(_records(members)))))


def _records(text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a table by their columns, with the numbers of their lines."""
    lines = _lines(text)
    _, header = next(lines, (0, []))
    yield from ((line, dict(zip(header, cells, strict=False))) for line, cells in lines)


def _document_of_front(
    document: str | None, members: str | None, trials: str | None, settings: Mapping[str, Any]
) -> Check:
    """Compare front.json with the tables and with study.yaml: members, figures, limits, objectives, digests, counts."""
    title = f"{DOCUMENT} follows from {FRONT} and study.yaml"
    if document is None or members is None:
        return not_run(title, f"{DOCUMENT if document is None else FRONT} is not there")
    try:
        value, found = _document(document)
    except (ValueError, RecursionError) as error:
        return Check(title, False, f"not the document of a front ({error})", AGAIN)
    rows = [row for _, row in _records(members)]
    stated = {key: value.get(key) for key in ("limits", "objectives", "space")}
    given = {"limits": settings["limits"], "objectives": settings["recipe"]["objectives"]}
    given["space"] = settings["space"]["name"]
    if difference := next(_differences(stated, given, ""), None):
        return Check(title, False, f"{difference[0]}: {difference[1]}", f"{difference[2]} in study.yaml")
    ids = [[str(one.get("id")) for one in found], [row.get("id", "") for row in rows]]
    if ids[0] != ids[1]:
        there, expected = (", ".join(each) or "none" for each in ids)
        return Check(title, False, _short(f"members {there}"), _short(f"{expected} in {FRONT}"))
    wrong = [_over_limit(found, settings["limits"]), *map(_other_figure, found, rows), *map(_other_digest, found)]
    wrong += [_other_number(value, state, trials) for state in ("evaluated", "rejected") if trials is not None]
    if first := next(filter(None, wrong), None):
        return Check(title, False, *first)
    return Check(title, True, _number_of("member", len(found)), "")


def _document(text: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The content of front.json, and its members; raises `ValueError` for anything else."""
    value = json.loads(text)
    members = value.get("front") if isinstance(value, dict) else None
    if not isinstance(members, list) or not all(isinstance(one, dict) for one in members):
        raise ValueError("no list of members")
    return value, members


def _other_figure(member: Mapping[str, Any], row: Mapping[str, str]) -> tuple[str, str] | None:
    """The first figure of a member of front.json that differs from its row of front.csv, and the cell there."""
    for column, cell in row.items():
        figure = member.get(column)
        text = "" if figure is None else ", ".join(map(str, figure)) if isinstance(figure, list) else str(figure)
        is_text = isinstance(figure, str) and column != "digest"
        # `resolution` is that of the last rung in the table, and that of the network in the document.
        if column != "resolution" and (is_text or not _equal_cells(text, cell)):
            return f"{column} of {member['id']}: {_described(figure)}", f"{_short(cell) or 'none'} in {FRONT}"
    return None


def _other_number(document: Mapping[str, Any], state: str, trials: str) -> tuple[str, str] | None:
    """The number of trials in a state that front.json gives, and that of trials.csv, if they differ."""
    number = sum(row.get("state") == state for _, row in _records(trials))
    stated = document.get(state)
    return None if _equal(stated, number) else (f"{state}: {_described(stated)}", f"{number} in {TRIALS}")


def _other_digest(member: Mapping[str, Any]) -> tuple[str, str] | None:
    """The digest of a member's architecture, and the stated one, if they differ."""
    from nasspace.architecture import Architecture  # imports PyTorch

    try:
        digest = Architecture.from_document(Document(member.get("architecture"))).digest
    except InputError as error:
        return f"architecture of {member.get('id')}: {_short(str(error))}", AGAIN
    stated = _short(str(member.get("digest")))
    return None if digest == stated else (f"architecture of {member.get('id')}: digest {digest}", stated)


def _over_limit(members: Sequence[Mapping[str, Any]], limits: Mapping[str, float]) -> tuple[str, str] | None:
    """The first member over a limit, and the limit; None if all are within their limits."""
    for name, limit in limits.items():
        for member in members:
            value = member.get(OBJECTIVES[name].column)
            if isinstance(value, int | float) and value > limit:
                described = OBJECTIVES[name].describe
                return f"{name} of {member['id']}: {described(value)}", f"the limit, {described(limit)}"
    return None
