"""A warm start: another run's trials inform the sampler, and are no members of the new run."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState

from raypipe.core.errors import UserError
from raypipe.core.folds import HELD_OUT, FoldMap, LeakError
from raypipe.core.own_code import short_name
from raypipe.core.search_space import SearchSpace, load_space
from raypipe.search.pruner import SuccessiveHalving
from raypipe.search.study import StudyQueue
from raypipe.search.warm_start import collect_warm_trials, is_warm
from raypipe.storage.journal import open_journal
from raypipe.storage.records import Epoch, LabelsInfo, TrialResult
from raypipe.storage.run_store import RunStore
from tests.support.own import NET
from tests.support.records import edit_record
from tests.support.toys import SPACE, TINY, ToyWindows, add_ended, make_run, tiny

optuna.logging.set_verbosity(optuna.logging.ERROR)

NARROW = f"""
START = [{{"optim/lr": 0.003}}]
def space(trial):
    trial.suggest_float("optim/lr", 2e-3, 8e-3, log=True)
    trial.suggest_int("epochs", 2, 20)
    return { ({k: v for k, v in TINY.items() if k not in ("optim/lr", "epochs")})!r}
"""


def _holding_out(subjects):
    return FoldMap(seed=0, n_folds=2, fold_of=dict.fromkeys(subjects, HELD_OUT))


NOTHING_HELD_OUT = _holding_out([])
SAME = LabelsInfo()


@pytest.fixture
def windows():
    return ToyWindows()


@pytest.fixture
def old(tmp_path, windows):
    """Fourteen trials, better the nearer their rate is to 4e-3; one failed, one pruned."""
    run = make_run(tmp_path / "old", windows)
    for number in range(14):
        lr = 1e-3 + number * 5e-4
        run.add_trial(number, tiny(optim__lr=lr))
        values = [1.0, abs(lr - 4e-3)]
        run.write_history(
            number,
            [
                Epoch(epoch=e, passes=e, score=s, fold_scores=[s], losses=[s], seconds=1, finished=0.0)
                for e, s in enumerate(values, 1)
            ],
        )
        state = {5: "failed", 6: "pruned"}.get(number, "complete")
        result = {"score": values[-1], "best_epoch": 2, "epochs": 2, "seconds": 2, "reason": "toy", "finished": 0}
        run.write_result(TrialResult(number=number, state=state, **result))
    return run


def begun(old, where, windows, source=NARROW):
    """Create a new run that starts from the old one's trials."""
    new = make_run(where, windows, space=source)
    warm = collect_warm_trials(old, new.space, target="toy", metric="nrmse", labels=SAME, folds=NOTHING_HELD_OUT)
    edit_record(new.folder, "run.json", {"warm": warm.model_dump(mode="json")})
    return RunStore.open(where)


def study_queue(run, windows, trials=3, **options):
    return StudyQueue(run, windows, open_journal(run), trials=trials, **options)


def test_trials_that_are_valid_in_the_new_space_are_taken_over_and_marked(old, tmp_path, windows):
    run = begun(old, tmp_path / "new", windows)
    queue = study_queue(run, windows)
    warm = [trial for trial in queue.study.trials if is_warm(trial)]
    valid = [n for n in range(14) if 2e-3 <= 1e-3 + n * 5e-4 <= 8e-3 and n != 5]
    assert [t.user_attrs["source"] for t in warm] == [f"{old.where} trial {n}" for n in valid]
    assert [t.params for t in warm] == [{"optim/lr": old.config(n).optim.lr, "epochs": 4} for n in valid]
    assert [t.state.name for t in warm] == ["PRUNED" if n == 6 else "COMPLETE" for n in valid]
    assert [t.value for t in warm] == [old.result(n).score for n in valid]
    assert warm[0].distributions["optim/lr"].low == 2e-3


def test_warm_trials_are_no_members_and_do_not_count(old, tmp_path, windows):
    run = begun(old, tmp_path / "new", windows)
    queue = study_queue(run, windows)
    assert (queue.asked, queue.exhausted) == (0, False)
    first = sum(map(is_warm, queue.study.trials))
    numbers = [queue.next() for _ in range(4)]
    assert numbers == [first, first + 1, first + 2, None]
    assert run.numbers() == numbers[:3]
    assert queue.exhausted
    assert run.config(first).optim.lr == 0.003  # the start point, although the old run has trained the very same
    queue.close(first, "failed", "toy", "error")
    assert [t.state for t in queue.study.trials[first:]] == [TrialState.FAIL] + [TrialState.RUNNING] * 2


def test_the_sampler_uses_warm_trials(old, tmp_path, windows):
    """Without warm trials, the first ten draws of a run are random."""

    def drawn(run):
        queue = study_queue(run, windows, trials=9)
        numbers = [queue.next() for _ in range(9)]
        return [abs(run.config(n).optim.lr - 4e-3) for n in numbers[1:]]

    warm, cold = begun(old, tmp_path / "warm", windows), make_run(tmp_path / "cold", windows, space=NARROW)
    assert sorted(drawn(warm))[4] < sorted(drawn(cold))[4]


def test_a_driver_killed_while_it_adds_warm_trials_loses_none(old, tmp_path, windows, monkeypatch):
    undisturbed = begun(old, tmp_path / "a", windows)
    numbers = [study_queue(undisturbed, windows).next()]
    run = begun(old, tmp_path / "b", windows)
    add = optuna.Study.add_trial
    calls = []

    def dies(self, trial):
        calls.append(trial)
        if len(calls) == 4:
            raise KeyboardInterrupt
        add(self, trial)

    monkeypatch.setattr(optuna.Study, "add_trial", dies)
    with pytest.raises(KeyboardInterrupt):
        study_queue(run, windows)
    monkeypatch.undo()
    for _ in range(2):
        queue = study_queue(RunStore.open(tmp_path / "b"), windows)
    assert [queue.next()] == numbers
    sources = [t.user_attrs["source"] for t in queue.study.trials if is_warm(t)]
    assert sources == [t.user_attrs["source"] for t in study_queue(undisturbed, windows).study.trials if is_warm(t)]
    assert len(set(sources)) == len(sources)


def test_halving_does_not_compare_with_warm_trials(old, tmp_path, windows):
    run = begun(old, tmp_path / "new", windows)
    queue = study_queue(run, windows, pruner=SuccessiveHalving(grace=1, eta=2))
    number = queue.next()
    bad = Epoch(epoch=1, passes=1, score=99.0, fold_scores=[99.0], losses=[1.0], seconds=1, finished=0.0)
    run.write_history(number, [bad])
    assert queue.observe(number)


@pytest.mark.parametrize(
    ("target", "metric", "message"),
    [("other", "nrmse", "its trials predict toy by nrmse, not other by nrmse"), ("toy", "auc", "not toy by auc")],
)
def test_another_target_or_metric_is_one_line(old, target, metric, message):
    with pytest.raises(UserError, match=message):
        collect_warm_trials(old, SearchSpace(SPACE), target=target, metric=metric, labels=SAME, folds=NOTHING_HELD_OUT)


def test_other_labels_of_the_same_target_are_one_line(old):
    """The text of a target holds no BIDS tasks, no condition on events, and no labels."""
    chosen = LabelsInfo(select="correct == 1")
    with pytest.raises(UserError, match="old: its trials predict other labels: --select none, not correct == 1"):
        collect_warm_trials(
            old, SearchSpace(SPACE), target="toy", metric="nrmse", labels=chosen, folds=NOTHING_HELD_OUT
        )


def test_trials_ranked_on_people_whom_the_new_run_holds_out_are_refused(old, tmp_path, windows):
    seen, unseen = sorted(s for s, fold in old.folds.fold_of.items() if fold >= 0), old.folds.held_out
    warm = collect_warm_trials(
        old, SearchSpace(SPACE), target="toy", metric="nrmse", labels=SAME, folds=_holding_out(unseen)
    )
    assert warm.people == seen
    with pytest.raises(LeakError, match=rf"--warm-start .*old: .*1 subject\(s\) that this run holds out \({seen[0]}\)"):
        collect_warm_trials(
            old,
            SearchSpace(SPACE),
            target="toy",
            metric="nrmse",
            labels=SAME,
            folds=_holding_out([*unseen, seen[0]]),
        )
    # A run that started from those trials passes them on, whatever it holds out itself.
    middle = begun(old, tmp_path / "middle", windows)
    folds = middle.folds.model_copy(update={"fold_of": dict.fromkeys(unseen, 0)})
    middle.folds, middle.info = folds, middle.info.model_copy(update={"warm": warm.model_dump(mode="json")})
    with pytest.raises(LeakError, match="holds out"):
        collect_warm_trials(
            middle, SearchSpace(SPACE), target="toy", metric="nrmse", labels=SAME, folds=_holding_out([seen[0]])
        )


def test_people_of_the_old_runs_encoder_count_as_seen(old):
    """Nobody could start from that encoder in a run that holds them out."""
    old.info = old.info.model_copy(update={"init": {"run": "enc", "subjects_seen": ["someone"], "files": {}}})
    start = {"target": "toy", "metric": "nrmse", "labels": SAME}
    with pytest.raises(LeakError, match=r"pretrained, trained or ranked on 1 subject\(s\) .* \(someone\)"):
        collect_warm_trials(old, SearchSpace(SPACE), folds=_holding_out(["someone"]), **start)
    assert "someone" in collect_warm_trials(old, SearchSpace(SPACE), folds=NOTHING_HELD_OUT, **start).people


def test_nothing_to_learn_from_is_one_line(old, tmp_path, windows):
    empty = make_run(tmp_path / "empty", windows)
    with pytest.raises(UserError, match="none of its trials has a score"):
        collect_warm_trials(
            empty,
            SearchSpace(SPACE),
            target="toy",
            metric="nrmse",
            labels=SAME,
            folds=NOTHING_HELD_OUT,
        )
    elsewhere = SearchSpace("def space(trial):\n    trial.suggest_float('optim/lr', 0.1, 1)\n", "far.py")
    with pytest.raises(UserError, match=r"none of its 13 trials is valid in this space \(trial 0: .*optim/lr"):
        collect_warm_trials(old, elsewhere, target="toy", metric="nrmse", labels=SAME, folds=NOTHING_HELD_OUT)


def test_trials_of_one_store_start_a_search_over_several_that_name_it(old, tmp_path):
    space = SearchSpace(NARROW, stores=("a", "b"))
    start = {"target": "toy", "metric": "nrmse", "labels": SAME, "folds": NOTHING_HELD_OUT}
    warm = collect_warm_trials(old, space, stores={"a": "another", "b": old.info.data_hash}, **start)
    assert warm.trials and {trial.params["data/store"] for trial in warm.trials} == {"b"}
    with pytest.raises(UserError, match=r"trial 0: it was trained on none of the stores a, b; the old run's is "):
        collect_warm_trials(old, space, stores={"a": "another", "b": "third"}, **start)


def test_a_trial_of_one_of_several_stores_is_of_the_store_with_its_hash_whatever_its_name(tmp_path, windows):
    old = make_run(tmp_path / "old", windows)
    for number in range(2):
        old.add_trial(number, tiny(data__store="ab"[number], optim__lr=3e-3 + number * 1e-3))
        old.write_history(number, [])
        result = {"score": 1.0, "best_epoch": 1, "epochs": 1, "seconds": 1, "reason": "toy", "finished": 0}
        old.write_result(TrialResult(number=number, state="complete", **result))
    edit_record(old.folder, "run.json", {"data": "a=here,b=there", "stores": {"a": "one", "b": "two"}})
    old = RunStore.open(old.where)
    start = {"target": "toy", "metric": "nrmse", "labels": SAME, "folds": NOTHING_HELD_OUT}
    swapped = collect_warm_trials(old, SearchSpace(NARROW, stores=("a", "b")), stores={"a": "two", "b": "one"}, **start)
    assert [(trial.number, trial.params["data/store"]) for trial in swapped.trials] == [(0, "b"), (1, "a")]
    other = collect_warm_trials(old, SearchSpace(NARROW, stores=("a", "c")), stores={"a": "new", "c": "two"}, **start)
    assert [(trial.number, trial.params["data/store"]) for trial in other.trials] == [(1, "c")]
    with pytest.raises(
        UserError, match=r"trial 0: it was trained on none of .* b; the old run's is store 'a' of a=here"
    ):
        collect_warm_trials(old, SearchSpace(NARROW, stores=("a", "b")), stores={"a": "new", "b": "other"}, **start)


LISTS = """
def space(trial):
    trial.suggest_float("optim/lr", 2e-3, 8e-3, log=True)
    trial.suggest_categorical("optim/betas", [(0.8, 0.999), (0, 0.99)])
"""


def test_trials_with_lists_are_taken_over_and_the_sampler_uses_them(tmp_path, windows):
    old = make_run(tmp_path / "old", windows)
    for number in range(13):
        betas = ((0.8, 0.999), (0.0, 0.99))[number % 2]
        add_ended(old, number, 1.0 + number % 2, optim__betas=betas, optim__lr=3e-3 + number * 1e-4)
    run = begun(old, tmp_path / "new", windows, LISTS)
    queue = study_queue(run, windows, trials=9)
    drawn = [run.record(queue.next()).params["optim/betas"] for _ in range(9)]
    assert drawn.count("[0.8, 0.999]") > 6
    again = study_queue(RunStore.open(run.where), windows, trials=9)
    assert [trial.params for trial in again.study.trials] == [trial.params for trial in queue.study.trials]
    assert len(again.study.trials) == 22


def space_of(folder, paths):
    """A space that draws one of the networks in files of these paths, which have different texts."""
    for number, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f"{NET}# {number}")
    text = f"""
def space(trial):
    return {{"model/name": trial.suggest_categorical("model/name", {[f"{path}:Net" for path in paths]}), "epochs": 4}}
"""
    (folder / "space.py").write_text(text)
    return load_space(folder / "space.py")


@pytest.mark.parametrize("moved", [["nets/a.py", "nets/b.py"], ["a.py", "b.py"], ["other/b.py", "a.py"]])
def test_networks_in_folders_are_those_of_files_of_the_same_name(tmp_path, windows, moved):
    """Configurations have no folders, since a run keeps the files; the space draws names with their folders."""
    old, space = make_run(tmp_path / "old", windows), space_of(tmp_path / "before", ["nets/a.py", "nets/b.py"])
    for number, config in enumerate(space.draw(9)):
        add_ended(old, number, 1.0, config=config)
    new = space_of(tmp_path / "new", moved)
    warm = collect_warm_trials(old, new, target="toy", metric="nrmse", labels=SAME, folds=NOTHING_HELD_OUT)
    drawn = [trial.params["model/name"] for trial in warm.trials]
    assert [short_name(name) for name in drawn] == [old.config(number).model.name for number in range(9)]
    assert set(drawn) == {f"{path}:Net" for path in moved}
