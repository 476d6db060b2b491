"""Start a Ray cluster on this machine or connect to one; which of its nodes measure; what can be wrong with it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nasspace import temporary
from nasspace.engine import evaluator
from nasspace.engine.ray.address import closed_token, explained, reached
from nasspace.engine.ray.watch import Lost, Watch
from nasspace.errors import InputError, Interrupted, NasspaceError, first_line
from nasspace.studies.recipe import Recipe

LOOPBACK = "127.0.0.1"
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
QUICK = 20.0  # seconds of waiting for a node that are not worth a word
LATENCY = "latency"  # the resource of nodes that measure


@dataclass(frozen=True)
class Nodes:
    """The nodes of a cluster that live: ids of those that measure, of the others, and the names of the machines."""

    measuring: tuple[str, ...]
    others: tuple[str, ...]
    hosts: frozenset[str]


@dataclass(frozen=True)
class Connection:
    """A cluster in use: a private folder on the driver's machine, and what notices that the cluster is gone."""

    folder: Path
    watch: Watch


@contextlib.contextmanager
def connected(recipe: Recipe, size: int = 0, go_on: str = "nas resume") -> Iterator[Connection]:
    """Ray, for the time of a search: one that is running in this process, at the recipe's address, or started here.

    `size` is that of what is sent to the workers, in bytes; `go_on` the command that goes on if the cluster is lost.
    Raises `InputError` for an address that cannot be used, `Interrupted` if the cluster is lost.
    """
    needed = {} if recipe.ray is None else reached(recipe.ray)
    before = signal.getsignal(signal.SIGTERM)
    with (
        temporary.private(temporary.for_ray()) as folder,
        environment_with({**QUIET, **needed}),
        _joined(recipe, size, folder) as address,
    ):
        watch = Watch(address, lost_message(recipe, go_on), go_on)
        with _terminated_as_interrupted(before), watch.running(), _losses_explained(watch):
            yield Connection(folder, watch)


def lost_message(recipe: Recipe, go_on: str) -> str:
    """What is kept when a cluster is gone, and how to go on."""
    if recipe.ray is None:
        return f"Ray was stopped on this machine; what is finished is kept, `{go_on}` goes on"
    again = f"start it again, then `{go_on}` goes on there, `{go_on} --ray none` without it"
    return f"the Ray cluster ({recipe.ray}) was stopped or cannot be reached; what is finished is kept: {again}"


@contextlib.contextmanager
def _losses_explained(watch: Watch) -> Iterator[None]:
    """What Ray raises when the cluster goes, as one message; what a task raised is its own error."""
    import ray

    try:
        yield
    except Lost as lost:
        raise Interrupted(watch.message) from lost
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        if watch.lost or not watch.answers():
            raise Interrupted(watch.message) from error
        raise NasspaceError(f"Ray: {first_line(error)}; what is finished is kept, `{watch.go_on}` goes on") from error


@contextlib.contextmanager
def _joined(recipe: Recipe, size: int, folder: Path) -> Iterator[str]:
    """Connect; yields the address of the cluster's control store."""
    import ray

    if ray.is_initialized():
        yield ray.get_runtime_context().gcs_address
        return
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if recipe.ray is None:
        settings |= {"address": "local", "num_cpus": recipe.workers, "include_dashboard": False}
        settings |= {"object_store_memory": STORE + 2 * size, "_temp_dir": str(folder / temporary.RAY)}
        settings |= {"_node_ip_address": LOOPBACK}
    else:
        settings |= {"address": recipe.ray, "runtime_env": environment()}
    try:
        with _on_loopback() if recipe.ray is None else contextlib.nullcontext(), closed_token():
            ray.init(**settings)
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
        if recipe.ray is None:
            raise NasspaceError(f"Ray does not start on this machine: {first_line(error)}") from None
        raise explained(recipe.ray, str(error)) from None
    try:
        with contextlib.redirect_stdout(_WithoutRay(sys.stdout)):
            yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Let Ray start on the loopback interface, as it does on macOS and Windows.

    On Linux it replaces 127.0.0.1 by the machine's own address, and then listens on all interfaces. The constant holds
    for the start only: this process may connect to a cluster of several machines later.
    """
    from ray._private import ray_constants

    before = getattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def environment_with(variables: Mapping[str, str]) -> Iterator[None]:
    """What Ray reads there for the time of a search; what the user has set stays."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _terminated_as_interrupted(before: Any) -> Iterator[None]:
    """SIGTERM, as batch systems send it, ends a search as Ctrl-C does; Ray would print a stack trace.

    `before` is what handled it before Ray did, such as the command line.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, before if callable(before) else interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


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
    here = recipe.latency_device == "local" and evaluator.measures(recipe)
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


def awaited(reference: Any, seconds: float, doing: str, note: Callable[[str], None], watch: Watch) -> Any:
    """What a node that measures returns; an `InputError` if it is another search's, or lost, for so long."""
    import ray

    for waited in (min(QUICK, seconds), max(0.0, seconds - QUICK)):
        if watch.is_ready(reference, waited):
            return ray.get(reference)
        note(f"waiting for a node with the resource '{LATENCY}' ({doing}): another search uses it, or it is lost")
    raise InputError(
        f"no node with the resource '{LATENCY}' answered for {seconds:.0f} s ({doing}); end the search that uses it, "
        "or start such a node, then `nas resume` goes on"
    )
