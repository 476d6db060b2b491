"""What `nas spaces` and `nas zoo` print, as recorded for what ships: reading it needs no PyTorch.

`python -m nasspace.cli.listing` writes `listed.json` again, and a test computes it again. A space of the user's own is
computed once and remembered in the user's cache by its text.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace import files
from nasspace.errors import InputError

if TYPE_CHECKING:
    from nasspace.space.space import Space

RECORDED = Path(__file__).with_name("listed.json")
CLASSES = 10
KEYS = {"name", "description", "input", "size", "flops", "params", "memory_access", "exact", "choices"}


def spaces() -> list[dict[str, Any]]:
    """Every space by name: its document, as `space` gives it."""
    return [space(str(path)) for path in files.names("spaces").values()]


def space(name: str, classes: int = CLASSES, resolution: int | None = None) -> dict[str, Any]:
    """A space's size, choices, and reachable range of FLOPs, parameters and memory access; plain values."""
    path = files.find("spaces", name)
    key = _key(files.read_text(path), classes, resolution)
    if key in (recorded := _recorded()["spaces"]):
        return recorded[key]
    if (remembered := _remembered(key)) is not None:
        return remembered
    from nasspace.space.space import Space

    found = Space.load(path, classes=classes, resolution=resolution)
    document = computed(found)
    if not _has_own_blocks(found):  # whose code may change
        with contextlib.suppress(InputError):
            files.write_json(_cache(key), document)
    return document


def computed(space: Space) -> dict[str, Any]:
    """The document of a space."""
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
    """The published networks: our counts, and the published figures with their sources."""
    return _recorded()["zoo"]


def computed_zoo() -> list[dict[str, Any]]:
    """The documents of all published networks, counted."""
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
    """The content of listed.json."""
    from nasspace.space.space import Space

    shipped = sorted(files.folders("spaces")[-1].glob("*.yaml"))
    keyed = {_key(files.read_text(path), CLASSES, None): computed(Space.load(path)) for path in shipped}
    return {"spaces": keyed, "zoo": computed_zoo()}


@functools.cache
def _recorded() -> dict[str, Any]:
    return json.loads(RECORDED.read_text(encoding="utf-8"))


def _key(text: str, classes: int, resolution: int | None) -> str:
    return hashlib.sha256(json.dumps([text, classes, resolution]).encode()).hexdigest()[:24]


def _cache(key: str) -> Path:
    from nasspace.latency.cache import LatencyCache
    from nasspace.latency.runtimes import library_versions

    return LatencyCache().path.parent / "spaces" / f"{library_versions([])['nasspace']}-{key}.json"


def _remembered(key: str) -> dict[str, Any] | None:
    """What was computed earlier; a damaged file is computed again."""
    with contextlib.suppress(InputError, OSError):
        document = files.load_json(_cache(key)).value
        if isinstance(document, dict) and document.keys() == KEYS and _is_whole(document):
            return document
    return None


def _is_whole(document: dict[str, Any]) -> bool:
    ranges = [document[name] for name in ("flops", "params", "memory_access")]
    counted = all(isinstance(span, list) and [type(end) for end in span] == [int, int] for span in ranges)
    choices = document["choices"]
    listed = isinstance(choices, dict) and all(isinstance(options, list) for options in choices.values())
    return counted and listed and type(document["size"]) is int and isinstance(document["input"], list)


def _has_own_blocks(space: Space) -> bool:
    from nasspace.blocks import registry

    own = registry.own_blocks()
    return any(layer.block in own for layer in _layers(space)) if own else False


def _layers(space: Space) -> list[Any]:
    """The layers of networks that together have every block of a space."""
    labels = space.plan.labels()
    most = max((len(names) for names in labels.values()), default=1)

    def network(i: int) -> Any:
        return space.architecture(lambda name, options: options[i % len(options)] if name in labels else options[-1])

    return [layer for i in range(most) for layer in network(i).layers]


if __name__ == "__main__":
    files.write_json(RECORDED, computed_all())
