"""Jobs with a fake of Ray's client: what is submitted, refused and shown. tests/cluster has a real head."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from raypipe.backend.jobs import Jobs, job_stem
from raypipe.cli import app
from raypipe.core.errors import UserError
from raypipe.core.versions import EXPECTED_VERSIONS, check_job_versions, job_versions

ROOT = Path(__file__).parents[3]
SPACE = str(ROOT / "search_spaces/latency.py")


class Cluster:
    """Fake of Ray's job client and of the head that stores its jobs."""

    def __init__(self):
        self.jobs, self.stopped, self.shipped, self.refusals = [], [], [], []

    def __call__(self, address):
        return self

    def submit_job(self, *, entrypoint, submission_id, runtime_env, metadata):
        if self.refusals:
            raise RuntimeError(self.refusals.pop())
        folder = Path(runtime_env["working_dir"])
        self.shipped = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        begun = 1000 * len(self.jobs) + 1
        self.jobs.append(
            SimpleNamespace(
                submission_id=submission_id, status="RUNNING", entrypoint=entrypoint, start_time=begun,
                message="at work\nsince", runtime_env=runtime_env, metadata=metadata,
            )
        )  # fmt: skip
        return submission_id

    def list_jobs(self):
        return [*self.jobs, SimpleNamespace(submission_id=None, status="RUNNING")]  # a driver that was not submitted

    def get_job_logs(self, name):
        return f"log of {name}\n"

    async def tail_job_logs(self, name):
        yield "one\n"
        yield "two\n"

    def get_job_status(self, name):
        return next(job.status for job in self.jobs if job.submission_id == name)

    def stop_job(self, name):
        self.stopped.append(name)


@pytest.fixture
def cluster(monkeypatch):
    cluster, module = Cluster(), ModuleType("ray.job_submission")
    module.JobSubmissionClient = cluster
    monkeypatch.setitem(sys.modules, "ray.job_submission", module)
    return cluster


def typed(capsys, *words):
    """Run a command; return its exit status, output and error."""
    with pytest.raises(SystemExit) as end:
        app.main([str(word) for word in words])
    message = capsys.readouterr()
    return end.value.code, message.out, message.err


def test_a_head_that_has_just_started_is_waited_for_and_another_refusal_is_reported(cluster, capsys, monkeypatch):
    monkeypatch.setattr("raypipe.backend.jobs.POLL_SECONDS", 0.0)
    no_agent = "Request failed with status code 500: No available agent to submit job, please try again later."
    words = ("submit", "resume", "s3://lab/run")
    cluster.refusals = [no_agent, no_agent]
    assert typed(capsys, *words)[0] == 0 and len(cluster.jobs) == 1 and not cluster.refusals
    cluster.jobs.clear()
    cluster.refusals = ["never reached", "Request failed with status code 400: no"]
    status, _, error = typed(capsys, *words)
    assert (status, len(cluster.jobs), len(cluster.refusals)) == (2, 0, 1) and "refused (Request failed" in error
    monkeypatch.setattr("raypipe.backend.jobs.AGENT_SECONDS", -1.0)
    cluster.refusals = ["never reached", no_agent]
    status, _, error = typed(capsys, *words)
    assert status == 2 and "No available agent" in error and len(cluster.refusals) == 1


def test_a_sweep_is_submitted_with_its_space_its_code_and_its_versions(cluster, capsys):
    status, out, _ = typed(
        capsys, "submit", "sweep", SPACE, "--data", "s3://lab/store", "--run", "s3://lab/runs/night", "--trials", 9
    )
    (job,) = cluster.jobs
    assert (status, job.submission_id) == (0, f"{job_stem('s3://lab/runs/night')}-1")
    assert job.entrypoint == (
        "python -m raypipe sweep latency.py --data s3://lab/store --run s3://lab/runs/night --trials 9"
    )
    assert cluster.shipped == ["latency.py"]
    assert job.runtime_env["py_modules"] == [str(ROOT / "raypipe")]
    assert json.loads(job.runtime_env["env_vars"][EXPECTED_VERSIONS]) == job_versions()
    assert job.submission_id in out


def test_a_space_may_be_named_as_a_shell_completes_it(cluster, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = ("submit", "sweep", "--data", "s3://a/b", "--run", "s3://a/c", "./search_spaces/latency.py")
    assert typed(capsys, *words)[0] == 0
    assert cluster.jobs[0].entrypoint.endswith("--run s3://a/c latency.py")


def test_a_space_that_comes_with_raypipe_is_sent_by_name_since_the_cluster_has_the_modules_only(cluster, capsys):
    words = ("submit", "sweep", "latency", "--data", "s3://a/b", "--run", "s3://a/c")
    assert typed(capsys, *words)[0] == 0
    assert cluster.shipped == ["latency.py"]
    assert cluster.jobs[0].entrypoint == "python -m raypipe sweep latency.py --data s3://a/b --run s3://a/c"


def test_files_of_ones_own_are_sent_by_the_paths_that_name_them(cluster, capsys, tmp_path, monkeypatch):
    (tmp_path / "project/nets").mkdir(parents=True)
    (tmp_path / "project/nets/mine.py").write_text("class Net: ...")
    (tmp_path / "project/metrics.py").write_text("def score(y, pred): ...")
    space = tmp_path / "project/space.py"
    space.write_text('def space(trial):\n    return {"model/name": "nets/mine.py:Net"}\n')
    monkeypatch.chdir(tmp_path / "project")
    words = ("submit", "sweep", space, "--data", "s3://lab/store", "--run", "s3://lab/run", "--metric")
    assert typed(capsys, *words, "metrics.py:score")[0] == 0
    assert cluster.shipped == ["metrics.py", "nets/mine.py", "space.py"]
    cluster.jobs.clear()
    for metric, message in {
        "none.py:score": "--metric none.py:score: 'none.py': there is no file",
        f"{tmp_path}/project/metrics.py:score": "a job is sent files of ",
        "../project/metrics.py:score": "a job is sent files of ",
    }.items():
        status, _, error = typed(capsys, *words, metric)
        assert status == 2 and message in error and not cluster.jobs


@pytest.mark.parametrize("stores", ["a=/shared/a,b=/shared/b", "a=s3://lab/a,b=/shared/b", "a=s3://lab/a,b=s3://lab/b"])
def test_several_stores_that_the_cluster_sees_are_submitted(cluster, capsys, stores):
    assert typed(capsys, "submit", "sweep", SPACE, "--data", stores, "--run", "s3://lab/run")[0] == 0
    assert f"--data {stores} " in cluster.jobs[0].entrypoint


def test_one_job_at_a_time_drives_a_run_and_a_dead_one_is_followed_by_the_next(cluster, capsys, monkeypatch):
    monkeypatch.setattr("raypipe.backend.jobs.DEATH_NOTICE_SECONDS", 0.0)
    words = ("submit", "resume", "s3://lab/run")
    assert typed(capsys, *words)[0] == 0
    status, _, error = typed(capsys, *words)
    assert status == 2 and f"job {cluster.jobs[0].submission_id} drives it" in error
    cluster.jobs[0].status = "FAILED"
    assert typed(capsys, *words)[0] == 0
    assert [job.submission_id.rpartition("-")[2] for job in cluster.jobs] == ["1", "2"]
    assert typed(capsys, "submit", "resume", "s3://lab/other")[0] == 0, "another run has jobs of its own"


def test_plans_of_one_store_are_separate_jobs(cluster, capsys, tmp_path):
    other = tmp_path / "other.py"
    other.write_text(Path(SPACE).read_text())
    for space in (SPACE, other):
        status, out, _ = typed(capsys, "submit", "plan", space, "--data", "s3://lab/store?region=here")
        assert status == 0 and "raypipe logs" in out and "raypipe status" not in out, "a plan leaves no run"
    names = [job.submission_id for job in cluster.jobs]
    assert [name.rpartition("-")[2] for name in names] == ["1", "1"]
    assert names[0].startswith("plan-latency-") and names[1].startswith("plan-other-")


@pytest.mark.parametrize("agent", ["answers", "has gone too"])
def test_a_job_that_died_with_its_head_still_runs_until_ray_is_asked(cluster, capsys, monkeypatch, agent):
    def look(name):
        cluster.jobs[0].status = "FAILED"
        if agent != "answers":
            raise RuntimeError("Request failed with status code 500")

    words = ("submit", "resume", "s3://lab/run")
    assert typed(capsys, *words)[0] == 0
    monkeypatch.setattr(cluster, "get_job_logs", look)
    assert typed(capsys, *words)[0] == 0
    assert [job.status for job in cluster.jobs] == ["FAILED", "RUNNING"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("sweep", SPACE, "--data", "demo/store", "--run", "s3://lab/run"),
            "data demo/store: a folder of this",
        ),
        (("sweep", SPACE, "--data", "s3://lab/store", "--run", "run"), "run run: a folder of this machine"),
        (("sweep", SPACE, "--data", "s3://k:geheim@lab/store", "--run", "s3://a/c"), "leave the keys out of the URI"),
        (("sweep", "no.py", "--data", "s3://a/b", "--run", "s3://a/c"), "no.py: no such search space"),
        (("sweep", SPACE, "--data", "s3://a/b", "--run", "s3://a/c", "--bogus"), "sweep --bogus: no such option"),
        (("check", "s3://a/c"), "submit check: cannot be submitted; choose one of plan, sweep"),
        (("sweep", SPACE, "--data", "s3://a/b", "--run", "s3://a/c", "--gpu-hours", "0"), "--gpu-hours 0.0: must be"),
        (("sweep", SPACE, "--data", "s3://a/b", "--run", "s3://a/c", "--gpu-hours", "5"), "give --gpus-per-worker too"),
        (
            ("sweep", SPACE, "--data", "s3://a/b", "--run", "s3://a/c", "--time-budget", "soon"),
            "--time-budget soon: must be a time",
        ),
        (("plan", SPACE, "--data", "s3://a/b", "--workers", "0"), "--workers 0: must be"),
        (("plan", SPACE, "--data", "demo/store"), "data demo/store: a folder of this"),
        (("plan", SPACE, "--data", "a=s3://lab/a,b=demo/b"), "data demo/b: a folder of this"),
        (("plan", SPACE, "--data", "a=demo/a,b=/shared/b"), "data demo/a: a folder of this"),
    ],
)
def test_mistakes_are_reported_here_and_nothing_is_submitted(cluster, capsys, words, message):
    status, _, error = typed(capsys, "submit", *words)
    assert status == 2 and message in error and "geheim" not in error
    assert cluster.jobs == []


@pytest.mark.parametrize("option", ["--storage", "--init", "--warm-start", "--address"])
def test_keys_in_any_argument_are_refused(cluster, capsys, option):
    words = ("sweep", SPACE, "--data", "s3://a/b", "--run", "s3://a/c", option, "s3://key:ge/heim@lab/x")
    status, _, error = typed(capsys, "submit", *words)
    assert status == 2 and "leave the keys out of the URI" in error and "heim" not in error
    assert cluster.jobs == []


def test_a_job_holds_nothing_of_the_environment(cluster, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("canary")
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY", "RAY_JOB_SECRET"):
        monkeypatch.setenv(name, "canary")
    assert typed(capsys, "submit", "sweep", SPACE, "--data", "s3://a/b", "--run", "s3://a/c")[0] == 0
    assert cluster.shipped == ["latency.py"]
    assert "canary" not in str(cluster.jobs)


def test_jobs_are_listed_read_followed_and_stopped(cluster, capsys):
    assert "no jobs yet" in typed(capsys, "jobs")[1]
    typed(capsys, "submit", "resume", "s3://lab/run")
    name = cluster.jobs[0].submission_id
    assert name in typed(capsys, "jobs")[1]
    assert [job.message for job in Jobs("x").list()] == ["at work"]
    assert typed(capsys, "logs", name)[:2] == (0, f"log of {name}\n")
    cluster.jobs[0].status = "SUCCEEDED"
    assert typed(capsys, "logs", name, "-f")[:2] == (0, f"one\ntwo\n{name}: succeeded\n")
    cluster.jobs[0].status = "FAILED"
    assert typed(capsys, "logs", name, "-f")[0] == 1, "for scripts that wait"
    assert typed(capsys, "stop", name)[0] == 0 and cluster.stopped == [name]
    for words in (("logs", "none-1"), ("logs", "none-1", "-f"), ("stop", "none-1")):
        status, _, error = typed(capsys, *words)
        assert status == 2 and "none-1: no such job" in error


def test_a_run_is_not_taken_for_a_job(values, cluster, capsys):
    status, out, _ = typed(capsys, "logs", values.run.where)
    assert status == 0 and f"raypipe logs {values.run.where} TRIAL" in out
    assert "--follow" in typed(capsys, "logs", values.run.where, "-f")[2]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("Failed to connect"), "no Ray dashboard answers there"),
        (RuntimeError("The Ray jobs CLI & SDK require the ray[default] installation"), "'raypipe-eeg[cluster]'"),
        (RuntimeError("Ray version mismatch: 2.61\nmore"), "Ray version mismatch: 2.61"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_one_line(cluster, monkeypatch, capsys, error, message):
    def refuse(address):
        raise error

    monkeypatch.setattr(sys.modules["ray.job_submission"], "JobSubmissionClient", refuse)
    status, _, line = typed(capsys, "jobs", "--cluster", "http://127.0.0.1:1")
    assert status == 2 and message in line and line.count("\n") == 1


def test_a_name_of_no_run_without_a_dashboard_is_said_to_be_no_run(cluster, monkeypatch, capsys):
    def refuse(address):
        raise ConnectionError

    monkeypatch.setattr(sys.modules["ray.job_submission"], "JobSubmissionClient", refuse)
    status, _, line = typed(capsys, "stop", "run_none", "--cluster", "http://user:secret@host")
    wanted = (
        "raypipe: error: run_none: no run here, and no Ray dashboard at http://host to ask for a job of that name; "
    )
    assert status == 2 and line.startswith(wanted) and line.count("\n") == 1


def test_the_dashboard_that_is_named_is_asked_and_no_password_is_shown(cluster, monkeypatch, capsys):
    asked = []

    def refuse(address):
        asked.append((address, os.environ["RAY_API_SERVER_ADDRESS"]))
        raise ConnectionError if len(asked) == 1 else ValueError(f"{address} is no dashboard")

    monkeypatch.setattr(sys.modules["ray.job_submission"], "JobSubmissionClient", refuse)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere")
    for message in ("--cluster http://host: no Ray dashboard", "--cluster http://host: http://host is no dashboard"):
        status, _, line = typed(capsys, "jobs", "--cluster", "http://user:secret@host")
        assert status == 2 and message in line and "secret" not in line
    assert asked == 2 * [2 * ("http://user:secret@host",)]
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://elsewhere"
    assert "ftp://" in typed(capsys, "jobs", "--cluster", "ftp://x")[2] and len(asked) == 2


def test_a_cluster_with_other_versions_refuses_the_job(monkeypatch, capsys):
    check_job_versions()
    monkeypatch.setenv(EXPECTED_VERSIONS, json.dumps(job_versions()))
    check_job_versions()
    monkeypatch.setenv(EXPECTED_VERSIONS, json.dumps(job_versions() | {"optuna": "4.0"}))
    with pytest.raises(UserError, match=r"optuna .* here, 4\.0 where it was submitted; install both with -c "):
        check_job_versions()
    assert typed(capsys, "status", "demo/run")[0] == 2


def test_names_of_jobs_are_readable_and_one_for_each_run():
    assert job_stem("s3://lab/runs/night?endpoint_override=x") == job_stem("s3://lab/runs/night/")
    assert job_stem("s3://lab/runs/night").startswith("night-")
    assert job_stem("s3://lab/a/run") != job_stem("s3://lab/b/run")
    assert job_stem("/").startswith("run-")


def test_a_url_of_messages_is_no_argument_of_a_job(cluster, capsys):
    for words in (["--notify", "json://secret"], ["--notify=json://secret"]):
        where = ("--data", "s3://lab/store", "--run", "s3://lab/run")
        status, _, text = typed(capsys, "submit", "sweep", "smoke", *where, *words)
        assert status == 2 and "set RAYPIPE_NOTIFY where the head starts Ray" in text and "secret" not in text
    assert cluster.jobs == []
