"""Private API of Ray Core by which a driver joins a cluster; `raypipe.backend.ray_compat` has the rest."""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable that a job of a cluster has."""
_RAYLET_ADDRESS = "--gcs-address="


def bootstrap_address(address: str) -> str:
    """Return the ``host:port`` that Ray connects to for an address; Ray replaces loopback by the address of the node.

    Raises
    ------
    ConnectionError
        The address is ``auto``, and no Ray runs on this machine.
    ValueError
        It has no port.
    """
    from ray._private import services

    return str(services.canonicalize_bootstrap_address(address))


def address_of_job() -> str | None:
    """Return the address of the cluster that this process is a job of, or None where it is not a job.

    Ray gives a job the address of whichever Ray it finds first on the head, which may be another user's.
    The address is read from the command line of the raylet that the job descends from.
    """
    if JOB_VARIABLE not in os.environ:
        return None
    importlib.import_module("ray")  # psutil is a part of it
    psutil: Any = importlib.import_module("psutil")

    for process in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):
            if process.name() == "raylet":
                given = [word for word in process.cmdline() if word.startswith(_RAYLET_ADDRESS)]
                return given[0].removeprefix(_RAYLET_ADDRESS) if given else None
    return None


@contextlib.contextmanager
def node_that_answers(answers: Callable[[str], bool], seconds: float, pause: float) -> Iterator[None]:
    """Make a driver that joins a cluster in the block wait until its node (raylet) answers, and name one that does not.

    Without it, Ray ends the process where the node accepts connections and does not answer, as one that is suspended or
    very busy. A node that Ray gives up meanwhile is replaced by another one of this machine.

    Parameters
    ----------
    answers
        Returns whether a server answers at ``host:port``.
    seconds
        How long a node may take; then the call in the block raises RuntimeError.
    pause
        Seconds between two attempts.
    """
    from ray._private import services

    choose = services.get_node_to_connect_for_driver

    def choose_answering(*arguments: Any, **options: Any) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            node = choose(*arguments, **options)
            address = f"{node.node_manager_address}:{node.node_manager_port}"
            if answers(address):
                return node
            if time.monotonic() > deadline:
                raise RuntimeError(f"the raylet at {address} does not answer within {seconds:g} s")
            time.sleep(pause)

    services.get_node_to_connect_for_driver = choose_answering
    try:
        yield
    finally:
        services.get_node_to_connect_for_driver = choose
