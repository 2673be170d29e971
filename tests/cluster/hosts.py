"""Hosts that hosts.sh makes, and a Ray cluster that `ray up` makes of them, as from a laptop."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.config import of_hosts
from tests.support.faults import descendants, kill, session, title
from tests.support.programs import missing_program, need_program
from tests.support.sweeps import Driver, answers
from tests.support.waiting import wait_until

GATEWAY = "10.77.0.254"
"""This machine, as the hosts see it."""

SCRIPT = Path(__file__).with_name("hosts.sh")
BIN = Path(sys.executable).parent
PROBE = "unshare --uts --ipc --net --pid --fork --mount --mount-proc ip link add probe type bridge"
# Not Ray's log monitor: it outlives a raylet that has lost its head, and is ended by the next `ray up` or a `ray stop`.
RAYS = ("ray::", "raylet", "gcs_server", "ray/dashboard", "ray/autoscaler", "raypipe sweep")
"""One of these is in the title of whatever belongs to Ray, or to what runs on it."""


TOOLS = {"ip": "iproute2", "sshd": "openssh-server", "ssh": "openssh-client", "rsync": "rsync", "unshare": "util-linux"}


def need_hosts() -> None:
    """Skip the test where this machine cannot be several hosts."""
    if os.geteuid() != 0:
        pytest.skip("several hosts on this machine: only root makes namespaces, links and mounts")
    for tool, package in TOOLS.items():
        need_program(tool, f"apt-get install {package}")
    # What `import ray.dashboard.optional_deps` asks for first; an import would stay in this process.
    if any(importlib.util.find_spec(name) is None for name in ("aiohttp", "aiohttp_cors", "opencensus")):
        missing_program("ray[default]", "pip install -c constraints.txt -e '.[cluster]'")
    need_program("ray", "pip install -c constraints.txt -e '.[cluster]'", shutil.which(BIN / "ray"))
    if subprocess.run(PROBE.split(), capture_output=True).returncode:
        pytest.skip(
            "several hosts on this machine: this root may make no namespaces or bridges (a container without "
            "CAP_SYS_ADMIN, CAP_NET_ADMIN?)"
        )


class Hosts:
    """Some hosts, up for the length of a `with` block.

    Parameters
    ----------
    folder
        What they leave on disk, their homes too.
    count
        How many.
    env
        Environment of whoever logs in, and so of all that Ray runs on them.
    """

    def __init__(self, folder: Path, count: int, env: Mapping[str, str]) -> None:
        self.folder, self._count, self._env = folder, count, dict(env)
        self.key = folder / "ssh/id"

    def __enter__(self) -> Hosts:
        try:
            self._do("up", BIN, self._count, *(f"{name}={value}" for name, value in self._env.items()))
            for host in range(self._count):
                here = self.address(host)
                wait_until(lambda here=here: answers(here, 22), f"host {host} to answer: {self._log(host)}", 60)
        except BaseException:
            self._do("down")
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._do("down")

    def _do(self, command: str, *arguments: object) -> None:
        words = [SCRIPT, command, self.folder, *map(str, arguments)]
        # Not a pipe, which would stay open with the hosts.
        with (self.folder.parent / "hosts.log").open("a+") as said:
            if subprocess.run(words, stdout=said, stderr=said, timeout=60).returncode:
                raise RuntimeError(f"hosts.sh {command}: {Path(said.name).read_text()[-400:]}")

    def _log(self, host: int) -> str:
        return (self.folder / f"host{host}.log").read_text()[-400:]

    @property
    def addresses(self) -> list[str]:
        """Of all of them."""
        return [self.address(host) for host in range(self._count)]

    @staticmethod
    def address(host: int) -> str:
        """Of one."""
        return f"10.77.0.1{host}"

    def cut(self, host: int) -> None:
        """Take its link down: what runs there goes on, alone."""
        self._do("cut", host)

    def mend(self, host: int) -> None:
        """Take the link up again."""
        self._do("mend", host)

    def kill(self, host: int) -> None:
        """SIGKILL all that runs there, at once; it does not come back."""
        self._do("kill", host)

    def kill_rays(self, host: int) -> None:
        """SIGKILL all that runs there but sshd, and what holds a tunnel of `ray dashboard` open."""
        spared = ("sshd", "sleep 86400")
        kill(*(pid for pid, name in self._running(host).items() if not any(word in name for word in spared)))

    def on(self, host: int, *words: object, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Run a command there, as somebody who has logged in; what it prints is in its `stdout`."""
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        told = [f"{name}={value}" for name, value in (env or {}).items()]
        return subprocess.Popen(
            [
                "ssh",
                "-i",
                self.key,
                *options,
                f"root@{self.address(host)}",
                shlex.join(["env", *told, *map(str, words)]),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def processes(self, host: int) -> list[str]:
        """Titles of all that runs there."""
        return list(self._running(host).values())

    def _running(self, host: int) -> dict[int, str]:
        file = self.folder / f"host{host}.pid"
        pids = descendants(int(file.read_text())) if file.exists() else []
        return {pid: name for pid in pids if (name := title(pid))}

    def rays(self) -> list[str]:
        """Titles of what belongs to Ray, on all hosts."""
        return [t for host in range(self._count) for t in self.processes(host) if any(word in t for word in RAYS)]


class Laptop:
    """From where the cluster is made and used: a home with the cluster's token in it, and a tunnel to its dashboard.

    Parameters
    ----------
    folder
        The home, made here.
    hosts
        The machines, the head first.
    """

    def __init__(self, folder: Path, hosts: Hosts) -> None:
        folder.mkdir()
        self.folder, self.hosts = folder, hosts
        self.config = folder / "cluster.yaml"
        self.config.write_text(of_hosts("raypipe-hosts", hosts.addresses, hosts.key))
        self.env = {
            "HOME": str(folder),
            "RAY_TMPDIR": str(folder),  # where `ray up` keeps what it knows of the hosts
            "RAY_AUTH_MODE": "token",
            "RAY_UP_enable_autoscaler_v2": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._tunnel: subprocess.Popen[Any] | None = None
        self.cluster: tuple[str, ...] = ()
        """What tells a raypipe command where the cluster is, once it is up."""

    def __enter__(self) -> Laptop:
        self.ray("get-auth-token", "--generate")
        return self

    def __exit__(self, *_: object) -> None:
        if self._tunnel:
            kill(*session(self._tunnel.pid))
            self._tunnel.wait()

    def ray(self, *words: object) -> str:
        """Run a command of Ray's; what it printed.

        Raises
        ------
        AssertionError
            It failed.
        """
        with (self.folder / "ray.log").open("w+") as said:  # not a pipe: ssh's masters outlive the command
            command = [BIN / "ray", *map(str, words)]
            done = subprocess.run(
                command, stdout=said, stderr=said, stdin=subprocess.DEVNULL, env=os.environ | self.env, timeout=300
            )
            out = Path(said.name).read_text()
        assert done.returncode == 0, out
        return out

    def up(self) -> None:
        """`ray up`, and a tunnel by `ray dashboard`; again where the head's Ray has died."""
        self.ray("up", "-y", "--no-config-cache", self.config)
        if self._tunnel is None:  # it lasts as long as the head's sshd
            self._dig()
        wait_until(self._open, "the dashboard to answer through the tunnel", 120)

    def _dig(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.cluster = ("--cluster", f"http://127.0.0.1:{port}")
        self._tunnel = subprocess.Popen(
            [BIN / "ray", "dashboard", "--port", str(port), self.config],
            env=os.environ | self.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _open(self) -> bool:
        driver = self.driver("jobs", *self.cluster)
        try:
            driver.finish(60)
            return driver.child.returncode == 0
        finally:
            driver.end()

    def down(self) -> None:
        """`ray down`."""
        self.ray("down", "-y", self.config)

    def driver(self, *words: object) -> Driver:
        """Start a raypipe command."""
        return Driver(*words, env=self.env)

    def raypipe(self, *words: object) -> str:
        """Run a raypipe command to its end; what it printed.

        Raises
        ------
        AssertionError
            It failed.
        """
        driver = self.driver(*words)
        try:
            out = driver.finish(120)
            assert driver.child.returncode == 0, out
            return out
        finally:
            driver.end()
