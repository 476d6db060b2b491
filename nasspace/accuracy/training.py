"""One network trained for a budget, and its accuracy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nasspace.accuracy.augmentation import mirrored, shifted
from nasspace.accuracy.images import DataSet, Images, prepared, resized, stratified
from nasspace.accuracy.optimisers import averaged, optimiser
from nasspace.accuracy.schedules import Plateau, rate
from nasspace.accuracy.settings import Fidelity, TrainingSettings

__all__ = ["Fidelity", "Trained", "TrainingSettings", "evaluate", "re_estimate", "train"]

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
) -> Trained:
    """Train `model` in place and leave it on the CPU in evaluation mode; accuracy is of the validation split.

    On the CPU of one machine the same seed gives the same weights, bit by bit. There is no limit of time. A loss
    that is no longer a number ends the training, and the accuracy is of what is left. `data` held at another
    resolution than the fidelity's is scaled each time; `prepared` does it once.
    """
    settings = settings or TrainingSettings()
    start = time.perf_counter()
    data = _share(prepared(data, fidelity.resolution), fidelity.share, seed)
    with _threads(settings.threads), _seeded(seed, device):
        _lay_out(model.to(device), device)
        losses, images = _fit(model, data, fidelity, settings, seed, device, on_epoch)
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
    diverged = not math.isfinite(losses[-1])
    return Trained(accuracy, tuple(losses), time.perf_counter() - start, images, diverged)


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
    model.to(device).eval()
    pixels = resized(images.pixels, resolution)
    right = 0
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = normalised(pixels[start : start + batch_size].to(device), data)
            right += int((model(batch).argmax(1).cpu() == images.labels[start : start + batch_size]).sum())
    return right / len(images)


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


def _fit(
    model: nn.Module,
    data: DataSet,
    fidelity: Fidelity,
    settings: TrainingSettings,
    seed: int,
    device: str,
    on_epoch: Callable[[int, int, float], None] | None,
) -> tuple[list[float], int]:
    """Mean loss of each epoch, and how many images were seen."""
    generator = torch.Generator().manual_seed(seed)
    step = _Step(model, settings, fidelity.epochs, _steps(len(data.train), settings.batch_size))
    plateau = Plateau(settings.patience)
    losses: list[float] = []
    for epoch in range(fidelity.epochs):
        model.train()
        total = torch.zeros((), device=device)
        for chosen in torch.randperm(len(data.train), generator=generator).tensor_split(step.per_epoch):
            batch = data.train.at(chosen)
            pixels = _augmented(batch.pixels.to(device), data, settings, generator)
            total += step(pixels, batch.labels.to(device), plateau.drops)
        losses.append(float(total) / step.per_epoch)
        if on_epoch:
            on_epoch(epoch + 1, fidelity.epochs, losses[-1])
        if not math.isfinite(losses[-1]):
            break
        if settings.schedule == "plateau":
            size = settings.evaluation_batch_size
            plateau.tell(evaluate(model, data.validation, data, fidelity.resolution, device=device, batch_size=size))
    step.finish()
    return losses, len(losses) * len(data.train)


class _Step:
    """One batch after another: forward, loss, backward, the optimiser's step at the schedule's rate, the average."""

    def __init__(self, model: nn.Module, settings: TrainingSettings, epochs: int, per_epoch: int):
        self.model = model
        self.settings = settings
        self.per_epoch = per_epoch
        self.steps = epochs * per_epoch
        self.done = 0
        self.optimiser = optimiser(model, settings)
        self.average = averaged(model, settings.average) if settings.average else None
        if settings.norm_momentum is not None:
            for norm in _norms(model):
                norm.momentum = settings.norm_momentum

    def __call__(self, pixels: Tensor, labels: Tensor, drops: int) -> Tensor:
        """The loss, without its graph."""
        now = rate(self.settings, self.done, self.steps, self.per_epoch, drops)
        for group in self.optimiser.param_groups:
            group["lr"] = now
        loss = functional.cross_entropy(self.model(pixels), labels, label_smoothing=self.settings.label_smoothing)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if self.settings.gradient_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_norm)
        self.optimiser.step()
        self.done += 1
        if self.average:
            self.average.update_parameters(self.model)
        return loss.detach()

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


def _augmented(pixels: Tensor, data: DataSet, settings: TrainingSettings, generator: torch.Generator) -> Tensor:
    most = min(round(settings.crop_padding * data.resolution), data.resolution - 1)
    if most:
        pixels = shifted(pixels, most, generator)
    if settings.flip or (settings.flip is None and data.channels == 3):
        pixels = mirrored(pixels, generator)
    return normalised(pixels, data)


def _lay_out(thing: Any, device: str) -> Any:
    """A model or a batch in the channels-last layout, which is up to twice as fast but on Apple's devices."""
    return thing if device.startswith("mps") else thing.to(memory_format=torch.channels_last)


@contextmanager
def _threads(count: int) -> Iterator[None]:
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
