"""Find a space, recipe or study by name or path; read YAML and JSON strictly; write files whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nasspace.errors import InputError, nearest

PACKAGE = Path(__file__).resolve().parent
MAX_NODES = 100_000  # an alias bomb expands to more
MAX_BYTES = 4_000_000
Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """A value read from a text, with the line of each of its parts, so that an error can name its place."""

    value: Any
    source: str = ""
    lines: dict[Keys, int] = field(default_factory=dict, repr=False)

    def place(self, keys: Keys = ()) -> str:
        """'file.yaml:12: stages[0].each.block' for `keys`; the nearest line known where the part has none.

        >>> Document({}, "a.yaml", {(): 1, ("stages", 0): 7}).place(("stages", 0, "out"))
        'a.yaml:7: stages[0].out'
        """
        at = keys
        while at and at not in self.lines:
            at = at[:-1]
        line = self.lines.get(at)
        source = self.source + (f":{line}" if line else "")
        return ": ".join(part for part in (source, dotted(keys)) if part)

    def error(self, keys: Keys, message: str) -> InputError:
        """An `InputError` that begins with the place of `keys`."""
        place = self.place(keys)
        return InputError(f"{place}: {message}" if place else message)


def dotted(keys: Keys) -> str:
    """`('stages', 0, 'out')` as people write it: `stages[0].out`."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".")


class _Loader(yaml.SafeLoader):
    """YAML's safe core; a number such as 1e-3 is a number here (YAML 1.1 reads it as a word)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq")}


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


def parse_yaml(text: str, source: str = "") -> Document:
    """Read one YAML document: plain values only, no key twice, every error with its line."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise InputError(f"{source}:1: the file is empty")
        lines: dict[Keys, int] = {}
        return Document(_value(loader, node, (), lines, source), source, lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{source}{line}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise InputError(f"{source}: not valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise InputError(f"{source}:1: nested too deeply") from None
    finally:
        loader.dispose()


def _value(loader: _Loader, node: yaml.Node, keys: Keys, lines: dict[Keys, int], source: str) -> Any:
    line = node.start_mark.line + 1
    lines[keys] = line
    if len(lines) > MAX_NODES:
        raise InputError(f"{source}:{line}: the document has more than {MAX_NODES:,} parts")
    if node.tag not in _PLAIN:
        raise InputError(
            f"{source}:{line}: the tag {_short(node.tag)} is not allowed; nasspace reads plain values only "
            "and never runs code from a file"
        )
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, part, (*keys, i), lines, source) for i, part in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, keys, lines, source)
    return loader.construct_object(node)


def _mapping(loader, node: yaml.MappingNode, keys: Keys, lines: dict[Keys, int], source: str) -> dict:
    result: dict[str, Any] = {}
    for key_node, part in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
        line = key_node.start_mark.line + 1
        if key is None or key_node.tag == "tag:yaml.org,2002:merge":
            raise InputError(f"{source}:{line}: a key must be a plain word")
        if key in result:
            raise InputError(f"{source}:{line}: the key '{key}' stands here a second time")
        result[key] = _value(loader, part, (*keys, key), lines, source)
        if isinstance(part, yaml.ScalarNode) or part.flow_style:
            lines[(*keys, key)] = part.start_mark.line + 1
        else:
            lines[(*keys, key)] = line
    return result


def _short(tag: str) -> str:
    return "!!" + tag.removeprefix("tag:yaml.org,2002:") if tag.startswith("tag:yaml.org,2002:") else tag


def load_yaml(path: Path) -> Document:
    """The YAML document in a file."""
    return parse_yaml(read_text(path), _shown(path))


def parse_json(text: str, source: str = "") -> Document:
    """Read one JSON document; no key twice, an error with its line."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            seen = [key for key, _ in pairs]
            twice = next(key for key in seen if seen.count(key) > 1)
            raise InputError(f"{source}: the key '{twice}' stands twice in one object")
        return result

    def refuse(word: str) -> Any:
        raise InputError(f"{source}: {word} is not a JSON number")

    try:
        return Document(json.loads(text, object_pairs_hook=once, parse_constant=refuse), source)
    except json.JSONDecodeError as error:
        raise InputError(f"{source}:{error.lineno}: not valid JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"{source}: not valid JSON: {str(error)[:80]}") from None


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
