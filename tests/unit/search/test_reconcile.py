from __future__ import annotations

import json
import shutil

import pytest
from optuna.trial import TrialState

from raypipe.core.errors import DamagedFileError, UserError
from raypipe.search.expected_study import STOPPED_AT
from raypipe.search.pruner import SuccessiveHalving
from raypipe.search.reconcile import open_study, study_difference
from raypipe.search.study import StudyQueue
from raypipe.storage.journal import JOURNAL_FILE, open_journal
from raypipe.storage.run_store import RunStore
from raypipe.storage.trial_records import read_trials
from raypipe.trial.callback import SweepCallback
from raypipe.trial.failures import DrawError
from tests.support.records import edit_record
from tests.support.toys import ToyWindows, make_run, write_checkpoints
from tests.unit.search.test_study import record


class Said(SweepCallback):
    def __init__(self):
        self.lines = []

    def on_study_rebuilt(self, reason, trials, again):
        self.lines.append((reason, trials, list(again)))


@pytest.fixture
def windows():
    return ToyWindows()


def queue_of(run, windows, said=None, trials=30):
    return StudyQueue(run, windows, open_study(run, said or Said()), trials=trials, pruner=SuccessiveHalving(2, 2))


def end(run, windows, queue, number, scores):
    """Report epochs of a trial until it is pruned, and end it."""
    for epoch in range(1, len(scores) + 1):
        record(run, number, scores[:epoch])
        write_checkpoints(run, windows, number, epoch)
        if not queue.observe(number):
            return queue.close(number, "pruned", "toy")
    return queue.close(number, "complete", "toy")


@pytest.fixture
def run(tmp_path, windows):
    """Twelve ended trials of several states, three of them reruns, and one under way."""
    made = make_run(tmp_path / "run", windows)
    queue = queue_of(made, windows)
    for k in range(9):
        number = queue.next()
        if k == 3:
            queue.close(number, "failed", "toy", "non-finite")
        else:
            score = abs(made.config(number).optim.lr - 2e-3) * 100
            end(made, windows, queue, number, [score + 0.2, score + 0.1, score, score + 0.05])
    queue.enqueue_reruns(3, 1)
    for number in (queue.next(), queue.next(), queue.next()):
        end(made, windows, queue, number, [0.3, 0.2])
    queue.trials = 30
    record(made, queue.next(), [0.7])
    queue.observe(12)
    assert {r.state for r in made.results()} == {"complete", "pruned", "failed"}
    return made


def trials_of(run):
    storage = open_journal(run)
    found = storage.get_all_trials(storage.get_all_studies()[0]._study_id)
    return [
        (t.number, t.state, t.values, t.params, t.distributions, t.intermediate_values, t.user_attrs, t.system_attrs)
        for t in found
    ]


def drawn_after(run, windows, where):
    again = RunStore.open(shutil.copytree(run.local, where))
    queue = queue_of(again, windows)
    assert queue.next() == 12
    return [again.config(queue.next()) for _ in range(3)]


def test_an_intact_study_is_not_rebuilt(run, windows):
    before = (run.local / JOURNAL_FILE).read_bytes()
    said = Said()
    open_study(run, said)
    assert said.lines == [] and (run.local / JOURNAL_FILE).read_bytes() == before
    assert study_difference(run, read_trials(run)[0]) == ""


def test_a_trial_that_failed_before_its_last_epoch_was_reported_is_whole_in_the_study(tmp_path, windows):
    run = make_run(tmp_path / "failed", windows)
    queue, said = queue_of(run, windows), Said()
    number = queue.next()
    record(run, number, [0.5, 0.4])
    queue.close(number, "failed", "toy", "lost-worker")
    assert queue.study.trials[number].intermediate_values == {1: 0.5, 2: 0.4}
    open_study(run, said)
    assert said.lines == []


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_undefined_scores_come_last_in_the_study_which_is_rebuilt_with_them(tmp_path, direction):
    windows = ToyWindows(classes=direction == "maximize")
    run, said = make_run(tmp_path / "undefined", windows), Said()
    queue = queue_of(run, windows, trials=4)
    curves = ([None, None, None], [0.3, None, 0.2], [None, 0.3, 0.2], [None, None, None])
    ended = [end(run, windows, queue, queue.next(), curve) for curve in curves]
    assert [each.state for each in ended] == ["complete", "complete", "complete", "pruned"]
    best = 0.2 if direction == "minimize" else 0.3
    assert [each.score for each in ended] == [None, best, best, None]
    assert queue.study.best_value == best
    before = trials_of(run)
    open_study(run, said)
    assert said.lines == []
    (run.local / JOURNAL_FILE).unlink()
    queue_of(run, windows, said, trials=4)
    assert said.lines[0][0] == "the study's journal is missing" and trials_of(run) == before


def test_a_configuration_that_could_not_be_drawn_is_no_difference(tmp_path, windows):
    space = "def space(trial):\n    trial.suggest_int('batch_size', 0, 1)\n"
    run, said = make_run(tmp_path / "drawn", windows, space=space), Said()
    queue = queue_of(run, windows, said, trials=3)
    for _ in range(2):
        with pytest.raises(DrawError):
            queue.next()
    states = [(trial.number, trial.state) for trial in queue.study.trials]
    open_study(run, said)
    assert said.lines == []
    (run.local / JOURNAL_FILE).unlink()
    again = queue_of(run, windows, said, trials=3)
    assert said.lines[0][0] == "the study's journal is missing"
    assert [(trial.number, trial.state) for trial in again.study.trials] == states


LINES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "cut": lambda path: path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:40])),
    "without a newline": lambda path: path.write_bytes(b"{"),
    "other lines": lambda path: path.write_bytes(b'{"op_code": 5}\n{"a": 1}\n'),
    "not objects": lambda path: path.write_bytes(b"[1]\n3\n"),
    "deep": lambda path: path.write_bytes(b"[" * 100_000 + b"\n"),
    "turned round": lambda path: path.write_bytes(path.read_bytes().replace(b'"directions":[1]', b'"directions":[2]')),
    "another score": lambda path: path.write_bytes(path.read_bytes().replace(b'"values":[0.', b'"values":[1.', 1)),
    "another parameter": lambda path: path.write_bytes(
        path.read_bytes().replace(b'"param_value_internal":0.00', b'"param_value_internal":0.01', 1)
    ),
    "twice": lambda path: path.write_bytes(2 * path.read_bytes()),
}


@pytest.mark.parametrize("damage", LINES.values(), ids=LINES)
def test_a_lost_study_is_rebuilt_exactly_and_draws_the_same(run, windows, tmp_path, damage):
    before, draws = trials_of(run), drawn_after(run, windows, tmp_path / "undisturbed")
    content = (run.local / JOURNAL_FILE).read_bytes()
    damage(run.local / JOURNAL_FILE)
    changed = (run.local / JOURNAL_FILE).read_bytes() if (run.local / JOURNAL_FILE).exists() else None
    assert changed != content
    said = Said()
    open_study(run, said)
    ((reason, trials, again),) = said.lines
    assert "journal" in reason or "study" in reason
    assert trials == 13 and again == []
    assert trials_of(run) == before
    assert drawn_after(run, windows, tmp_path / "again") == draws
    open_study(run, said)
    assert len(said.lines) == 1
    if changed is not None:
        assert (run.local / f"{JOURNAL_FILE}.damaged").read_bytes() == changed


def test_nothing_is_written_through_a_link(run, windows, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("no newline")
    (run.local / JOURNAL_FILE).unlink()
    (run.local / JOURNAL_FILE).symlink_to(elsewhere)
    with pytest.raises(UserError, match=r"study\.journal: a link, and raypipe writes through none; put the file"):
        open_study(run, Said())
    assert elsewhere.read_text() == "no newline"


def test_a_lost_result_is_made_again_and_ends_as_before(run, windows):
    states = {r.number: r.state for r in run.results()}
    pruned = next(n for n, state in states.items() if state == "pruned")
    complete = next(n for n, state in states.items() if state == "complete")
    for number in (pruned, complete):
        run.folder.remove(f"trials/{number:04d}/result.json")
    said = Said()
    queue = queue_of(run, windows, said)
    assert said.lines[0][2] == sorted([pruned, complete])
    handed = [queue.next(), queue.next()]
    assert sorted(handed) == sorted([pruned, complete])
    assert queue.awaited_end(pruned) == ("pruned", "stopped by successive halving")
    assert queue.observe(complete)


def test_a_lost_trial_is_trained_again_with_its_parameters_to_the_epoch_at_which_it_ended(run, windows):
    pruned = next(r for r in run.results() if r.state == "pruned")
    config, history = run.config(pruned.number), run.history(pruned.number)
    shutil.rmtree(run.local / f"trials/{pruned.number:04d}")
    said = Said()
    queue = queue_of(run, windows, said)
    assert said.lines[0][2] == [pruned.number]
    assert queue.next() == pruned.number and run.config(pruned.number) == config
    for epoch in range(1, len(history) + 1):
        run.write_history(pruned.number, history[:epoch])
        assert queue.observe(pruned.number) is (epoch < len(history))
        if epoch == 1:  # a driver that is killed in between
            queue = queue_of(run, windows, said)
            assert said.lines[1][2] == [pruned.number] and len(said.lines) == 2
            assert queue.study.trials[pruned.number].state == TrialState.PRUNED


@pytest.mark.parametrize("lost", ["trials/0000", "trials/0000/result.json", "trials/0000/history.json"])
@pytest.mark.parametrize("reason", ["stopped by request", "the time budget of 3600 s is used up"])
def test_a_trial_that_was_stopped_ends_so_again_with_weights_where_its_records_are_lost(
    tmp_path, windows, lost, reason
):
    run = make_run(tmp_path / "run", windows)
    queue = queue_of(run, windows)
    number = queue.next()
    record(run, number, [0.9, 0.6, 0.5])
    write_checkpoints(run, windows, number, 3)
    assert queue.observe(number)
    before = queue.close(number, "stopped", reason)
    for name in dict.fromkeys([lost, "trials/0000/result.json"]):
        path = run.local / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    queue = queue_of(run, windows)
    assert queue.next() == number
    for epochs in (1, 2, 3):
        record(run, number, [0.9, 0.6, 0.5][:epochs])
        write_checkpoints(run, windows, number, epochs)
        queue = queue_of(run, windows) if epochs == 2 else queue  # a driver that is killed in between
        assert queue.observe(number) is (epochs < 3)
    after = queue.close(number, *queue.early_end(number))
    assert (after.state, after.reason, set(after.files)) == ("stopped", reason, set(before.files))
    assert [result.number for result in run.ranked()] == [number]
    (run.local / JOURNAL_FILE).unlink()
    told = trials_of(run) if open_study(run, Said()) else []
    assert told[0][6] == {STOPPED_AT: {"epochs": 3, "reason": reason}}, "a rebuilt study knows it too"


def test_a_trial_whose_history_is_lost_is_trained_and_not_pruned_without_epochs(run, windows):
    pruned = next(r.number for r in run.results() if r.state == "pruned")
    for name in ("result.json", "history.json"):
        run.folder.remove(f"trials/{pruned:04d}/{name}")
    queue = queue_of(run, windows)
    assert run.result(pruned) is None and queue.observe(pruned)
    assert pruned in (queue.next(), queue.next())


def test_a_lost_list_of_reruns_is_written_again(run, windows):
    queue_of(run, windows).enqueue_reruns(3, 2)
    before, content = trials_of(run), run.folder.read("reruns.json")
    run.folder.remove("reruns.json")
    said = Said()
    open_study(run, said)
    assert run.folder.read("reruns.json") == content and trials_of(run) == before and said.lines == []


def test_reruns_that_were_not_handed_out_are_in_the_rebuilt_study(run, windows):
    queue = queue_of(run, windows)
    queue.enqueue_reruns(3, 2)
    before = trials_of(run)
    (run.local / JOURNAL_FILE).unlink()
    assert [trial[0] for trial in before if trial[1] == TrialState.WAITING] == [13, 14, 15]
    open_study(run, Said())
    assert trials_of(run) == before


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "trials/0000/history.json",
            None,
            r"0000/history\.json: missing; restore it .*, or remove .*trials/0000: ",
        ),
        ("trials/0000/trial.json", None, r"0000/trial\.json: missing; restore"),
        ("trials/0000/trial.json", {"started": 1.0}, r"0000/trial\.json: not the one that the trial ended with"),
        ("trials/0000/result.json", {"score": 0.0}, r"0000/result\.json: its score is not that of the best epoch"),
        ("trials/0000/result.json", {"run": "other"}, r"0000/result\.json: the record of another run"),
        ("trials/0000/trial.json", {"number": 4}, r"0000/trial\.json: the record of trial 4, not of trial 0"),
        ("trials/0012/history.json", {"run": "other"}, r"0012/history\.json: the record of another run"),
        ("reruns.json", {"run": "other"}, r"reruns\.json: the record of another run"),
    ],
)
def test_records_that_disagree_are_refused_in_one_line(run, name, changes, message):
    if changes is None:
        run.folder.remove(name)
    else:
        edit_record(run.folder, name, changes)
    before = (run.local / JOURNAL_FILE).read_bytes()
    with pytest.raises(DamagedFileError, match=message) as caught:
        open_study(run, Said())
    assert "\n" not in str(caught.value)
    assert (run.local / JOURNAL_FILE).read_bytes() == before


def test_what_a_file_manager_leaves_is_ignored(run, windows):
    shutil.copytree(run.local / "trials/0001", run.local / "trials/0001 (copy)")
    shutil.copytree(run.local / "trials/0001", run.local / "trials/00001")
    for name in (".DS_Store", "trials/.DS_Store", "trials/0001/.DS_Store", "trials/0012/fold-0/.DS_Store"):
        run.folder.write(name, b"x")
    run.folder.write("trials/0012/fold-0/epoch-0001 (copy).ckpt", b"x")
    said = Said()
    open_study(run, said)
    assert said.lines == [] and run.checkpoints(12, 0) == []
    assert len(run.foreign()) > 3
    run.remove_leftovers()
    assert json.loads((run.local / "trials/0001 (copy)/trial.json").read_text())["number"] == 1


def drawn_and_not_recorded(run, windows):
    """Play a driver that is killed after it has drawn trial 13; return what it has drawn, and the next trial."""
    queue = queue_of(run, windows)
    assert queue.next() == 12
    end(run, windows, queue, 12, [0.7, 0.6])
    assert queue.next() == 13
    drawn = run.config(13)
    queue.close(13, "failed", "toy", "non-finite")
    queue.next()
    following = run.config(14)
    shutil.rmtree(run.local / "trials/0014")
    lines = (run.local / JOURNAL_FILE).read_bytes().splitlines(keepends=True)
    shutil.rmtree(run.local / "trials/0013")
    first = next(i for i, line in enumerate(lines) if b'"trial_id":13,"state":3' in line)
    (run.local / JOURNAL_FILE).write_bytes(b"".join(lines[:first]))
    return drawn, following


@pytest.mark.parametrize("edit", ["none", "a parameter", "a parameter is lost", "an end"])
def test_a_trial_that_was_drawn_and_not_recorded_is_drawn_again(run, windows, edit):
    drawn, following = drawn_and_not_recorded(run, windows)
    path = run.local / JOURNAL_FILE
    *lines, last = path.read_bytes().splitlines(keepends=True)
    entry = json.loads(last)
    assert entry["trial_id"] == 13 and entry["op_code"] == 5, "a parameter of the trial"
    changed = {
        "none": [entry],
        "a parameter": [entry | {"param_value_internal": 1 - round(entry["param_value_internal"])}],
        "a parameter is lost": [],
        "an end": [entry, {"op_code": 8, "worker_id": "x", "trial_id": 13, "user_attr": {STOPPED_AT: {"epochs": 1}}}],
    }[edit]
    path.write_bytes(b"".join([*lines, *(json.dumps(each).encode() + b"\n" for each in changed)]))
    said = Said()
    queue = queue_of(run, windows, said)
    assert queue.next() == 13 and run.config(13) == drawn
    queue.close(13, "failed", "toy", "non-finite")
    assert queue.next() == 14 and run.config(14) == following
    open_study(run, said)
    assert len(said.lines) == 1 and said.lines[0][2] == []


def test_a_point_that_was_started_and_not_recorded_is_drawn_again_though_it_is_not_the_newest(run, windows):
    queue = queue_of(run, windows)
    number = queue.enqueue_point({"optim/lr": 0.002, "sam/name": "none"}, "request")
    queue.enqueue_reruns(3, 2)
    queue.trials = 30
    later = [queue.next() for _ in range(4)]
    assert later[0] == 12 and min(later[1:]) > number
    assert queue.next() == number
    config = run.config(number)
    shutil.rmtree(run.local / f"trials/{number:04d}")
    path = run.local / JOURNAL_FILE
    text = path.read_text()
    start = text.rindex('"param_name":"optim/lr","param_value_internal":0.002')
    path.write_text(text[:start] + text[start:].replace("0.002", "0.004", 1))
    queue = queue_of(run, windows)
    while number not in (found := queue.next(), None):
        assert found is not None
    assert run.config(number) == config


def test_what_a_killed_driver_may_leave_of_a_trial_is_no_difference(run, windows):
    said = Said()
    whole = (run.local / JOURNAL_FILE).read_bytes()
    record(run, 12, [0.7, 0.6])  # scored, and not observed
    open_study(run, said)
    queue = queue_of(run, windows, said)
    write_checkpoints(run, windows, 12, 2)
    queue.close(12, "stopped", "toy")
    lines = (run.local / JOURNAL_FILE).read_bytes()[len(whole) :].splitlines(keepends=True)
    assert len(lines) > 2
    for kept in range(len(lines) + 1):
        (run.local / JOURNAL_FILE).write_bytes(whole + b"".join(lines[:kept]))
        open_study(run, said)
        assert study_difference(run, read_trials(run)[0]) == ""
    assert said.lines == []


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_a_lost_history_is_made_again_to_the_last_epoch_that_the_study_has(run, windows, passes):
    record(run, 12, [0.7, 0.6, 0.5])
    queue_of(run, windows).observe(12)
    for epoch in (1, 2, 3)[:passes]:
        run.folder.write(f"trials/0012/predictions/epoch-{epoch:04d}.npz", b"")
    run.folder.remove("trials/0012/history.json")
    said = Said()
    queue = queue_of(run, windows, said)
    steps = queue.study.trials[12].intermediate_values
    assert steps == ({1: 0.7, 2: 0.6, 3: 0.5} if passes == 3 else {}), "an epoch that was trained has predictions"
    assert [what for what, *_ in said.lines] == (
        [] if passes == 3 else ["the study's journal has other scores of trial 12"]
    )


@pytest.mark.parametrize("name", ["result.json", "oof.npz"])
def test_an_end_is_believed_where_the_trial_has_left_its_predictions(run, windows, name):
    pruned = next(r.number for r in run.results() if r.state == "pruned")
    run.folder.remove(f"trials/{pruned:04d}/result.json")
    run.folder.remove(f"trials/{pruned:04d}/oof.npz") if name == "oof.npz" else None
    queue = queue_of(run, windows)
    kept = name == "result.json"
    assert (queue.study.trials[pruned].state == TrialState.PRUNED) is kept


def test_a_rebuilt_study_draws_the_same_beside_trials_that_run(run, windows, tmp_path):
    def draws(where, lost):
        again = RunStore.open(shutil.copytree(run.local, tmp_path / where))
        queue = queue_of(again, windows)
        queue.parallel = 4
        handed = [queue.next() for _ in range(3)]
        if lost:
            (again.local / JOURNAL_FILE).unlink()
            queue = queue_of(again, windows)
            queue.parallel = 4
            assert [queue.next() for _ in range(3)] == handed
        return [again.config(queue.next()) for _ in range(6)]

    assert draws("rebuilt", True) == draws("kept", False)
