"""`nas explain`: why a network is slow."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from nasspace.cli import printing
from nasspace.cli.networks import AnyNetwork, Resolution
from nasspace.cli.spaces import Json

if TYPE_CHECKING:
    from nasspace.guidelines import Explanation, Finding


def add_to(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("explain")(explain)


def explain(
    arch: AnyNetwork,
    measure: Annotated[
        bool, typer.Option("--measure", help="Also measure what each change saves, in the changed network.")
    ] = False,
    threads: Annotated[int, typer.Option(help="Threads of ONNX Runtime.", min=1)] = 1,
    batch_size: Annotated[int, typer.Option(help="Images in a batch.", min=1)] = 1,
    resolution: Resolution = None,
    seconds: Annotated[float, typer.Option(help="Approximate time to measure, and to profile.", min=0.01)] = 1.0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again instead of using cached measurements.")] = False,
    json: Json = False,
) -> None:
    """Show where a network's time goes, layer by layer, and what changes by ShuffleNet V2's guidelines would save.

    module:function names a function that returns an nn.Module; its code is run.
    """
    from nasspace import guidelines
    from nasspace.latency import foreign

    settings = {"threads": threads, "batch_size": batch_size, "seconds": seconds, "measure": measure, "fresh": fresh}
    if foreign.is_foreign(arch):
        with foreign.as_file(arch, batch_size, resolution) as path:
            explanation = guidelines.explain_file(path, **settings)
        document, title = {"name": arch, "digest": None, "input": list(explanation.input)}, arch
    else:
        architecture, _ = printing.architecture_of(arch)
        architecture = architecture if resolution is None else architecture.with_resolution(resolution)
        explanation = guidelines.explain(architecture, **settings)
        document = {"name": architecture.name, "digest": architecture.digest, "input": list(architecture.input)}
        title = f"{architecture.name or 'network'} (digest {architecture.digest})"
    if json:
        return printing.print_json({**explanation.to_json(), **document})
    _show(explanation, title)
    if explanation.contended:
        printing.print_message("nas: another process competed for the processor; run it again when the machine is idle")
    return None


COLUMNS = ("layer", "ms", "share", "FLOPs", "memory access", "FLOPs/element")
DROPPABLE = ("FLOPs/element", "memory access", "FLOPs", "ms")  # in a narrow terminal, in this order


def _show(explanation: Explanation, name: str) -> None:
    """Print the table of layers, then the findings."""
    shown: Callable[[int], str] = printing.count if printing.is_narrow() else "{:,}".format
    rows = []
    for row in explanation.time:
        label = f"    {row.block}" if row.layer is None else f"{row.layer:>3} {row.block}"
        cells = [label, f"{row.ms:.4f}", f"{100 * row.share:.1f} %", "-", "-", "-"]
        if row.layer is not None:
            per_element = "-" if row.intensity is None else f"{row.intensity:.1f}"
            cells[3:] = [shown(row.flops), shown(row.memory_access), per_element]
        rows.append(dict(zip(COLUMNS, cells, strict=True)))
    interval = printing.latency(explanation.low_ms, explanation.latency_ms, explanation.high_ms)
    title = f"{name}: {interval} ms in ONNX Runtime, {explanation.threads} thread(s), batch {explanation.batch_size}"
    runs = f"Median of {explanation.runs} profiled runs; the rest is the time between operators."
    printing.print_fitted(COLUMNS, rows, DROPPABLE, title=title, caption=f"{runs} {printing.FLOPS_ARE}")
    for finding in explanation.findings:
        printing.print_text(_sentence(finding, explanation.latency_ms))
    if not explanation.findings:
        printing.print_text("G1 to G4: no change of this network is predicted to save 3 % of its time.")


def _sentence(finding: Finding, latency_ms: float) -> str:
    """Two lines for a finding: the problem, and what its change saves."""
    where = ", ".join(map(str, finding.layers))
    saves = f"{finding.saving_ms:.3g} ms ({100 * finding.saving_ms / latency_ms:.0f} %) predicted"
    if finding.measured_ms is not None:
        error = printing.milliseconds(finding.measured_plus_minus_ms)
        saves += f", {finding.measured_ms:.3g} +- {error} ms measured ({finding.measured_on})"
    return (
        f"{finding.guideline} layers {where}, {100 * finding.share:.1f} % of the time: {finding.text}.\n"
        f"   What if: {finding.change}; saves {saves}."
    )
