"""Find spaces and recipes by name or path, read YAML and JSON strictly, write files atomically."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nasspace.documents import Document, dump_yaml, parse_json, parse_yaml
from nasspace.errors import InputError, nearest

PACKAGE = Path(__file__).resolve().parent
MAX_BYTES = 4_000_000
CACHE = "NASSPACE_CACHE"  # environment variable with the folder of measured latencies and decoded images
MAX_NAME = 240  # bytes of a name: file systems allow 255, and the names of temporary files are longer


def read_text(path: Path) -> str:
    """Read a UTF-8 text file; an `InputError` for one that is missing, unreadable, binary, huge, a pipe or a device."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # may never end
            raise InputError(f"{path}: cannot be read (a pipe or a device); write it to a file")
        data = path.read_bytes() if status.st_size <= MAX_BYTES else None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if data is None:
        raise InputError(f"{path}: more than {MAX_BYTES:,} bytes; this is not a file of nasspace")
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
    """Read a YAML file."""
    return parse_yaml(read_text(path), _display(path))


def load_json(path: Path) -> Document:
    """Read a JSON file."""
    return parse_json(read_text(path), _display(path))


def _display(path: Path) -> str:
    """Format a path for messages, relative if it is below the working folder."""
    with contextlib.suppress(ValueError, OSError):
        return str(path.resolve().relative_to(Path.cwd()))
    return str(path)


def folders(kind: str) -> list[Path]:
    """Folders in which a `kind` ('spaces', 'search') is looked up: the working folder's, then the shipped one."""
    shipped = PACKAGE / "_shipped" / kind
    if not shipped.is_dir() and (PACKAGE.parent / "pyproject.toml").is_file():
        shipped = PACKAGE.parent / kind
    return [Path.cwd() / kind, shipped]


def names(kind: str) -> dict[str, Path]:
    """Every name of a kind and its file; a user's file takes precedence over a shipped one of the same name."""
    found: dict[str, Path] = {}
    for folder in folders(kind):
        for path in sorted(folder.glob("*.yaml")) if folder.is_dir() else []:
            found.setdefault(path.stem, path)
    return found


def find(kind: str, name: str | os.PathLike[str]) -> Path:
    """Find the file of `name`: a path, else `./KIND/name.yaml`, else a shipped one.

    An unknown name raises `InputError` with the nearest known one.
    """
    singular = {"spaces": "a space", "search": "a recipe"}.get(kind, kind)
    if not isinstance(name, str | os.PathLike):
        raise InputError(f"{name!r:.60} is not {singular}: give a name or a path")
    path = Path(name)
    with contextlib.suppress(OSError):  # a name that is too long, a folder that cannot be read
        if path.is_file():
            return path
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        reason = "is a folder, not a YAML file" if kind_of(path) == "folder" else "there is no such file"
        raise InputError(f"{path}: {reason}")
    known = names(kind)
    if str(name) not in known:
        raise InputError(f"'{name}' is not {singular}{nearest(name, known)}")
    return known[str(name)]


def kind_of(path: Path) -> str:
    """Return 'folder', 'file', or '' where there is neither or the path is impossible (300 letters, NUL)."""
    try:
        return "folder" if path.is_dir() else "file" if path.exists() else ""
    except PermissionError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (OSError, ValueError):
        return ""


def cache_folder() -> Path:
    """The folder that the environment variable NASSPACE_CACHE names, else the user's cache folder."""
    folder = os.environ.get(CACHE)
    if not folder:
        import platformdirs

        try:
            folder = platformdirs.user_cache_dir("nasspace")
        except RuntimeError:  # a user without a home directory
            folder = os.path.join(os.devnull, "no-home")  # cannot be created
    return Path(folder)


def expanded(path: str | os.PathLike[str]) -> Path:
    """Expand `~` and `~USER`; an `InputError` if that home folder is unknown."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: this home folder is unknown; write the path in full") from None


def unfit_name(name: str) -> str:
    """Explain why `name` cannot name a file or folder, with the remedy; '' if it can.

    Names in documents from others become names of folders; one with `/` would be written elsewhere.

    >>> unfit_name("mobile-1.0"), unfit_name("../x")
    ('', "the name '../x' contains '/'; give one without it")
    """
    shown = repr(name if len(name) <= 40 else name[:40] + "...")
    size = len(name.encode("utf-8", "surrogatepass"))
    if name in (".", ".."):
        return f"the name {shown} means a folder; give another"
    if size > MAX_NAME:
        return f"the name {shown} has {size} bytes; give one of {MAX_NAME} at most"
    for character in name:
        if character in "/\\":
            return f"the name {shown} contains '{character}'; give one without it"
        if (category := unicodedata.category(character)) in ("Cc", "Cs"):
            kind = "not a valid character" if category == "Cs" else "a control character"
            return f"the name {shown} contains {character!r}, {kind}; give one without it"
    return ""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; move it to `path` if the body succeeds, else remove it.

    A full disk or a read-only folder becomes an `InputError` that names it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise cannot_write(path, error) from None
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp creates private files; these are documents
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def cannot_write(path: Path, error: Exception) -> InputError:
    """Create the `InputError` for a path that cannot be written."""
    reason = getattr(error, "strerror", None) or error
    return InputError(f"{path}: cannot be written ({reason}); make room or choose another folder")


def write_text(path: Path, text: str) -> None:
    r"""Write a text atomically, in UTF-8.

    A byte of a file's name that is not UTF-8 is written as `\udce9`, which JSON reads as the same character.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def write_together(texts: Mapping[Path, str | bytes]) -> None:
    """Write several files as `write_text` does, moved into place once all are written: a full disk changes none."""
    with contextlib.ExitStack() as stack:
        for path, content in texts.items():
            temporary = stack.enter_context(replacing(path))
            data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
            temporary.write_bytes(data)


def write_yaml(path: Path, value: Any) -> None:
    """Write plain values as YAML in their own order."""
    write_text(path, dump_yaml(value))


def write_json(path: Path, value: Any) -> None:
    """Write plain values as indented JSON."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Plain values as indented JSON."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
