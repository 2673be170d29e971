"""deploy/slurm.sh on two hosts: stand-ins for Slurm's own commands, all else is real."""

from __future__ import annotations

import pytest

from raypipe import Run
from tests.cluster.config import ROOT
from tests.cluster.hosts import BIN, GATEWAY, Hosts, need_hosts
from tests.support.plain import plain_sweep
from tests.support.storage import KEYS, s3_server
from tests.support.sweeps import FLAGS, numbers
from tests.support.toys import SPACE, ToyWindows, write_store
from tests.support.waiting import MAX_WAIT_SECONDS, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]

SCONTROL = "printf 'raypipe0\\nraypipe1\\n'"
# Slurm hands on the environment, and ends what it has started with itself.
SRUN = """while [ "${1#-}" != "$1" ]; do case $1 in -w) node=$2; shift 2 ;; *) shift ;; esac; done
key="ssh -i KEY -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR root@$node"
trap "$key pkill -TERM -f bin/ray.start; exit" TERM
$key env $(env | grep ^RAY_) PATH="$PATH" "$@" </dev/null &
wait $!"""


@pytest.fixture
def hosts(tmp_path):
    """Two hosts of one core, with Slurm's commands."""
    need_hosts()
    env = KEYS | {"OMP_NUM_THREADS": "1", "RAY_raylet_start_wait_time_s": "150"}
    with Hosts(tmp_path / "hosts", 2, env) as hosts:
        for name, body in {"scontrol": SCONTROL, "srun": SRUN.replace("KEY", str(hosts.key))}.items():
            file = tmp_path / "slurm" / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"#!/usr/bin/env bash\n{body}\n")
            file.chmod(0o755)
        yield hosts


def test_one_allocation_is_a_cluster_of_its_own_that_ends_with_its_sweep(hosts, tmp_path):
    toy, space = write_store(tmp_path / "store", ToyWindows(subjects=8, each=40)), tmp_path / "space.py"
    space.write_text(SPACE)
    undisturbed = plain_sweep(space, toy, tmp_path / "undisturbed", trials=2)
    env = {
        "PATH": f"{tmp_path / 'slurm'}:{BIN}:/usr/bin:/bin",
        "SLURM_JOB_NODELIST": "raypipe[0-1]",
        "SLURM_CPUS_PER_TASK": "1",
    }
    with s3_server(GATEWAY) as server:
        run = server.new_folder()
        words = [space, "--data", toy, "--run", run, *FLAGS, "--trials", 2, "--concurrent", 1]
        job = hosts.on(0, "bash", ROOT / "deploy/slurm.sh", *words, env=env)
        try:
            out = job.communicate(timeout=MAX_WAIT_SECONDS)[0]
        finally:
            job.kill()
        assert job.returncode == 0, out
        assert numbers(Run(run)) == numbers(undisturbed)
    assert "1 trial(s) at a time, 2 train worker(s)" in out, out
    wait_until(lambda: not hosts.rays(), "all of Ray to end")
