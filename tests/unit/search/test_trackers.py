"""What is logged to TensorBoard, MLflow and W&B, and that a failing tracker does not disturb a sweep."""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

from raypipe.core.errors import StorageError, UserError
from raypipe.search.trackers import TRACKERS, TrackingCallback, check_trackers, scalars
from raypipe.storage.records import Epoch, TrialResult
from raypipe.storage.run_store import RunStore
from raypipe.trial.callback import CallbackList, SweepCallback
from raypipe.trial.evaluator import finish_trial
from tests.support.callbacks import Recorder
from tests.support.toys import ToyWindows, make_run, tiny


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch):
    """Wait for the trackers however long a busy machine needs to import them."""
    monkeypatch.setattr("raypipe.search.trackers.CLOSE_SECONDS", 300.0)


@pytest.fixture
def run(tmp_path) -> RunStore:
    made = make_run(tmp_path / "run", ToyWindows())
    made.add_trial(0, tiny(epochs=3, optim__lr=2e-3))
    return made


def epochs(scores: list[float], begin: int = 1) -> list[Epoch]:
    return [
        Epoch(
            epoch=k, passes=k, score=s, fold_scores=[s, None, s + 1], losses=[1.0, 2.0, 3.0], seconds=1.0, finished=1.0
        )
        for k, s in enumerate(scores, start=begin)
    ]


def play_driver(tracked: SweepCallback, run: RunStore, scores: list[float], begin: int = 1) -> None:
    """Play a driver that scores epochs from `begin` on."""
    for count in range(begin, begin + len(scores)):
        history = [*run.history(0)[: begin - 1], *epochs(scores, begin)][:count]
        run.write_history(0, history)
        tracked.on_epoch(0, count, history[-1].score, history[-1].fold_scores)


def ended(state: str = "complete", score: float | None = 0.4) -> TrialResult:
    return TrialResult(
        number=0, state=state, score=score, best_epoch=2, epochs=3, seconds=3.0, reason="toy", finished=1.0
    )  # fmt: skip


def events(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Return steps and values in TensorBoard's event files, in the order in which they were written."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.rglob("events.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            values = {value.tag: value.simple_value for value in event.summary.value if value.HasField("simple_value")}
            if values:
                found.append((event.step, values))
            data = data[16 + length :]
    return found


def test_tensorboard_has_every_epoch_once_over_a_crash(run):
    first = TrackingCallback(run, ["tensorboard"])
    play_driver(first, run, [0.9, 0.5])
    first.close()
    again = TrackingCallback(run, ["tensorboard"])
    run.write_history(0, [*run.history(0), *epochs([0.4], 3)])  # Tune reports a last epoch by the trial's end only
    again.on_trial_end(ended())
    again.close()
    found = events(run.local / "tensorboard/trial-0000")
    scores = [(step, values["score"]) for step, values in found if "score" in values]
    # All epochs of a trial are logged again at its first event, and TensorBoard drops the earlier ones.
    assert scores[-3:] == [(1, pytest.approx(0.9)), (2, pytest.approx(0.5)), (3, pytest.approx(0.4))]
    assert [values["loss"] for _, values in found if "loss" in values][-3:] == [2.0, 2.0, 2.0]
    assert {name for _, values in found for name in values} >= {"fold/0", "fold/2", "best_score"}
    assert not any("fold/1" in values for _, values in found)


def test_event_files_are_written_without_torch(run):
    code = f"""
import sys
from raypipe.search.trackers import TensorBoard
from raypipe.storage.records import Epoch
from raypipe.storage.run_store import RunStore
tracker = TensorBoard(RunStore.open({str(run.local)!r}))
tracker._writer(0, 1).add_scalar("score", 0.5, 1)
tracker.close()
print("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
    assert list((run.local / "tensorboard").rglob("events.*"))


def test_a_score_that_is_undefined_is_not_logged():
    (epoch,) = epochs([1.0])
    undefined = epoch.model_copy(update={"score": None, "fold_scores": [None, None, 0.5]})
    assert scalars(undefined) == {"loss": 2.0, "fold/2": 0.5}


def test_an_end_that_an_earlier_driver_did_not_log_is_logged(run):
    run.write_history(0, epochs([0.9, 0.5, 0.4]))
    tracked = TrackingCallback(run, ["tensorboard"])
    tracked.on_trial_settled(ended())
    tracked.close()
    found = events(run.local / "tensorboard/trial-0000")
    assert [step for step, values in found if "score" in values] == [1, 2, 3]
    assert any("best_score" in values for _, values in found)


def test_runs_behind_uris_have_no_event_files(run, monkeypatch):
    monkeypatch.setattr(RunStore, "local", None)
    tracked = TrackingCallback(run, ["tensorboard"])
    play_driver(tracked, run, [0.9])
    tracked.close()
    assert not list(Path(run.where).rglob("events.*"))


@pytest.mark.parametrize("kind", ["begin", "epoch", "end", "close"])
def test_a_tracker_that_fails_is_dropped_and_other_callbacks_get_every_event(run, monkeypatch, caplog, kind):
    class Broken:
        def __init__(self, run):
            self.logged = []
            if kind == "begin":
                raise ConnectionError("no network")

        def epoch(self, number, epoch):
            self.logged.append(epoch.epoch)
            if kind == "epoch":
                raise ConnectionError("no network")

        def end(self, result):
            if kind == "end":
                raise ConnectionError("no network")

        def close(self):
            if kind == "close":
                raise ConnectionError("no network")

    monkeypatch.setitem(TRACKERS, "wandb", (Broken, "json"))
    seen, tracked = Recorder(), TrackingCallback(run, ["wandb"])
    both = CallbackList([tracked, seen])
    play_driver(both, run, [0.9, 0.8])
    both.on_trial_end(ended())
    tracked.close()
    assert seen.names == ["on_epoch", "on_epoch", "on_trial_end"]
    assert caplog.text.count("nothing more is logged to wandb: ConnectionError: no network") == 1


def test_mlflow_has_one_run_a_trial_over_a_crash(run, monkeypatch):
    made: dict[str, dict] = {}

    class Client:
        def get_experiment_by_name(self, name):
            return types.SimpleNamespace(experiment_id="1") if made else None

        def create_experiment(self, name):
            assert name == "run"
            return "1"

        def search_runs(self, experiments, query, max_results):
            found = [key for key, each in made.items() if f"'{each['tags']['raypipe.trial']}'" in query]
            return [types.SimpleNamespace(info=types.SimpleNamespace(run_id=key)) for key in found]

        def create_run(self, experiment, run_name, tags):
            made[run_name] = {"tags": tags, "metrics": [], "params": {}}
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_name))

        def get_metric_history(self, key, name):
            return [types.SimpleNamespace(step=m[2]) for m in made[key]["metrics"] if m[0] == name]

        def log_batch(self, key, metrics=(), params=()):
            made[key]["metrics"] += [(name, value, step) for name, value, _, step in metrics]
            made[key]["params"] |= dict(params)

        def log_metric(self, key, name, value):
            made[key]["metrics"].append((name, value, None))

        def set_tag(self, key, name, value):
            made[key]["tags"][name] = value

        def set_terminated(self, key, status):
            made[key]["status"] = status

    tracking = types.ModuleType("mlflow.tracking")
    tracking.MlflowClient = Client
    monkeypatch.setitem(sys.modules, "mlflow", types.ModuleType("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow.tracking", tracking)
    entities = types.ModuleType("mlflow.entities")
    entities.Metric, entities.Param = (lambda *given: given), (lambda *given: given)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setattr("raypipe.search.trackers.installed", lambda name: True)
    first = TrackingCallback(run, ["mlflow"])
    play_driver(first, run, [0.9, 0.5])
    first.close()
    again = TrackingCallback(run, ["mlflow"])
    play_driver(again, run, [0.4], begin=3)
    again.on_trial_end(ended("pruned"))
    again.close()
    assert list(made) == ["trial 0"]
    logged = made["trial 0"]
    assert [m for m in logged["metrics"] if m[0] == "score"] == [
        ("score", 0.9, 1),
        ("score", 0.5, 2),
        ("score", 0.4, 3),
    ]
    assert (
        logged["params"]["optim/lr"] == "0.002"
        and logged["status"] == "KILLED"
        and logged["tags"]["raypipe.reason"] == "toy"
    )


def test_wandb_resumes_the_run_of_a_trial(run, monkeypatch):
    opened, logged = [], []

    class WandbRun:
        def __init__(self, **options):
            opened.append(options)
            self.summary, self.step = {}, len(logged)  # what was logged before, "finish" among it

        def log(self, values, step):
            logged.append((step, values["score"]))

        def finish(self, exit_code=0):
            logged.append(("finish", exit_code))

    wandb = types.ModuleType("wandb")
    wandb.init = lambda **options: WandbRun(**options)
    wandb.Settings = lambda **options: options
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr("raypipe.search.trackers.installed", lambda name: True)
    first = TrackingCallback(run, ["wandb"])
    play_driver(first, run, [0.9])
    first.close()
    again = TrackingCallback(run, ["wandb"])
    play_driver(again, run, [0.5], begin=2)
    again.on_trial_end(ended("failed", None))
    again.close()
    assert logged == [(1, 0.9), ("finish", 0), (2, 0.5), ("finish", 1)]
    assert opened[0]["id"] == opened[1]["id"] and opened[1]["resume"] == "allow"
    assert opened[0]["config"]["optim/lr"] == 2e-3 and opened[0]["group"] == "run"


def test_unknown_and_missing_trackers_are_refused(monkeypatch):
    check_trackers(["tensorboard", "none"])
    with pytest.raises(UserError, match="--track tensorbord: there is no such tracker; did you mean 'tensorboard'"):
        check_trackers(["tensorbord"])
    monkeypatch.setitem(TRACKERS, "wandb", (TRACKERS["wandb"][0], "no_such_package"))
    with pytest.raises(
        UserError,
        match=r"--track wandb: not installed here; pip install -c \S+/constraints.txt 'raypipe-eeg\[wandb\]'",
    ):
        check_trackers(["wandb"])


def test_a_trial_that_failed_before_an_epoch_is_logged(run):
    tracked = TrackingCallback(run, ["tensorboard"])
    result = finish_trial(run, ToyWindows(), 0, "failed", "toy", "error")
    tracked.on_trial_end(result)
    tracked.close()
    assert events(run.local / "tensorboard") == []


def test_a_trial_that_was_never_recorded_is_not_logged(run, caplog):
    tracked = TrackingCallback(run, ["tensorboard"])
    drawn = ended("failed", None).model_copy(update={"number": 1})
    tracked.on_trial_end(drawn)
    play_driver(tracked, run, [0.9])
    tracked.close()
    assert [step for step, _ in events(run.local / "tensorboard")] == [1, 1, 1, 1] and not caplog.text


def test_a_slow_tracker_delays_nothing(run, monkeypatch):
    release = threading.Event()

    class Slow:
        def __init__(self, run):
            self.logged = []
            slow.append(self)

        def epoch(self, number, epoch):
            assert release.wait(60)
            self.logged.append(epoch.epoch)

        def end(self, result):
            self.logged.append("end")

        def close(self):
            pass

    slow: list[Slow] = []
    monkeypatch.setitem(TRACKERS, "wandb", (Slow, "json"))
    tracked = TrackingCallback(run, ["wandb"])
    play_driver(tracked, run, [0.9, 0.8, 0.7])
    tracked.on_trial_end(ended())  # all of it while the first epoch is still being logged
    release.set()
    tracked.close()
    assert slow[0].logged == [1, 2, 3, "end"]


def test_storage_that_fails_does_not_end_the_trackers(run, monkeypatch, caplog):
    tracked = TrackingCallback(run, ["tensorboard"])
    with monkeypatch.context() as then:
        then.setattr(RunStore, "history", lambda self, number: (_ for _ in ()).throw(StorageError("no answer")))
        tracked.on_epoch(0, 1, 0.9, [0.9, None, 0.9])
        tracked.close()
    assert "logged later: no answer" in caplog.text


def test_a_tracker_that_is_not_installed_is_left_out_of_a_resumed_sweep(run, monkeypatch, caplog):
    monkeypatch.setitem(TRACKERS, "mlflow", (TRACKERS["mlflow"][0], "no_such_package"))
    tracked = TrackingCallback(run, ["mlflow", "none"])
    play_driver(tracked, run, [0.9])
    tracked.close()
    assert "nothing is logged to mlflow: it is not installed here" in caplog.text
