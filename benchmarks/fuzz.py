"""Damaged and hostile documents, read by commands: each case ends in success or in one message.

    python benchmarks/fuzz.py [--cases 10000] [--seed 0] [--kind KIND ...] [--case NUMBER]

A case is one document with one to three mutations: spaces, recipes, architectures, study.yaml, study.db, the latency
cache, the files of an export. A fault is a traceback, an internal error, a message of 1,500 characters or
more, a file written outside of the case's folder or left in the temporary folder, or more than five seconds of CPU
time. A case depends on its kind, number and the seed alone: `--kind KIND --case NUMBER` runs one again. Each kind
runs in its own process, which is restarted after a case that killed it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import io
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from nasspace.errors import NasspaceError

LONGEST = 1500  # characters of a message
SECONDS = 5.0  # of CPU time, of one case
STOPPED = 60  # seconds after which a case is interrupted
MEMORY = 12 * 2**30  # bytes of address space of a process of cases
ROOT = Path(__file__).resolve().parents[1]
RECORDED = ROOT / "tests" / "recorded" / "study"
SUCCESS, MESSAGE, FAULT = "success", "message", "fault"

SPACE = """
name: little
description: A space for the fuzz program.
input: [3, 16, 16]
resolution: [12, 16]
width: [0.5, 1.0]
divisor: 4
stem:
  - {block: conv, out: 8, kernel: 3, stride: 2}
stages:
  - depth: [1, 2]
    out: [8, 16]
    stride: 2
    each:
      block:
        - shuffle_v2: {kernel: [3, 5]}
        - shuffle_v1: {groups: [1, 2]}
        - inverted_residual: {expansion: [2, 3], se: 0.25}
  - {depth: 1, out: 24, block: [sandglass: {reduction: [2, 4]}, fire: {squeeze: 1/4}, identity]}
head:
  - {block: conv, out: 32}
  - {block: dropout, p: 0.2}
"""
RECIPE = """
name: little
description: A recipe for the fuzz program.
trials: 3
time_budget: 10m
sampler: gain
objectives: [accuracy, latency, flops]
limits: {latency: 20ms, flops: 150M, params: 2M}
data: digits
held_out: 0.2
resolution: 16
runtime: onnxruntime
threads: 1
batch_size: 1
device: cpu
seed: 0
workers: 1
retries: 3
fidelity: {resolution: 16, epochs: 1, share: 0.5}
training: {learning_rate: 0.1, batch_size: 64, label_smoothing: 0.0}
"""


BIG, DEEP = "@BIG@", "@DEEP@"  # marks of what Python does not write by itself
WRITTEN = {BIG: "9" * 5000, DEEP: "[" * 3000 + "]" * 3000}


VALUES = (
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        7,
        1.5,
        -0.5,
        10**30,
        10**400,
        -(10**400),
        BIG,
        DEEP,
        float("inf"),
        float("nan"),
        1e308,
    ),
    *("", " ", "x", "1e3", "null", "[red]x[/b]", "a" * 3000, "a" * 100_000, "é", "\u2028", "\x1b[2J", "\x00", "\x85"),
    *("\ud800", "../x", "/", "..", ".", "a/b", "~", "~nobody/x", "-x", "{x}", "{0}", "%s", "x\ny", "C:\\x", "1/0"),
    *("shuffle_v2", "conv", "20ms", "3", "-5s", "1/3", "none", "cuda", "imagefolder:/", "parquet:x", "mnist"),
    *([], [1], [[]], {}, {"a": 1}, {"": None}, [None] * 5000, ["a"] * 200, [0] * 3),
)
TEXTS = "\0\x1b:-[]{}'\"&*!%\t\n#é,?|>@`~<\\"


def deep(levels: int) -> Any:
    """Lists within lists."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def any_value(rng: random.Random, others: list[Any]) -> Any:
    """A value of any kind; sometimes a part of another document."""
    kind = rng.random()
    if kind < 0.04:
        return deep(rng.choice([3, 50]))
    if kind < 0.15 and others:
        other = rng.choice(others)
        at = rng.choice(list(places(other)))
        return copy.deepcopy(part(other, at))
    return copy.deepcopy(rng.choice(VALUES))


def places(value: Any, at: tuple = ()) -> Iterator[tuple]:
    """The keys of every part of a document."""
    yield at
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in parts:
        yield from places(one, (*at, key))


def part(value: Any, at: tuple) -> Any:
    """What is at a place."""
    for key in at:
        value = value[key]
    return value


def mutated(document: Any, rng: random.Random, others: list[Any]) -> tuple[Any, str]:
    """A document with one to three of its parts removed, renamed, moved, or of another kind; and what was done."""
    document, done = copy.deepcopy(document), []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        found = [at for at in places(document) if at]
        if not found or rng.random() < 0.02:
            document = any_value(rng, others)
            done.append("whole")
            continue
        at = rng.choice(found)
        parent, key = part(document, at[:-1]), at[-1]
        how = rng.choice(["remove", "rename", "swap", "repeat", "wrap", "number", *["replace"] * 5])
        if how == "remove":
            del parent[key]
        elif how == "rename" and isinstance(parent, dict):
            other = rng.choice([f"{key}_", str(key)[:-1], "", "\x1b", "../x", "a" * 2000, "\ud800", "name"])
            parent[other] = parent.pop(key)
        elif how == "swap":
            other = rng.choice(found)
            with contextlib.suppress(KeyError, IndexError, TypeError):
                parent[key] = copy.deepcopy(part(document, other))
        elif how == "repeat" and isinstance(parent, list):
            parent[key:key] = [copy.deepcopy(parent[key])] * rng.choice([1, 3, 300])
        elif how == "wrap":
            parent[key] = rng.choice([[parent[key]], {"x": parent[key]}, [parent[key]] * 3, str(parent[key])[:5000]])
        elif how == "number" and isinstance(parent[key], int | float):
            with contextlib.suppress(OverflowError):
                parent[key] = parent[key] * rng.choice([-1, 0, 2, 0.5, 10, 1000, 10**9])
        else:
            parent[key] = any_value(rng, others)
        done.append(f"{how} {'.'.join(map(str, at))[:60]}")
    return document, "; ".join(done)


def as_json(value: Any) -> str:
    return _with_marks(json.dumps(value, indent=1, skipkeys=True), '"')


def as_yaml(value: Any, rng: random.Random) -> str:
    """As YAML; every third time as JSON, which YAML is too."""
    return as_json(value) if rng.random() < 0.33 else _with_marks(yaml.safe_dump(value, sort_keys=False), "'")


def _with_marks(text: str, quote: str) -> str:
    for mark, written in WRITTEN.items():
        text = text.replace(f"{quote}{mark}{quote}", written)
    return text


def mutated_bytes(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Bytes of a file flipped, cut off, lost, moved, doubled, replaced."""
    changed = bytearray(data)
    how = rng.choice(["flip", "flip", "cut", "lose", "insert", "double", "lines", "indent", "empty", "noise", "bom"])
    i, j = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    if how == "flip":
        for _ in range(rng.choice([1, 1, 3, 20, 200])):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    elif how == "cut":
        del changed[i:]
    elif how == "lose":
        del changed[i : min(j, i + rng.choice([1, 10, 1000]))]
    elif how == "insert":
        changed[i:i] = rng.choice([rng.choice(TEXTS).encode(), b"\xff", b"\xed\xa0\x80", b"[" * 2000, b"9" * 5000])
    elif how == "double":
        changed[i:i] = changed[i : min(j, i + 200)]
    elif how in ("lines", "indent"):
        lines = data.splitlines(keepends=True)
        k = rng.randrange(len(lines))
        lines[k : k + 1] = [lines[k], lines[k]] if how == "lines" else [b" " + lines[k]]
        changed = bytearray(b"".join(lines))
    elif how == "empty":
        changed = bytearray(rng.choice([b"", b"\n", b"\0" * 100, b"{}", b"[]", b"null", b"- - -", b"%YAML 9.9\n---\n"]))
    elif how == "noise":
        changed = bytearray(rng.randbytes(rng.choice([1, 100, 10_000])))
    else:
        changed[:0] = rng.choice([b"\xef\xbb\xbf", b"\xff\xfe"])
    return bytes(changed), how


CELLS = (None, "", "x", -1, 0, 10**6, 2**62, 1.5, 1e308, float("inf"), b"\xff\x00", "null", "[]", "{}", '"x"')
CELLS += ("1e999", "NaN", "{", "a" * 5000, '{"a": 1}', "[" * 5000, "9" * 5000, "\x1b[2J", "RUNNING", "COMPLETE")


def mutated_database(path: Path, rng: random.Random, others: list[Any]) -> str:
    """Change a database: a value in a document, a cell, a row, a column, a table, bytes of the file."""
    how = rng.choice(["document", "document", "document", "cell", "cell", "column", "row", "rows", "table", "bytes"])
    if how == "bytes":
        data, mutation = mutated_bytes(path.read_bytes(), rng)
        path.write_bytes(data)
        return f"bytes: {mutation}"
    connection = sqlite3.connect(path)
    connection.text_factory = bytes
    try:
        with connection:
            return f"{how}: {_changed_table(connection, how, rng, others)}"
    except sqlite3.Error as error:
        return f"{how}: refused by SQLite ({error})"
    finally:
        connection.close()


def _changed_table(connection: sqlite3.Connection, how: str, rng: random.Random, others: list[Any]) -> str:
    tables = [name.decode() for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    if not tables:
        return "nothing is left"
    table = rng.choice(tables)
    if how == "table":
        statement = rng.choice(["DROP TABLE {}", "DELETE FROM {}", "ALTER TABLE {} RENAME TO other"])
        connection.execute(statement.format(table))
        return statement.format(table)
    columns = [(name.decode(), kind) for _, name, kind, *_ in connection.execute(f"PRAGMA table_info({table})")]
    column = rng.choice(columns)[0]
    if how == "column":
        statement = rng.choice(["ALTER TABLE {} RENAME COLUMN {} TO other", "ALTER TABLE {} DROP COLUMN {}"])
        connection.execute(statement.format(table, column))
        return statement.format(table, column)
    texts = [
        (table, column, row, value)
        for table in tables
        for column in ("value_json", "document", "distribution_json")
        if column in [name.decode() for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")]
        for row, value in connection.execute(f"SELECT rowid, {column} FROM {table}")
    ]
    if how == "document" and texts:
        table, column, row, value = rng.choice(texts)
        try:
            read = json.loads(value)
        except (TypeError, ValueError, RecursionError):  # already mutated
            read = value
        document, mutation = mutated({"": read}, rng, others)
        new: Any = as_json(document.get("") if isinstance(document, dict) else document)
        connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (new, row))
        return f"{table}.{column}, row {row}: {mutation}"
    rows = connection.execute(f"SELECT rowid FROM {table}").fetchall()
    if not rows:
        return "an empty table"
    (row,) = rng.choice(rows)
    if how == "row":
        connection.execute(f"DELETE FROM {table} WHERE rowid = ?", (row,))
        return f"DELETE FROM {table}, row {row}"
    new, where = rng.choice(CELLS), "" if how == "rows" else "WHERE rowid = ?"
    connection.execute(f"UPDATE {table} SET {column} = ? {where}", (new, row) if where else (new,))
    return f"{table}.{column}, {'every row' if not where else f'row {row}'}: {str(new)[:40]!r}"


class Begins(NasspaceError):
    """A search would begin here, after everything was read."""

    exit_status = 0


@dataclass
class Result:
    """How a case ended."""

    kind: str
    number: int
    outcome: str
    mutation: str
    why: str = ""  # of a fault, or the message
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind} {self.number} ({self.mutation}): {self.why}"


class Fuzz:
    """The documents that are mutated, made once in `root`, and the cases with them."""

    def __init__(self, root: Path, seed: int = 0) -> None:
        self.root = root.resolve()
        self.seed = seed
        self.base = self.root / "base"
        self.cases = self.root / "cases"
        for folder in (self.base, self.cases, *(self.root / name for name in ("tmp", "turns", "home", "cache"))):
            folder.mkdir(exist_ok=True)

    @contextlib.contextmanager
    def surroundings(self) -> Iterator[None]:
        """Folders of the fuzz program's own for whatever nasspace writes; no network."""
        inside = {"TMPDIR": "tmp", "NASSPACE_TURNS": "turns", "HOME": "home", "NASSPACE_CACHE": "cache"}
        os.chmod(self.root / "turns", 0o700)
        variables = {name: str(self.root / folder) for name, folder in inside.items()}
        variables |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "COLUMNS": "100"}
        variables["TORCHINDUCTOR_CACHE_DIR"] = str(self.root / "turns" / "inductor")
        before = tempfile.tempdir
        with mock.patch.dict(os.environ, variables), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tempfile.tempdir = None
            try:
                yield
            finally:
                tempfile.tempdir = before

    def build(self) -> None:
        """A search of three networks by a function, a recorded one with training, an export, a latency cache."""
        import nasspace
        from nasspace import Architecture, Space, cost
        from nasspace.exporting.export import export
        from nasspace.latency.benchmark import measure_latency

        (self.base / "space.yaml").write_text(SPACE)
        (self.base / "recipe.yaml").write_text(RECIPE)

        def evaluated(architecture: Architecture) -> dict[str, float]:
            return {"accuracy": 0.5 + 1e-9 * cost(architecture).params, "latency": cost(architecture).flops / 1e6}

        space = Space.from_text(SPACE, "space.yaml")
        with _inside(self.base):
            search = {"trials": 3, "study": "made", "sampler": "random"}
            nasspace.search(space, evaluator=evaluated, **search)
            place = self.base / "reports" / "real"
            place.mkdir(parents=True)
            shutil.copy(RECORDED / "study.yaml", place)
            with contextlib.closing(sqlite3.connect(place / "study.db")) as connection:
                connection.executescript((RECORDED / "study.sql").read_text())
            architecture = space.sample(random.Random(1)).with_name("net")
            (self.base / "net.json").write_text(architecture.to_json())
            export(architecture, self.base / "export", card={"classes": [f"class {i}" for i in range(10)]})
            with mock.patch.dict(os.environ, {"NASSPACE_CACHE": str(self.base)}):
                measure_latency(architecture, seconds=0.05)
                measure_latency(architecture, "eager", seconds=0.05)
        _settled(self.base / "latency.db")
        for path in self.base.glob("reports/*/study.db"):
            _settled(path)
        from PIL import Image

        Image.new("RGB", (20, 20), (200, 40, 90)).save(self.base / "image.png")

        self.load()

    def load(self) -> None:
        """Take over what is built already."""
        from nasspace.architecture import load

        self.digest = load(self.base / "net.json").digest

    def run(self, kind: str, number: int) -> Result:
        """One case."""
        rng = random.Random(f"{self.seed} {kind} {number}")
        work = self.cases / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        shutil.rmtree(self.root / "cache")
        (self.root / "cache").mkdir()
        with self.surroundings(), _inside(work):
            mutation, actions = KINDS[kind](self, work, rng)
            before = self._listing()
            result = Result(kind, number, SUCCESS, mutation)
            began = time.process_time()
            for name, action in actions:
                outcome, why = _ended(action)
                if outcome == FAULT or (outcome == MESSAGE and result.outcome == SUCCESS):
                    result.outcome, result.why = outcome, f"{name}: {why}"
                if outcome == FAULT:
                    break
            result.seconds = time.process_time() - began
            after = self._listing()
        if result.outcome != FAULT and before != after:
            strange = sorted(before.symmetric_difference(after))
            result.outcome, result.why = FAULT, f"wrote outside of its folder: {strange[:3]}"
        self._tidy()
        if result.outcome != FAULT and result.seconds > SECONDS:
            result.outcome, result.why = FAULT, f"took {result.seconds:.1f} s of CPU time"
        return result

    def warm_up(self) -> None:
        """Every verb on sound documents, so that no case pays for imports."""
        shutil.rmtree(self.cases / "work", ignore_errors=True)
        shutil.copytree(self.base, self.cases / "work")
        verbs = ["show net.json", "export net.json", "verify export --no-code", "predict export image.png"]
        verbs += ["spaces space.yaml", "search --space space.yaml --recipe recipe.yaml --study s", "report made"]
        verbs += ["front made", "export real:0 --format torch --out out", "latency net.json --seconds 0.01"]
        with self.surroundings(), _inside(self.cases / "work"):
            for verb in verbs:
                name, action = nas(*verb.split())
                outcome, why = _ended(action)
                if outcome == FAULT:
                    raise AssertionError(f"{name}: {why}")
        self._tidy()

    def _tidy(self) -> None:
        """Empty the temporary folder, so that the next case is not blamed."""
        for path in (self.root / "tmp").iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _listing(self) -> set[tuple[str, int, int]]:
        """Everything that lies outside of the case's folder and of caches, with size and time."""
        free = {self.cases / "work", self.root / "cache", self.root / "turns", self.root / "home" / ".cache"}
        found = set()
        for folder, names, files in os.walk(self.root):
            names[:] = [name for name in names if Path(folder) / name not in free]
            for name in (*files, *names):
                status = os.lstat(Path(folder) / name)
                if name == ".ses":  # of ONNX Runtime
                    continue
                size = 0 if name in names else status.st_size
                found.add((str(Path(folder) / name), size, 0 if name in names else status.st_mtime_ns))
        return found

    @functools.cached_property
    def documents(self) -> list[Any]:
        """All documents, for parts that are taken from another one."""
        texts = [self.base / name for name in ("space.yaml", "recipe.yaml", "net.json", "export/preprocessing.json")]
        texts += [self.base / "reports/made/study.yaml", self.base / "reports/real/study.yaml"]
        return [_parsed(path.read_text()) for path in texts]

    def mutate(self, path: Path, rng: random.Random, target: Path | None = None) -> str:
        """Write a mutated text document, by its parts or its bytes."""
        target = target or path
        if rng.random() < 0.3:
            data, mutation = mutated_bytes(path.read_bytes(), rng)
        else:
            document, mutation = mutated(_parsed(path.read_text()), rng, self.documents)
            text = as_json(document) if path.suffix == ".json" else as_yaml(document, rng)
            data = text.encode("utf-8", "surrogatepass")
        if target.exists():
            target.unlink()  # may be a link to the shared original
        target.write_bytes(data)
        return mutation


@functools.cache
def _parsed(text: str) -> Any:
    return yaml.safe_load(text)


def _settled(path: Path) -> None:
    """Merge a database's write-ahead log into its file."""
    whole = path.with_name("whole.db")
    with contextlib.closing(sqlite3.connect(path)) as there, contextlib.closing(sqlite3.connect(whole)) as here:
        there.backup(here)
        here.execute("PRAGMA journal_mode=DELETE")
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    whole.replace(path)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


Action = tuple[str, Callable[[], Any]]


def nas(*arguments: str) -> Action:
    """A verb of the command line, in this process, with the errors that people get."""
    return f"nas {' '.join(arguments)}", lambda: _command(list(arguments))


def _command(arguments: list[str]) -> tuple[str, str]:
    from nasspace import cli

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.run(arguments)
    message = err.getvalue()
    if status == 1 and not message and "FAILED" in out.getvalue():
        return MESSAGE, "a check failed"
    if status == 0:
        return (FAULT if "Traceback" in message else SUCCESS), message
    if status not in (1, 2, 3) or "Traceback" in message or "internal error" in message or "nas: " not in message:
        return FAULT, f"status {status}: {message[-6000:]}{_kept()}"
    if len(message) >= LONGEST:
        return FAULT, f"a message of {len(message)} characters: {message[:300]}"
    return MESSAGE, message


def _kept() -> str:
    """The traceback that an internal error left."""
    paths = sorted(Path(tempfile.gettempdir()).glob("nasspace-error-*.txt"))
    return "\n" + paths[-1].read_text(errors="replace")[-2500:] if paths else ""


def function(name: str, action: Callable[[], Any]) -> Action:
    """A function of the package, whose errors are to be of the package."""

    def run() -> tuple[str, str]:
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                action()
        except NasspaceError as error:
            if len(str(error)) >= LONGEST:
                return FAULT, f"a message of {len(str(error))} characters: {str(error)[:300]}"
            return MESSAGE, str(error)
        return SUCCESS, ""

    return name, run


def _ended(action: Callable[[], tuple[str, str]]) -> tuple[str, str]:
    """How an action ended; anything that it raises is a fault."""
    from nasspace.engine import delivery

    whole = delivery.deliver

    def delivered(study: Any, on_event: Any = None) -> Any:
        return _begins() if study.settings["data"] else whole(study, on_event)

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {STOPPED} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(STOPPED)
    try:
        with (
            mock.patch("nasspace.engine.loop._run", _begins),
            mock.patch.object(delivery, "deliver", delivered),
        ):
            return action()
    except Exception:
        return FAULT, traceback.format_exc()[-3000:]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _begins(*_: object, **__: object) -> None:
    raise Begins("the search begins")


def listed(fuzz: Fuzz, work: Path, rng: random.Random) -> tuple[str, list[Action]]:
    """A space: listed, sampled, counted, searched by a function."""
    path = work / "space.yaml"
    mutation = fuzz.mutate(fuzz.base / "space.yaml", rng, path)

    def sampled() -> None:
        from nasspace import Architecture, Space, cost

        space = Space.load(path)
        for i in range(3):
            architecture = space.sample(random.Random(i))
            if Architecture.from_json(architecture.to_json()) != architecture:
                raise AssertionError("the JSON of a sampled network is another network")
            cost(architecture)

    actions = [nas("spaces", "space.yaml", *rng.choice([(), ("--json",)])), function("Space.sample", sampled)]
    if rng.random() < 0.1:
        actions.append(nas("search", "--space", "space.yaml", "--study", "s", "--resolution", "16"))
    return mutation, actions


def recipes(fuzz: Fuzz, work: Path, rng: random.Random) -> tuple[str, list[Action]]:
    """A recipe: read and written again; a search by it up to its beginning."""
    path = work / "recipe.yaml"
    mutation = fuzz.mutate(fuzz.base / "recipe.yaml", rng, path)

    def again() -> None:
        from nasspace.documents import Document
        from nasspace.studies import recipe

        read = recipe.load(path)
        if recipe.read(Document(read.as_written(), "again")) != read:
            raise AssertionError("the recipe as written is another one")

    search = nas("search", "--space", str(fuzz.base / "space.yaml"), "--recipe", "recipe.yaml", "--study", "s")
    return mutation, [function("recipe.load", again), search]


def architectures(fuzz: Fuzz, work: Path, rng: random.Random) -> tuple[str, list[Action]]:
    """An architecture: shown; sometimes exported or measured, if it is small."""
    path = work / "net.json"
    mutation = fuzz.mutate(fuzz.base / "net.json", rng, path)
    actions = [nas("show", "net.json", *rng.choice([(), ("--json",), ("--resolution", "9")]))]
    if rng.random() < 0.1 and _is_small(path):
        actions.append(nas("export", "net.json", "--format", rng.choice(["source", "torch", "source,onnx"])))
    return mutation, actions


def _is_small(path: Path) -> bool:
    from nasspace import cost
    from nasspace.architecture import load

    with contextlib.suppress(NasspaceError, RecursionError):
        counted = cost(load(path))
        return counted.params < 1e6 and counted.flops < 1e8
    return False


VERBS = (("front", "NAME"), ("front", "NAME", "--json"), ("front", "NAME", "--csv"), ("show", "NAME:0"))
VERBS += (("resume", "NAME"), ("verify", "NAME"), ("show", "NAME:1", "--json"))


def _copied(fuzz: Fuzz, work: Path, rng: random.Random) -> str:
    name = rng.choice(["made", "real"])
    shutil.copytree(fuzz.base / "reports" / name, work / "reports" / name)
    return name


def _read(name: str, rng: random.Random) -> list[Action]:
    """Verbs on a study."""
    verbs = [VERBS[0], rng.choice(VERBS[1:])]
    if rng.random() < 0.1:
        verbs += [rng.choice([("report", "NAME"), ("export", "NAME:0", "--format", "torch", "--out", "out")])]
    return [nas(*(word.replace("NAME", name) for word in verb)) for verb in verbs]


def studies(fuzz: Fuzz, work: Path, rng: random.Random) -> tuple[str, list[Action]]:
    """study.yaml."""
    name = _copied(fuzz, work, rng)
    return fuzz.mutate(work / "reports" / name / "study.yaml", rng), _read(name, rng)


def databases(fuzz: Fuzz, work: Path, rng: random.Random) -> tuple[str, list[Action]]:
    """study.db."""
    name = _copied(fuzz, work, rng)
    mutations = [mutated_database(work / "reports" / name / "study.db", rng, []) for _ in range(rng.choice([1, 1, 2]))]
    return "; ".join(mutations), _read(name, rng)


def caches(fuzz: Fuzz, work: Path, rng: random.Random) -> tuple[str, list[Action]]:
    """latency.db."""
    path = fuzz.root / "cache" / "latency.db"
    shutil.copy(fuzz.base / "latency.db", path)
    mutations = [mutated_database(path, rng, fuzz.documents) for _ in range(rng.choice([1, 1, 2]))]

    def read() -> None:
        from nasspace.latency import benchmark, reference
        from nasspace.latency.cache import LatencyCache
        from nasspace.latency.conditions import Conditions

        cache, reference_key = LatencyCache(), reference.reference_conditions(1, "cpu")
        for runtime in ("onnxruntime", "eager"):
            key = Conditions.on_this_machine(
                fuzz.digest, runtime, device="cpu", threads=1, batch_size=1, input=(3, 16, 16)
            )
            found = benchmark.cached_latency(key, cache)
            known = reference.machine_history(reference_key, runtime, cache)
            if found:
                found.normalized(known)
                benchmark.store_latency(found, key, reference_key, runtime, cache)
        cache.add_reading(reference_key, 1.0)

    actions = [function("LatencyCache", read)]
    if rng.random() < 0.1:
        runtime = ("--runtime", rng.choice(["onnxruntime", "eager"]))
        actions.append(nas("latency", str(fuzz.base / "net.json"), "--cached", "--seconds", "0.01", *runtime))
    return "; ".join(mutations), actions


EXPORTED = (*("architecture.json", "preprocessing.json", "export.json") * 3, "model.onnx", "weights.safetensors")
EXPORTED += ("weights.pt", "model.py", "model.onnx", "weights.safetensors")


def exports(fuzz: Fuzz, work: Path, rng: random.Random) -> tuple[str, list[Action]]:
    """A file of an export."""
    shutil.copytree(fuzz.base / "export", work / "export")
    name = rng.choice(EXPORTED)
    path = work / "export" / name
    if rng.random() < 0.03:
        path.unlink()
        mutation = "removed"
    elif path.suffix == ".json":
        mutation = fuzz.mutate(path, rng)
    else:
        data, mutation = mutated_bytes(path.read_bytes(), rng)
        path.write_bytes(data)
    verbs = [("predict", "export", str(fuzz.base / "image.png")), ("show", "export")]
    verbs = [("verify", "export", "--no-code"), rng.choice(verbs)]
    if rng.random() < 0.1:
        verbs.append(("export", "export", "--format", "torch", "--out", "again"))
    return f"{name}: {mutation}", [nas(*verb) for verb in verbs]


KINDS = {
    "space": listed,
    "recipe": recipes,
    "architecture": architectures,
    "study": studies,
    "database": databases,
    "cache": caches,
    "export": exports,
}


def campaign(root: Path, kind: str, numbers: range, seed: int) -> Iterator[Result]:
    """Run the cases of a kind in a process, which is restarted after a case that killed it."""
    first = numbers.start
    while first < numbers.stop:
        command = [sys.executable, "-W", "ignore", __file__, "--run", str(root), kind, str(first), str(numbers.stop)]
        process = subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE, text=True)
        current = first
        for line in process.stdout:
            message = json.loads(line)
            if "begins" in message:
                current = message["begins"]
            else:
                yield Result(**message)
                first = message["number"] + 1
        if status := process.wait():
            yield Result(kind, current, FAULT, "?", f"its process ended with {status}")
            first = current + 1


def _worker(root: str, kind: str, first: str, stop: str, seed: str) -> None:
    """Run a range of cases and print their results, one JSON line each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    fuzz = Fuzz(Path(root), int(seed))
    fuzz.load()
    fuzz.warm_up()
    for number in range(int(first), int(stop)):
        out.write(json.dumps({"begins": number}) + "\n")
        out.write(json.dumps(vars(fuzz.run(kind, number))) + "\n")


def main() -> int:
    if sys.argv[1:2] == ["--run"]:
        _worker(*sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--case", type=int, help="only the case of this number, of --kind")
    parser.add_argument("--out", type=Path, help="every case, a JSON line each")
    given = parser.parse_args()
    kinds, began = given.kind or list(KINDS), time.monotonic()
    each = -(-given.cases // len(kinds))
    numbers = range(each) if given.case is None else range(given.case, given.case + 1)
    counts: dict[str, Counter] = {kind: Counter() for kind in kinds}
    slowest, total = dict.fromkeys(kinds, 0.0), dict.fromkeys(kinds, 0.0)
    with tempfile.TemporaryDirectory(prefix="nasspace-fuzz-") as name, contextlib.ExitStack() as stack:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        log = stack.enter_context(given.out.open("w")) if given.out else io.StringIO()
        first = Fuzz(Path(name), given.seed)
        with first.surroundings():
            first.build()
        for kind in kinds:
            for result in campaign(Path(name), kind, numbers, given.seed):
                counts[kind][result.outcome] += 1
                total[kind] += result.seconds
                slowest[kind] = max(slowest[kind], result.seconds)
                log.write(json.dumps(vars(result)) + "\n")
                if result.outcome == FAULT or given.case is not None:
                    print(f"{result.outcome}: {result}", file=sys.stderr, flush=True)
    print(f"{given.cases} cases, seed {given.seed}, {time.monotonic() - began:.0f} s\n")
    print("| kind | success | message | fault | CPU of a case, s | slowest |\n| -- | -- | -- | -- | -- | -- |")
    for kind, found in counts.items():
        mean = total[kind] / max(1, found.total())
        print(f"| {kind} | {found[SUCCESS]} | {found[MESSAGE]} | {found[FAULT]} | {mean:.3f} | {slowest[kind]:.1f} |")
    return 1 if any(found[FAULT] for found in counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
