"""What `ray up` is given: cluster.yaml with its own alternative for machines that are reached by ssh."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = (ROOT / "cluster.yaml").read_text()


def on_premise() -> dict[str, Any]:
    """The file with the alternative at its end taken, as its comments say."""
    text, _, end = CLUSTER.partition("# provider:\n")
    config = yaml.safe_load(text)
    for name in ("docker", "head_node_type", "available_node_types", "max_workers"):
        del config[name]
    lines = ("# provider:\n" + end).splitlines()
    local = yaml.safe_load("\n".join(line[2:] for line in lines if not line.startswith("# (")))
    return dict(config | local)


def of_hosts(name: str, addresses: Sequence[str], key: Path) -> str:
    """The same for these hosts, the head first: a head that runs no trials, workers of one core.

    Nothing is installed on them, for they have this machine's files. Their object stores are small, and their agents'
    ports are told: a raylet that must wait for these dies after 15 s, which is short for three hosts on two cores. All
    else is as the file says.
    """
    head, *workers = addresses
    config = on_premise()
    config["cluster_name"] = name
    config["provider"] |= {"head_ip": head, "worker_ips": workers}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(key)}
    config["setup_commands"] = []
    config["file_mounts"] = {"~/.ray/auth_token": "~/.ray/auth_token"}
    frugal = "--object-store-memory=200000000 --dashboard-agent-grpc-port=6400 --runtime-env-agent-port=6401"
    for kind, more in (("head", f"--node-ip-address={head} --num-cpus=0"), ("worker", "--num-cpus=1")):
        commands = config[f"{kind}_start_ray_commands"]
        (start,) = (n for n, command in enumerate(commands) if "ray start" in command)
        commands[start] += f" {more} {frugal}"
    return yaml.safe_dump(config)
