"""How well short trainings rank networks: resumable runs, and a table of Kendall's tau.

    python benchmarks/fidelities.py train --cifar10-12k DIR --clothing10 DIR --fashion-10k installed
        [--device cpu] [--processes 2] [--only SET/BUDGET] [--half even]
    python benchmarks/fidelities.py pack SET PLACE FILE.npz     for a machine that has nothing else
    python benchmarks/fidelities.py list | report

`train` runs every training of `PLAN` that the table `reports/benchmarks/fidelities/trainings.csv` does not hold yet and
appends a row for each; it can be stopped and restarted. cifar10-12k is a folder with train.parquet and test.parquet,
clothing10 a folder of images; Fashion-MNIST is found as the package finds it, and 10,000 of its training images are
used (8,000 to train, 2,000 to validate) and all test images. The networks of a set are drawn from its space with a
fixed seed and spread evenly over the logarithm of their FLOPs; those of clothing10 are given
(`networks-clothing10.jsonl`).

On a GPU a training of such small networks waits for launches of kernels, not for the GPU. So forward, loss, backward
and clipping of a batch are recorded once as a CUDA graph and replayed; the rest is the package's own training.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import multiprocessing
import random
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn import functional

from nasspace.architecture import Architecture
from nasspace.counting import cost
from nasspace.data.loading import DataSet, Images, load_data, prepared, stratified
from nasspace.engine.rungs import RATE
from nasspace.network import build
from nasspace.space.space import Space
from nasspace.training import trainer
from nasspace.training.settings import Fidelity, TrainingSettings

FOLDER = Path(__file__).parents[1] / "reports" / "benchmarks" / "fidelities"
COLUMNS = (
    "set",
    "network",
    "digest",
    "flops",
    "budget",
    "seed",
    "validation_accuracy",
    "test_accuracy",
    "validation_log_loss",
    "test_log_loss",
    "training_loss",
    "temperature",
    "seconds",
    "device",
)


@dataclass(frozen=True)
class Budget:
    """A training budget: resolutions with the epochs at each, share of the images, changed settings, share of channels.

    Several parts are the rungs of a search: each continues with the weights of the part before it, at `RATE` times the
    learning rate (`nasspace.engine.last_rung`).
    """

    parts: tuple[tuple[int, int], ...]  # (resolution, epochs), one after the other
    share: float = 1.0
    changed: dict[str, Any] = field(default_factory=dict)
    width: float = 1.0  # of the network that is trained in place of the one that is ranked

    @property
    def name(self) -> str:
        """Such as `32x8`, `16x6+32x4` or `32x8 average=0.99`."""
        words = ["+".join(f"{side}x{epochs}" for side, epochs in self.parts)]
        words += [f"share={self.share:g}"] if self.share != 1 else []
        words += [f"width={self.width:g}"] if self.width != 1 else []
        return " ".join([*words, *(f"{key}={value}" for key, value in self.changed.items())])

    @property
    def prefixes(self) -> list[Budget]:
        """The budgets that a training passes on its way: its first part, its first two, and so on."""
        return [replace(self, parts=self.parts[: count + 1]) for count in range(len(self.parts))]


def budget(text: str, **changed: Any) -> Budget:
    share, width = changed.pop("share", 1.0), changed.pop("width", 1.0)
    parts = tuple(tuple(map(int, part.split("x"))) for part in text.split("+"))
    return Budget(parts, share, changed, width)


@dataclass(frozen=True)
class Task:
    """A data set, the space of its networks, how many, the deployment resolution, and the budgets with their seeds."""

    space: str
    networks: int
    resolution: int
    long: Budget
    budgets: tuple[tuple[Budget, tuple[int, ...]], ...]


EQUAL = (  # at the cost of 32x8, the first `quick`, at most; compared on all sets
    budget("32x8"),
    budget("32x4"),
    budget("32x8", average=0.99),
    budget("32x8", learning_rate=0.4),
    budget("32x16", width=0.5),
    budget("16x16+32x4"),
    budget("32x8", learning_rate=0.1),
    budget("32x8", batch_size=32),
    budget("24x14"),
)
SMALL = (budget("32x4+32x3+32x6+32x12"), *EQUAL, budget("32x16"), budget("32x2"))  # for images of 32 pixels
MIDDLE = (  # for images of 64 pixels
    budget("32x4+64x3+64x6+64x12"),
    *EQUAL,
    budget("64x8"),
    budget("48x5"),
    budget("64x12"),
    budget("64x3"),
)


def budgets(candidates: tuple[Budget, ...]) -> tuple[tuple[Budget, tuple[int, ...]], ...]:
    """Every candidate with two seeds, which differ from those of the long trainings."""
    return tuple((one, (10, 11)) for one in candidates)


PLAN = {
    "cifar10-12k": Task("shuffle", 16, 32, budget("32x30"), budgets(SMALL)),
    "fashion-10k": Task("mobile", 16, 32, budget("32x30"), budgets(SMALL)),
    "clothing10": Task("mixed", 20, 64, budget("64x25"), budgets(MIDDLE)),
}
LONG_SEEDS = (0, 1)


def data_of(name: str, places: dict[str, str]) -> DataSet:
    """The images of a set, held at the deployment resolution."""
    side = PLAN[name].resolution
    if places[name] and places[name].endswith(".npz"):
        return unpacked(name, Path(places[name]))
    if name == "cifar10-12k":
        return load_data(f"parquet:{places[name]}", resolution=side)
    if name == "clothing10":
        return load_data(f"imagefolder:{places[name]}", resolution=side)
    data = load_data("fashion-mnist", resolution=side, data_dir=places.get(name))
    return replace(
        data,
        train=data.train.at(stratified(data.train.labels, 8_000 / len(data.train), _seeded())[0]),
        validation=data.validation.at(stratified(data.validation.labels, 2_000 / len(data.validation), _seeded())[0]),
    )


def pack(name: str, places: dict[str, str], path: Path) -> None:
    """Write the images of a set to one file, for a machine that has nothing else."""
    data = data_of(name, places)
    arrays = {"classes": numpy.array(data.classes)}
    for split in ("train", "validation", "test"):
        images = getattr(data, split)
        arrays |= {f"{split}_pixels": images.pixels.numpy(), f"{split}_labels": images.labels.numpy()}
    numpy.savez_compressed(path, **arrays)


def unpacked(name: str, path: Path) -> DataSet:
    held = numpy.load(path, allow_pickle=False)
    splits = {
        split: Images(*(torch.from_numpy(held[f"{split}_{part}"]) for part in ("pixels", "labels")))
        for split in ("train", "validation", "test")
    }
    pixels = splits["train"].pixels
    return DataSet(name, tuple(held["classes"].tolist()), pixels.shape[1], **splits, resolution=pixels.shape[-1])


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def networks_of(name: str, channels: int) -> list[Architecture]:
    """The networks of a set, at its deployment resolution."""
    task = PLAN[name]
    given = FOLDER / f"networks-{name}.jsonl"
    if given.exists():
        found = [Architecture.from_json(line) for line in given.read_text().splitlines()]
        return [one.with_resolution(task.resolution) for one in found]
    space = Space.load(task.space, resolution=task.resolution, channels=channels)
    rng = random.Random(0)
    drawn = sorted((space.sample(rng) for _ in range(40 * task.networks)), key=lambda one: cost(one).flops)
    low, high = (math.log(cost(one).flops) for one in (drawn[0], drawn[-1]))
    chosen: list[Architecture] = []
    for step in range(task.networks):
        goal = low + (high - low) * (step + 0.5) / task.networks
        left = (one for one in drawn if one not in chosen)
        chosen.append(min(left, key=lambda one: abs(math.log(cost(one).flops) - goal)))
    return chosen


def narrower(architecture: Architecture, width: float) -> Architecture:
    """A network with a share of each layer's channels; equal widths stay equal, and groups keep dividing them."""
    layers = [layer.to_dict() for layer in architecture.layers]
    for layer in layers[:-1]:  # not the classifier
        if "out" in layer:
            steps = [step for step in (24, 12, 8) if layer["out"] % step == 0] or [4]
            step = next((step for step in steps if step <= layer["out"] * width), steps[-1])
            layer["out"] = max(step, step * round(layer["out"] * width / step))
    return Architecture.of(layers, input=architecture.input, classes=architecture.classes)


def jobs() -> list[tuple[str, int, Budget, int]]:
    """Every training of the campaign as (set, network, budget, seed): long ones first, then candidate by candidate."""
    first = [
        (name, network, task.long, seed)
        for seed in LONG_SEEDS
        for name, task in PLAN.items()
        for network in range(task.networks)
    ]
    order = range(max(len(task.budgets) for task in PLAN.values()))
    return first + [
        (name, network, one, seed)
        for turn in (0, 1)
        for place in order
        for name, task in PLAN.items()
        for one, seeds in task.budgets[place : place + 1]
        for network in range(task.networks)
        for seed in seeds[turn : turn + 1]
    ]


def trainings(
    architecture: Architecture, data: DataSet, how: Budget, seed: int, device: str
) -> Iterator[tuple[Budget, torch.nn.Module, float]]:
    """Train a network part by part; yields the budget so far, the network, and the mean loss of the last epoch."""
    model = build(architecture if how.width == 1 else narrower(architecture, how.width), seed=seed)
    settings = TrainingSettings.from_mapping(how.changed)
    for number, done in enumerate(how.prefixes):
        if number == 1:
            rates = {key: RATE * getattr(settings, key) for key in ("learning_rate", "last_rate")}
            settings = replace(settings, **rates)
        side, epochs = done.parts[-1]
        images, fidelity = prepared(data, side), Fidelity(side, epochs, how.share)
        found = trainer.train(model, images, fidelity, settings, seed=seed + number, device=device)
        yield done, model, found.losses[-1]


def scores(model: torch.nn.Module, data: DataSet, side: int, split: str, device: str) -> tuple[Tensor, Tensor]:
    """Logits float32 [N, classes] and labels [N] of a split."""
    images = getattr(data, split)
    model.to(device).eval()
    with torch.inference_mode():
        parts = [
            model(trainer.normalized(part.to(device), data)).float().cpu()
            for part in trainer.resized(images.pixels, side).split(500)
        ]
    return torch.cat(parts), images.labels


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature of the smallest log loss."""
    from scipy.optimize import minimize_scalar

    def loss(log_t: float) -> float:
        return float(functional.cross_entropy(logits / math.exp(log_t), labels))

    return math.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x)


def rows_of(
    name: str, network: int, architecture: Architecture, data: DataSet, how: Budget, seed: int, device: str
) -> list[dict]:
    """One training and what came of it, a row for each part; accuracy and log loss are of that part's resolution.

    `seconds` are of CPU time on a CPU, so that other work on the machine does not count.
    """
    clock = time.perf_counter if device.startswith("cuda") else time.process_time
    rows, seconds, start = [], 0.0, clock()
    for done, model, training_loss in trainings(architecture, data, how, seed, device):
        seconds += clock() - start
        found: dict[str, Any] = {}
        temperature = 1.0
        for split in ("validation", "test"):
            logits, labels = scores(model, data, done.parts[-1][0], split, device)
            if split == "validation":
                temperature = fitted_temperature(logits, labels)
            found[f"{split}_accuracy"] = round(float((logits.argmax(1) == labels).float().mean()), 5)
            found[f"{split}_log_loss"] = round(float(functional.cross_entropy(logits / temperature, labels)), 5)
        rows.append(
            {
                "set": name,
                "network": network,
                "digest": architecture.digest,
                "flops": cost(architecture).flops,
                "budget": done.name,
                "seed": seed,
                **found,
                "training_loss": round(training_loss, 5),
                "temperature": round(temperature, 4),
                "seconds": round(seconds, 2),
                "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
            }
        )
        start = clock()
    return rows


class Graphs:
    """The steps of trainings on a GPU, each recorded as a CUDA graph for a batch size and then replayed."""

    def __init__(self) -> None:
        self.recorded: dict[tuple, tuple] = {}
        self.of: object | None = None

    def __call__(self, step: Any, pixels: Tensor, labels: Tensor, drops: int) -> Tensor:
        """As `training._Step.__call__`, in whose place it stands."""
        if self.of is not step:
            self.of, self.recorded = step, {}
        now = trainer.rate(step.settings, step.done, step.steps, step.per_epoch, drops)
        for group in step.optimizer.param_groups:
            group["lr"] = now
        key = tuple(pixels.shape)
        if key not in self.recorded:
            self.recorded[key] = record(step, pixels, labels)
        graph, given, wanted, loss = self.recorded[key]
        given.copy_(pixels)
        wanted.copy_(labels)
        graph.replay()
        step.optimizer.step()
        step.done += 1
        if step.average:
            step.average.update_parameters(step.model)
        return loss.clone()


def record(step: Any, pixels: Tensor, labels: Tensor) -> tuple:
    """A graph of forward, loss, backward and clipping, with the tensors that it reads and writes."""
    model = step.model
    given, wanted = pixels.clone(memory_format=torch.channels_last), labels.clone()
    parameters = list(model.parameters())
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters]

    def run() -> Tensor:
        torch._foreach_zero_(gradients)
        loss = functional.cross_entropy(model(given), wanted, label_smoothing=step.settings.label_smoothing)
        loss.backward()
        if step.settings.gradient_norm:
            torch.nn.utils.clip_grad_norm_(parameters, step.settings.gradient_norm)
        return loss.detach()

    before = {name: value.clone() for name, value in model.state_dict().items()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = run()
    with torch.no_grad():
        for name, value in model.state_dict().items():  # the statistics of batch norm
            value.copy_(before[name])
    return graph, given, wanted, loss


def with_graphs() -> None:
    """Let trainings of this process replay graphs."""
    graphs = Graphs()
    trainer._Step.__call__ = lambda step, pixels, labels, drops: graphs(step, pixels, labels, drops)


def work(sets: dict, device: str, waiting: Any, done: Any) -> None:
    """A process: trainings from the queue until it is empty."""
    torch.set_num_threads(1)
    if device.startswith("cuda"):
        with_graphs()
        sets = {name: (on_device(data, device), networks) for name, (data, networks) in sets.items()}
    while (job := waiting.get()) is not None:
        name, network, how, seed = job
        data, networks = sets[name]
        try:
            done.put(rows_of(name, network, networks[network], data, how, seed, device))
        except Exception:
            done.put(f"{name} {network} {how.name} seed {seed}\n{traceback.format_exc()}")
    done.put(None)


def on_device(data: DataSet, device: str) -> DataSet:
    """The training images on the GPU; each process holds its own copy."""
    return replace(data, train=replace(data.train, pixels=data.train.pixels.to(device)))


def key_of(row: dict) -> tuple:
    return row["set"], int(row["network"]), row["budget"], int(row["seed"])


def rows(table: Path) -> list[dict]:
    return list(csv.DictReader(table.read_text().splitlines())) if table.exists() else []


def run(places: dict[str, str], device: str, processes: int, only: str, half: str, seconds: float, table: Path) -> None:
    """Train what is missing in the table."""
    held = {key_of(row) for row in rows(table)}
    left = [job for job in jobs() if (job[0], job[1], job[2].name, job[3]) not in held]
    left = [job for job in left if only in f"{job[0]}/{job[2].name}/{job[3]}" and job[0] in places]
    left = [job for job in left if half in ("", ("even", "odd")[job[1] % 2])]
    print(f"{len(held)} trainings are done, {len(left)} are left", flush=True)
    names = sorted({job[0] for job in left})
    sets = {}
    for name in names:
        data = data_of(name, places)
        sets[name] = (data, networks_of(name, data.channels))
        print(f"{name}: {len(data.train)} + {len(data.validation)} + {len(data.test)} images", flush=True)
    context = multiprocessing.get_context("fork")  # the images are shared; CUDA starts in the processes
    waiting, done = context.Queue(), context.Queue()
    workers = [context.Process(target=work, args=(sets, device, waiting, done), daemon=True) for _ in range(processes)]
    for worker in workers:
        worker.start()
    jobs_left = iter(left)
    for job in (next(jobs_left, None) for _ in workers):
        waiting.put(job)
    start, finished, running = time.perf_counter(), 0, processes
    FOLDER.mkdir(parents=True, exist_ok=True)
    new = not table.exists()
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        while running:
            found = done.get()
            if found is None:
                running -= 1
                continue
            late = time.perf_counter() - start > seconds
            waiting.put(None if late else next(jobs_left, None))
            if isinstance(found, str):  # the traceback of a failed training
                print(found, file=sys.stderr, flush=True)
                continue
            writer.writerows(found)
            file.flush()
            finished += 1
            if finished % 16 == 0:
                spent = time.perf_counter() - start
                print(f"{finished} trainings in {spent:.0f} s, {found[-1]['set']} {found[-1]['budget']}", flush=True)
    print(f"{finished} trainings in {time.perf_counter() - start:.0f} s", flush=True)


@dataclass(frozen=True)
class Ranking:
    """How a budget ranks the networks of a set: Kendall's tau with the truth, and its 95 % interval over networks."""

    name: str
    tau: float
    low: float
    high: float
    seconds: float
    lost: float  # accuracy that is given up by taking its best network

    @property
    def text(self) -> str:
        tau = f"{self.tau:.2f} ({self.low:.2f} to {self.high:.2f})"
        return f"| {self.name} | {self.seconds:.0f} | {tau} | {self.lost:.1f} |"


def rankings(name: str, table: list[dict], draws: int = 1000) -> tuple[str, list[Ranking]]:
    """A sentence about the truth of a set, and a ranking for each budget, seed and criterion.

    The truth of a network is the mean accuracy of its long trainings over validation and test images. A long training
    is ranked by the mean of the other seeds.
    """
    mine = [row for row in table if row["set"] == name]
    long = {int(row["seed"]) for row in mine if row["budget"] == PLAN[name].long.name}
    held = {(row["budget"], int(row["seed"]), int(row["network"])): row for row in mine}
    known = [n for n in range(PLAN[name].networks) if all((PLAN[name].long.name, s, n) in held for s in long)]

    def truth(seeds: set[int]) -> numpy.ndarray:
        each = [[accuracy(held[PLAN[name].long.name, seed, n], name) for seed in sorted(seeds)] for n in known]
        return numpy.array(each).mean(1)

    every = truth(long)
    flops = numpy.array([float(held[PLAN[name].long.name, min(long), n]["flops"]) for n in known])
    found = [ranking("FLOPs", flops, every, 0.0, draws)]
    for budget_name, seed in sorted({(row["budget"], int(row["seed"])) for row in mine}):
        if not all((budget_name, seed, n) in held for n in known):
            continue
        mine_rows = [held[budget_name, seed, n] for n in known]
        against = every
        if budget_name == PLAN[name].long.name:
            if not (others := long - {seed}):
                continue
            against = truth(others)
        seconds = float(numpy.mean([float(row["seconds"]) for row in mine_rows]))
        for criterion, sign in (("validation_accuracy", 1), ("validation_log_loss", -1)):
            values = sign * numpy.array([float(row[criterion]) for row in mine_rows])
            label = f"{budget_name}, seed {seed}, {criterion.removeprefix('validation_').replace('_', ' ')}"
            found.append(ranking(label, values, against, seconds, draws))
    spread = 100 * every.std(ddof=1)
    about = f"{name}: {len(known)} networks, truth of {len(long)} seed(s): {100 * every.mean():.1f} % +- {spread:.1f}"
    if len(long) > 1:
        each = numpy.array([truth({seed}) for seed in sorted(long)])
        about += f"; seeds differ by {100 * math.sqrt(each.var(0, ddof=1).mean()):.1f} (standard deviation)"
    return about, found


def accuracy(row: dict, name: str) -> float:
    """Over validation and test images together."""
    validation, test = {"cifar10-12k": (2000, 2000), "fashion-10k": (2000, 10000), "clothing10": (341, 372)}[name]
    total = validation * float(row["validation_accuracy"]) + test * float(row["test_accuracy"])
    return total / (validation + test)


def ranking(name: str, values: numpy.ndarray, truth: numpy.ndarray, seconds: float, draws: int) -> Ranking:
    from scipy.stats import kendalltau

    rng = numpy.random.default_rng(0)
    taus = []
    for _ in range(draws):
        chosen = rng.integers(len(truth), size=len(truth))
        taus.append(kendalltau(values[chosen], truth[chosen]).statistic)
    low, high = numpy.nanquantile(taus, [0.025, 0.975])
    lost = 100 * (truth.max() - truth[values.argmax()])
    return Ranking(name, float(kendalltau(values, truth).statistic), low, high, seconds, lost)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    train = verbs.add_parser("train")
    train.add_argument("--cifar10-12k")
    train.add_argument("--clothing10")
    train.add_argument("--fashion-10k", help="the folder of Fashion-MNIST's IDX files; 'installed' for the usual one")
    train.add_argument("--device", default="cpu")
    train.add_argument("--processes", type=int, default=2)
    train.add_argument("--only", default="", help="part of SET/BUDGET/SEED")
    train.add_argument("--half", choices=("even", "odd"), default="", help="only networks of even or odd number")
    train.add_argument("--seconds", type=float, default=math.inf, help="start no training after so long")
    train.add_argument("--table", type=Path, default=FOLDER / "trainings.csv")
    verbs.add_parser("list")
    verbs.add_parser("report")
    packing = verbs.add_parser("pack")
    packing.add_argument("name", choices=PLAN)
    packing.add_argument("place")
    packing.add_argument("file", type=Path)
    arguments = parser.parse_args()
    if arguments.verb == "list":
        print(json.dumps({name: [one.name for one, _ in task.budgets] for name, task in PLAN.items()}, indent=1))
        return
    if arguments.verb == "report":
        table = rows(FOLDER / "trainings.csv")
        for name in PLAN:
            about, found = rankings(name, table)
            print(f"\n{about}\n\n| budget | seconds | tau (95 % interval) | lost (points) |\n| -- | -- | -- | -- |")
            print(*(one.text for one in found), sep="\n")
        return
    if arguments.verb == "pack":
        pack(
            arguments.name,
            {arguments.name: None if arguments.place == "installed" else arguments.place},
            arguments.file,
        )
        return
    given = {
        "cifar10-12k": arguments.cifar10_12k,
        "clothing10": arguments.clothing10,
        "fashion-10k": arguments.fashion_10k,
    }
    places = {name: None if place == "installed" else place for name, place in given.items() if place}
    run(
        places,
        arguments.device,
        arguments.processes,
        arguments.only,
        arguments.half,
        arguments.seconds,
        arguments.table,
    )


if __name__ == "__main__":
    main()
