"""nasspace: neural architecture search and design-space exploration for lightweight convolutional networks.

Public names are loaded on first use, so that `import nasspace` and `nas --help` are quick.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {  # name: the module that defines it, or None for a submodule
    "Architecture": "nasspace.architecture",
    "Space": "nasspace.space.space",
    "build": "nasspace.network",
    "cost": "nasspace.counting",
    "measure_latency": "nasspace.latency.remote",
    "search": "nasspace.engine.loop",
    "load_study": "nasspace.engine.searched",
    "compare": "nasspace.engine.compare",
    "score": "nasspace.engine.scoring",
    "train": "nasspace.engine.full_training",
    "compress": "nasspace.engine.compression",
    "deliver": "nasspace.engine.delivery",
    "blocks": None,
    "zoo": None,
    "NasspaceError": "nasspace.errors",
    "InputError": "nasspace.errors",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import the module of a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'nasspace' has no attribute '{name}'")
    home = _HOMES[name]
    value = (
        importlib.import_module(f"nasspace.{name}") if home is None else getattr(importlib.import_module(home), name)
    )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
