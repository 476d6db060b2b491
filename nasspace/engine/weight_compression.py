"""Compression of a trained network's weights, and fine-tuning of what is left; measured before and after.

The compressed network is trained like any other, with a constraint that keeps its form, and resumes from the
checkpoint of that training. Everything else takes seconds and is repeated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nasspace import temporary
from nasspace.architecture import Architecture
from nasspace.compression import factorization, sparsity
from nasspace.compression.clustering import SharedValues
from nasspace.compression.sparsity import Sparsity
from nasspace.compression.weights import large_weights, parameter_count
from nasspace.counting import cost
from nasspace.engine import full_training
from nasspace.engine.arch_reference import ResolvedArch
from nasspace.engine.compression_record import Compression, Figures, Job
from nasspace.engine.latency_evaluator import measured_in_turn
from nasspace.engine.settings import resolve_settings
from nasspace.errors import InputError
from nasspace.exporting import judging
from nasspace.exporting.weights import read_safetensors
from nasspace.latency.benchmark import change_between, middle
from nasspace.latency.convert import to_onnx
from nasspace.network import Network, build, fold
from nasspace.training import trainer
from nasspace.training.settings import Fidelity

if TYPE_CHECKING:
    from torch import Tensor

EPOCHS = 10  # of the fine-tuning


@dataclass(frozen=True)
class Plan:
    """What a method makes of a network: its start for the fine-tuning, and the constraint that holds in it.

    `words` describe it; `details` are figures of the fine-tuned network.
    """

    architecture: Architecture
    state: Mapping[str, Tensor]
    constraint: trainer.Constraint | None
    words: str
    details: Callable[[Network], dict[str, Any]]


def sparse(architecture: Architecture, network: Network, *, keep: float, threshold: sparsity.Threshold) -> Plan:
    """Set weights to zero until a share `keep` is left."""
    count = sum(weight.numel() for weight in large_weights(network).values())
    words = f"sets {1 - keep:.4g} of {count:,} weights to zero, in the first half of the training"
    constraint = Sparsity(keep, threshold)
    return Plan(architecture, network.state_dict(), constraint, words, _zeros)


def _zeros(trained: Network) -> dict[str, Any]:
    """The number of weights as they ship, with branches folded, and the share of them that is zero."""
    weights = large_weights(fold(copy.deepcopy(trained).eval()))
    return {"weights": sum(weight.numel() for weight in weights.values()), "zeros": sparsity.zeros(weights)}


def clustered(architecture: Architecture, network: Network, *, bits: int) -> Plan:
    """Replace the weights of each layer by at most 2^`bits` values."""
    constraint = SharedValues(network, bits)
    constraint.project(network, 0, 1)
    count = sum(weight.numel() for weight in large_weights(network).values())
    words = f"replaces the {count:,} weights of {len(constraint.codes)} layers by at most {2**bits} values in each"
    computed = constraint.computed_bytes(parameter_count(network))
    details = {"weights": count, "values": constraint.values, "computed_bytes": computed}
    return Plan(architecture, network.state_dict(), constraint, words, lambda trained: details)


def factorized(architecture: Architecture, network: Network, *, keep: float) -> Plan:
    """Replace layers by two smaller ones each, so that a share `keep` of their weights is left."""
    found = factorization.factorized(architecture, network.state_dict(), keep)
    if found is None:
        raise InputError(
            f"{architecture.name or architecture.digest}: has no layer to factorize: these are `linear`, and `conv` "
            "without groups, se and skip, but not the first layer; choose another method"
        )
    before, after = cost(architecture), cost(found.architecture)
    ranks = ", ".join(f"layer {i} at rank {rank}" for i, rank in found.ranks.items())
    words = f"factorizes {ranks}: {before.flops:,} to {after.flops:,} FLOPs"
    details = {"ranks": {str(i): rank for i, rank in found.ranks.items()}}
    return Plan(found.architecture, found.state, None, words, lambda trained: details)


METHODS: dict[str, Callable[..., Plan]] = {"magnitude": sparse, "svd": factorized, "cluster": clustered}


class Run:
    """One compression by a method of `METHODS`, with its options (`strength`)."""

    def __init__(self, job: Job, method: str, strength: Mapping[str, Any]):
        self.job = job
        self.method = method
        self.strength = dict(strength)
        self.data = data = job.start.data
        options = job.options
        self.settings = resolve_settings(options.settings, images=len(data.train), epochs=options.epochs).settings
        fidelity = Fidelity(data.resolution, options.epochs)
        self.record = job.record(fidelity, self.settings, {"method": method, **strength})

    def compress(self) -> Compression:
        """Compress, fine-tune, measure, and complete the folder."""
        job, data = self.job, self.data
        with trainer.threads(self.settings.threads):
            accuracy = trainer.evaluate(
                job.start.model, data.validation, data, data.resolution, device=job.options.device
            )
        job.start.model.to("cpu")
        job.report(f"validation accuracy {accuracy:.2%} before")
        plan = METHODS[self.method](job.architecture, copy.deepcopy(job.start.model), **self.strength)
        job.report(plan.words)
        options = replace(job.options, data=data, resolution=None, weights=dict(plan.state))
        options = replace(options, constraint=plan.constraint, inherited=job.start)
        training = full_training.train_one(ResolvedArch(plan.architecture), options, job.folder, job.report)
        trained = build(plan.architecture)
        trained.load_state_dict(read_safetensors(job.folder / "weights.safetensors"))
        accuracies = accuracy, training.validation.accuracy
        original, compressed, change = self._figures(plan.architecture, trained, accuracies)
        result = Compression(
            *(self.method, plan.architecture.digest, job.folder, None, original, compressed, (), training),
            strength=self.strength,
            details=plan.details(trained),
            latency_change=change,
        )
        self.record.write(result, section(result))
        return result

    def _figures(
        self, architecture: Architecture, trained: Network, accuracies: tuple[float, float]
    ) -> tuple[Figures, Figures, tuple[float, float, float]]:
        """The figures before and after, and the change of latency; the networks are measured in turn."""
        job, images = self.job, len(self.data.validation)
        job.report(f"measures both networks in {job.recipe.runtime}")
        networks = {"before": (job.architecture, job.start.model), "after": (architecture, trained)}
        loads = measured_in_turn(networks, job.recipe, self.data)
        if any(latency.contended for each in loads.values() for latency in each):
            job.report("the machine was busy: latencies are uncertain")
        found = {name: middle(each) for name, each in loads.items()}
        with temporary.private() as scratch:
            given = {"dynamic_batch": True, "metadata": judging.described(job.folder / "model.onnx")[1]}
            whole = to_onnx(job.start.model, job.architecture.input, scratch / "model.onnx", **given)
            before = Figures.of(job.architecture, found["before"], accuracies[0], images, whole)
        after = Figures.of(architecture, found["after"], accuracies[1], images, job.folder / "model.onnx")
        return before, after, change_between(loads["before"], loads["after"])


def section(result: Compression) -> str:
    """The README's section about the compression."""
    before, after = result.original, result.compressed
    chosen = ", ".join(f"{name} {value}" for name, value in result.strength.items())
    rows = "\n".join(
        f"| {name} | {one.accuracy:.2%} ({one.accuracy_low:.2%} to {one.accuracy_high:.2%}) | "
        f"{one.file_bytes:,} | {one.deflated_bytes:,} | "
        f"{one.latency_ms:.4g} ({one.latency_low_ms:.4g} to {one.latency_high_ms:.4g}) |"
        for name, one in (("before", before), ("after", after))
    )
    return (
        f"Method `{result.method}` ({chosen}), then {result.training.epochs} epochs of fine-tuning. "
        f"With it, {result.bought}.\n\n"
        "| | validation accuracy (95 %) | model.onnx, bytes | deflated, bytes | latency, ms (95 %) |\n"
        f"| -- | -- | -- | -- | -- |\n{rows}\n"
    )
