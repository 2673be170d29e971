"""Measure the gain by a second host: trials an hour of a sweep on one host of one core, and on two.

    python benchmarks/hosts.py                   # as root, with what tests/cluster needs; ten minutes or more

The hosts are those of tests/cluster, which is imported when they start: namespaces with an sshd each, `ray up`, windows
and run behind s3://, a submitted job. Each worker host has a core of this machine; head, driver and storage use what is
left of all cores, which on two cores is the rest of both. With `--share 0.7` a worker host gets at most that share of
its core, with one host and with two. The rest is left for head, driver and storage, which would have their own cores on
real hosts. Twelve trials of SAM, four folds, batch 64 of 129 x 200 as in benchmarks/sweep.py. Printed are the rates of
the whole job, and of the part after the first trial of every host, which includes no start-up.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.folds import windows_of
from benchmarks.processes import descendants
from benchmarks.timing import where_and_when
from benchmarks.toys import write_store
from raypipe import Run

if TYPE_CHECKING:
    from tests.cluster.hosts import Hosts, Laptop

SPACE = """"Points of a plane."
def space(trial):
    trial.suggest_float("optim/lr", 1e-4, 1e-2, log=True)
    trial.suggest_categorical("sam/name", ["sam"])
    trial.suggest_float("sam/rho", 0.01, 0.5, log=True)
    return {"epochs": EPOCHS, "patience": EPOCHS, "batch_size": 64, "model/kernels": "paper"}
"""
CPU = Path("/sys/fs/cgroup/cpu")
FLAGS = ["--folds", "4", "--no-prune", "--stem", "fourier", "--stack", "off", "--workers", "1", "--concurrent"]
"""Each host runs one trial, so that no trial waits for the slower of two workers."""


@contextlib.contextmanager
def pinned(hosts: Hosts, count: int, share: float) -> Iterator[None]:
    """Limit each worker host to a share of a core; processes that start there later inherit this from sshd."""
    with contextlib.ExitStack() as stack:
        for host in range(1, count + 1):
            top = int((hosts.folder / f"host{host}.pid").read_text())
            every = (top, *descendants(top))
            for pid in every:
                cores = sorted(os.sched_getaffinity(0))
                os.sched_setaffinity(pid, {cores[(host - 1) % len(cores)]})
            if share < 1:
                group = CPU / f"raypipe-host{host}"
                group.mkdir()
                stack.callback(_remove, group)
                (group / "cpu.cfs_period_us").write_text("20000")
                (group / "cpu.cfs_quota_us").write_text(str(int(20000 * share)))
                for pid in every:
                    (group / "cgroup.procs").write_text(str(pid))
        yield


def _remove(group: Path) -> None:
    """Remove a control group, once the last of its processes has ended."""
    while (group / "cgroup.procs").read_text():
        time.sleep(0.2)
    group.rmdir()


def rates(folder: Path, count: int, trials: int, share: float) -> tuple[float, float]:
    """Return trials an hour on `count` worker hosts: of the whole job, and without start-up."""
    from tests.cluster.hosts import GATEWAY, Hosts, Laptop
    from tests.support.storage import KEYS, s3_server

    place = folder / f"on-{count}"
    place.mkdir()
    env = KEYS | {"OMP_NUM_THREADS": "1", "RAY_raylet_start_wait_time_s": "150", "PYTHONPATH": _path()}
    with contextlib.ExitStack() as stack:
        hosts = Hosts(place / "hosts", 1 + count, env)
        stack.enter_context(pinned_later := contextlib.ExitStack())  # exited after the hosts have ended
        stack.enter_context(hosts)
        laptop = stack.enter_context(Laptop(place / "laptop", hosts))
        pinned_later.enter_context(pinned(hosts, count, share))
        laptop.up()
        with s3_server(GATEWAY) as server:
            where = server.new_folder()
            _run(folder, laptop, server.new_folder(), where, count, trials)
            laptop.raypipe("pull", where, place / "run")
    run = Run(place / "run").store
    ends = sorted(result.finished for n in run.numbers() if (result := run.result(n)) and result.state == "complete")
    assert len(ends) == trials
    first = ends[count - 1]  # end of the first trial of the last host
    return 3600 * trials / (ends[-1] - run.info.created), 3600 * (trials - count) / (ends[-1] - first)


def _run(folder: Path, laptop: Laptop, store: str, run: str, count: int, trials: int) -> None:
    laptop.raypipe("push", folder / "store", store)
    command = ["sweep", folder / "space.py", "--data", store, "--run", run, *FLAGS, count, "--trials", trials]
    job = re.search(r"(\S+): submitted", laptop.raypipe("submit", *laptop.cluster, *command))
    assert job
    follow = laptop.driver("logs", job[1], "-f", *laptop.cluster)
    try:
        out = follow.finish(3600)
        assert follow.child.returncode == 0, out
    finally:
        follow.end()


def _path() -> str:
    return os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--windows", type=int, default=512)
    parser.add_argument("--share", type=float, default=1.0, help="share of a core per host (cgroups, version 1)")
    args = parser.parse_args()
    import pytest

    from tests.cluster.hosts import need_hosts

    try:
        need_hosts()
    except pytest.skip.Exception as reason:
        sys.exit(str(reason))
    with tempfile.TemporaryDirectory(prefix="raypipe-hosts-") as name:
        folder = Path(name)
        write_store(folder / "store", windows_of(args.windows, 129, 200, 16))
        (folder / "space.py").write_text(SPACE.replace("EPOCHS", str(args.epochs)))
        found = {count: rates(folder, count, args.trials, args.share) for count in (1, 2)}
    print(where_and_when(), f"{os.cpu_count()} cores", args)
    for count, (whole, running) in found.items():
        print(f"{count} worker host(s): {whole:6.1f} trials an hour, start included; {running:6.1f} without start-up")
    print(f"two over one: {found[2][0] / found[1][0]:.2f}x, start included; {found[2][1] / found[1][1]:.2f}x without")


if __name__ == "__main__":
    main()
