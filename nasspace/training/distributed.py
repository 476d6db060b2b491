"""Data-parallel training: the processes that `torchrun` starts train one network together."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

from nasspace.errors import InputError, NasspaceError

LAUNCHED = "TORCHELASTIC_RUN_ID"  # environment variable that `torchrun` sets
PATIENCE = timedelta(days=1)  # the others wait while the first one evaluates, exports, and lets latency be measured
LOST = "another process of this training ended without a message; the same command continues from the checkpoint"
MOST = 4096  # bytes of a text that are compared
_numbers = itertools.count()  # of the trainings of this process, whose keys in the store must differ


@dataclass(frozen=True)
class Processes:
    """The processes of a training, which hold the same weights; each takes its share of every batch.

    `rank` is the number of this one among `count`, `device` where it trains. Only the first one writes files and
    messages. Gradients are added by one `all_reduce` rather than by `DistributedDataParallel`, which hides a few
    milliseconds of communication that light networks do not have, and neither allows layers that are frozen for a
    while nor keeps the names of weights. Every process computes batch norm's statistics of its own share, as usual.
    """

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def check_batch_size(self, batch_size: int) -> None:
        """Refuse batches of which a process would get a single image, which batch norm cannot process."""
        if self.count > 1 and batch_size < 2 * self.count:
            raise InputError(
                f"training.batch_size: {batch_size} is too small for {self.count} processes, which need two images "
                f"each; give {2 * self.count} or more, or start fewer processes"
            )

    def share(self, indices: Tensor) -> Tensor:
        """This process's part of a batch."""
        return indices.tensor_split(self.count)[self.rank] if self.count > 1 else indices

    def seed(self, seed: int) -> int:
        """The seed of this process's augmentation and dropout; `seed` itself for a process alone."""
        if self.count == 1:
            return seed
        return int(torch.randint(2**31, (self.count,), generator=torch.Generator().manual_seed(seed))[self.rank])

    def average(self, parameters: Iterable[nn.Parameter], loss: Tensor, images: int) -> Tensor:
        """Replace gradients, means over this process's `images`, by the means over all images; returns the mean loss.

        The result is the same in all processes, bit by bit, and so are the weights.
        """
        if self.count == 1:
            return loss
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), loss.view(1), loss.new_ones(1)]) * images
        self._sum(flat)
        flat /= flat[-1].clone()
        parts = flat[:-2].split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return flat[-2].clone()

    def any(self, holds: bool) -> bool:
        """Whether a condition holds in one of the processes at least."""
        if self.count == 1:
            return holds
        return bool(self._sum(torch.tensor([float(holds)], device=self.device)))

    def from_first(self, value: float) -> float:
        """The first process's value."""
        if self.count == 1:
            return value
        return float(
            self._sum(torch.tensor([value if self.is_first else 0.0], dtype=torch.float64, device=self.device))
        )

    def gathered(self, row: Tensor) -> Tensor:
        """The rows of all processes, uint8 [count, N] on the CPU."""
        if self.count == 1:
            return row[None]
        rows = torch.zeros(self.count, len(row), device=self.device)
        rows[self.rank] = row.to(self.device)
        return self._sum(rows).to("cpu", row.dtype)

    def check_same(self, text: str, what: str) -> None:
        """Raise `InputError` unless `text` is the same in all processes; `what` names its content."""
        given = torch.tensor(list(text.encode()[:MOST]), dtype=torch.uint8)
        rows = self.gathered(torch.nn.functional.pad(given, (0, MOST - len(given))))
        if not (rows == rows[0]).all():
            raise InputError(f"the processes of this training differ in {what}; start all with the same files")

    def _sum(self, tensor: Tensor) -> Tensor:
        """Add the processes' tensors in place; raises `NasspaceError` if a process has ended."""
        try:
            distributed.all_reduce(tensor)
        except RuntimeError as error:
            raise NasspaceError(LOST) from error
        return tensor


ALONE = Processes()


def is_first() -> bool:
    """Whether this process is the first one that `torchrun` started, or was not started by it."""
    return LAUNCHED not in os.environ or os.environ["RANK"] == "0"


@contextlib.contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the other processes that `torchrun` started, through NCCL on CUDA and Gloo on the CPU.

    `device` is where to train; each process takes the GPU of its own number. Without `torchrun`, the process is alone.
    If processes fail, the first one raises its error, and the others raise `SystemExit`, so that there is one message.
    """
    count = int(os.environ["WORLD_SIZE"]) if LAUNCHED in os.environ else 1
    if count == 1:
        yield Processes(device=device)
        return
    device = _own_device(device)
    store, rank, count = next(distributed.rendezvous("env://", timeout=PATIENCE))
    store = distributed.PrefixStore(f"nasspace {next(_numbers)}", store)
    backend = "nccl" if device.startswith("cuda") else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
    try:
        yield Processes(rank, count, device)
    except BaseException as error:
        failures = 1
        with contextlib.suppress(RuntimeError):  # the process that keeps the store has ended
            failures = store.add("failures", 1)
        if failures > 1:
            raise SystemExit(getattr(error, "exit_status", 1)) from None
        raise
    distributed.destroy_process_group()


def _own_device(device: str) -> str:
    """The device of this process; `InputError` if processes cannot share the work on such devices."""
    if device == "cpu":
        return device
    if device != "cuda":
        raise InputError(f"device: {device} trains in one process; with torchrun, choose cuda or cpu")
    number = int(os.environ["LOCAL_RANK"])
    if number >= torch.cuda.device_count():
        raise InputError(
            f"device: PyTorch finds {torch.cuda.device_count()} GPUs for {os.environ['LOCAL_WORLD_SIZE']} processes on "
            "this machine; set --nproc-per-node to the number of GPUs"
        )
    torch.cuda.set_device(number)
    return f"cuda:{number}"
