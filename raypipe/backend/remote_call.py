"""Work that is measured where it will be done: on a worker's share of a cluster's machines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from raypipe.backend.cluster import Cluster
from raypipe.backend.resources import WAIT_SECONDS
from raypipe.core.errors import UserError, first_line
from raypipe.trial.callback import SweepCallback

GLANCE = 5.0
"""Seconds after which it is said that a machine is waited for."""

LIVES = 3
"""Machines that a measurement may be lost with."""


class Site(NamedTuple):
    """A cluster that has been joined."""

    run: Callable[..., Any]
    """Calls a function on a machine of it, with a worker's share of that machine."""
    resources: Callable[[], dict[str, float]]
    """What all its machines have, by resource."""


@contextlib.contextmanager
def connect(address: str, callback: SweepCallback, *, cpus: float, gpus: float) -> Iterator[Site]:
    """Join a cluster while the block lasts.

    Parameters
    ----------
    address
        Of the cluster.
    callback
        Its `on_waiting` is called while no machine is free.
    cpus, gpus
        A worker's share.

    Raises
    ------
    UserError
        There is no cluster; or, of `Site.run`, no machine with so much room for ten minutes, or what the function
        raised.
    """
    with Cluster(address, SweepCallback()) as cluster:
        cluster.start()
        import ray

        def run(work: Callable[..., Any], *given: Any) -> Any:
            # Ray's own retries would have no end where its monitor ends what takes too much memory.
            place = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)
            for life in range(LIVES):
                ready = place(_nothing).remote()
                if not ray.wait([ready], timeout=GLANCE)[0]:
                    callback.on_waiting(f"no machine has {cpus:g} core(s) and {gpus:g} GPU(s) free")
                    if not ray.wait([ready], timeout=WAIT_SECONDS)[0]:
                        ray.cancel(ready, force=True)
                        raise UserError(
                            f"{address}: for {WAIT_SECONDS / 60:.0f} minutes no machine had room for a worker of "
                            f"{cpus:g} core(s) and {gpus:g} GPU(s)"
                        )
                try:
                    ray.get(ready)
                    return ray.get(place(work).remote(*given))
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, UserError):
                        raise error.cause from None
                    raise
                except ray.exceptions.OutOfMemoryError as error:
                    raise UserError(f"a step does not fit in a machine's memory ({first_line(error)})") from None
                except ray.exceptions.RayError as error:  # a machine that is lost takes what it measures with it
                    if life == LIVES - 1:
                        raise UserError(f"{address}: what measured has died ({first_line(error)})") from error
            raise AssertionError

        yield Site(run, ray.cluster_resources)


def _nothing() -> None:
    """Done as soon as there is a place to do it."""
