"""Connect to or start a Ray cluster; find the nodes that measure latency; explain errors."""

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

from nasspace import interrupts, temporary
from nasspace.engine.evaluator import needs_latency
from nasspace.engine.ray.address import connection_environment, connection_error, private_token
from nasspace.engine.ray.watch import ClusterLost, ClusterMonitor
from nasspace.errors import InputError, Interrupted, NasspaceError, first_line
from nasspace.studies.recipe import Recipe

LOOPBACK = "127.0.0.1"
STORE = 256 * 2**20  # bytes of the object store of a local cluster, in addition to the data set
QUIET = {  # disables the tables, signal handlers and logs of Tune: the study is the record, `nas` handles signals
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
OWN_CLUSTER = {"RAY_worker_niceness": "0"}  # the search's own priority: at Ray's 15, other work would slow latencies
INSTALLED = ("site-packages", "dist-packages")  # folders of installed packages
log = logging.getLogger(__name__)
QUICK = 20.0  # seconds of waiting for a node that are not reported
LATENCY = "latency"  # the resource of nodes that measure latency


@dataclass(frozen=True)
class Nodes:
    """The live nodes of a cluster: ids of those that measure latency and of the others, and the host names."""

    measuring: tuple[str, ...]
    others: tuple[str, ...]
    hosts: frozenset[str]


@dataclass(frozen=True)
class Connection:
    """A connection to a cluster: a private folder on the driver's machine, and the cluster's monitor."""

    folder: Path
    monitor: ClusterMonitor


@contextlib.contextmanager
def connect(recipe: Recipe, payload_bytes: int = 0, resume_command: str = "nas resume") -> Iterator[Connection]:
    """Connect to Ray during the body: as already connected, at the recipe's address, or started on this machine.

    `resume_command` is named to the user if the cluster dies. Raises `InputError` for an address that cannot be used,
    `Interrupted` if the cluster dies.
    """
    variables = OWN_CLUSTER if recipe.ray is None else connection_environment(recipe.ray)
    handler = signal.getsignal(signal.SIGTERM)
    with (
        temporary.private(temporary.for_ray()) as folder,
        environment_with({**QUIET, **variables}),
        _initialized(recipe, payload_bytes, folder) as address,
    ):
        monitor = ClusterMonitor(address, lost_message(recipe, resume_command), resume_command)
        with _sigterm_as_interrupt(handler), monitor.running(), _explained_errors(monitor):
            yield Connection(folder, monitor)


def lost_message(recipe: Recipe, resume_command: str) -> str:
    """The message that the cluster is gone: what is kept, and how to continue."""
    if recipe.ray is None:
        return f"Ray was stopped on this machine; what is finished is kept; run `{resume_command}` to continue"
    again = f"restart it, then run `{resume_command}`, or continue without it: `{resume_command} --ray none`"
    return f"the Ray cluster ({recipe.ray}) was stopped or cannot be reached; what is finished is kept: {again}"


@contextlib.contextmanager
def _explained_errors(monitor: ClusterMonitor) -> Iterator[None]:
    """Turn Ray's errors of a dead cluster into one message, and the error of a task into the original one."""
    import ray

    try:
        yield
    except ClusterLost as error:
        raise Interrupted(monitor.message) from error
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        if monitor.is_lost or not monitor.answers():
            raise Interrupted(monitor.message) from error
        why = first_line(error).rstrip(".")
        raise NasspaceError(
            f"Ray: {why}; what is finished is kept; run `{monitor.resume_command}` to continue"
        ) from error


@contextlib.contextmanager
def _initialized(recipe: Recipe, payload_bytes: int, folder: Path) -> Iterator[str]:
    """Initialize Ray, unless it is; yield the address of the cluster's control store."""
    import ray

    if ray.is_initialized():
        yield ray.get_runtime_context().gcs_address
        return
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if recipe.ray is None:
        settings |= {"address": "local", "num_cpus": recipe.workers, "include_dashboard": False}
        settings |= {"object_store_memory": STORE + 2 * payload_bytes, "_temp_dir": str(folder / temporary.RAY)}
        settings |= {"_node_ip_address": LOOPBACK}
    else:
        settings |= {"address": recipe.ray, "runtime_env": runtime_environment()}
    try:
        with _on_loopback() if recipe.ray is None else contextlib.nullcontext(), private_token():
            ray.init(**settings)
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
        if recipe.ray is None:
            raise NasspaceError(f"Ray does not start on this machine: {first_line(error)}") from None
        raise connection_error(recipe.ray, str(error)) from None
    try:
        with contextlib.redirect_stdout(_WithoutRayOutput(sys.stdout)):
            yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Let Ray start on the loopback interface, as it does on macOS and Windows.

    On Linux it replaces 127.0.0.1 by the machine's own address, and then listens on all interfaces. The constant is
    changed only for the start: this process may later connect to a cluster of several machines.
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
    """Set environment variables during the body; those that the user has set are left alone."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _sigterm_as_interrupt(handler: Any) -> Iterator[None]:
    """Handle SIGTERM, which batch systems send, as Ctrl-C; Ray would print a stack trace.

    `handler` is the one from before Ray was initialized, such as the command line's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if callable(handler):
        repeating: contextlib.AbstractContextManager[None] = contextlib.nullcontext()  # whoever set it sees to it
    else:
        repeating = interrupts.repeated(lambda: interrupts.send(signal.SIGTERM))
    signal.signal(signal.SIGTERM, handler if callable(handler) else interrupt)
    try:
        with repeating:
            yield
    finally:
        signal.signal(signal.SIGTERM, handler if handler is not None else signal.SIG_DFL)


class _WithoutRayOutput:
    """Standard output without Ray's lines, since a JSON document may be written to it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._dropped = False

    def write(self, text: str) -> int:
        """Write text, unless it is Ray's, or the end of a line of Ray's."""
        is_ray, is_line_end = "(raylet" in text or "(autoscaler" in text, self._dropped and text == "\n"
        self._dropped = is_ray
        if is_ray:
            log.debug(text)
        elif not is_line_end:
            self._stream.write(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def runtime_environment() -> dict[str, Any]:
    """Ray's runtime environment: the nodes get this package's code; each has its own caches."""
    return {"py_modules": [str(Path(__file__).resolve().parents[2])]}


def nodes() -> Nodes:
    """The live nodes of the cluster."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    measuring = tuple(sorted(node["NodeID"] for node in alive if node["Resources"].get(LATENCY)))
    others = tuple(sorted(node["NodeID"] for node in alive if node["NodeID"] not in measuring))
    return Nodes(measuring, others, frozenset(node["NodeManagerHostname"] for node in alive))


def pickle_by_value(parts: Mapping[str, Any]) -> None:
    """Let functions and classes from the user's own files be pickled with their code, which the nodes do not have."""
    from ray import cloudpickle

    for part in parts.values():
        module = sys.modules.get(getattr(part, "__module__", None) or "")
        path = getattr(module, "__file__", None)
        if module is None or module.__name__ == "__main__" or not path or module.__name__.startswith("nasspace"):
            continue
        installed = any(folder in Path(path).parts for folder in INSTALLED) or path.startswith(sys.base_prefix)
        if not installed:
            cloudpickle.register_pickle_by_value(module)


def capacity(ids: Iterable[str], bundle: Mapping[str, float]) -> int:
    """How many workers, each with the resources of a bundle, fit on these nodes."""
    import ray

    ids = set(ids)
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] in ids]
    return sum(int(min(each.get(name, 0.0) / amount for name, amount in bundle.items())) for each in resources)


@dataclass(frozen=True)
class Placement:
    """Where workers run: the resources of one, labels of its node, and how many fit on the cluster now."""

    bundle: dict[str, float]
    labels: dict[str, str]
    capacity: int

    @property
    def options(self) -> dict[str, Any]:
        """The options of a task."""
        resources = {"num_cpus": self.bundle["CPU"], "num_gpus": self.bundle.get("GPU", 0.0)}
        return {**resources, "label_selector": self.labels} if self.labels else resources


def worker_placement(recipe: Recipe, nodes: Nodes) -> Placement:
    """A core and a share of a GPU for a worker, on the nodes that do not measure latencies if these have them."""
    gpus = recipe.gpus if recipe.gpus is not None else float(recipe.device.startswith("cuda"))
    bundle = {"CPU": 1.0, **({"GPU": gpus} if gpus else {})}
    if nodes.measuring and (fitting := capacity(nodes.others, bundle)):
        return Placement(bundle, {"ray.io/node-id": f"!in({','.join(nodes.measuring)})"}, fitting)
    fitting = capacity((*nodes.others, *nodes.measuring), bundle)
    if not fitting:
        needed = " and ".join(f"{amount:g} {name}" for name, amount in bundle.items())
        raise InputError(f"no node of the Ray cluster has {needed} for a worker; add one, or ask for less (--gpus)")
    return Placement(bundle, {}, fitting)


def check_nodes(nodes: Nodes, recipe: Recipe) -> None:
    """Refuse a cluster of several machines without a node for latencies."""
    measures_here = recipe.latency_device == "local" and needs_latency(recipe)
    if measures_here and len(nodes.hosts) > 1 and not nodes.measuring:
        raise InputError(
            f"the cluster has {len(nodes.hosts)} machines, and none carries the resource '{LATENCY}', so that "
            f"latencies of several would be mixed; start one node with `ray start --resources='{{\"{LATENCY}\": 1}}'`"
        )


def on_driver_node() -> dict[str, Any]:
    """Options of an actor on the driver's node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def wait_for_node(
    reference: Any, seconds: float, purpose: str, note: Callable[[str], None], monitor: ClusterMonitor
) -> Any:
    """Wait for the result of a node that measures; raise `InputError` if it is busy or gone for too long."""
    import ray

    for waited in (min(QUICK, seconds), max(0.0, seconds - QUICK)):
        if monitor.is_ready(reference, waited):
            return ray.get(reference)
        note(f"waiting for a node with the resource '{LATENCY}' ({purpose}): another search uses it, or it is gone")
    raise InputError(
        f"no node with the resource '{LATENCY}' answered for {seconds:.0f} s ({purpose}); end the search that uses it, "
        "or start such a node, then run `nas resume`"
    )
