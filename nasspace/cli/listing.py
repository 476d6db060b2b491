"""Data of `nas spaces` and `nas zoo`, recorded in `listed.json` for what ships: reading it needs no PyTorch.

`python -m nasspace.cli.listing` writes `listed.json` again, and a test compares it. A user's own space is computed
once and cached by its text.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace import files
from nasspace.errors import InputError, NasspaceError

if TYPE_CHECKING:
    from nasspace.space.space import Space

RECORDED = Path(__file__).with_name("listed.json")
CLASSES = 10
KEYS = {"name", "description", "input", "size", "flops", "params", "memory_access", "exact", "choices"}


def spaces() -> tuple[list[dict[str, Any]], list[NasspaceError]]:
    """The documents of all spaces, as `space` returns them, and the errors of those that cannot be used.

    The names are those that commands take: those of the files.
    """
    documents, errors = [], []
    for name, path in files.names("spaces").items():
        try:
            documents.append({**space(str(path)), "name": name})
        except NasspaceError as error:
            errors.append(error)
    return documents, errors


def space(name: str, classes: int = CLASSES, resolution: int | None = None) -> dict[str, Any]:
    """A space's size, choices, and reachable range of FLOPs, parameters and memory access, as plain values."""
    path = files.find("spaces", name)
    key = _key(files.read_text(path), classes, resolution)
    if key in (recorded := _recorded()["spaces"]):
        return recorded[key]
    if (cached := _cached(key)) is not None:
        return cached
    from nasspace.space.space import Space

    loaded = Space.load(path, classes=classes, resolution=resolution)
    document = computed(loaded)
    if not _has_own_blocks(loaded):  # their code may change
        with contextlib.suppress(InputError):
            files.write_json(_cache_path(key), document)
    return document


def computed(space: Space) -> dict[str, Any]:
    """Compute the document of a space."""
    from nasspace.space.bounds import reachable

    span, labels = reachable(space), space.plan.labels()
    choices = {name: list(labels.get(name, options)) for name, options in space.options.items()}
    return {
        "name": space.name,
        "description": space.description,
        "input": list(space.plan.input),
        "size": space.size,
        **{name: list(getattr(span, name)) for name in ("flops", "params", "memory_access")},
        "exact": span.exact,
        "choices": choices,
    }


def zoo() -> list[dict[str, Any]]:
    """The published networks: counted figures, and the published ones with their sources."""
    return _recorded()["zoo"]


def computed_zoo() -> list[dict[str, Any]]:
    """Compute the documents of all published networks."""
    from nasspace import zoo as published
    from nasspace.counting import cost

    found = []
    for name in published.names():
        architecture = published.load(name)
        counted = cost(architecture)
        network = {"name": name, "input": list(architecture.input), "params": counted.params, "flops": counted.flops}
        found.append({**network, "published": [vars(row) for row in published.published(name)]})
    return found


def computed_all() -> dict[str, Any]:
    """Compute the content of listed.json."""
    from nasspace.space.space import Space

    shipped = sorted(files.folders("spaces")[-1].glob("*.yaml"))
    keyed = {_key(files.read_text(path), CLASSES, None): computed(Space.load(path)) for path in shipped}
    return {"spaces": keyed, "zoo": computed_zoo()}


@functools.cache
def _recorded() -> dict[str, Any]:
    return json.loads(RECORDED.read_text(encoding="utf-8"))


def _key(text: str, classes: int, resolution: int | None) -> str:
    return hashlib.sha256(json.dumps([text, classes, resolution]).encode()).hexdigest()[:24]


def _cache_path(key: str) -> Path:
    from nasspace.latency.cache import LatencyCache
    from nasspace.latency.runtimes import library_versions

    return LatencyCache().path.parent / "spaces" / f"{library_versions([])['nasspace']}-{key}.json"


def _cached(key: str) -> dict[str, Any] | None:
    """Read a document from the cache; None if it is missing or damaged."""
    with contextlib.suppress(InputError, OSError):
        document = files.load_json(_cache_path(key)).value
        if isinstance(document, dict) and document.keys() == KEYS and _is_valid(document):
            return document
    return None


def _is_valid(document: dict[str, Any]) -> bool:
    ranges = [document[name] for name in ("flops", "params", "memory_access")]
    counted = all(isinstance(span, list) and [type(end) for end in span] == [int, int] for span in ranges)
    choices = document["choices"]
    listed = isinstance(choices, dict) and all(isinstance(options, list) for options in choices.values())
    return counted and listed and type(document["size"]) is int and isinstance(document["input"], list)


def _has_own_blocks(space: Space) -> bool:
    from nasspace.blocks import registry

    own = registry.own_blocks()
    return any(layer.block in own for layer in _sample_layers(space)) if own else False


def _sample_layers(space: Space) -> list[Any]:
    """Layers of a few networks that together have every block of the space."""
    labels = space.plan.labels()
    most = max((len(names) for names in labels.values()), default=1)

    def network(i: int) -> Any:
        return space.architecture(lambda name, options: options[i % len(options)] if name in labels else options[-1])

    return [layer for i in range(most) for layer in network(i).layers]


if __name__ == "__main__":
    files.write_json(RECORDED, computed_all())
