"""One network trained for a budget, and its accuracy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nasspace.data import augmentation
from nasspace.data.images import DataSet, Images, prepared, resized, stratified
from nasspace.data.policies import rand_augmented, trivially_augmented
from nasspace.training import checkpoints
from nasspace.training.checkpoints import Checkpoints
from nasspace.training.depthwise import fast_tiny_maps
from nasspace.training.optimizers import averaged, optimizer
from nasspace.training.schedules import Plateau, rate
from nasspace.training.settings import Fidelity, TrainingSettings

__all__ = ["Fidelity", "Trained", "TrainingSettings", "evaluate", "predictions", "re_estimate", "train"]

NORM_IMAGES = 1024  # as many as batch norm's statistics are taken over in the end


@dataclass(frozen=True)
class Trained:
    """What became of a training: validation accuracy (a fraction), mean loss of each epoch, cost."""

    accuracy: float
    losses: tuple[float, ...]
    seconds: float
    images: int
    diverged: bool


def train(
    model: nn.Module,
    data: DataSet,
    fidelity: Fidelity,
    settings: TrainingSettings | None = None,
    *,
    seed: int = 0,
    device: str = "cpu",
    on_epoch: Callable[[int, int, float], None] | None = None,
    checkpoint: Path | None = None,
) -> Trained:
    """Train `model` in place and leave it on the CPU in evaluation mode; accuracy is of the validation split.

    On the CPU of one machine the same seed gives the same weights, bit by bit. There is no limit of time. A loss
    that is no longer a number ends the training, and the accuracy is of what is left. `data` held at another
    resolution than the fidelity's is scaled each time; `prepared` does it once.

    With `checkpoint` the state is saved to that file after each epoch, and every 30 seconds within one. If the file
    exists, the training continues from it; a killed training that is continued ends in the same weights, bit by bit,
    on the CPU of one machine. The file of another training is an `InputError`. It stays when the training is done.
    """
    settings = settings or TrainingSettings()
    start = time.perf_counter()
    kept = checkpoint and Checkpoints(
        checkpoint, checkpoints.identity(model, data, fidelity, settings, seed, device)
    )  # fmt: skip
    data = _share(prepared(data, fidelity.resolution), fidelity.share, seed)
    with threads(settings.threads), _seeded(seed, device):
        _lay_out(model.to(device), device)
        fit = _Fit(model, data, fidelity, settings, seed, device, kept)
        with fast_tiny_maps(model, device):
            fit.run(on_epoch)
        if settings.norm_statistics == "re-estimated":
            re_estimate(model, data, settings.batch_size, seed, device)
        accuracy = evaluate(
            model,
            data.validation,
            data,
            fidelity.resolution,
            device=device,
            batch_size=settings.evaluation_batch_size,
        )
        # Also back to the plain layout: safetensors refuses any other.
        model.to("cpu", memory_format=torch.contiguous_format)
    seconds = fit.seconds_before + time.perf_counter() - start
    return Trained(accuracy, tuple(fit.losses), seconds, len(fit.losses) * len(data.train), fit.diverged)


def evaluate(
    model: nn.Module,
    images: Images,
    data: DataSet,
    resolution: int,
    *,
    device: str = "cpu",
    batch_size: int = 256,
) -> float:
    """The share of `images` that the model, which is put in evaluation mode on `device`, gets right."""
    found = predictions(model, images, data, resolution, device=device, batch_size=batch_size)
    return int((found == images.labels).sum()) / len(images)


def predictions(
    model: nn.Module,
    images: Images,
    data: DataSet,
    resolution: int,
    *,
    device: str = "cpu",
    batch_size: int = 256,
) -> Tensor:
    """The class of each image, int64 [N] on the CPU, by the model, which is put in evaluation mode on `device`."""
    model.to(device).eval()
    pixels = resized(images.pixels, resolution)
    found = torch.empty(len(images), dtype=torch.int64)
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = normalised(pixels[start : start + batch_size].to(device), data)
            found[start : start + batch_size] = model(batch).argmax(1).cpu()
    return found


def re_estimate(model: nn.Module, data: DataSet, batch_size: int, seed: int, device: str = "cpu") -> None:
    """Take the statistics of every batch norm anew, as the mean over some 1,024 training images.

    The running ones lag behind the weights in a short training: after 2 epochs on digits (44 steps) this brought 10
    to 20 percent points of accuracy, after 3 one, after 5 a third of one, after 8 none.
    """
    norms = _norms(model)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a plain mean
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:NORM_IMAGES]
    model.to(device).train()
    with torch.no_grad():
        for batch in chosen.tensor_split(_steps(len(chosen), batch_size)) if norms else ():
            model(normalised(data.train.pixels[batch].to(device), data))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def normalised(pixels: Tensor, data: DataSet) -> Tensor:
    """float32 [N, C, H, W] of mean 0 and standard deviation 1 in each channel, over the training split."""
    mean = torch.tensor(data.mean, device=pixels.device, dtype=torch.float32)[:, None, None]
    std = torch.tensor(data.std, device=pixels.device, dtype=torch.float32)[:, None, None]
    return _lay_out((pixels.float() - mean) / std, pixels.device.type)


class _Fit:
    """The steps of a training, and where it stands: the mean losses of whole epochs, the batches done of the next."""

    def __init__(
        self,
        model: nn.Module,
        data: DataSet,
        fidelity: Fidelity,
        settings: TrainingSettings,
        seed: int,
        device: str,
        kept: Checkpoints | None,
    ):
        self.model = model
        self.data = data
        self.fidelity = fidelity
        self.settings = settings
        self.device = device
        self.kept = kept
        self.generator = torch.Generator().manual_seed(seed)
        self.augmented = _Augmentation(data, settings, self.generator)
        self.step = _Step(model, settings, fidelity.epochs, _steps(len(data.train), settings.batch_size))
        self.plateau = Plateau(settings.patience)
        self.losses: list[float] = []
        self.opening = self.generator.get_state()  # at the start of the epoch
        self.batch = 0
        self.total = torch.zeros((), device=device)
        self.seconds_before = 0.0
        self.start = self.saved = time.perf_counter()
        if kept and (state := kept.load()):
            self._restore(state)

    @property
    def diverged(self) -> bool:
        return bool(self.losses) and not math.isfinite(self.losses[-1])

    def run(self, on_epoch: Callable[[int, int, float], None] | None) -> None:
        """All epochs that are left."""
        while len(self.losses) < self.fidelity.epochs and not self.diverged:
            self._epoch()
            if on_epoch:
                on_epoch(len(self.losses), self.fidelity.epochs, self.losses[-1])
            if self.settings.schedule == "plateau" and not self.diverged:
                self.plateau.tell(self._validation_accuracy())
            self._save()
        self.step.finish()

    def _epoch(self) -> None:
        self.model.train()
        for chosen in self._order().tensor_split(self.step.per_epoch)[self.batch :]:
            batch = self.data.train.at(chosen)
            pixels, labels = self.augmented(batch.pixels.to(self.device), batch.labels.to(self.device))
            self.total += self.step(pixels, labels, self.plateau.drops)
            self.batch += 1
            if time.perf_counter() - self.saved > checkpoints.INTERVAL and self.batch < self.step.per_epoch:
                self._save()
        self.losses.append(float(self.total) / self.step.per_epoch)
        self.total.zero_()
        self.batch = 0

    def _order(self) -> Tensor:
        """The images of this epoch in their order; within an epoch drawn again as at its start."""
        if not self.batch:
            self.opening = self.generator.get_state()
            return torch.randperm(len(self.data.train), generator=self.generator)
        return torch.randperm(len(self.data.train), generator=torch.Generator().set_state(self.opening))

    def _validation_accuracy(self) -> float:
        size = self.settings.evaluation_batch_size
        resolution = self.fidelity.resolution
        return evaluate(
            self.model, self.data.validation, self.data, resolution, device=self.device, batch_size=size
        )  # fmt: skip

    def _save(self) -> None:
        self.saved = time.perf_counter()
        if self.kept:
            self.kept.save(self._state())

    def _state(self) -> dict[str, Any]:
        cuda = self.device.startswith("cuda")
        return {
            "losses": self.losses,
            "batch": self.batch,
            "total": self.total.cpu(),
            "opening": self.opening,
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if cuda else None,
            "plateau": vars(self.plateau),
            "step": self.step.state(),
            "model": self.model.state_dict(),
            "seconds": self.seconds_before + time.perf_counter() - self.start,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.step.restore(state["step"])
        vars(self.plateau).update(state["plateau"])
        self.losses, self.batch, self.opening = state["losses"], state["batch"], state["opening"]
        self.total.copy_(state["total"])
        self.seconds_before = state["seconds"]
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], self.device)


class _Step:
    """One batch after another: forward, loss, backward, the optimizer's step at the schedule's rate, the average."""

    def __init__(self, model: nn.Module, settings: TrainingSettings, epochs: int, per_epoch: int):
        self.model = model
        self.settings = settings
        self.per_epoch = per_epoch
        self.steps = epochs * per_epoch
        self.done = 0
        self.optimizer = optimizer(model, settings)
        self.average = averaged(model, settings.average) if settings.average else None
        if settings.norm_momentum is not None:
            for norm in _norms(model):
                norm.momentum = settings.norm_momentum

    def __call__(self, pixels: Tensor, labels: Tensor, drops: int) -> Tensor:
        """The loss, without its graph."""
        now = rate(self.settings, self.done, self.steps, self.per_epoch, drops)
        for group in self.optimizer.param_groups:
            group["lr"] = now
        loss = functional.cross_entropy(self.model(pixels), labels, label_smoothing=self.settings.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.settings.gradient_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_norm)
        self.optimizer.step()
        self.done += 1
        if self.average:
            self.average.update_parameters(self.model)
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """What the next step needs, besides the model."""
        average = self.average and self.average.state_dict()
        return {"done": self.done, "optimizer": self.optimizer.state_dict(), "average": average}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.done = state["done"]
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])

    def finish(self) -> None:
        """The average, where there is one, becomes the model's own weights and statistics."""
        if self.average:
            self.model.load_state_dict(self.average.module.state_dict())


def _norms(model: nn.Module) -> list[nn.Module]:
    return [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


def _share(data: DataSet, share: float, seed: int) -> DataSet:
    """The data set with a stratified share of its training images."""
    if share == 1:
        return data
    taken, _ = stratified(data.train.labels, share, torch.Generator().manual_seed(seed))
    return replace(data, train=data.train.at(taken))


def _steps(count: int, batch_size: int) -> int:
    """Into how many near-equal batches an epoch is cut: none is ever of one image, which batch norm cannot take."""
    return max(1, min(round(count / batch_size), count // 2))


class _Augmentation:
    """Batches as a training sees them: augmented as the settings say, normalized, and their labels."""

    def __init__(self, data: DataSet, settings: TrainingSettings, generator: torch.Generator):
        self.data = data
        self.settings = settings
        self.generator = generator
        self.shift = min(round(settings.crop_padding * data.resolution), data.resolution - 1)
        self.mirrors = settings.flip or (settings.flip is None and data.channels == 3)
        self.components = augmentation.principal(data.train.pixels) if settings.color_noise else None

    def __call__(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [N, C, H, W]; labels int64 [N], or [N, classes] where images are mixed."""
        return self._mixed(normalised(self._recolored(self._moved(pixels)), self.data), labels)

    def _moved(self, pixels: Tensor) -> Tensor:
        if self.settings.crop_scale:
            pixels = augmentation.cropped(pixels, self.settings.crop_scale, self.settings.crop_ratio, self.generator)
        elif self.shift:
            pixels = augmentation.shifted(pixels, self.shift, self.generator)
        return augmentation.mirrored(pixels, self.generator) if self.mirrors else pixels

    def _recolored(self, pixels: Tensor) -> Tensor:
        settings, generator = self.settings, self.generator
        if settings.policy == "randaugment":
            pixels = rand_augmented(pixels, generator, settings.policy_layers, settings.policy_magnitude)
        elif settings.policy == "trivialaugment":
            pixels = trivially_augmented(pixels, generator)
        if any(settings.jitter):
            pixels = augmentation.jittered(pixels, settings.jitter, generator)
        if settings.rotation:
            pixels = augmentation.rotated(pixels, settings.rotation, generator)
        if self.components is not None:
            pixels = augmentation.color_noised(pixels, self.components, settings.color_noise, generator)
        if settings.erasing:
            pixels = augmentation.erased(pixels, settings.erasing, self.data.mean, generator)
        return pixels

    def _mixed(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        mixup, cutmix = self.settings.mixup, self.settings.cutmix
        if not mixup and not cutmix:
            return pixels, labels
        soft = functional.one_hot(labels, len(self.data.classes)).float()
        second = bool(cutmix) and (not mixup or float(torch.rand((), generator=self.generator)) < 0.5)
        mix, alpha = (augmentation.cut_mixed, cutmix) if second else (augmentation.mixed_up, mixup)
        return mix(pixels, soft, alpha, self.generator)


def _lay_out(thing: Any, device: str) -> Any:
    """A model or a batch in the channels-last layout, which is up to twice as fast but on Apple's devices."""
    return thing if device.startswith("mps") else thing.to(memory_format=torch.channels_last)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch's threads for a while.

    One by default: where anything else runs on the machine, a second thread made training of small networks 10 to
    40 times slower (each of the thousands of tiny operations waits for the slower thread).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _seeded(seed: int, device: str) -> Iterator[None]:
    """torch's global generators, from which a model's dropout draws, seeded for a while."""
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        yield
