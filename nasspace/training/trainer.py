"""Train one network for a budget, and evaluate it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nasspace.data import augmentation
from nasspace.data.images import DataSet, Images, prepared, resized, stratified
from nasspace.data.policies import rand_augment, trivial_augment
from nasspace.errors import InputError
from nasspace.training import checkpoints, distillation
from nasspace.training.calibration import scaled_log_loss
from nasspace.training.checkpoints import Checkpoints
from nasspace.training.depthwise import fast_tiny_maps
from nasspace.training.distillation import Teacher
from nasspace.training.distributed import ALONE, Processes
from nasspace.training.optimizers import averaged, optimizer
from nasspace.training.precision import Precision, check_precision
from nasspace.training.schedules import Plateau, rate
from nasspace.training.settings import Fidelity, TrainingSettings

__all__ = [
    "Constraint",
    "Epoch",
    "Fidelity",
    "Trained",
    "TrainingSettings",
    "evaluate",
    "logits",
    "predictions",
    "re_estimate",
    "train",
]

NORM_IMAGES = 1024  # training images for the re-estimation of batch norm statistics


@dataclass(frozen=True)
class Trained:
    """The result of a training: validation accuracy (a fraction), mean loss of each epoch, seconds and images.

    `log_loss` is the mean log loss of the validation images after temperature scaling.
    """

    accuracy: float
    log_loss: float
    losses: tuple[float, ...]
    seconds: float
    images: int
    diverged: bool


@dataclass(frozen=True)
class Epoch:
    """A finished epoch: its number (from 1) of `epochs`, mean loss, and the learning rate of its last step.

    `accuracy` is that of the validation images (a fraction), None if it was not measured.
    """

    number: int
    epochs: int
    loss: float
    rate: float
    accuracy: float | None = None


def train(
    model: nn.Module,
    data: DataSet,
    fidelity: Fidelity,
    settings: TrainingSettings | None = None,
    *,
    seed: int = 0,
    device: str = "cpu",
    on_epoch: Callable[[Epoch], None] | None = None,
    validate_from: int | None = None,
    checkpoint: Path | None = None,
    on_checkpoint: Callable[[Path], None] | None = None,
    teacher: Teacher | None = None,
    processes: Processes = ALONE,
    constraint: Constraint | None = None,
) -> Trained:
    """Train `model` in place and leave it on the CPU in evaluation mode; accuracy is on the validation split.

    On the CPU of one machine, the same seed gives the same weights, bit by bit. A loss that is NaN or infinite ends
    the training; the accuracy is then that of the weights at that point. Data at another resolution than the fidelity's
    is resized in every call; use `prepared` to resize it once. `on_epoch` is called after each epoch; the validation
    accuracy is measured for it from epoch `validate_from` on.

    With `checkpoint`, the state is saved to that file after each epoch, and every 30 seconds within an epoch. If the
    file exists, the training continues from it and ends in the same weights as an uninterrupted one, bit by bit, on the
    CPU of one machine. A checkpoint of another training raises `InputError`. The file is kept after the training.
    `on_checkpoint` is called with its path after each save.
    With a `teacher`, the network also learns its probabilities, on the same augmented images. A `constraint` holds for
    the weights after every step and at the end. Several `processes`
    (`nasspace.training.distributed`) call this function with the same arguments, and divide each batch among them; the
    first one saves checkpoints, and its result counts.
    """
    settings = settings or TrainingSettings()
    start = time.perf_counter()
    check_precision(settings.precision, device)
    processes.check_batch_size(settings.batch_size)
    identity = checkpoints.identity(model, data, fidelity, settings, seed, device) if checkpoint else {}
    if processes.count > 1:
        identity["processes"] = str(processes.count)
    if teacher:
        identity["teacher"] = teacher.fingerprint
    if constraint:
        identity["constraint"] = constraint.fingerprint
    saved = Checkpoints(checkpoint, identity, on_checkpoint) if checkpoint else None
    data = subset(prepared(data, fidelity.resolution), fidelity.share, seed)
    with threads(settings.threads), seeded(processes.seed(seed), device):
        _to_channels_last(model.to(device), device)
        fit = Fit(
            *(model, data, fidelity, settings, seed, device, saved),
            **{"teacher": teacher, "processes": processes, "constraint": constraint},
        )
        processes.check_same(f"{identity} {len(fit.losses)} {fit.batch}", "data, weights, or checkpoint")
        with fast_tiny_maps(model, device):
            fit.run(on_epoch, validate_from)
        if settings.norm_statistics == "re-estimated" and not settings.frozen_norms:
            re_estimate(model, data, settings.batch_size, seed, device)
        found = logits(
            model,
            data.validation,
            data,
            fidelity.resolution,
            device=device,
            batch_size=settings.evaluation_batch_size,
        )
        labels = data.validation.labels
        accuracy = int((found.argmax(1) == labels).sum()) / len(labels)
        # safetensors accepts the contiguous layout only.
        model.to("cpu", memory_format=torch.contiguous_format)
    seconds = fit.seconds_before + time.perf_counter() - start
    images = len(fit.losses) * len(data.train)
    return Trained(accuracy, scaled_log_loss(found, labels), tuple(fit.losses), seconds, images, fit.diverged)


def evaluate(
    model: nn.Module,
    images: Images,
    data: DataSet,
    resolution: int,
    *,
    device: str = "cpu",
    batch_size: int = 256,
) -> float:
    """The accuracy of the model on `images`; puts the model in evaluation mode on `device`."""
    predicted = predictions(model, images, data, resolution, device=device, batch_size=batch_size)
    return int((predicted == images.labels).sum()) / len(images)


def predictions(
    model: nn.Module,
    images: Images,
    data: DataSet,
    resolution: int,
    *,
    device: str = "cpu",
    batch_size: int = 256,
) -> Tensor:
    """The predicted class of each image, int64 [N] on the CPU; puts the model in evaluation mode on `device`."""
    return logits(model, images, data, resolution, device=device, batch_size=batch_size).argmax(1)


def logits(
    model: nn.Module,
    images: Images,
    data: DataSet,
    resolution: int,
    *,
    device: str = "cpu",
    batch_size: int = 256,
) -> Tensor:
    """The logits of each image, float32 [N, classes] on the CPU; puts the model in evaluation mode on `device`."""
    model.to(device).eval()
    pixels = resized(images.pixels, resolution)
    with torch.inference_mode():
        parts = [
            model(normalized(pixels[start : start + batch_size].to(device), data)).float().cpu()
            for start in range(0, len(images), batch_size)
        ]
    return torch.cat(parts)


def re_estimate(model: nn.Module, data: DataSet, batch_size: int, seed: int, device: str = "cpu") -> None:
    """Re-estimate the statistics of every batch norm as means over about 1,024 training images.

    In a short training, the running statistics lag behind the weights. Measured gain in accuracy on digits: 10 to 20
    percentage points after 2 epochs (44 steps), 1 after 3, 0.3 after 5, none after 8.
    """
    norms = _norms(model)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:NORM_IMAGES]
    model.to(device).train()
    with torch.no_grad():
        for batch in chosen.tensor_split(batches_per_epoch(len(chosen), batch_size)) if norms else ():
            model(normalized(data.train.at(batch).pixels.to(device), data))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def normalized(pixels: Tensor, data: DataSet) -> Tensor:
    """Pixels as float32 [N, C, H, W] with mean 0 and standard deviation 1 per channel over the training split."""
    mean = torch.tensor(data.mean, device=pixels.device, dtype=torch.float32)[:, None, None]
    std = torch.tensor(data.std, device=pixels.device, dtype=torch.float32)[:, None, None]
    return _to_channels_last((pixels.float() - mean) / std, pixels.device.type)


class Step(Protocol):
    """What is done with each batch of a training: one step of its optimizer, or several, at the learning `rate`."""

    per_epoch: int
    rate: float

    def __call__(self, pixels: Tensor, labels: Tensor, drops: int) -> Tensor:
        """Train on a batch after `drops` plateaus; returns the detached loss."""

    def state(self) -> dict[str, Any]:
        """Everything that changes, for checkpoints."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""

    def finish(self) -> None:
        """Complete the training after its last step."""


class Constraint(Protocol):
    """What the weights of a training fulfill, such as zeros that stay; they are projected after every step.

    `fingerprint` distinguishes constraints.
    """

    fingerprint: str

    def project(self, model: nn.Module, done: int, steps: int) -> None:
        """Replace weights by the nearest allowed ones, in place, after `done` of `steps` steps."""

    def state(self) -> dict[str, Any]:
        """Everything that changes, for checkpoints."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""


class Fit:
    """The epochs of a training and its state: mean losses of finished epochs, finished batches of the current one.

    `step` trains the model on a batch; by default forward, loss, backward and one step of the settings' optimizer.
    """

    def __init__(
        self,
        model: nn.Module,
        data: DataSet,
        fidelity: Fidelity,
        settings: TrainingSettings,
        seed: int,
        device: str,
        checkpoint: Checkpoints | None,
        step: Step | None = None,
        teacher: Teacher | None = None,
        processes: Processes = ALONE,
        constraint: Constraint | None = None,
    ):
        self.model = model
        self.data = data
        self.fidelity = fidelity
        self.settings = settings
        self.device = device
        self.checkpoint = checkpoint
        self.processes = processes
        self.generator = torch.Generator().manual_seed(seed)  # of the order of the images; alone, also of augmentation
        own = self.generator if processes.count == 1 else torch.Generator().manual_seed(processes.seed(seed))
        self.augment = _Augmentation(data, settings, own)
        per_epoch = batches_per_epoch(len(data.train), settings.batch_size, processes.count)
        counts = data.train.labels.bincount(minlength=len(data.classes)).clamp(min=1)
        self.class_weights = len(data.train) / len(data.classes) / counts
        weights = self.class_weights.to(device) if settings.balance == "weights" else None
        self.step: Step = step or _Step(
            model, settings, fidelity.epochs, per_epoch, weights, self._taught(teacher), processes, device, constraint
        )
        self.plateau = Plateau(settings.patience)
        self.losses: list[float] = []
        self.epoch_start = self.generator.get_state()  # state of the generator before the current epoch
        self.batch = 0
        self.total = torch.zeros((), device=device)
        self.seconds_before = 0.0
        self.start = self.last_save = time.perf_counter()
        if checkpoint and (state := checkpoint.load()):
            self._restore(state)

    def _taught(self, teacher: Teacher | None) -> Callable[[Tensor], Tensor] | None:
        """The teacher's logits for normalized images; None without a teacher."""
        if teacher is None:
            return None
        mean, std = (
            torch.tensor(values, device=self.device, dtype=torch.float32)[:, None, None]
            for values in (self.data.mean, self.data.std)
        )
        return lambda images: teacher.scores(images * std + mean)

    @property
    def diverged(self) -> bool:
        """Whether the last epoch's loss is NaN or infinite."""
        return bool(self.losses) and not math.isfinite(self.losses[-1])

    def run(
        self,
        on_epoch: Callable[[Epoch], None] | None,
        validate_from: int | None = None,
        deadline: float = math.inf,
    ) -> None:
        """Train the remaining epochs; the schedule `plateau` measures the validation accuracy after each.

        The training ends with the first batch after `deadline`, in seconds of `time.monotonic()`.
        """
        epochs, has_plateaus = self.fidelity.epochs, self.settings.schedule == "plateau"
        while (done := len(self.losses)) < epochs and not self.diverged:
            if not self._epoch(deadline):
                break
            validates = has_plateaus or (validate_from is not None and done + 1 >= validate_from)
            accuracy = None
            if validates and not self.diverged:
                accuracy = self.processes.from_first(self._validation_accuracy())
            if on_epoch:
                on_epoch(Epoch(done + 1, epochs, self.losses[-1], self.step.rate, accuracy))
            if has_plateaus and accuracy is not None:
                self.plateau.update(accuracy)
            self._save()
        self.step.finish()

    def _epoch(self, deadline: float) -> bool:
        """Train the remaining batches of the current epoch; return whether that was before the deadline."""
        self.model.train()
        if self.settings.frozen_norms:
            for norm in _norms(self.model):
                norm.eval()
        for chosen in self._order().tensor_split(self.step.per_epoch)[self.batch :]:
            batch = self.data.train.at(self.processes.share(chosen))
            pixels, labels = self.augment(batch.pixels.to(self.device), batch.labels.to(self.device))
            self.total += self.step(pixels, labels, self.plateau.drops)
            self.batch += 1
            is_due = self.processes.any(time.perf_counter() - self.last_save > checkpoints.INTERVAL)
            if time.monotonic() > deadline:
                return False
            if is_due and self.batch < self.step.per_epoch:
                self._save()
        self.losses.append(float(self.total) / self.step.per_epoch)
        self.total.zero_()
        self.batch = 0
        return True

    def _order(self) -> Tensor:
        """The order of the epoch's images; for a resumed epoch, drawn again from the generator's state at its start."""
        generator = self.generator
        if self.batch:
            generator = torch.Generator().set_state(self.epoch_start)
        else:
            self.epoch_start = generator.get_state()
        labels = self.data.train.labels
        if self.settings.balance == "sampling":
            return torch.multinomial(self.class_weights[labels], len(labels), replacement=True, generator=generator)
        return torch.randperm(len(labels), generator=generator)

    def _validation_accuracy(self) -> float:
        """The accuracy on the validation split after this epoch."""
        return evaluate(
            self.model,
            self.data.validation,
            self.data,
            self.fidelity.resolution,
            device=self.device,
            batch_size=self.settings.evaluation_batch_size,
        )

    def _save(self) -> None:
        """Save a checkpoint, if there is a file for it."""
        self.last_save = time.perf_counter()
        if self.checkpoint:
            state = self._state()
            if self.processes.is_first:
                self.checkpoint.save(state)

    def _state(self) -> dict[str, Any]:
        """The content of a checkpoint; its keys are a file format."""
        cuda = self.device.startswith("cuda")
        state = {
            "losses": self.losses,
            "batch": self.batch,
            "total": self.total.cpu(),
            "opening": self.epoch_start,
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if cuda else None,
            "plateau": vars(self.plateau),
            "step": self.step.state(),
            "model": self.model.state_dict(),
            "seconds": self.seconds_before + time.perf_counter() - self.start,
        }
        if self.processes.count > 1:
            own = {"augmentation": self.augment.generator.get_state(), "torch": state["torch"], "cuda": state["cuda"]}
            state["own"] = {name: part if part is None else self.processes.gathered(part) for name, part in own.items()}
        return state

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.step.restore(state["step"])
        vars(self.plateau).update(state["plateau"])
        self.losses, self.batch, self.epoch_start = state["losses"], state["batch"], state["opening"]
        self.total.copy_(state["total"])
        self.seconds_before = state["seconds"]
        self.generator.set_state(state["generator"])
        random = {"torch": state["torch"], "cuda": state["cuda"]}
        if self.processes.count > 1:
            rank = self.processes.rank
            # A copy: torch 2.13 crashes on the state of a generator that is a row of a larger tensor.
            random = {name: part if part is None else part[rank].clone() for name, part in state["own"].items()}
            self.augment.generator.set_state(random["augmentation"])
        torch.set_rng_state(random["torch"])
        if random["cuda"] is not None:
            torch.cuda.set_rng_state(random["cuda"], self.device)


class _Step:
    """A training step: forward, loss, backward, optimizer at the schedule's rate, constraint, moving average.

    `class_weights` [classes] are the loss's weights of the classes; None: equal ones. `teacher` returns a teacher's
    logits for a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainingSettings,
        epochs: int,
        per_epoch: int,
        class_weights: Tensor | None = None,
        teacher: Callable[[Tensor], Tensor] | None = None,
        processes: Processes = ALONE,
        device: str = "cpu",
        constraint: Constraint | None = None,
    ):
        self.model = model
        self.processes = processes
        self.constraint = constraint
        self.precision = Precision(settings.precision, device)
        self.settings = settings
        self.per_epoch = per_epoch
        self.class_weights = class_weights
        self.teacher = teacher
        self.steps = epochs * per_epoch
        self.done = 0
        self.rate = 0.0  # of the last step
        self.trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if settings.frozen_norms:
            for norm in _norms(model):
                norm.requires_grad_(False)
        last = [part for part in model.modules() if isinstance(part, nn.Conv2d | nn.Linear)][-1:]
        head = {id(parameter) for part in last for parameter in part.parameters()}
        self.body = [each for each in model.parameters() if each.requires_grad and id(each) not in head]
        self.classifiers = [part for part in model.modules() if hasattr(part, "loss_weight")]
        self.optimizer = optimizer(model, settings)
        if settings.head_first and isinstance(self.optimizer, torch.optim.SGD) and settings.momentum:
            for parameter in self.body:  # fused SGD needs a momentum for all parameters or none; zero changes nothing
                self.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        self.average = averaged(model, settings.average) if settings.average else None
        if settings.norm_momentum is not None:
            for norm in _norms(model):
                norm.momentum = settings.norm_momentum

    def __call__(self, pixels: Tensor, labels: Tensor, drops: int) -> Tensor:
        """Train on a batch; returns the detached loss."""
        self.rate = rate(self.settings, self.done, self.steps, self.per_epoch, drops)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        if self.settings.head_first:
            self._train_body(self.done >= self.settings.head_first * self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.processes.average(self.model.parameters(), self._backward(pixels, labels), len(pixels))
        self.precision.unscale(self.optimizer)
        if self.settings.gradient_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_norm)
        self.precision.step(self.optimizer)
        self.done += 1
        if self.constraint:
            self.constraint.project(self.model, self.done, self.steps)
        if self.average:
            self.average.update_parameters(self.model)
        return loss

    def _backward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Add the gradients of a batch, part by part; returns the detached loss. No part has a single image."""
        total = torch.zeros((), device=pixels.device)
        parts = max(1, min(self.settings.accumulation, len(pixels) // 2))
        for images, targets in zip(pixels.tensor_split(parts), labels.tensor_split(parts), strict=True):
            loss = self._loss(images, targets) * (len(images) / len(pixels))
            self.precision.backward(loss)
            total += loss.detach()
        return total

    def _loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """The loss of images by their labels and by the teacher, if there is one.

        That of the labels contains a share of each auxiliary classifier's (`nasspace.blocks`); one of other classes
        raises `InputError`.
        """
        settings = self.settings
        with _outputs(self.classifiers) as auxiliary:
            scores = self.precision.scores(self.model, images)
        of_labels = self._of_labels(scores, targets)
        for classifier, others in auxiliary:
            if others.shape != scores.shape:
                raise InputError(
                    f"an auxiliary classifier has {others.shape[-1]} classes, the network {scores.shape[-1]}; set its "
                    "option 'classes'"
                )
            of_labels = of_labels + classifier.loss_weight * self._of_labels(others.float(), targets)
        if self.teacher is None:
            return of_labels
        return distillation.loss(scores, self.teacher(images), of_labels, settings.teacher_share, settings.temperature)

    def _of_labels(self, scores: Tensor, targets: Tensor) -> Tensor:
        """The mean loss by the labels, classes [N] or shares of classes [N, classes].

        Each image is weighted as a whole. PyTorch's `weight` would also weight the smoothing, which then pulls every
        image towards rare classes.
        """
        smoothing = self.settings.label_smoothing
        if self.class_weights is None:
            return functional.cross_entropy(scores, targets, label_smoothing=smoothing)
        weights = targets @ self.class_weights if targets.ndim > 1 else self.class_weights[targets]
        return (weights * functional.cross_entropy(scores, targets, label_smoothing=smoothing, reduction="none")).mean()

    def _train_body(self, trained: bool) -> None:
        """Train all layers, or the last one alone."""
        for parameter in self.body:
            parameter.requires_grad_(trained)

    def state(self) -> dict[str, Any]:
        """The state of optimizer and average, for checkpoints."""
        average = self.average and self.average.state_dict()
        state = {"done": self.done, "optimizer": self.optimizer.state_dict(), "average": average}
        state |= {"constraint": self.constraint.state()} if self.constraint else {}
        return {**state, **({"scaler": scaler} if (scaler := self.precision.state()) else {})}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.done = state["done"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.precision.restore(state.get("scaler", {}))
        if self.constraint:
            self.constraint.restore(state["constraint"])
        if self.average:
            self.average.load_state_dict(state["average"])

    def finish(self) -> None:
        """Copy the averaged weights, if any, to the model, whose frozen weights can be trained again."""
        for parameter in self.trainable:
            parameter.requires_grad_(True)
        if self.average:
            self.model.load_state_dict(self.average.module.state_dict())
            if self.constraint:
                self.constraint.project(self.model, self.done, self.steps)


@contextmanager
def _outputs(parts: list[nn.Module]) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """Collect the outputs of parts of a network in the calls within."""
    found: list[tuple[nn.Module, Tensor]] = []
    handles = [part.register_forward_hook(lambda part, _, out: found.append((part, out))) for part in parts]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _norms(model: nn.Module) -> list[nn.Module]:
    """The batch norms of a model."""
    return [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


def subset(data: DataSet, share: float, seed: int) -> DataSet:
    """The data set with a stratified random share of its training images."""
    if share == 1:
        return data
    taken, _ = stratified(data.train.labels, share, torch.Generator().manual_seed(seed))
    return replace(data, train=data.train.at(taken))


def batches_per_epoch(count: int, batch_size: int, processes: int = 1) -> int:
    """The number of nearly equal batches per epoch; no process has a single image, which batch norm cannot process."""
    return max(1, min(round(count / batch_size), count // (2 * processes)))


class _Augmentation:
    """Augments and normalizes batches."""

    def __init__(self, data: DataSet, settings: TrainingSettings, generator: torch.Generator):
        self.data = data
        self.settings = settings
        self.generator = generator
        self.shift = min(round(settings.crop_padding * data.resolution), data.resolution - 1)
        self.flips = settings.flip or (settings.flip is None and data.channels == 3)
        self.components = augmentation.principal_components(data.train.pixels) if settings.color_noise else None

    def __call__(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images float32 [N, C, H, W]; labels int64 [N], or [N, classes] if images are mixed."""
        return self._mix(normalized(self._distort(self._crop_and_flip(pixels)), self.data), labels)

    def _crop_and_flip(self, pixels: Tensor) -> Tensor:
        """Random crop or shift, then random flip."""
        if self.settings.crop_scale:
            pixels = augmentation.random_resized_crop(
                pixels, self.settings.crop_scale, self.settings.crop_ratio, self.generator
            )
        elif self.shift:
            pixels = augmentation.random_shift(pixels, self.shift, self.generator)
        return augmentation.random_flip(pixels, self.generator) if self.flips else pixels

    def _distort(self, pixels: Tensor) -> Tensor:
        """Policy, color jitter, rotation, color noise, erasing."""
        settings, generator = self.settings, self.generator
        if settings.policy == "randaugment":
            pixels = rand_augment(pixels, generator, settings.policy_layers, settings.policy_magnitude)
        elif settings.policy == "trivialaugment":
            pixels = trivial_augment(pixels, generator)
        if any(settings.jitter):
            pixels = augmentation.color_jitter(pixels, settings.jitter, generator)
        if settings.rotation:
            pixels = augmentation.random_rotation(pixels, settings.rotation, generator)
        if self.components is not None:
            pixels = augmentation.color_noise(pixels, self.components, settings.color_noise, generator)
        if settings.erasing:
            pixels = augmentation.random_erasing(pixels, settings.erasing, self.data.mean, generator)
        return pixels

    def _mix(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """MixUp or CutMix."""
        mixup, cutmix = self.settings.mixup, self.settings.cutmix
        if not mixup and not cutmix:
            return pixels, labels
        soft = functional.one_hot(labels, len(self.data.classes)).float()
        use_cutmix = bool(cutmix) and (not mixup or float(torch.rand((), generator=self.generator)) < 0.5)
        mix, alpha = (augmentation.cutmix, cutmix) if use_cutmix else (augmentation.mixup, mixup)
        return mix(pixels, soft, alpha, self.generator)


def network_inputs(pixels: Tensor, data: DataSet, resolution: int) -> np.ndarray:
    """The inputs of a network in any runtime: pixels, uint8 [N, C, H, W], resized and normalized, float32."""
    return normalized(resized(pixels, resolution), data).contiguous().numpy()


def _to_channels_last(value: Any, device: str) -> Any:
    """Convert a model or batch to channels-last (up to twice as fast), except on MPS."""
    return value if device.startswith("mps") else value.to(memory_format=torch.channels_last)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Set the number of torch's threads.

    Trainings use one by default. On a machine with other load, a second thread made the training of small networks 10
    to 40 times slower: each of thousands of tiny operations waits for the slower thread.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Seed torch's global generators, which dropout uses, and restore them."""
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        yield
