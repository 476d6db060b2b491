"""`nas show`, `nas latency`, `nas export`, `nas verify`: one network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nasspace.cli import choices, printing
from nasspace.cli.spaces import Json
from nasspace.errors import InputError
from nasspace.formatting import kilobytes

if TYPE_CHECKING:
    from nasspace.architecture import Architecture

Arch = Annotated[
    str,
    typer.Argument(
        metavar="ARCH",
        help="Published network, path of an architecture JSON, STUDY:ID, or STUDY:recommended.",
        autocompletion=choices.networks,
    ),
]
Exportable = Annotated[
    str,
    typer.Argument(
        metavar="ARCH",
        help="Published network, architecture JSON, STUDY:ID, STUDY:recommended, or STUDY:front.",
        autocompletion=choices.networks_and_fronts,
    ),
]
AnyNetwork = Annotated[
    str,
    typer.Argument(
        metavar="ARCH",
        help="Published network, architecture JSON, STUDY:ID or STUDY:recommended, an ONNX file, or module:function.",
        autocompletion=choices.networks,
    ),
]
Resolution = Annotated[int | None, typer.Option(help="Square input resolution; the architecture's own if not given.")]


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (show, latency, export, verify):
        app.command(command.__name__, cls=choices.CommandWithChoices)(command)


def _load(text: str, resolution: int | None) -> tuple[Architecture, Path | None]:
    from nasspace.counting import cost

    architecture, weights = printing.architecture_of(text)
    architecture = architecture if resolution is None else architecture.with_resolution(resolution)
    cost(architecture)  # raises if a layer does not run at this resolution
    return architecture, weights


def show(arch: Arch, resolution: Resolution = None, json: Json = False) -> None:
    """Show a network layer by layer: shapes, options, parameters, FLOPs, memory; totals; published figures.

    For a trial that failed in the search, show the reason and the traceback instead; for one that failed later, at
    the deployment resolution, show them after the layers.
    """
    from nasspace.counting import cost
    from nasspace.zoo import published_of

    failure = _failure_of(arch)
    if failure and failure["state"] == "FAIL":
        return printing.print_json(failure) if json else _show_failure(failure)
    architecture, _ = _load(arch, resolution)
    counted = cost(architecture)
    totals = {key: getattr(counted, name) for key, name in SHOWN.items()}
    layers = []
    for layer, part in zip(architecture.layers, counted.layers, strict=True):
        numbers = {key: getattr(part, name) for key, name in SHOWN.items()}
        shapes = {"in_shape": list(part.in_shape), "out_shape": list(part.out_shape)}
        layers.append(
            {"block": layer.block, "stride": layer.stride, "options": dict(layer.options), **shapes, **numbers}
        )
    if json:
        name, size = architecture.name, list(architecture.input)
        document = {"name": name, "digest": architecture.digest, "input": size, **totals, "layers": layers}
        document["published"] = [vars(row) for row in published_of(architecture)]
        kept = {key: failure[key] for key in ("failure", "traceback")} if failure else {}
        return printing.print_json({**document, **kept})
    _show_table(architecture, layers, totals)
    if failure:
        _show_failure(failure)
    for row in published_of(architecture):
        figures = {" % top-1 accuracy": row.top1, "M parameters": row.params_m, "M FLOPs": row.madds_m}
        parts = [f"{value:g}{unit}" for unit, value in figures.items() if value]
        printing.print_text(f"published: {', '.join([*parts, row.latency] if row.latency else parts)} ({row.source})")
    return None


def _failure_of(arch: str) -> dict[str, Any] | None:
    """The recorded failure of a study's trial; None for any other network."""
    from nasspace.studies.study import read

    trial = printing.study_trial(arch)
    return read(trial[0]).failure(trial[1]) if trial else None


def _show_failure(failure: dict[str, Any]) -> None:
    trial = f"trial {failure['id']} of study {failure['study']} (digest {failure['digest']})"
    print(printing.escape(f"{trial} {failure['failure']}"))
    trace = failure["traceback"] or "no traceback was kept: its process died, or its loss was NaN"
    print(*map(printing.escape, trace.splitlines()), sep="\n")


NOTICEABLE = 0.03  # relative difference of a machine's speed from its usual one
SHOWN = {  # key of the document: attribute of the cost
    **{name: name for name in ("flops", "params", "memory_access", "activations")},
    **{f"{name}_bytes": name for name in ("peak_memory", "peak_memory_int8", "flash", "flash_int8")},
}
COUNTED = {"params": "params", "flops": "FLOPs", "memory_access": "memory access", "peak_memory_bytes": "peak memory"}
LAYER_COLUMNS = ("layer", "options", "stride", "in", "out", *COUNTED.values())
DROPPABLE = ("in", "memory access", "stride", "peak memory", "options", "out")  # in a narrow terminal, in this order


def _show_table(architecture: Architecture, layers: list[dict[str, Any]], totals: dict[str, int]) -> None:
    """Print one row per layer; in a narrow terminal counts are rounded and columns dropped."""
    shown: Callable[[int], str] = printing.count if printing.is_narrow() else "{:,}".format
    rows = []
    for i, layer in enumerate(layers):
        row = {"layer": f"{i:>3} {layer['block']}", "stride": str(layer["stride"])}
        row["options"] = ", ".join(f"{key} {value}" for key, value in layer["options"].items())
        row |= {key: "x".join(map(str, layer[f"{key}_shape"])) for key in ("in", "out")}
        rows.append(row | _count_cells(layer, shown))
    rows.append(dict.fromkeys(rows[0], "") | {"layer": "    total"} | _count_cells(totals, shown))
    size = "x".join(map(str, architecture.input))
    title = f"{architecture.name or 'network'} (digest {architecture.digest}), input {size}"
    caption = printing.FLOPS_ARE
    printing.print_fitted(LAYER_COLUMNS, rows, DROPPABLE, title=title, caption=caption, wrapped="options")
    sizes = {name: kilobytes(totals[f"{name}_bytes"]) for _, each in MEMORY for name in (each, f"{each}_int8")}
    parts = [f"{what} {sizes[name]} ({sizes[f'{name}_int8']} in int8)" for what, name in MEMORY]
    printing.print_text("; ".join(parts))


MEMORY = (("peak memory of the tensors", "peak_memory"), ("weights as they ship (flash)", "flash"))


def _count_cells(counts: dict[str, Any], shown: Callable[[int], str]) -> dict[str, str]:
    """The cells of a layer's counts, or of the totals."""
    return {
        label: kilobytes(counts[name]) if name == "peak_memory_bytes" else shown(counts[name])
        for name, label in COUNTED.items()
    }


def latency(
    arch: AnyNetwork,
    runtime: Annotated[
        str, typer.Option(help="What runs the network: {runtimes}.", autocompletion=choices.runtimes)
    ] = "onnxruntime",
    threads: Annotated[int, typer.Option(help="Threads of the runtime.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Images in a batch.")] = 1,
    resolution: Resolution = None,
    device: Annotated[
        str,
        typer.Option(
            help="Where to run: {devices}; others than cpu with eager, torchscript, compile.",
            autocompletion=choices.devices,
        ),
    ] = "cpu",
    latency_device: Annotated[str, typer.Option(help=printing.LATENCY_DEVICE)] = "local",
    seconds: Annotated[float, typer.Option(min=0.01, help="Approximate time to measure.")] = 3.0,
    cached: Annotated[bool, typer.Option("--cached", help="Use an earlier measurement if there is one.")] = False,
    beside: Annotated[
        str | None,
        typer.Option(
            metavar="STUDY",
            help="Compare with the front of a search on this machine.",
            autocompletion=choices.studies,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Measure the latency of a network on this machine, or on one reached over SSH.

    module:function names a function that returns an nn.Module; its code is run.
    """
    from nasspace.latency import foreign
    from nasspace.latency.remote import measure_latency

    rows = _front_of(beside) if beside else None
    if foreign.is_foreign(arch):
        if runtime != "onnxruntime" or device != "cpu" or cached:
            raise InputError(
                f"{arch}: is always measured again, in onnxruntime on the cpu; leave the other settings out"
            )
        measured = foreign.measure(
            arch,
            **{"threads": threads, "batch_size": batch_size, "resolution": resolution},
            **{"seconds": seconds, "latency_device": latency_device},
        )
    else:
        architecture, _ = _load(arch, resolution)
        measured = measure_latency(
            architecture,
            runtime,
            threads,
            batch_size,
            latency_device=latency_device,
            device=device,
            seconds=seconds,
            fresh=not cached,
        )
    compared = None if rows is None else [_compared(row, measured.median_ms) for row in rows]
    if json:
        more = {} if compared is None else {"beside": {"study": beside, "front": compared}}
        return printing.print_json({**measured.to_json(), **more})
    interval = printing.latency(measured.low_ms, measured.median_ms, measured.high_ms)
    printing.print_text(
        f"{interval} ms: the median at the machine's usual speed, from {measured.rounds} rounds, and its interval"
    )
    machine = ", ".join(f"{key} {value}" for key, value in measured.machine.items())
    size = "x".join(map(str, measured.input))
    printing.print_text(
        f"{runtime} on {measured.device}, {threads} thread(s), batch {batch_size}, input {size}; {machine}"
    )
    if measured.speed and abs(measured.speed - 1) > NOTICEABLE:
        printing.print_text(
            f"the machine ran at {100 * measured.speed:.0f} % of its usual speed; the latency is corrected for it"
        )
    if measured.contended:
        printing.print_message(
            "nas: another process competed for the processor throughout; measure again when the machine is idle"
        )
    if compared is not None:
        _print_compared(compared, arch)
    return None


def _front_of(name: str) -> list[dict[str, Any]]:
    """The members of a study's front with a latency, fastest first."""
    from nasspace.studies import study as records

    study = records.read(name)
    rows = [row for row in study.snapshot().document()["front"] if row.get("latency_ms")]
    if not rows:
        raise InputError(f"--beside {name}: its front has no measured latency; name a study that measured one")
    return sorted(rows, key=lambda row: row["latency_ms"])


def _compared(row: dict[str, Any], median_ms: float) -> dict[str, Any]:
    """A member of a front next to a measured latency: how many times as fast it is."""
    keys = (
        "id",
        "latency_ms",
        "latency_low_ms",
        "latency_high_ms",
        "accuracy_expected",
        "accuracy_low",
        "accuracy_high",
    )
    return {**{key: row.get(key) for key in keys}, "times_as_fast": round(median_ms / row["latency_ms"], 3)}


def _print_compared(rows: list[dict[str, Any]], arch: str) -> None:
    columns = ("id", "latency ms (95 %)", "times as fast", "accuracy expected (95 %)")
    cells = []
    for row in rows:
        accuracy = "-"
        if row["accuracy_expected"] is not None:
            accuracy = f"{row['accuracy_expected']:.3f}"
            if row["accuracy_low"] is not None:
                accuracy += f" ({row['accuracy_low']:.3f}-{row['accuracy_high']:.3f})"
        latency = printing.latency(row["latency_low_ms"], row["latency_ms"], row["latency_high_ms"])
        values = (str(row["id"]), latency, f"{row['times_as_fast']:.2f}", accuracy)
        cells.append(dict(zip(columns, values, strict=True)))
    printing.print_fitted(columns, cells, ())
    printing.print_message(f"'times as fast': the latency of {arch} over that of the member, as the study measured it")


def export(
    arch: Exportable,
    out: Annotated[Path | None, typer.Option(help="Folder to write; exports/NAME if not given.")] = None,
    format: Annotated[
        str, typer.Option(help="Any of source, onnx, torch, pt2, openvino, executorch, litert, with commas.")
    ] = "source,onnx,torch",
    with_preprocessing: Annotated[
        bool,
        typer.Option("--with-preprocessing", help="Also an ONNX file that takes a decoded image and does the rest."),
    ] = False,
    resolution: Resolution = None,
    batch: Annotated[str, typer.Option(help="Images in a batch of the files: a number, or dynamic.")] = "dynamic",
    seed: Annotated[int, typer.Option(help="Seed of the weights of a network that was never trained.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite another network's export in the folder exports/NAME.")
    ] = False,
    json: Json = False,
) -> None:
    """Export a network that runs without nasspace: architecture, model.py, weights, ONNX; every file is checked."""
    from nasspace.engine import arch_reference
    from nasspace.exporting import photo_onnx, preprocessing
    from nasspace.exporting.export import FORMATS, earlier
    from nasspace.exporting.export import export as write
    from nasspace.exporting.members import export_front, export_member
    from nasspace.studies.study import read

    formats = tuple(part.strip() for part in format.split(",") if part.strip())
    size = int(batch) if batch.isascii() and batch.isdecimal() else batch
    if not formats:
        raise InputError(f"--format: names no format; give some of {', '.join(FORMATS)}")
    options: dict[str, Any] = {
        "formats": (*formats, photo_onnx.FORMAT) if with_preprocessing else formats,
        "seed": seed,
        "batch_size": size,
        "replace": force or out is not None,
    }
    if name := arch_reference.parse_front(arch):
        folder = out or Path("exports") / Path(name).name
        front = export_front(read(name).snapshot(), folder, resolution=resolution, **options)
        return _print_checks(_merge_exports(folder, front), json)
    if trial := printing.study_trial(arch):
        folder = out or Path("exports") / f"{Path(trial[0]).name}-{trial[1]}"
        study = read(trial[0])
        exported = export_member(study.snapshot(), study.member(trial[1]), folder, resolution=resolution, **options)
    else:
        architecture, weights = _load(arch, resolution)
        folder = out or Path("exports") / (
            Path(arch).resolve().name if weights else architecture.name or architecture.digest
        )
        arguments = {"weights": weights, **options}
        if (Path(arch) / preprocessing.NAME).is_file():
            arguments["preprocessing"] = preprocessing.read_for(Path(arch), architecture)
            arguments |= earlier(Path(arch), architecture)
        exported = write(architecture, folder, **arguments)
    return _print_checks(exported, json)


def verify(
    folder: Annotated[Path, typer.Argument(help="An export's folder, or a study (name or folder): all its exports.")],
    data: Annotated[
        str | None,
        typer.Option(help="The data that the network was trained on: judge each file's accuracy again."),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the files of fashion-mnist or cifar10.")] = None,
    no_code: Annotated[bool, typer.Option("--no-code", help="Do not run model.py and model.pt2.")] = False,
    json: Json = False,
) -> None:
    """Check an export again on this machine: equal outputs of all its files, and the recorded counts.

    This runs code from the folder, with the rights of your account: model.py, and model.pt2 if there is one, unless it
    was changed since the export. The record of the export is in the same folder, so use --no-code for a folder that you
    do not trust.
    """
    from nasspace.exporting.export import verify as check

    options = {"data": data, "data_dir": data_dir, "code": not no_code}
    exports = _exports_of(folder)
    if not no_code and (exports or (folder / "export.json").is_file()):
        printing.print_message(f"runs the code in {folder} with the rights of your account; --no-code leaves it out")
    if exports:
        merged = _merge_exports(exports[0].parent, [_verify_member(each, options) for each in exports])
        _print_checks(merged, json)
    else:
        _print_checks(check(folder, **options), json)


def _verify_member(folder: Path, options: dict[str, Any]) -> Any:
    """Check an export of a study; a missing or damaged one is a failed check, so that the others are still checked."""
    from nasspace.exporting.checks import Check
    from nasspace.exporting.export import Exported
    from nasspace.exporting.export import verify as check

    try:
        return check(folder, **options)
    except InputError as error:
        return Exported(folder, [], [Check("is a whole export", False, str(error), "")])


def _exports_of(name: Path) -> list[Path]:
    """The exports of a study, by their numbers; none if the name is not a study."""
    from nasspace.studies.paths import as_argument, folder_of
    from nasspace.studies.study import read

    folder = folder_of(str(name))
    if (name / "export.json").is_file() or not (folder / "study.yaml").is_file():
        return []
    found = {int(path.name) for path in (folder / "exports").glob("*") if path.name.isdecimal()}
    if not found:
        raise InputError(f"{folder}: this study has no exports; run `nas resume {as_argument(folder)}`")
    return [folder / "exports" / str(number) for number in sorted(found | set(read(str(folder)).front_numbers()))]


def _merge_exports(folder: Path, exports: Sequence[Any]) -> Any:
    """Merge several exports into one, with the folder's name before each check and file."""
    from nasspace.exporting.export import Exported

    named = [(one.folder.name, one) for one in exports]
    files = [f"{name}/{file}" for name, one in named for file in one.files]
    checks = [replace(check, name=f"{name}: {check.name}") for name, one in named for check in one.checks]
    accuracy = {f"{name}/{file}": value for name, one in named for file, value in one.accuracy.items()}
    return Exported(folder, files, checks, accuracy)


def _print_checks(exported: Any, json: bool) -> None:
    """Print the files and checks of an export; a failed check ends with exit status 1."""
    if json:
        printing.print_json(exported.to_dict())
    else:
        printing.print_text(f"{printing.escape_line(exported.folder)}: {', '.join(exported.files)}")
        printing.print_checks(exported.checks)
    if not exported.ok:
        raise typer.Exit(1)
