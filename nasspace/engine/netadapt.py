"""A trained network pruned, step by step, until its measured latency is within a target.

NetAdapt (Yang et al. 2018) as MobileNetV3 uses it (Howard et al. 2019, section 4.2). A step proposes networks, each
with one narrower width, that are faster than the current one by a part of the latency of the first. Each proposal is
measured and trained briefly from the weights of its most important channels. The one that loses least for what it
gains becomes the current network: log loss over latency, since accuracy on a few hundred images is coarse. The last
network is then trained in full.

What differs from the papers: latencies are measured, not summed up from a table, which a predictor replaces where the
size of a width is chosen; and of all proposals, only those are trained whose removed channels matter least.

A target in milliseconds is met if the upper end of the latency's interval is within it. A target that is a share of the
first latency is met if the upper end of the ratio's interval is within it. Both networks are then measured in turn: the
speed of a machine that others use, which makes the interval of a latency wide, cancels in the ratio.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace import files, temporary
from nasspace.architecture import Architecture
from nasspace.compression.pruning import Prunable, Pruned, Width
from nasspace.engine import full_training, machine_lock
from nasspace.engine.arch_reference import ResolvedArch
from nasspace.engine.compression_record import VERSION, Compression, Figures, Job, Step, interval
from nasspace.engine.latency_evaluator import LatencyEvaluator, MeasuredLatency, measured_in_turn
from nasspace.engine.rungs import with_lower_rate
from nasspace.engine.settings import resolve_settings
from nasspace.errors import InputError, NothingFound
from nasspace.exporting import checks
from nasspace.exporting.weights import as_safetensors, read_safetensors
from nasspace.formatting import duration, percent
from nasspace.latency.benchmark import Latency, change_between, middle
from nasspace.network import build
from nasspace.training import checkpoints, trainer
from nasspace.training.calibration import scaled_log_loss
from nasspace.training.settings import Fidelity

if TYPE_CHECKING:
    from torch import Tensor

    from nasspace.latency.predictor import Predictor
    from nasspace.network import Network

METHOD = "netadapt"
STEP = 0.05  # of the first network's latency
PROPOSALS = 6  # trained in a step
TUNING_IMAGES = 4000  # that a proposal is trained with, unless the data has fewer
TRIED = 16  # sizes of a width whose latency is predicted
ATTEMPTS = 3  # sizes of a width that are tried for one proposal
IN_TURN = 2  # measurements in turn, if the machine is busy in the first
IMPORTANCE_BATCHES, IMPORTANCE_IMAGES = 8, 64


@dataclass
class _Candidate:
    """A network on the way: how it came about, its latency, and the accuracy and weights after its short training."""

    change: str
    architecture: Architecture
    latency: Latency
    layers_ms: Sequence[float] | None = None
    accuracy: float = 0.0
    log_loss: float = 0.0
    ratio_high: float | None = None  # upper end of latency / first latency, measured in turn; None before that

    def to_json(self) -> dict[str, Any]:
        """Plain values; the weights are in a file of their own."""
        return {
            "change": self.change,
            "architecture": self.architecture.to_dict(),
            "latency": self.latency.to_json(),
            "layers_ms": self.layers_ms and list(self.layers_ms),
            "accuracy": self.accuracy,
            "log_loss": self.log_loss,
            "ratio_high": self.ratio_high,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> _Candidate:
        """Read the values of `to_json`."""
        from nasspace.documents import Document

        given = dict(values)
        architecture = Architecture.from_document(Document(given.pop("architecture")))
        return cls(**{**given, "architecture": architecture, "latency": Latency.from_json(given["latency"])})


@dataclass
class _State:
    """What a stopped compression continues from: the path so far, and the proposals of the current step."""

    path: list[_Candidate] = field(default_factory=list)  # the first network, then that of each step
    trained: list[int] = field(default_factory=list)  # proposals of each step
    proposed: list[_Candidate] = field(default_factory=list)  # trained in the current step
    measured: list[_Candidate] = field(default_factory=list)  # trained in earlier steps


class Run:
    """One compression; its state is kept next to the output folder until the folder is written.

    `target` holds the latency target in milliseconds or as a share. A step narrows by a share `step` of the first
    latency and trains `proposals` networks.
    """

    def __init__(self, job: Job, target: Mapping[str, Any], step: float, proposals: int):
        self.architecture = job.architecture
        self.start = job.start
        self.data = data = job.start.data
        self.options = options = job.options
        self.recipe = job.recipe
        self.report = job.report
        self.teacher = job.teacher
        self.target = target
        self.share: float | None = target["latency_share"]
        self.step = step  # not in the identity: a stopped compression may continue with another one
        self.proposals = proposals
        self.settings = resolve_settings(options.settings, images=len(data.train), epochs=1).settings
        self.measure = LatencyEvaluator(self.recipe, data)
        self.fidelity = Fidelity(data.resolution, 1, min(1.0, TUNING_IMAGES / len(data.train)))
        self.record = job.record(self.fidelity, self.settings, target)
        self.identity, self.work = self.record.identity, self.record.work
        self.state = _State()

    def compress(self) -> Compression:
        """Prune until the target is met, train in full, and complete the folder."""
        self._load_state()
        if not self.state.path:
            self._first()
        target = self._target_ms
        first, began, before = self.state.path[0], time.monotonic(), len(self.state.path)
        shown = f"{target:.4g} ms" if self.share is None else f"{percent(self.share)} of it"
        self.report(
            f"{first.latency.median_ms:.4g} ms ({first.latency.low_ms:.4g} to {first.latency.high_ms:.4g}), target "
            f"{shown}; validation accuracy {first.accuracy:.2%}"
        )
        if first.latency.contended:
            self.report("the machine was busy: latencies are uncertain, and so is what a step gains")
        while not self._confirmed(target):
            self._next(target)
            current = self.state.path[-1]
            done, left = len(self.state.path) - before, self._bound_ms(current) - target
            covered = self._bound_ms(self.state.path[before - 1]) - self._bound_ms(current)
            hurry = (time.monotonic() - began) / covered * left if done and covered > 0 else 0
            self.report(
                f"step {len(self.state.path) - 1}: {current.latency.median_ms:.4g} ms (to "
                f"{current.latency.high_ms:.4g}), validation accuracy {current.accuracy:.2%}: {current.change}"
                + (f"; about {duration(hurry)} of steps left" if left > 0 else "")
            )
        return self._complete(target)

    @property
    def _target_ms(self) -> float:
        """The target in milliseconds."""
        given = self.target["latency_target_ms"]
        return given if self.share is None else self.share * self.state.path[0].latency.median_ms

    def _bound_ms(self, candidate: _Candidate) -> float:
        """What is compared with the target: the upper end of the latency; for a share that of the ratio, if known."""
        if self.share is None:
            return candidate.latency.high_ms
        if candidate.ratio_high is None:
            return candidate.latency.median_ms
        return candidate.ratio_high * self.state.path[0].latency.median_ms

    def _in_turn(self, current: _Candidate, state: Mapping[str, Tensor]) -> tuple[list[Latency], list[Latency]]:
        """The latencies of the first network and the current one, measured in turn."""
        model = build(current.architecture)
        model.load_state_dict(dict(state))
        networks = {"first": (self.architecture, self.start.model), "current": (current.architecture, model.eval())}
        for attempt in range(IN_TURN):
            found = measured_in_turn(networks, self.recipe, self.data)
            if not any(load.contended for loads in found.values() for load in loads):
                break
            again = "; measures again" if attempt + 1 < IN_TURN else ": the ratio is uncertain"
            self.report(f"the machine was busy while the networks were measured in turn{again}")
        return found["first"], found["current"]

    def _confirmed(self, target: float) -> bool:
        """Whether the current network is within the target, also when it is measured again."""
        current = self.state.path[-1]
        if self._bound_ms(current) > target:
            return False
        if len(self.state.path) == 1:
            self._forget()  # so that another target can be given
            raise InputError(
                f"the network takes {current.latency.median_ms:.4g} ms (to {current.latency.high_ms:.4g}), within the "
                f"target of {target:.4g} ms; give a smaller one"
            )
        if self.share is not None:
            if current.ratio_high is None:
                current.ratio_high = 1 + change_between(*self._in_turn(current, self._weights(current)))[2]
                self._save_state()
                self.report(f"measured in turn: up to {100 * current.ratio_high:.1f} % of the first latency")
            return current.ratio_high <= self.share
        again = LatencyEvaluator(self.recipe, self.data, fresh=True)(current.architecture).latency
        if again.high_ms <= target:
            return True
        current.latency = again
        self._save_state()
        return False

    def _forget(self) -> None:
        """Delete the state, but not the lock, which this process holds."""
        for path in self.work.iterdir():
            if path.name != "lock":
                path.unlink()

    def _first(self) -> None:
        """Measure and judge the network before anything is removed."""
        data, side = self.data, self.data.resolution
        with trainer.threads(self.settings.threads):
            found = trainer.logits(self.start.model, data.validation, data, side, device=self.options.device)
        self.start.model.to("cpu")
        labels = data.validation.labels
        measured = self.measure(self.architecture)
        first = _Candidate("", self.architecture, measured.latency, measured.layers_ms)
        first.accuracy = int((found.argmax(1) == labels).sum()) / len(labels)
        first.log_loss = scaled_log_loss(found, labels)
        self.state.path.append(first)
        self.state.trained.append(0)
        self._keep(first, self.start.model.state_dict())
        self._save_state()

    def _next(self, target: float) -> None:
        """Take one step; `NothingFound` if no narrower network is fast enough."""
        current, first = self.state.path[-1], self.state.path[0]
        # An upper end decides about the target, medians about steps: the width of intervals varies.
        most = current.latency.median_ms - self.step * first.latency.median_ms
        most = max(most, target * current.latency.median_ms / self._bound_ms(current))
        if len(self.state.proposed) < self.proposals:
            prunable = Prunable(current.architecture, self._weights(current), self._batches())
            for width, sizes in self._ranked(prunable, most):
                if len(self.state.proposed) >= self.proposals:
                    break
                self._propose(prunable, width, sizes, most)
        if not self.state.proposed:
            raise NothingFound(
                f"after {len(self.state.path) - 1} steps at {current.latency.median_ms:.4g} ms: no narrower network is "
                f"measured to be faster by {self.step:.0%} of the first latency; the target was {target:.4g} ms; give "
                f"another --step to continue, or a larger target with another --out folder"
            )

        def loss_per_ms(each: _Candidate) -> float:
            return (each.log_loss - current.log_loss) / (current.latency.median_ms - each.latency.median_ms)

        chosen = min(self.state.proposed, key=loss_per_ms)
        self.state.path.append(chosen)
        self.state.trained.append(len(self.state.proposed))
        self.state.measured += self.state.proposed
        self.state.proposed = []
        self._save_state()
        for path in self.work.glob("*.safetensors"):
            if path.stem != chosen.architecture.digest:
                path.unlink()

    def _ranked(self, prunable: Prunable, most: float) -> list[tuple[Width, list[int]]]:
        """The widths with the sizes that are predicted to be fast enough, in the order of what is lost with them."""
        predictor = self._predictor()
        found: list[tuple[float, Width, list[int]]] = []
        for width in prunable.widths:
            sizes = self._fast_enough(predictor, prunable, width, most)
            sizes = sizes[:: max(1, len(sizes) // ATTEMPTS)]
            pruned = (_pruned(prunable, width, size) for size in sizes)
            if first := next((one for one in pruned if one is not None), None):
                found.append((float("inf") if first.lost is None else first.lost, width, sizes))
        return [(width, sizes) for _, width, sizes in sorted(found, key=lambda each: each[0])]

    def _fast_enough(self, predictor: Predictor, prunable: Prunable, width: Width, most: float) -> list[int]:
        """Sizes of a width with networks that are predicted to be fast enough, the widest first."""
        counts = prunable.counts(width)
        tried = counts[:: max(1, len(counts) // TRIED)]
        made = [(count, one) for count in tried if (one := prunable.narrowed(width, count)) is not None]
        if not made:
            return []
        current = self.state.path[-1]
        expected, _ = predictor.predict([current.architecture, *(one for _, one in made)])
        factor = current.latency.median_ms / expected[0]
        return [size for (size, _), ms in zip(made, factor * expected[1:], strict=True) if ms <= most]

    def _predictor(self) -> Predictor:
        """The latency predictor of the networks measured before this step, so that a continued step is the same."""
        from nasspace.latency.predictor import Predictor

        measured = [self.state.path[0], *self.state.measured]
        return Predictor(
            [each.architecture for each in measured],
            [each.latency.median_ms for each in measured],
            [each.layers_ms for each in measured],
        )

    def _propose(self, prunable: Prunable, width: Width, sizes: Sequence[int], most: float) -> None:
        """Measure a width's sizes until one is fast enough, and train that network briefly."""
        current = self.state.path[-1]
        halfway = (most + current.latency.median_ms) / 2  # a prediction is not exact
        for size in sizes:
            pruned = _pruned(prunable, width, size)
            if pruned is None:
                continue
            digest = pruned.architecture.digest
            if any(digest == each.architecture.digest for each in self.state.proposed):
                return  # before the compression was stopped
            measured = self.measure(pruned.architecture)
            if measured.latency.median_ms <= halfway:
                found = self._closer(prunable, width, size, measured, most) or (size, pruned, measured)
                size, pruned, measured = found
                change = f"{width} from {width.count} to {size}"
                candidate = _Candidate(change, pruned.architecture, measured.latency, measured.layers_ms)
                return self._train_briefly(candidate, pruned.network)
        return None

    def _closer(
        self, prunable: Prunable, width: Width, size: int, measured: MeasuredLatency, most: float
    ) -> tuple[int, Pruned, MeasuredLatency] | None:
        """A larger size that is fast enough, if one is measured to be much faster than the step asks for.

        Early predictions, from few measured networks, may be wrong by half of a latency.
        """
        current, ms = self.state.path[-1].latency.median_ms, measured.latency.median_ms
        if most - ms <= (current - most) / 2:
            return None
        wanted = size + (width.count - size) * (most - ms) / (current - ms)
        counts = [count for count in prunable.counts(width) if size < count <= wanted]
        proposed = {each.architecture.digest for each in self.state.proposed}
        for count in counts[:: max(1, len(counts) // ATTEMPTS)]:
            pruned = _pruned(prunable, width, count)
            if pruned is None or pruned.architecture.digest in proposed:
                continue
            again = self.measure(pruned.architecture)
            if again.latency.median_ms <= (most + current) / 2:
                return count, pruned, again
        return None

    def _train_briefly(self, candidate: _Candidate, network: Network) -> None:
        """Train a proposal, and keep it."""
        with machine_lock.TrainingLock():
            trained = trainer.train(
                network,
                self.data,
                self.fidelity,
                with_lower_rate(self.settings),
                seed=self.options.seed + len(self.state.path),
                device=self.options.device,
                teacher=self.teacher,
            )
        if trained.diverged:
            return
        candidate.accuracy, candidate.log_loss = trained.accuracy, trained.log_loss
        self._keep(candidate, network.state_dict())
        self.state.proposed.append(candidate)
        self._save_state()

    def _batches(self) -> list[tuple[Tensor, Tensor]]:
        """Training images, spread over the classes, that decide which channels are important."""
        from nasspace.data.images import spread

        train = self.data.train
        count = min(len(train), IMPORTANCE_BATCHES * IMPORTANCE_IMAGES)
        chosen = spread(len(train), count)
        return [
            (trainer.normalized(train.pixels[part], self.data), train.labels[part])
            for part in (chosen[i::IMPORTANCE_BATCHES] for i in range(IMPORTANCE_BATCHES))
            if len(part)
        ]

    def _complete(self, target: float) -> Compression:
        """Train the last network in full, and write the record into its folder."""
        current = self.state.path[-1]
        self.report(f"trains the network of step {len(self.state.path) - 1} in full")
        given = {"data": self.data, "resolution": None, "weights": self._weights(current), "inherited": self.start}
        source, options = ResolvedArch(current.architecture), replace(self.options, **given)
        training = full_training.train_one(source, options, self.record.folder, self.report)
        first, again, change = self._measured_again(current, target)
        target = target if self.share is None else self.share * first.median_ms
        with temporary.private() as scratch:
            from nasspace.latency.convert import to_onnx

            whole = to_onnx(self.start.model, self.architecture.input, scratch / "model.onnx")
            images = len(self.data.validation)
            original = Figures.of(self.architecture, first, self.state.path[0].accuracy, images, whole)
        shipped = self.record.folder / "model.onnx"
        compressed = Figures.of(current.architecture, again, training.validation.accuracy, images, shipped)
        steps = tuple(
            Step(each.change, each.architecture.digest, *interval(each.latency), each.accuracy, each.log_loss, trained)
            for each, trained in zip(self.state.path[1:], self.state.trained[1:], strict=True)
        )
        digest, folder = current.architecture.digest, self.record.folder
        figures = (target, original, compressed, steps, training)
        strength = {} if self.share is None else {"latency_share": self.share}
        result = Compression(METHOD, digest, folder, *figures, strength=strength, latency_change=change)
        self.record.write(result, section(result))
        return result

    def _measured_again(
        self, current: _Candidate, target: float
    ) -> tuple[Latency, Latency, tuple[float, float, float] | None]:
        """The latencies of the first network and of the trained one, and for a share the change between them."""
        if self.share is None:
            again = LatencyEvaluator(self.recipe, self.data, fresh=True)(current.architecture).latency
            if again.high_ms > target:
                self.report(f"measured again: {again.median_ms:.4g} ms, up to {again.high_ms:.4g}, above the target")
            return self.state.path[0].latency, again, None
        loads = self._in_turn(current, read_safetensors(self.record.folder / checks.PIPELINE))
        change = change_between(*loads)
        above = ", above the target" if 1 + change[2] > self.share else ""
        self.report(f"measured again in turn: {_ratio(change)} of the first latency{above}")
        return middle(loads[0]), middle(loads[1]), change

    def _keep(self, candidate: _Candidate, state: Mapping[str, Tensor]) -> None:
        """Keep the weights of a candidate."""
        with files.replacing(self._path(candidate)) as new:
            new.write_bytes(as_safetensors(state))

    def _weights(self, candidate: _Candidate) -> dict[str, Tensor]:
        """The weights of a candidate."""
        return read_safetensors(self._path(candidate))

    def _path(self, candidate: _Candidate) -> Path:
        return self.work / f"{candidate.architecture.digest}.safetensors"

    def _save_state(self) -> None:
        """Write the state, after the weights that it names."""
        state = {
            "path": [each.to_json() for each in self.state.path],
            "trained": self.state.trained,
            "proposed": [each.to_json() for each in self.state.proposed],
            "measured": [each.to_json() for each in self.state.measured],
        }
        files.write_json(
            self.work / "state.json", {"nasspace_compression": VERSION, "identity": self.identity, **state}
        )

    def _load_state(self) -> None:
        """Continue from the state of a stopped compression; that of another one raises `InputError`."""
        path = self.work / "state.json"
        if not path.is_file():
            return
        remedy = f"delete {self.work} to start from the beginning, or choose another --out folder"
        document = files.load_json(path)
        state = document.value
        if not isinstance(state, dict) or state.get("nasspace_compression") != VERSION:
            raise document.error((), f"not the state of a compression of version {VERSION}; {remedy}")
        if other := checkpoints.differing(self.identity, state.get("identity", {})):
            raise InputError(f"{self.work}: is of another compression ({', '.join(other)} differ); {remedy}")
        parts = {key: [_Candidate.from_json(each) for each in state[key]] for key in ("path", "proposed", "measured")}
        self.state = _State(trained=state["trained"], **parts)
        self.report(f"continues after step {len(self.state.path) - 1}")


def _pruned(prunable: Prunable, width: Width, size: int) -> Pruned | None:
    """The network with another size of a width."""
    architecture = prunable.narrowed(width, size)
    return None if architecture is None else prunable.pruned(architecture)


def _ratio(change: tuple[float, float, float]) -> str:
    """The ratio of a relative change, and its interval.

    >>> _ratio((-0.312, -0.325, -0.298))
    '68.8 % (67.5 to 70.2)'
    """
    ratio, low, high = (100 * (1 + each) for each in change)
    return f"{ratio:.1f} % ({low:.1f} to {high:.1f})"


def section(result: Compression) -> str:
    """The README's section about the compression."""
    rows = "\n".join(
        f"| {i + 1} | {one.change} | {one.latency_ms:.4g} ({one.latency_low_ms:.4g} to {one.latency_high_ms:.4g}) | "
        f"{one.accuracy:.2%} |"
        for i, one in enumerate(result.steps)
    )
    before, after = result.original, result.compressed
    target = f"target {result.target_ms:.4g} ms"
    if result.latency_change is not None:
        share = percent(result.strength["latency_share"])
        target = f"target {share} of it; measured in turn: {_ratio(result.latency_change)}"
    return (
        f"Pruned by NetAdapt from {before.latency_ms:.4g} ms to {after.latency_ms:.4g} ms ({target}). Validation "
        f"accuracy: {before.accuracy:.2%} before, {after.accuracy:.2%} after.\n"
        "The steps, each after a short training:\n\n"
        f"| step | narrowed | latency, ms (95 %) | validation accuracy |\n| -- | -- | -- | -- |\n{rows}\n"
    )
