"""To a cluster and from it: started here, or reached at an address; who measures there; what can be wrong with it."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nasspace.errors import InputError, NasspaceError
from nasspace.studies import evaluate
from nasspace.studies.recipe import Recipe
from nasspace.studies.workers.address import check_address

STORE = 256 * 2**20  # bytes of the object store of a cluster started here, beside the data set
QUIET = {  # Tune keeps tables of its own and watches the keyboard; the study is the record here, and `nas` watches
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "1000000",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
}
SCRIPTS = ("site-packages", "dist-packages")
log = logging.getLogger(__name__)
LATENCY = "latency"  # the resource of nodes that measure


@dataclass(frozen=True)
class Nodes:
    """The nodes of a cluster that live: ids of those that measure, of the others, and the names of the machines."""

    measuring: tuple[str, ...]
    others: tuple[str, ...]
    hosts: frozenset[str]


@contextlib.contextmanager
def connected(recipe: Recipe, size: int = 0) -> Iterator[None]:
    """Ray, for the time of a search: one that is running in this process, at the recipe's address, or started here.

    `size` is that of what is sent to the workers, in bytes. Raises `InputError` for an address that cannot be used.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if recipe.ray is None:
        settings |= {"address": "local", "num_cpus": recipe.workers, "include_dashboard": False}
        settings |= {"object_store_memory": STORE + 2 * size}
    else:
        check_address(recipe.ray)
        settings |= {"address": recipe.ray, "runtime_env": environment()}
    try:
        ray.init(**settings)
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
        raise _explained(recipe.ray, error) from None
    try:
        with contextlib.redirect_stdout(_WithoutRay(sys.stdout)):
            yield
    finally:
        ray.shutdown()


class _WithoutRay:
    """Standard output without what Ray prints there of its own accord: it may be a JSON document's."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._dropped = False

    def write(self, text: str) -> int:
        own, ended = "(raylet" in text or "(autoscaler" in text, self._dropped and text == "\n"
        self._dropped = own
        if own:
            log.debug(text)
        elif not ended:
            self._stream.write(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def environment() -> dict[str, Any]:
    """What the nodes of a cluster get: this code. Where its caches lie is each node's own matter."""
    return {"py_modules": [str(Path(__file__).resolve().parents[2])]}


def _explained(address: str | None, error: Exception) -> NasspaceError:
    """What Ray said at the door, as one message."""
    if address is None:
        return NasspaceError(f"Ray does not start on this machine: {_line(error)}")
    text = str(error)
    if "ersion mismatch" in text or "started with" in text:
        said = " ".join(text.split())
        return InputError(
            f"--ray {address}: the cluster runs other versions ({said}); install the same Ray and Python on all nodes"
        )
    if address == "auto":
        return InputError("--ray auto: no cluster runs on this machine; start one with `ray start --head`")
    return InputError(f"--ray {address}: the cluster cannot be used: {_line(error)}")


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nodes() -> Nodes:
    """What the cluster has."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    measuring = tuple(sorted(node["NodeID"] for node in alive if node["Resources"].get(LATENCY)))
    others = tuple(sorted(node["NodeID"] for node in alive if node["NodeID"] not in measuring))
    return Nodes(measuring, others, frozenset(node["NodeManagerHostname"] for node in alive))


def by_value(parts: Mapping[str, Any]) -> None:
    """What comes from files of the user's own travels whole, since the nodes do not have them."""
    from ray import cloudpickle

    for part in parts.values():
        module = sys.modules.get(getattr(part, "__module__", None) or "")
        path = getattr(module, "__file__", None)
        if module is None or module.__name__ == "__main__" or not path or module.__name__.startswith("nasspace"):
            continue
        installed = any(folder in Path(path).parts for folder in SCRIPTS) or path.startswith(sys.base_prefix)
        if not installed:
            cloudpickle.register_pickle_by_value(module)


def room(ids: Iterable[str], bundle: Mapping[str, float]) -> int:
    """How many workers, each with the resources of a bundle, find place on these nodes."""
    import ray

    ids = set(ids)
    alive = (node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] in ids)
    return sum(int(min(has.get(name, 0.0) / amount for name, amount in bundle.items())) for has in alive)


def check(nodes: Nodes, recipe: Recipe) -> None:
    """Refuse a cluster of several machines none of which is there to measure."""
    here = recipe.latency_device == "local" and evaluate.measures(recipe)
    if here and len(nodes.hosts) > 1 and not nodes.measuring:
        raise InputError(
            f"the cluster has {len(nodes.hosts)} machines, and none carries the resource '{LATENCY}', so that "
            f"latencies of several would be mixed; start one node with `ray start --resources='{{\"{LATENCY}\": 1}}'`"
        )


def on_this_node() -> dict[str, Any]:
    """Options of an actor that stays beside the driver."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}
