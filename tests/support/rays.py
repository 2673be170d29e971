"""Where the sweeps of tests run: on a Ray that their driver starts, or on one that drivers join."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tests.support.consoles import ConsoleKind
from tests.support.faults import Hooks, descendants, ray_processes, running, title
from tests.support.programs import need_program
from tests.support.sweeps import AGENTS, ROOT, Driver, answers
from tests.support.waiting import wait_until

ACTORS = {
    "worker": ("RayTrainWorker",),
    "actor": ("TrialTrainable", "ResourceTrainable"),
    "controller": ("GroupController",),
    "broker": ("Broker",),
    "coordinator": ("_AutoscalingCoordinatorActor",),
}
"""Class names of actors as Ray shows them; a trial actor has the name that Tune gives it while it works."""
PROGRAMS = {"gcs": "gcs_server", "raylet": "raylet"}
"""Ray's own programs that a fault may befall."""
LASTING = ("_AutoscalingCoordinatorActor",)
"""Actors of the cluster and not of a sweep: this one passes requests for machines on to an autoscaler."""
AGENTS_END_SECONDS = 150.0
"""Ray's agents take up to a minute to notice that their raylet is gone."""
NODE_START_SECONDS = 120.0


class OwnRay:
    """The driver starts Ray, as on a laptop."""

    name = "alone"
    flags: tuple[object, ...] = ()

    def __init__(self, folder: Path, *, env: Mapping[str, str] | None = None) -> None:
        self.hooks = Hooks(folder / "hooks")
        self.env = _with_tests(self.hooks) | dict(env or {})
        self._drivers: list[Driver] = []

    def __enter__(self) -> OwnRay:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for Ray's agents to end; fail if one does not."""
        try:
            left = lambda: any(driver.orphans() for driver in self._drivers)  # noqa: E731
            wait_until(lambda: not left(), "Ray's agents to end", AGENTS_END_SECONDS)
        finally:
            self.end()

    def drive(self, *command: object, console: ConsoleKind | None = None) -> Driver:
        """Start a driver."""
        self._drivers.append(Driver(*command, *self.flags, env=self.env, console=console))
        return self._drivers[-1]

    def end(self) -> None:
        """End the drivers and all their processes."""
        for driver in self._drivers:
            driver.end()

    def find(self, victim: str) -> list[int]:
        """Return the processes of a kind that work for the latest driver."""
        return _find(victim, self._drivers[-1], self._drivers[-1].processes())

    def settle(self) -> None:
        """Wait until only Ray's agents are left of the drivers; these have until the end of the block."""
        left = lambda: any(driver.orphans(agents=False) for driver in self._drivers)  # noqa: E731
        wait_until(lambda: not left(), "all processes of the sweep to end")


class SharedRay:
    """A Ray of one or more nodes on this machine that drivers join by its address; they run beside the first node.

    Parameters
    ----------
    folder
        Folder of its hooks.
    cpus
        Cores of each node, the head first.
    store
        Where its control store (GCS) is stored, so that it can be killed and started again: RocksDB, which is a
        folder, or a Redis server of its own. None does not store it.
    env
        More environment variables for Ray's processes and the drivers.

    Attributes
    ----------
    hooks
        Code that is injected into the processes of the next sweep.
    """

    name = "nodes"

    def __init__(
        self,
        folder: Path,
        cpus: Sequence[int] = (2,),
        *,
        store: Literal["rocksdb", "redis"] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.hooks = Hooks(folder / "hooks")
        self.env = _with_tests(self.hooks) | dict(env or {})
        self._cpus, self._store = list(cpus), store
        self._drivers: list[Driver] = []
        self._seen: set[int] = set()

    def __enter__(self) -> SharedRay:
        self._start()
        return self

    def _start(self) -> None:
        from ray.cluster_utils import Cluster

        with contextlib.ExitStack() as stack:
            self._kept = stack.enter_context(KEEPERS[self._store]())
            self.cluster: Any = Cluster()
            stack.callback(self._stop)
            with self._environment():
                self.cluster.add_node(wait=False, num_cpus=self._cpus[0], include_dashboard=False)
            self.spare: list[Any] = []
            self.fill()
            self._stack = stack.pop_all()
        self.address: str = self.cluster.address
        self.flags: tuple[object, ...] = ("--address", self.address)

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _stop(self) -> None:
        import ray

        ray.shutdown()
        self.cluster.shutdown()

    @contextlib.contextmanager
    def _environment(self) -> Iterator[None]:
        """Set the environment in which nodes are started, in the block only: another Ray would use the same store."""
        before = dict(os.environ)
        os.environ.update(self.env | self._kept, RAY_USAGE_STATS_ENABLED="0")
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    def drive(self, *command: object, console: ConsoleKind | None = None) -> Driver:
        """Start a driver."""
        self._drivers.append(Driver(*command, *self.flags, env=self.env, console=console))
        return self._drivers[-1]

    def end(self) -> None:
        """End the drivers."""
        while self._drivers:
            self._drivers.pop().end()

    def restart(self) -> None:
        """Stop all nodes and start new ones, at another address."""
        self.end()
        self._stack.close()
        self._start()

    def fill(self, nodes: int | None = None) -> None:
        """Start nodes until there are `nodes` beside the head; None: as many as at first."""
        wanted = len(self._cpus) - 1 if nodes is None else nodes
        while len(self.spare) < wanted:
            self.spare.append(self.add_node(num_cpus=self._cpus[1 + len(self.spare)]))
        self.cluster.wait_for_nodes(NODE_START_SECONDS)

    def add_node(self, **resources: float) -> Any:
        """Start a node."""
        with self._environment():
            node = self.cluster.add_node(wait=False, **resources)
        self.cluster.wait_for_nodes(NODE_START_SECONDS)
        return node

    @contextlib.contextmanager
    def node(self, **resources: float) -> Iterator[None]:
        """Add a node for the duration of the block."""
        node = self.add_node(**resources)
        try:
            yield
        finally:
            self.cluster.remove_node(node)

    def find(self, victim: str) -> list[int]:
        """Return the processes of a kind, of the one sweep that runs."""
        return _find(victim, self._drivers[-1] if self._drivers else None, self._processes())

    def _processes(self) -> set[int]:
        """Return the descendants of this process, now and before: a process whose node dies gets another parent."""
        self._seen |= set(descendants(os.getpid()))
        return self._seen

    def lose_node(self, choice: float) -> None:
        """Send SIGKILL to all processes of a node other than the drivers'."""
        self._processes()
        node = self.spare.pop(int(choice * len(self.spare)))
        self.cluster.remove_node(node, allow_graceful=False)

    def raylet_of(self, pid: int) -> subprocess.Popen[bytes] | None:
        """Return the raylet of a process, if it is on a node other than the drivers'."""
        return next((raylet for raylet in self._raylets() if pid in descendants(raylet.pid)), None)

    def lose_node_of(self, raylet: subprocess.Popen[bytes]) -> None:
        """Send SIGKILL to all processes of a raylet's node."""
        self.lose_node(self._raylets().index(raylet) / len(self.spare))

    def _raylets(self) -> list[subprocess.Popen[bytes]]:
        return [node.all_processes["raylet"][0].process for node in self.spare]

    def kill_store(self) -> None:
        """Send SIGKILL to the control store."""
        self.cluster.head_node.kill_gcs_server()

    @contextlib.contextmanager
    def store_away(self) -> Iterator[None]:
        """Kill the control store, and start it again after the block, however that ends.

        Ray ends every process that waits for it for a minute, also this one.
        """
        self.kill_store()
        try:
            yield
        finally:
            self.start_store()

    def start_store(self) -> None:
        """Start the control store again from what it has stored."""
        with self._environment():
            self.cluster.head_node.start_gcs_server()

    def settle(self) -> None:
        """Wait until no process works and no resource is in use; start nodes for those that were lost."""
        wait_until(lambda: not self.busy(), "all processes of the sweep to end")
        wait_until(lambda: not self.held(), "all resources to be given back")
        self.end()
        alive = {node["NodeID"] for node in self.cluster.global_state.node_table() if node["Alive"]}
        lost = [node for node in (self.cluster.head_node, *self.spare) if not _works(node, alive)]
        if self.cluster.head_node in lost:
            self.restart()
            return
        for node in lost:
            self.spare.remove(node)
            self.cluster.remove_node(node, allow_graceful=False)
        self.fill()

    def busy(self) -> list[str]:
        """Return the titles of Ray's processes that work for a sweep."""
        idle = tuple(f"ray::{name}" for name in ("IDLE", *LASTING, *AGENTS))
        titles = [title(pid) for pid in self._processes()]
        return [found for found in titles if found.startswith("ray::") and not found.startswith(idle)]

    def held(self) -> dict[str, float]:
        """Return the resources that are in use. Objects in memory do not count: Ray frees them later."""
        state = self.cluster.global_state  # needs no connection of this process, which sweeps open and close
        free = state.available_resources()
        total = {k: v for k, v in state.cluster_resources().items() if k != "object_store_memory"}
        return {name: amount for name, amount in total.items() if free.get(name, 0.0) != amount}


def _works(node: Any, alive: set[str]) -> bool:
    """Return whether a node is alive by the control store, and has all its processes."""
    return node.node_id in alive and node.remaining_processes_alive()


def _find(victim: str, driver: Driver | None, pids: Iterable[int]) -> list[int]:
    """Return the processes of a kind among `pids`; without a `driver`, this process drives the sweep."""
    if victim == "driver":
        return [driver.child.pid if driver else os.getpid()]
    return sorted(running(pids, PROGRAMS[victim]) if victim in PROGRAMS else ray_processes(pids, *ACTORS[victim]))


def _with_tests(hooks: Hooks) -> dict[str, str]:
    """Return the environment of processes that run `hooks`, whose code may import from the tests."""
    return {"PYTHONPATH": f"{hooks.env['PYTHONPATH']}{os.pathsep}{ROOT}"}


@contextlib.contextmanager
def rocksdb() -> Iterator[dict[str, str]]:
    """Return the environment in which Ray keeps its control store in a folder."""
    with tempfile.TemporaryDirectory(prefix="gcs-") as folder:
        yield {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": folder}


@contextlib.contextmanager
def redis() -> Iterator[dict[str, str]]:
    """Return the environment in which Ray keeps its control store in a Redis server that lives as long as the block."""
    need_program("redis-server", "apt-get install redis-server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: answers("127.0.0.1", port), f"redis-server to answer at port {port}")
        yield {"RAY_REDIS_ADDRESS": f"127.0.0.1:{port}"}
    finally:
        server.kill()
        server.wait()


KEEPERS: dict[str | None, Any] = {
    None: lambda: contextlib.nullcontext({}),
    "rocksdb": rocksdb,
    "redis": redis,
}
