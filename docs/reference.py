"""Pages of the site that are written from the code: the commands, and the Python functions."""

from __future__ import annotations

import re

import typer.cli
import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import nasspace
from nasspace import cli

INTRODUCTION = """# Python reference

The public names of `nasspace`. [Python](python.md) shows them in use.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add both pages to those of the folder; MkDocs calls it."""
    for name, content in {"commands.md": commands(), "api.md": functions()}.items():
        files.append(File.generated(config, name, content=content))
    return files


def commands() -> str:
    """Every command with its arguments and flags, in Markdown, as `nas VERB --help` has them."""
    command = typer.main.get_command(cli.app)
    text = typer.cli.get_docs_for_click(obj=command, ctx=typer.Context(command), name="nas")
    first_lines = {name: (verb.help or "").strip().splitlines()[0] for name, verb in command.commands.items()}
    for name, line in first_lines.items():  # Typer cuts them in its overview
        text = re.sub(rf"^\* `{name}`: .*$", f"* [`{name}`](#nas-{name}): {line}", text, count=1, flags=re.M)
    return text.replace("# `nas`", "# Commands", 1)


def functions() -> str:
    """Signature and docstring of each public name, which mkdocstrings fills in."""
    homes = {name: home for name, home in nasspace._HOMES.items() if home is not None}
    entries = [f"::: {home}.{name}\n    options:\n      heading: nasspace.{name}\n" for name, home in homes.items()]
    return "\n".join([INTRODUCTION, *entries])
