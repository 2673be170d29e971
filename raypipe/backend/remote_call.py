"""Function calls on a machine of a cluster, with a worker's resources, so that they measure what a worker would."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from raypipe.backend.cluster import Cluster
from raypipe.backend.resources import WAIT_SECONDS, cluster_nodes
from raypipe.core.errors import UserError, first_line
from raypipe.core.gpu_share import reserved_gpu_share
from raypipe.trial.callback import SweepCallback

if TYPE_CHECKING:
    from ray import ObjectRef

NOTICE_SECONDS = 5.0
"""Seconds without a free machine after which `on_waiting` is called."""
MAX_ATTEMPTS = 3
"""Times that a call is made, in case its machine is lost."""


class RemoteSite(NamedTuple):
    """A cluster that has been joined."""

    run: Callable[..., Any]
    """Calls a function on one of its machines, with a worker's resources."""
    nodes: Callable[[], list[dict[str, float]]]
    """Returns the resources of each of its machines, by name."""


@contextlib.contextmanager
def connect(address: str, callback: SweepCallback, *, cpus: float, gpus: float) -> Iterator[RemoteSite]:
    """Join a cluster for the duration of the block.

    Parameters
    ----------
    address
        Address of the cluster.
    callback
        Its `on_waiting` is called while no machine is free.
    cpus, gpus
        Resources of a worker.

    Raises
    ------
    UserError
        There is no cluster; or, from `RemoteSite.run`, no machine was free for ten minutes, or the function raised it.
    """
    with Cluster(address, SweepCallback()) as cluster:
        cluster.start()
        import ray

        def run(function: Callable[..., Any], *arguments: Any) -> Any:
            # Ray's own retries would never end where its memory monitor kills the task each time.
            remote = ray.remote(num_cpus=cpus, num_gpus=reserved_gpu_share(gpus), max_retries=0)
            attempts = MAX_ATTEMPTS
            while True:
                ready = remote(_do_nothing).remote()
                _wait_for_machine(ready, address, callback, f"{cpus:g} core(s) and {gpus:g} GPU(s)")
                try:
                    ray.get(ready)
                    return ray.get(remote(function).remote(*arguments))
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, UserError):
                        raise error.cause from None
                    raise
                except ray.exceptions.OutOfMemoryError as error:
                    raise UserError(f"a step does not fit in a machine's memory ({first_line(error)})") from None
                except ray.exceptions.RayError as error:  # the machine was lost
                    attempts -= 1
                    if not attempts:
                        raise UserError(f"{address}: the measuring process has died ({first_line(error)})") from error

        yield RemoteSite(run, cluster_nodes)


def _do_nothing() -> None:
    """Return once Ray has found a machine for it."""


def _wait_for_machine(ready: ObjectRef, address: str, callback: SweepCallback, resources: str) -> None:
    import ray

    if ray.wait([ready], timeout=NOTICE_SECONDS)[0]:
        return
    callback.on_waiting(f"no machine has {resources} free")
    if not ray.wait([ready], timeout=WAIT_SECONDS)[0]:
        ray.cancel(ready, force=True)
        raise UserError(f"{address}: no machine had {resources} free for {WAIT_SECONDS / 60:.0f} minutes")
