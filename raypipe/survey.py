"""Work that is measured where it will be done: on a worker's share of a cluster's machines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from raypipe.errors import UserError, first_line
from raypipe.execution import PATIENCE
from raypipe.launch import Cluster

GLANCE = 5.0
"""Seconds after which it is said that a machine is waited for."""

Say = Callable[[str], object]


class Site(NamedTuple):
    """A cluster that has been joined."""

    run: Callable[..., Any]
    """Calls a function on a machine of it, with a worker's share of that machine."""
    resources: Callable[[], dict[str, float]]
    """What all its machines have, by resource."""


@contextlib.contextmanager
def joined(address: str, *, cpus: float, gpus: float, say: Say = lambda text: None) -> Iterator[Site]:
    """Join a cluster while the block lasts.

    Parameters
    ----------
    address
        Of the cluster.
    cpus, gpus
        A worker's share.
    say
        Told when a machine is waited for.

    Raises
    ------
    UserError
        There is no cluster; or, of `Site.run`, no machine with so much room for ten minutes, or what the function
        raised.
    """
    with Cluster(address, lambda kind, news: None) as cluster:
        cluster.start()
        import ray

        def run(work: Callable[..., Any], *given: Any) -> Any:
            # Once more where a machine of spot prices goes.
            call = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=1)(work).remote(*given)
            if not ray.wait([call], timeout=GLANCE)[0]:
                say(f"waiting for a machine with {cpus:g} core(s) and {gpus:g} GPU(s)")
                if not ray.wait([call], timeout=PATIENCE)[0]:
                    ray.cancel(call, force=True)
                    raise UserError(f"{address}: no worker has been measured for {PATIENCE / 60:.0f} minutes")
            try:
                return ray.get(call)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from None
                raise
            except ray.exceptions.RayError as error:
                raise UserError(f"{address}: the worker that measured has died ({first_line(error)})") from error

        yield Site(run, ray.cluster_resources)
