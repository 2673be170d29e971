"""Private API of Ray Core that raypipe needs, but for `join_compat`; `train_compat` has that of Ray Train.

No other module of raypipe uses a private name of Ray, so a new version of Ray is checked here and by
``tests/unit/backend/test_ray_compat.py``. Ray is imported inside functions: a driver imports this module first.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from raypipe.core.worker_imports import package_folders

SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's old reporter prints nothing at verbosity 0; the new one prints a header
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor per group, for a notice that the workers do not act on
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",  # Ray's ten minutes is how long a lost worker can go unnoticed
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # they write files after every report, in Tune's own loop
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's snapshots are not used
    "TUNE_STATE_REFRESH_PERIOD": "inf",  # for a number to print, Tune would wait for a control store that is away
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
"""Environment variables that Ray reads while a sweep runs, and their values where the user has set none."""
SHUTDOWN_MODULES = ("ray.dag.compiled_dag_node",)
"""Modules that ``ray.shutdown`` imports."""
_SESSION_PATH = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""Longest path of a socket of Ray below its folder."""
MAX_FOLDER_LENGTH = (107 if sys.platform.startswith("linux") else 103) - len(_SESSION_PATH)
"""Bytes that the path of Ray's folder may have: the path of a socket is limited."""
_FORWARDED = ("RAY_", "TRAIN_", "TUNE_", "NCCL_", "TORCHFT_")
"""How the names of the settings begin that Tune forwards to its actors."""


@contextlib.contextmanager
def keys_not_forwarded() -> Iterator[None]:
    """Make Tune forward settings of Ray to its actors in the block, and no keys.

    Tune forwards AWS keys as the ``runtime_env`` of its actors, which Ray writes to a log that every user can read.
    Actors on this machine inherit the environment. The machines of a cluster have keys of their own.
    """
    from ray.tune.execution import class_cache

    before: set[str] = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in before if name.startswith(_FORWARDED)}
    try:
        yield
    finally:
        class_cache.ENV_VARS_TO_PROPAGATE = before


@contextlib.contextmanager
def working_folder_not_copied() -> Iterator[None]:
    """Make a Ray that is started in the block not copy the working folder, as it does under ``uv run``.

    The copy would include an ``.env`` file with keys, and data.
    """
    from ray._private import ray_constants

    before = ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV
    ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
    try:
        yield
    finally:
        ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = before


@contextlib.contextmanager
def no_automatic_start() -> Iterator[None]:
    """Make Ray's functions fail in the block where Ray is not started; they would start one."""
    from ray._private import auto_init_hook

    before = auto_init_hook.enable_auto_connect
    auto_init_hook.enable_auto_connect = False
    try:
        yield
    finally:
        auto_init_hook.enable_auto_connect = before


@contextlib.contextmanager
def loopback_only() -> Iterator[None]:
    """Make a Ray that is started in the block listen on the loopback interface only, as Ray does on macOS.

    Its GCS, raylet and workers would listen on every interface. The address of a node follows from this setting;
    ``ray.init`` replaces an address of 127.0.0.1 by one that other machines reach.
    """
    from ray._private import ray_constants

    name, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    environment = os.environ.get(name)
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False  # for Ray's processes, and for this one
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        os.environ.pop(name)
        if environment is not None:
            os.environ[name] = environment


@contextlib.contextmanager
def own_process_group() -> Iterator[None]:
    """Make processes of a Ray that is started in the block a process group of their own each.

    A signal to the driver's group, such as GNU ``timeout`` and a shell's ``kill`` send, would end them before the
    driver has finished its epochs. They end with the driver all the same.
    """
    from ray._private import services

    before = services.ConsolePopen
    services.ConsolePopen = functools.partial(before, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = before


@contextlib.contextmanager
def few_processes() -> Iterator[None]:
    """Make a Ray that is started in the block start no processes that a sweep on one machine does not need.

    These are the monitor of the autoscaler, the server of the dashboard, for which ``ray.init`` waits seconds, and the
    parts of each node's agent that serve the dashboard.
    """
    from ray._private import utils
    from ray._private.node import Node

    before = Node.start_monitor, Node.start_api_server, utils.get_dashboard_dependency_error
    Node.start_monitor = lambda node: None
    Node.start_api_server = _start_no_server
    utils.get_dashboard_dependency_error = lambda: ImportError("no dashboard is started")
    try:
        yield
    finally:
        Node.start_monitor, Node.start_api_server, utils.get_dashboard_dependency_error = before


def _start_no_server(node: Any, *, include_dashboard: bool | None, raise_on_failure: bool) -> None:
    node._webui_url = None


def end_partly_started_node(error: BaseException) -> None:
    """End the processes of a Ray whose start has raised `error`: ``ray.shutdown`` does not know them yet."""
    from ray._private.node import Node

    trace = error.__traceback__
    while trace is not None:
        node = trace.tb_frame.f_locals.get("self")
        if isinstance(node, Node) and hasattr(node, "all_processes"):
            with contextlib.suppress(Exception):
                node.kill_all_processes(check_alive=False, allow_graceful=False)
        trace = trace.tb_next


def job_config() -> Any:
    """Return the configuration of a driver whose workers import nothing from the working folder.

    Ray puts the driver's working folder and that of its script first on the path of its workers, where a ``raypipe.py``
    or ``queue.py`` of the user's would be imported. Only the folder of raypipe itself is put there, unless packages are
    found in it anyway.
    """
    from ray.job_config import JobConfig

    class WithoutWorkingFolder(JobConfig):  # type: ignore[misc,unused-ignore]
        def _serialize(self) -> Any:
            self._py_driver_sys_path = package_folders()
            return super()._serialize()

    return WithoutWorkingFolder()


@contextlib.contextmanager
def process_output_to(receive: Callable[[dict[str, Any]], object]) -> Iterator[None]:
    """Pass the output of a cluster's processes to `receive`, where Ray is started or joined in the block.

    Ray would print it here (its ``log_to_driver``).
    """
    from ray._private import worker

    before = worker.print_to_stdstream
    worker.print_to_stdstream = lambda data, ignore_prefix: receive(data)
    try:
        yield
    finally:
        worker.print_to_stdstream = before


def reread_authentication() -> None:
    """Make Ray read the authentication mode and the token again, from the present environment.

    A process that starts a Ray keeps that Ray's mode and token after ``ray.shutdown``. Actors of a cluster without a
    token could not reach it then, and would not start.
    """
    from ray import _raylet

    raylet: Any = _raylet  # a compiled module, whose types Ray does not ship
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()  # last, since a thread of Ray may fill it by the mode


def free_resources() -> dict[str, dict[str, float]]:
    """Return the free resources of every node that is alive, by node id."""
    from ray._private.state import available_resources_per_node

    found: dict[str, dict[str, float]] = available_resources_per_node()
    return found


def nodes_of_placement_group(group: str) -> list[str]:
    """Return the node of every bundle of a placement group, by node id; none if it is removed."""
    from ray.util.placement_group import placement_group_table

    found = placement_group_table().get(group)
    if not found or found["state"] == "REMOVED":
        return []
    return list(found["bundles_to_node_id"].values())


def remove_placement_group(group: str | None) -> None:
    """Remove a placement group, given by its id in hex, if it is there."""
    if group:
        _remove_placement_groups(lambda found, name: found == group)


def remove_named_placement_groups(prefix: str) -> None:
    """Remove the placement groups whose names begin with `prefix`."""
    _remove_placement_groups(lambda found, name: name.startswith(prefix))


def _remove_placement_groups(wanted: Callable[[str, str], bool]) -> None:
    """Remove the placement groups for whose ids in hex and names `wanted` returns True."""
    from ray import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    for group, found in placement_group_table().items():
        if wanted(group, found["name"]) and found["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))


def pickled_current_actor() -> bytes:
    """Return the pickled handle of this process's actor; pickled, so that the broker need not import Ray's classes."""
    import ray

    return bytes(ray.cloudpickle.dumps(ray.get_runtime_context().current_actor))


def ping_actor(pickled: bytes) -> Any:
    """Call the actor of a pickled handle; return the reference to its answer."""
    import ray

    return ray.cloudpickle.loads(pickled).__ray_ready__.remote()


def kill_actor(pickled: bytes) -> None:
    """Kill the actor of a pickled handle."""
    import ray

    ray.kill(ray.cloudpickle.loads(pickled))


def kv_put(key: str, value: bytes | str) -> None:
    """Store a value in the cluster's key-value store."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(key, value)


def kv_get(key: str) -> bytes | None:
    """Return a value of the cluster's key-value store."""
    from ray.experimental.internal_kv import _internal_kv_get

    value: bytes | None = _internal_kv_get(key)
    return value


def kv_delete(key: str) -> None:
    """Delete a value of the cluster's key-value store."""
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(key)
