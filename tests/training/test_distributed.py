"""Two processes, through Gloo: the gradients of whole batches, the same weights, one message if they fail."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from nasspace.data.loading import DataSet, load_data
from nasspace.errors import InputError
from nasspace.training import distributed
from nasspace.training.distributed import ALONE, Processes
from nasspace.training.settings import Fidelity, TrainingSettings
from nasspace.training.trainer import batches_per_epoch, train

PLAIN = TrainingSettings(batch_size=31, crop_padding=0, flip=False, learning_rate=0.05)
RANDOM = TrainingSettings(batch_size=32, policy="trivialaugment", mixup=0.2, average=0.9, schedule="plateau")
SETTINGS = {"plain": PLAIN, "random": RANDOM}

# argv: folder, settings, number of saves after which the first process is killed, what the second one does.
SCRIPT = """
import json, os, signal
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
from test_distributed import SETTINGS, few, network
from nasspace.errors import NasspaceError
from nasspace.training import checkpoints, distributed, trainer

folder, kind, saves, deed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
checkpoints.INTERVAL = 0.0
save = checkpoints.Checkpoints.save
def saved(self, state):
    global saves
    assert distributed.is_first()
    save(self, state)
    saves -= 1
    if saves == 0:
        os.kill(os.getpid(), signal.SIGKILL)
checkpoints.Checkpoints.save = saved

def main(processes):
    model = network(kind)
    def on_epoch(*_):
        if deed == "raise" and processes.rank == 1:
            raise NasspaceError("the second one fails")
    given = few(1 if deed == "other data" and processes.rank == 1 else 0)
    result = trainer.train(model, given, trainer.Fidelity(8, 2), SETTINGS[kind], device=processes.device, seed=3,
                           checkpoint=folder / "c.pt", on_epoch=on_epoch, processes=processes)
    torch.save(model.state_dict(), folder / f"{{processes.rank}}.pt")
    (folder / f"{{processes.rank}}.json").write_text(json.dumps(result.losses))

try:
    for _ in range(2 if deed == "twice" else 1):
        with distributed.joined("cpu") as processes:
            main(processes)
except NasspaceError as error:
    print(error)
    sys.exit(2)
"""


def few(seed: int = 0) -> DataSet:
    """180 digits to train on."""
    return load_data("digits", held_out=0.9, seed=seed)


def network(kind: str) -> nn.Module:
    """With batch norm and dropout if `random`; without, the processes have the gradients of the whole batch."""
    torch.manual_seed(0)
    extra = [nn.BatchNorm2d(8), nn.Dropout(0.2)] if kind == "random" else []
    return nn.Sequential(nn.Conv2d(1, 8, 3), *extra, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))


@pytest.fixture
def together(forked, monkeypatch, tmp_path) -> Callable[..., tuple[list[int], str]]:
    """Run the script in two processes as `torchrun` starts them; returns their exit statuses and all they print."""

    def run(kind: str, saves: int = 0, deed: str = "") -> tuple[list[int], str]:
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
        shared |= {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "TORCHELASTIC_RUN_ID": "x"}
        started = []
        for rank in range(2):
            for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items():
                monkeypatch.setenv(name, str(value))
            code = SCRIPT.format(tests=str(Path(__file__).parent))
            started.append(forked(code, str(tmp_path), kind, str(saves), deed))
        statuses = [process.wait(120) for process in started]
        return statuses, "".join(process.output() for process in started)

    return run


def weights(folder: Path) -> list[dict[str, torch.Tensor]]:
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], names=None) -> bool:
    return all(torch.equal(one[name], other[name]) for name in names or one)


def test_two_processes_train_as_one_does(together, tmp_path):
    statuses, output = together("plain")
    assert statuses == [0, 0], output
    first, second = weights(tmp_path)
    assert equal(first, second)
    alone = network("plain")
    losses = train(alone, few(), Fidelity(8, 2), PLAIN, seed=3).losses
    assert json.loads((tmp_path / "1.json").read_text()) == pytest.approx(losses, rel=1e-5)
    for name, tensor in alone.state_dict().items():
        assert torch.allclose(first[name], tensor, rtol=1e-4, atol=1e-6), name


def test_a_stopped_training_continues_with_as_many_processes(together, tmp_path):
    assert together("random") == ([0, 0], "")
    whole, path = weights(tmp_path), tmp_path / "c.pt"
    assert equal(*whole, names=["0.weight", "5.weight"])
    path.unlink()
    statuses, output = together("random", saves=7)
    assert statuses == [-signal.SIGKILL, 2], output
    assert output == f"{distributed.LOST}\n"
    assert together("random") == ([0, 0], "")
    assert equal(weights(tmp_path)[0], whole[0])
    with pytest.raises(InputError, match=r"another training \(processes differ\)"):
        train(network("random"), few(), Fidelity(8, 2), RANDOM, seed=3, checkpoint=path)


@pytest.mark.parametrize(
    ("deed", "message"),
    [
        ("raise", "the second one fails\n"),
        ("other data", "the processes of this training differ in data, weights, or checkpoint; .*\n"),
    ],
)
def test_failing_processes_print_one_message(deed, message, together):
    statuses, output = together("plain", deed=deed)
    assert re.fullmatch(message, output)
    assert 2 in statuses
    assert 0 not in statuses


def test_two_trainings_follow_each_other(together):
    assert together("plain", deed="twice") == ([0, 0], "")


def test_a_process_alone_changes_nothing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # of another launcher
    with distributed.joined("cpu") as processes:
        assert processes == ALONE
    batch, loss = torch.arange(5), torch.tensor(2.0)
    assert ALONE.share(batch) is batch
    assert ALONE.average([], loss, 5) is loss
    assert (ALONE.seed(7), ALONE.any(False), ALONE.from_first(0.3), distributed.is_first()) == (7, False, 0.3, True)


def test_batches_are_shared_in_nearly_equal_parts():
    parts = [Processes(rank, 3).share(torch.arange(8)).tolist() for rank in range(3)]
    assert parts == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert len({Processes(rank, 3).seed(0) for rank in range(3)}) == 3
    for processes in (1, 2, 4):
        smallest = 100 // batches_per_epoch(100, 2, processes)
        assert smallest // processes >= 2
    with pytest.raises(InputError, match=r"6 is too small for 4 processes.*give 8 or more"):
        Processes(0, 4).check_batch_size(6)


@pytest.mark.parametrize(("device", "message"), [("mps", "trains in one process"), ("cuda", "finds 0 GPUs for 2")])
def test_devices_that_cannot_be_shared_are_refused(device, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    shared = {"WORLD_SIZE": 2, "RANK": 1, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2, "TORCHELASTIC_RUN_ID": "x"}
    for name, value in shared.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(InputError, match=message), distributed.joined(device):
        pass
    assert not distributed.is_first()


@pytest.mark.slow
def test_torchrun_trains_and_exports(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "nasspace.cli", "train"]
    given = ["mobilenet_v1_0.25", "--data", "digits", "--resolution", "9", "--epochs", "1", "--out", "trained"]
    done = subprocess.run([*command, *given, "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["folder"] == "trained"
    assert json.loads((tmp_path / "trained/training.json").read_text())["validation"] == record["validation"]
    assert done.stderr.count("epoch 1 of 1") == 1
    assert [path.name for path in tmp_path.iterdir() if "trained" in path.name] == ["trained"]
