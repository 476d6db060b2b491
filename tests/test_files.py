"""Strict YAML and JSON, lookup of names, atomic writing of files."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
import yaml

from nasspace import documents, files
from nasspace.documents import parse_json, parse_yaml
from nasspace.errors import InputError, nearest

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD_YAML = {
    "empty": ("", "a.yaml:1: the file is empty"),
    "a comment only": ("# nothing\n", "a.yaml:1: the file is empty"),
    "broken": ("a: 1\nb: [1,\nc: 2\n", "a.yaml:3: not valid YAML"),
    "a tab": ("a:\n\t- 1\n", "a.yaml:2: not valid YAML"),
    "two documents": ("a: 1\n---\nb: 2\n", "a.yaml:2: not valid YAML"),
    "a key twice": ("a: 1\nb: 2\na: 3\n", "a.yaml:3: duplicate key 'a'; keep one"),
    "a tag that would run code": ("a: 1\nb: !!python/object/apply:os.system [ls]\n", "a.yaml:2: the tag !!python/"),
    "a custom tag": ("a: !mine 3\n", "a.yaml:1: the tag !mine is not allowed"),
    "a date": ("a: 2020-01-01\n", "a.yaml:1: the tag !!timestamp"),
    "an alias bomb": (BOMB, "more than 100,000 parts"),
    "an alias of itself": ("a: &a [*a]\n", "nested too deeply"),
    "a deep nest": ("[" * 1500, "nested too deeply"),
    "an unknown alias": ("a: 1\nb: *c\n", "a.yaml:2: not valid YAML"),
    "a merge": ("a: &a {x: 1}\nb:\n  <<: *a\n", "a.yaml:3: '<<' is not supported"),
    "a list as a key": ("? [a]\n: 1\n", "a.yaml:1: a key must be a plain word"),
    "a huge number": ("a: 1\nb: " + "9" * 5000, "a.yaml:2: 9999"),
    "a number that is none": ("a: !!int x\n", "a.yaml:1: x is not a value"),
    "a control character": ("a: 1\nb: \x7f\n", "a.yaml:2: not a text file"),
}
BAD_JSON = {
    "empty": ("", "a.json:1: not valid JSON"),
    "broken": ('{"a": 1,\n "b": }', "a.json:2: not valid JSON"),
    "a key twice": ('{"a": {"b": 1,\n "b": 2}}', "a.json:2: duplicate key 'b'; keep one"),
    "not a number": ('{"a":\n NaN}', "a.json:2: NaN is not a JSON number"),
    "infinite": ("[1,\n\n-Infinity]", "a.json:3: -Infinity is not a JSON number"),
    "a deep nest": ("[" * 100_000, "a.json: not valid JSON"),
    "a huge number": ("[" + "9" * 5000 + "]", "a.json: not valid JSON"),
}


@pytest.mark.parametrize(("text", "message"), BAD_YAML.values(), ids=BAD_YAML.keys())
def test_bad_yaml(text, message):
    with pytest.raises(InputError) as caught:
        parse_yaml(text, "a.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("a.yaml:")


@pytest.mark.parametrize(("text", "message"), BAD_JSON.values(), ids=BAD_JSON.keys())
def test_bad_json(text, message):
    with pytest.raises(InputError) as caught:
        parse_json(text, "a.json")
    assert message in str(caught.value)


def test_yaml_values_are_those_of_the_safe_loader():
    text = "a: [1, 2.5, 1e-3, 1E5, true, null, word, '1/3', \"x\"]\nb: &b {c: 0x10}\nd: *b\n"
    value = parse_yaml(text).value
    assert value == {**yaml.safe_load(text), "a": [1, 2.5, 1e-3, 1e5, True, None, "word", "1/3", "x"]}


def test_lines_of_yaml():
    document = parse_yaml("a: 1\nb:\n  - x\n  - {y: 2,\n     z: 3}\n", "a.yaml")
    assert document.place(("b",)) == "a.yaml:2: b"
    assert document.place(("b", 0)) == "a.yaml:3: b[0]"
    assert document.place(("b", 1, "z")) == "a.yaml:5: b[1].z"
    assert document.place(("b", 1, "w", 3)) == "a.yaml:4: b[1].w[3]"


def random_json(rng: random.Random, depth: int = 0):
    kind = rng.randrange(4 if depth > 4 else 6)
    if kind == 4:
        return [random_json(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 5:
        return {f'k"{i}\\,[': random_json(rng, depth + 1) for i in range(rng.randrange(4))}
    return [1, -2.5e-3, 'x"],{\n\\', None][kind]


def places(value, keys=()):
    yield keys
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(part, (*keys, key))


def test_every_part_of_a_json_text_has_a_line():
    rng = random.Random(0)
    for _ in range(200):
        value = random_json(rng)
        document = parse_json(json.dumps(value, indent=1), "a.json")
        assert document.value == value
        assert sorted(document.lines, key=str) == sorted(places(value), key=str)
    document = parse_json('{"a": [1,\n {"b":\n 2}],\n "c": {}}', "a.json")
    assert document.place(("a", 1, "b")) == "a.json:2: a[1].b"
    assert document.place(("a", 1)) == "a.json:2: a[1]"
    assert document.place(("c",)) == "a.json:4: c"


def test_a_document_without_lines_names_no_place():
    error = documents.Document({}, "", {}).error((), "wrong")
    assert str(error) == "wrong"
    assert str(InputError("wrong").at("x.yaml:3")) == "x.yaml:3: wrong"


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"a: \xff\xfe\n", "line.yaml:1: not a text file"), (b"a: 1\nb: \x00\n", "line.yaml:2: not a text file")],
    ids=["not UTF-8", "a zero byte"],
)
def test_binary_files(tmp_path, data, message):
    path = tmp_path / "line.yaml"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        files.load_yaml(path)


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            files.load_yaml(path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.yaml")
        for path in (tmp_path / "pipe.yaml", Path("/dev/zero")):
            with pytest.raises(InputError, match="a pipe or a device"):
                files.load_yaml(path)
    (tmp_path / "large.yaml").write_bytes(b"#" * (files.MAX_BYTES + 1))
    with pytest.raises(InputError, match="more than 4,000,000 bytes"):
        files.load_yaml(tmp_path / "large.yaml")


def test_a_name_is_a_path_then_in_the_working_folder_then_shipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = files.find("spaces", "shuffle")
    assert shipped.parent.name == "spaces"
    (tmp_path / "spaces").mkdir()
    mine = tmp_path / "spaces" / "shuffle.yaml"
    mine.write_text("name: mine")
    assert files.find("spaces", "shuffle") == mine
    assert files.names("spaces")["shuffle"] == mine
    (tmp_path / "shuffle").write_text("name: nearer")
    assert str(files.find("spaces", "shuffle")) == "shuffle"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shufle", "'shufle' is not a space; did you mean 'shuffle'?"),
        (
            "zzz",
            "'zzz' is not a space; known: fire, inception, mixed, mnasnet, mobile, resnext, sandglass, shuffle, spos",
        ),
        ("none.yaml", "none.yaml: there is no such file"),
        ("some/where", "some/where: there is no such file"),
        ("some/" + "x" * 5000, "x: there is no such file"),
        ("x" * 5000, "is not a space"),
        ("a\0b", "is not a space"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(InputError) as caught:
        files.find("spaces", name)
    assert message in str(caught.value)


def test_a_file_is_written_atomically(tmp_path):
    path = tmp_path / "new" / "a.json"
    files.write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    with pytest.raises(ZeroDivisionError), files.replacing(path) as temporary:
        temporary.write_text(str(1 / 0))
    assert json.loads(path.read_text()) == {"a": 1}
    assert [part.name for part in path.parent.iterdir()] == ["a.json"]


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        files.write_text(tmp_path / "file" / "below", "x")


def test_yaml_round_trip(tmp_path):
    value = {"b": [1, 2.5, "x: y", None, True], "a": {"ü": "é"}}
    files.write_yaml(tmp_path / "a.yaml", value)
    document = files.load_yaml(tmp_path / "a.yaml")
    assert document.value == value
    assert list(document.value) == ["b", "a"]


def test_nearest():
    assert nearest("shufle_v2", ["shuffle_v2", "fire"]) == "; did you mean 'shuffle_v2'?"
    assert nearest("banana", ["b", "a"]) == "; known: a, b"
    assert nearest(3, []) == ""


WORDS = ["123e45", "1e3", "-1E+7", "+.5e-3", "1.e5", "1_000", "0x1F", "0o17", "017", "1:30", ".inf", "-.INF", ".nan"]
WORDS += [
    "yes",
    "No",
    "on",
    "~",
    "null",
    "True",
    "2020-01-01",
    "<<",
    "=",
    "&a",
    "*a",
    "!x",
    "%",
    "@",
    "`",
    "- a",
    "? a",
]
WORDS += ["", " ", "\n", " a", "a ", "a: b", "a #b", "#", "'", '"', "\\", "{0}", "[b]x[/b]", "---", "...", "\ttab"]
WORDS += [
    "a\r\nb",
    "\x85",
    "a\u2028b",
    "\ufeffa",
    "\x00",
    "\x1b[2J",
    "\x7f",
    "\x9b",
    "\udce9",
    "\ue000",
    "\uffff",
    "\U0010ffff",
]
LETTERS = ["0", "1", "9", "e", "E", ".", "+", "-", "_", ":", "a", "é", "e\u0301", "猫", "🐛", *WORDS]


def random_text(rng: random.Random) -> str:
    """A word that YAML may not read as text, digits with an e, or a sequence of awkward characters."""
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice(WORDS)
    if kind == 1:
        digits = [str(rng.randrange(10)) for _ in range(12)]
        digits[rng.randrange(12)] = rng.choice("eE")
        return "".join(digits)
    return "".join(rng.choices(LETTERS, k=rng.choice([1, 2, 3, 12, 200])))


def test_every_text_is_read_as_it_was_written(tmp_path):
    rng = random.Random(0)
    texts = [*WORDS, *(random_text(rng) for _ in range(2000))]
    documents_ = [{"fingerprint": text, text: [text, {"a": text}], "n": 1e3} for text in texts]
    for document in documents_:
        assert parse_yaml(documents.dump_yaml(document)).value == document
    whole = {"classes": texts, "by name": dict.fromkeys(texts, 0)}
    for name, write, read in (
        ("a.yaml", files.write_yaml, files.load_yaml),
        ("a.json", files.write_json, files.load_json),
    ):
        write(tmp_path / name, whole)
        assert read(tmp_path / name).value == whole


def test_every_number_is_read_as_it_was_written(tmp_path):
    rng = random.Random(0)
    numbers = [rng.choice([1, -1]) * rng.random() * 10.0 ** rng.randrange(-300, 300) for _ in range(500)]
    numbers += [0.0, -0.0, 1e3, 1e16, 1e22, 5e-324, float("inf"), 10**30, True, None]
    files.write_yaml(tmp_path / "a.yaml", numbers)
    assert repr(files.load_yaml(tmp_path / "a.yaml").value) == repr(numbers)


UNFIT = [
    "../x",
    "/etc/x",
    "a/b",
    "a\\b",
    "..",
    ".",
    "a\0b",
    "a\x1b[2J",
    "a\nb",
    "\x9b",
    "caf\udce9",
    "x" * 300,
    "é" * 121,
]


@pytest.mark.parametrize("name", UNFIT, ids=lambda name: ascii(name)[:20])
def test_an_unfit_name_has_a_reason(name):
    reason = files.unfit_name(name)
    assert "give" in reason
    assert reason.isprintable()
    assert len(reason) < 200


@pytest.mark.parametrize("name", ["a{0}", "run[v2]", "50% #1?", "café", "cafe\u0301", "猫 🐛", "...", "-x", "x" * 240])
def test_other_names_are_fit(tmp_path, name):
    assert files.unfit_name(name) == ""
    files.write_text(tmp_path / name, "")


def test_impossible_paths_are_not_files(tmp_path):
    for path in ("a\0b", "x" * 300, str(tmp_path / "y" / ("x" * 5000))):
        assert files.kind_of(tmp_path / path) == ""
        with pytest.raises(InputError, match="cannot be read"):
            files.read_text(tmp_path / path)
        with pytest.raises(InputError, match="cannot be written"):
            files.write_text(tmp_path / path, "")
    assert files.kind_of(tmp_path) == "folder"
    with pytest.raises(InputError, match=r"~nobody-here/x: this home folder is unknown"):
        files.expanded("~nobody-here/x")


def test_a_search_works_in_a_checkout_without_installation(tmp_path, monkeypatch):
    """The package may only be on PYTHONPATH, and a vendor's build of torch may have no metadata."""
    import importlib.metadata

    import nasspace

    found = importlib.metadata.version

    def version(name):
        if name in ("nasspace", "torch"):
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.chdir(tmp_path)
    study = nasspace.search(
        "fire", evaluator=lambda arch: {"accuracy": 0.5}, objectives=["accuracy", "flops"], trials=2
    )
    assert len(study.front()) >= 1
    written = files.load_yaml(tmp_path / "reports" / study.name / "study.yaml").value["versions"]
    assert written["nasspace"] == written["torch"] == "unknown" != written["numpy"]
