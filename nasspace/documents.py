"""Strict YAML and JSON: plain values, no duplicate keys, the line of every part for errors; YAML output to match."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from nasspace.errors import MAX_PLACE, InputError, cut

MAX_NODES = 100_000  # an alias bomb expands to more
Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """A value read from a text, with the line of each of its parts for error messages."""

    value: Any
    source: str = ""
    lines: dict[Keys, int] = field(default_factory=dict, repr=False)

    def place(self, keys: Keys = ()) -> str:
        """Format the place of `keys` as 'file.yaml:12: stages[0].each.block', with the nearest known line.

        >>> Document({}, "a.yaml", {(): 1, ("stages", 0): 7}).place(("stages", 0, "out"))
        'a.yaml:7: stages[0].out'
        """
        at = keys
        while at and at not in self.lines:
            at = at[:-1]
        line = self.lines.get(at)
        source = self.source + (f":{line}" if line else "")
        return ": ".join(part for part in (source, cut(dotted(keys), MAX_PLACE)) if part)

    def error(self, keys: Keys, message: str) -> InputError:
        """Create an `InputError` that begins with the place of `keys`; the middle of a long message is left out."""
        place, message = self.place(keys), cut(message)
        return InputError(f"{place}: {message}" if place else message)


def dotted(keys: Keys) -> str:
    """Format `('stages', 0, 'out')` as `stages[0].out`."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also reads 1e-3 as a number (YAML 1.1 reads it as text)."""


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes text which `_Loader` would read as a number, such as the fingerprint 123e45."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.Node:
    """Represent text, in double quotes if it has line breaks that PyYAML would read back as a space."""
    style = '"' if {"\x85", "\u2028", "\u2029"} & set(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
for _each in (_Loader, _Dumper):
    _each.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )
_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq")}


def parse_yaml(text: str, source: str = "") -> Document:
    """Read one YAML document; an `InputError` names the line of anything but plain values and of a duplicate key."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise InputError(f"{source}:1: the file is empty")
        lines: dict[Keys, int] = {}
        return Document(_value(loader, node, (), lines, source), source, lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        last = len(text.splitlines())  # the mark may be one line after it
        line = f":{min(mark.line + 1, last)}" if mark else ""
        raise InputError(f"{source}{line}: not valid YAML: {cut(str(error.problem or error.context))}") from None
    except yaml.reader.ReaderError as error:
        number = text[: error.position].count("\n") + 1
        raise InputError(f"{source}:{number}: not a text file (a control character)") from None
    except RecursionError:
        raise InputError(f"{source}:1: nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()


def dump_yaml(value: Any) -> str:
    """Write plain values as YAML in their own order; `parse_yaml` reads the same values."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _value(loader: _Loader, node: yaml.Node, keys: Keys, lines: dict[Keys, int], source: str) -> Any:
    """Construct the value of a node and record its line."""
    line = node.start_mark.line + 1
    lines[keys] = line
    if len(lines) > MAX_NODES:
        raise InputError(f"{source}:{line}: the document has more than {MAX_NODES:,} parts")
    if node.tag not in _PLAIN:
        raise InputError(
            f"{source}:{line}: the tag {_tag_name(node.tag)} is not allowed; nasspace reads plain values only "
            "and never runs code from a file"
        )
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, part, (*keys, i), lines, source) for i, part in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, keys, lines, source)
    try:
        return loader.construct_object(node)
    except (ValueError, OverflowError, LookupError, TypeError) as error:  # such as a number of 5,000 digits, or !!int x
        raise InputError(f"{source}:{line}: {_start(node.value)} is not a value: {error}") from None


def _mapping(
    loader: _Loader, node: yaml.MappingNode, keys: Keys, lines: dict[Keys, int], source: str
) -> dict[str, Any]:
    """Construct a mapping; refuse merges, keys that are not text, and duplicate keys."""
    result: dict[str, Any] = {}
    for key_node, part in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
        line = key_node.start_mark.line + 1
        if key_node.tag == "tag:yaml.org,2002:merge":
            raise InputError(
                f"{source}:{line}: '<<' is not supported; repeat the whole mapping with *NAME, or write it out"
            )
        if key is None:
            raise InputError(f"{source}:{line}: a key must be a plain word, not a list or mapping")
        if key in result:
            raise InputError(f"{source}:{line}: duplicate key '{_start(key)}'; keep one")
        result[key] = _value(loader, part, (*keys, key), lines, source)
        if isinstance(part, yaml.ScalarNode) or part.flow_style:
            lines[(*keys, key)] = part.start_mark.line + 1
        else:
            lines[(*keys, key)] = line
    return result


def _start(text: str) -> str:
    """The first 40 characters of a text."""
    return text if len(text) <= 40 else text[:40] + "..."


def _tag_name(tag: str) -> str:
    """Shorten a tag: `!!int` for YAML's own."""
    tag = cut(tag, MAX_PLACE)
    return "!!" + tag.removeprefix("tag:yaml.org,2002:") if tag.startswith("tag:yaml.org,2002:") else tag


def parse_json(text: str, source: str = "") -> Document:
    """Read one JSON document; an `InputError` names the line of what is invalid and of a duplicate key."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{source}:{error.lineno}: not valid JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"{source}: not valid JSON: {str(error)[:80]}") from None
    return Document(value, source, _json_lines(text, source))


_JSON_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^\s{}\[\],:"]+')


def _json_lines(text: str, source: str) -> dict[Keys, int]:
    """Find the line of each part of a valid JSON text; refuse duplicate keys, NaN and Infinity."""
    lines: dict[Keys, int] = {}
    path: list[Any] = []  # keys and positions
    line, last, naming = 1, 0, False
    for match in _JSON_TOKEN.finditer(text):
        token, start = match[0], match.start()
        line, last = line + text.count("\n", last, start), start
        if token in "}]":
            path.pop()
            naming = False
        elif token == ",":
            naming = isinstance(path[-1], str)
            path[-1] = "" if naming else path[-1] + 1
        elif naming:
            path[-1], naming = json.loads(token), False
            if tuple(path) in lines:
                raise InputError(f"{source}:{line}: duplicate key '{_start(path[-1])}'; keep one")
            lines[tuple(path)] = line
        elif token in ("NaN", "Infinity", "-Infinity"):
            raise InputError(f"{source}:{line}: {token} is not a JSON number")
        elif token != ":":
            lines.setdefault(tuple(path), line)
            if token in "[{":
                path.append(0 if token == "[" else "")
                naming = token == "{"
    return lines
