"""Find a space, recipe or study by name or path; read YAML and JSON strictly; write files whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from nasspace.documents import Document, parse_json, parse_yaml
from nasspace.errors import InputError, nearest

PACKAGE = Path(__file__).resolve().parent
MAX_BYTES = 4_000_000


def read_text(path: Path) -> str:
    """The UTF-8 text of a file; an `InputError` for a missing, unreadable, binary or huge one."""
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_BYTES else None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    if data is None:
        raise InputError(f"{path}: more than {MAX_BYTES:,} bytes; this is no file of nasspace's")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: not a text file (a byte that is not UTF-8)") from None
    control = re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", text)
    if control:
        line = text[: control.start()].count("\n") + 1
        raise InputError(f"{path}:{line}: not a text file (a control character)")
    return text


def load_yaml(path: Path) -> Document:
    """The YAML document in a file."""
    return parse_yaml(read_text(path), _shown(path))


def load_json(path: Path) -> Document:
    """The JSON document in a file."""
    return parse_json(read_text(path), _shown(path))


def _shown(path: Path) -> str:
    """The path as the person would type it: relative where it lies below the working folder."""
    with contextlib.suppress(ValueError, OSError):
        return str(path.resolve().relative_to(Path.cwd()))
    return str(path)


def folders(kind: str) -> list[Path]:
    """Where a `kind` ('spaces', 'search') is looked up: the working folder first, then what ships."""
    shipped = PACKAGE / "_shipped" / kind
    if not shipped.is_dir() and (PACKAGE.parent / "pyproject.toml").is_file():
        shipped = PACKAGE.parent / kind
    return [Path.cwd() / kind, shipped]


def names(kind: str) -> dict[str, Path]:
    """Every name of a kind with its file; a user's own comes before a shipped one of the same name."""
    found: dict[str, Path] = {}
    for folder in folders(kind):
        for path in sorted(folder.glob("*.yaml")) if folder.is_dir() else []:
            found.setdefault(path.stem, path)
    return found


def find(kind: str, name: str | os.PathLike) -> Path:
    """The file that `name` means: a path, then `./KIND/name.yaml`, then one that ships.

    An unknown name is an `InputError` with the nearest known one.
    """
    path = Path(name)
    with contextlib.suppress(OSError):  # a name too long, a folder that may not be read: no file
        if path.is_file():
            return path
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        reason = "is a folder, not a YAML file" if path.is_dir() else "there is no such file"
        raise InputError(f"{path}: {reason}")
    known = names(kind)
    if str(name) not in known:
        singular = {"spaces": "a space", "search": "a recipe"}.get(kind, kind)
        raise InputError(f"'{name}' is not {singular}{nearest(name, known)}")
    return known[str(name)]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it into place if the body succeeds, else remove it.

    A full disk or a folder that cannot be written becomes an `InputError` that names it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise cannot_write(path, error) from None
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; these are documents
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> InputError:
    """The error of a place that cannot be written, with the remedy."""
    return InputError(f"{path}: cannot be written ({error.strerror or error}); make room or choose another folder")


def write_text(path: Path, text: str) -> None:
    """Write a text whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_yaml(path: Path, value: Any) -> None:
    """Write plain values as YAML, in their own order."""
    write_text(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110))


def write_json(path: Path, value: Any) -> None:
    """Write plain values as indented JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
