"""Where a sweep runs: on a Ray of its own, or on three nodes that outlive it. Both leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from tests.support.faults import descendants, ray_processes, title
from tests.support.sweeps import AGENTS, Driver, answers, wait_until

# Class names of actors as Ray shows them; a trial actor has the name that Tune gives it while it works.
ACTORS = {
    "worker": ("RayTrainWorker",),
    "actor": ("TrialTrainable", "ResourceTrainable"),
    "controller": ("TrainController",),
    "broker": ("Broker",),
}
# Of the cluster and not of a sweep: passes requests for machines on to an autoscaler, for whoever asks next too.
LASTING = ("_AutoscalingCoordinatorActor",)
# Ray's agents take up to a minute to notice that their raylet is gone.
AGENTS_LEAVE = 150.0


class Alone:
    """The driver starts Ray, as on a laptop."""

    name = "alone"
    flags: tuple[object, ...] = ()

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = dict(env)
        self._drivers: list[Driver] = []

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *_: object) -> None:
        """Fails where one of Ray's agents has outlived its sweep for good."""
        try:
            wait_until(lambda: not any(d.orphans() for d in self._drivers), "Ray's agents to end", AGENTS_LEAVE)
        finally:
            for driver in self._drivers:
                driver.end()

    def drive(self, *command: object) -> Driver:
        """Start a driver."""
        self._drivers.append(Driver(*command, *self.flags, env=self.env))
        return self._drivers[-1]

    def find(self, driver: Driver, victim: str) -> list[int]:
        """Processes of a kind that work for this driver."""
        return sorted(driver.named(*ACTORS[victim]))

    def settle(self, drivers: list[Driver]) -> None:
        """Wait until nothing of these drivers is left but agents, which have until the end of the block."""
        wait_until(lambda: not any(d.orphans(agents=False) for d in drivers), "all processes of the sweep to end")


@contextlib.contextmanager
def rocksdb() -> Iterator[dict[str, str]]:
    """What tells Ray to keep its control store in a folder."""
    with tempfile.TemporaryDirectory(prefix="gcs-") as folder:
        yield {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": folder}


@contextlib.contextmanager
def redis() -> Iterator[dict[str, str]]:
    """What tells Ray to keep its control store in a Redis server, which lives as long as the block."""
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


class Nodes:
    """A Ray of three nodes with a core each; drivers join it, and live on the first.

    Its control store (GCS) is kept in `store`, so that it can be killed and started again: RocksDB, which is a folder,
    or a Redis server of its own.
    """

    name = "nodes"

    def __init__(self, env: Mapping[str, str], store: Literal["rocksdb", "redis"] = "rocksdb") -> None:
        self.env, self.store = dict(env), store

    def __enter__(self) -> Nodes:
        import ray
        from ray.cluster_utils import Cluster

        with contextlib.ExitStack() as stack:
            keep = rocksdb if self.store == "rocksdb" else redis
            self._kept = stack.enter_context(keep())
            with self._environment():
                self.cluster: Any = Cluster(
                    initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
                )
            stack.callback(self.cluster.shutdown)
            self.spare: list[Any] = []
            self.fill()
            ray.init(address=self.cluster.address, log_to_driver=False, logging_level="ERROR")
            stack.callback(ray.shutdown)
            self._stack = stack.pop_all()
        self.flags: tuple[object, ...] = ("--address", self.cluster.address)
        self._seen: set[int] = set()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def _environment(self) -> Iterator[None]:
        """What the nodes' processes are started in. Not kept: another Ray of this process would take its store."""
        before = dict(os.environ)
        os.environ.update(self.env | self._kept, RAY_USAGE_STATS_ENABLED="0")
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    def drive(self, *command: object) -> Driver:
        """Start a driver."""
        return Driver(*command, *self.flags, env=self.env)

    def fill(self, nodes: int = 2) -> None:
        """Start nodes until there are so many beside the drivers'."""
        with self._environment():
            while len(self.spare) < nodes:
                self.spare.append(self.cluster.add_node(num_cpus=1))

    def find(self, driver: Driver, victim: str) -> list[int]:
        """Processes of a kind; there is one driver at a time."""
        return sorted(ray_processes(self._look(), *ACTORS[victim]))

    def _look(self) -> set[int]:
        """Processes below this one, and those seen there before: one that loses its node is nobody's child."""
        self._seen |= set(descendants(os.getpid()))
        return self._seen

    def lose_node(self, choice: float) -> None:
        """SIGKILL all processes of a node other than the drivers'."""
        self._look()
        node = self.spare.pop(int(choice * len(self.spare)))
        self.cluster.remove_node(node, allow_graceful=False)

    def kill_store(self) -> None:
        """SIGKILL the control store."""
        self.cluster.head_node.kill_gcs_server()

    def start_store(self) -> None:
        """Start it again from what it has kept."""
        with self._environment():
            self.cluster.head_node.start_gcs_server()

    def settle(self, drivers: list[Driver]) -> None:
        """Wait until no process works and nothing is held, and start nodes for those that were lost."""
        wait_until(lambda: not self._busy(), "all processes of the sweep to end")
        wait_until(lambda: not self._held(), "all resources to be given back")
        for driver in drivers:
            driver.end()
        self.fill()

    def _busy(self) -> list[str]:
        titles = [title(pid) for pid in self._look()]
        return [
            t
            for t in titles
            if t.startswith("ray::") and not t.startswith(tuple(f"ray::{name}" for name in ("IDLE", *LASTING, *AGENTS)))
        ]

    @staticmethod
    def _held() -> dict[str, float]:
        """Resources that somebody holds. Objects in memory are not: Ray frees them when it likes."""
        import ray

        free = ray.available_resources()
        total = {k: v for k, v in ray.cluster_resources().items() if k != "object_store_memory"}
        return {name: amount for name, amount in total.items() if free.get(name, 0.0) != amount}


PLACES = {"alone": Alone, "nodes": Nodes}
