"""`nas init`: a working folder to start from."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Annotated

import typer

from nasspace.cli import printing
from nasspace.cli.spaces import Json
from nasspace.errors import InputError

SPACE, RECIPE = "my-space", "my-recipe"
COPIED = {"spaces": ("mobile", SPACE), "search": ("quick", RECIPE)}  # the shipped file, and the name of its copy
HEADERS = {
    "spaces": f"# Your search space, a copy of `mobile`. After a change, `nas spaces {SPACE}` checks it.",
    "search": f"# Your recipe, a copy of `quick`, for `nas search --space {SPACE} --recipe {RECIPE}`.",
}
OPTIONAL = """\
# Further settings, which flags override; remove the first # of those that you need:
# limits: {latency: 20ms, flops: 150M}   # networks over a limit are never trained
# data: imagefolder:photos               # a folder for each class
# time_budget: 30m                       # for the whole search
# runtime: onnxruntime                   # what runs the network
# full: {epochs: 25}                     # the full training, `nas train STUDY:ID`
"""
README = f"""\
# A search for lightweight networks

| | |
| -- | -- |
| `spaces/{SPACE}.yaml` | a search space: a list is a choice, everything else is fixed |
| `search/{RECIPE}.yaml` | a recipe: how long to search, and with which settings |
| `reports/` | what is found: a folder for each study, written by `nas search` |

Run the commands in this folder. These use the handwritten digits that nasspace bundles:

```sh
nas spaces {SPACE}
nas search --space {SPACE} --recipe {RECIPE} --latency-target 20ms --study first
nas front first
nas train first:front
```

The search takes minutes. Then open `reports/first/report.html`; each network to ship is in `reports/first/exports/ID/`.

For your own images, put them into `photos/CLASS/`, a folder for each class, and search again:

```sh
nas search --space {SPACE} --recipe {RECIPE} --latency-target 20ms --data imagefolder:photos --study photos
nas train photos:front
```

`nas spaces` lists the spaces that ship, and `nas VERB --help` documents every flag.
"""


def add_to(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("init")(init)


def init(
    folder: Annotated[Path, typer.Argument(help="Folder to write, created if it is missing.")] = Path("."),
    json: Json = False,
) -> None:
    """Make a working folder: a search space and a recipe to edit, and a README with the next commands."""
    texts = {f"{kind}/{name}.yaml": _copy(kind, shipped, name) for kind, (shipped, name) in COPIED.items()}
    _write(folder, {**texts, "README.md": README})
    if json:
        names = [*texts, "README.md"]
        return printing.print_json({"folder": str(folder), "files": names, "space": SPACE, "recipe": RECIPE})
    name = printing.escape_line(folder)
    printing.print_text(f"{name}: {', '.join(texts)}, README.md")
    printing.print_message(f"next: read {Path(name) / 'README.md'}, or run `nas spaces {SPACE}` in this folder")
    return None


def _copy(kind: str, shipped: str, name: str) -> str:
    """The text of a shipped file under another name; a user's own file of the shipped name is not looked at."""
    from nasspace import files

    text = files.read_text(files.folders(kind)[-1] / f"{shipped}.yaml")
    renamed = re.sub(rf"^name: {shipped}$", f"name: {name}", text, flags=re.MULTILINE)
    return f"{HEADERS[kind]}\n#\n{renamed}{OPTIONAL if kind == 'search' else ''}"


def _write(folder: Path, texts: dict[str, str]) -> None:
    """Write all files of a folder, or none: nothing is overwritten, and a failure leaves no file."""
    from nasspace import files

    existing = [name for name in texts if os.path.lexists(folder / name)]
    if existing:
        raise InputError(f"{folder}: has {', '.join(existing)} already; nothing was written, choose another folder")
    try:
        for name, text in texts.items():
            files.write_text(folder / name, text)
    except InputError:
        for name in texts:
            with contextlib.suppress(OSError):
                (folder / name).unlink()
        raise
