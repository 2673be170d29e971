"""An outer cross-validation without Ray: who is held out where, what may not change, scores of all subjects."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from raypipe import CrossValidation
from raypipe.cli import app
from raypipe.core.errors import UserError
from raypipe.core.levels import ScoredRows
from raypipe.core.metrics import constant_prediction, get_metric, score
from raypipe.core.options import MAX_SEED
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.evaluation_log import read_evaluations
from raypipe.ensembles.fit import fit_ensemble
from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.outer import (
    OuterScores,
    PooledPredictions,
    _table_of_parts,
    compare_with_baseline,
    write_verdict,
)
from raypipe.reporting.compare_outer import compare_outer
from raypipe.search.outer import resume_outer
from raypipe.storage.files import open_folder
from raypipe.storage.outer_run import OuterRun
from raypipe.storage.records import read_options
from tests.support.plain import parts_without_ray, plain_cross_validation
from tests.support.toys import SPACE, ToyWindows, write_store

OPTIONS = {"outer": 3, "trials": 2, "folds": 2}


@pytest.fixture(scope="module", params=["values", "classes"])
def made(request, tmp_path_factory) -> CrossValidation:
    """Three parts of two trials each, with ensembles, on nine toy subjects."""
    root = tmp_path_factory.mktemp(request.param)
    write_store(root / "store", ToyWindows(subjects=9, each=12, classes=request.param == "classes"))
    (root / "space.py").write_text(SPACE)
    return plain_cross_validation(root / "space.py", root / "store", root / "cv", **OPTIONS).ensemble(method="equal")


@pytest.fixture
def copied(made, tmp_path) -> OuterRun:
    shutil.copytree(made.where, tmp_path / "cv")
    return OuterRun(tmp_path / "cv")


def windows_of(made: CrossValidation) -> WindowStore:
    return WindowStore(made.store.info.data)


def test_every_subject_is_held_out_once_and_seen_by_no_trial_of_that_part(made):
    parts = made.store.info.parts
    assert sorted(name for part in parts for name in part) == sorted(set(windows_of(made).subjects.tolist()))
    for part, run in zip(parts, made.parts, strict=True):
        assert run.store.folds.held_out == sorted(part)
        assert not set(part) & set(windows_of(made).subjects[run.oof(0)["window"]])


def test_all_windows_are_scored_once_by_the_part_that_has_not_seen_them(made):
    table, windows = made.predictions(), windows_of(made)
    assert sorted(table["window"]) == list(range(len(windows)))
    np.testing.assert_array_equal(table["target"], windows.targets[table["window"]])
    for number, part in enumerate(made.store.info.parts, start=1):
        assert set(table.loc[table["part"] == number, "subject"]) == set(part)
    names, scores = made.store.info.classes or ["prediction"], made.scores
    if made.store.info.kind == "regression":  # of windows, all together
        assert scores.score == pytest.approx(score("nrmse", table["target"], table[names].to_numpy()))
        assert scores.interval.low < scores.score < scores.interval.high
    else:  # AUC, within the parts
        found = [(score("auc", t["target"], t[names].to_numpy()), t) for _, t in table.groupby("part")]
        pairs = [(t["target"] == 0).sum() * (t["target"] == 1).sum() for _, t in found]
        assert scores.score == pytest.approx(np.average([value for value, _ in found], weights=pairs))


def test_a_part_is_fitted_again_only_after_new_trials_or_in_another_way(copied):
    cv = CrossValidation(copied.where)
    cv.ensemble(method="equal")
    assert [len(read_evaluations(run.store)) for run in cv.parts] == [1, 1, 1]
    for times, options in enumerate(({"method": "best"}, {"method": "best", "max_members": 2}, {"top": 1}), start=2):
        for _ in range(2):  # the same call looks at no one again
            cv.ensemble(**options)
            assert [len(read_evaluations(run.store)) for run in cv.parts] == [times] * 3, options


def test_status_verdict_and_report(made, tmp_path):
    lines = made.status().splitlines()
    assert lines[1] == "  part-1: " + lines[1][10:] and "2 of 2 trials" in lines[1] and "equal" in lines[1]
    assert lines[-1].strip() == made.verdict
    assert "Over all 9 subjects, each predicted by a search that has not seen them" in made.verdict
    html = (tmp_path / "r.html").resolve()
    assert made.report(html) == str(html)
    text = html.read_text()
    assert "Every subject was held out once" in text and "optim/lr" in text and text.count("<tr>") > 9
    assert "could not be drawn" not in text
    model = "ridge" if made.store.info.kind == "regression" else "logistic regression"
    assert f"<td>{model} on band power</td>" in text and "difference from the ensembles</th>" in text
    assert f"{model} on " in made.verdict and f"{model} on " in text.partition("</div>")[0], "with the numbers of all"


def test_every_look_after_the_first_is_noted_wherever_the_score_is_shown(made, copied, tmp_path, capsys):
    assert made.scores.held_out_evaluations == 1 and made.scores.notes == []
    cv = CrossValidation(copied.where)
    cv.parts[1].ensemble(method="best")
    with pytest.raises(SystemExit) as end:
        app.main(["ensemble", copied.where, "--method", "equal"])
    assert end.value.code == 0
    times = [Ensemble.load(run).held_out_evaluations for run in copied.runs]
    assert times[1] > times[0] and times[1] > times[2] and cv.scores.held_out_evaluations == times[1]
    note = f"These subjects have been scored up to {times[1]} times. Choosing the best of several"
    assert note in " ".join(capsys.readouterr().out.split()) and note in cv.status() and note in cv.scores.notes[0]
    assert f'<p class="note">{note}' in Path(cv.report(tmp_path / "r.html")).read_text()


def test_looks_that_are_not_counted_are_noted_once_for_all_parts(copied, tmp_path):
    store = shutil.copytree(copied.info.data, tmp_path / "store")
    (tmp_path / "store.looks").write_text("in the way")
    for run in copied.runs:
        fit_ensemble(run, method="best", windows=WindowStore(store)).save()
    (note,) = (note for note in CrossValidation(copied.where).scores.notes if "not counted" in note)
    assert "store.looks cannot be written" in note and note in CrossValidation(copied.where).status()


def test_groups_of_people_are_what_the_interval_resamples(made):
    scores, pooled = made.scores, made.scores.pooled
    assert pooled.groups.tolist() == pooled.subjects.tolist()
    thirds = np.array([f"family {int(name[1:]) % 3}" for name in pooled.subjects])
    grouped = replace(scores, pooled=replace(pooled, groups=thirds))
    assert (grouped.score, len(np.unique(grouped.units))) == (scores.score, 3)
    verdict = write_verdict(made.store, grouped)
    assert "(no interval), beside" in verdict and "3 groups of subjects are too few" in verdict
    assert "groups" not in made.verdict


def one_person_each(made: CrossValidation, classes_S, p_SK) -> OuterScores:
    """Return the accuracy and AUC of a cross-validation of one person, with one window, in each part."""
    people, parts = np.array([f"p{k:02d}" for k in range(len(classes_S))]), np.arange(1, len(classes_S) + 1)
    pooled = PooledPredictions(np.arange(len(people)), people, people, classes_S, parts, p_SK)
    rows = ScoredRows(classes_S, people, parts, p_SK)
    constant = constant_prediction("classification", classes_S, len(people), 2)
    changes = {"pooled": pooled, "rows": rows, "constant_predictions": constant, "baselines": {}}
    return replace(made.scores, metric="auc", level="person", **changes)


def test_the_prediction_without_eeg_is_one_of_all_people(made):
    """The constant of the other parts' people is lowest where targets are high, and would lose to guesses."""
    found = made.scores.constant_predictions
    assert len(np.unique(found, axis=0)) == 1
    if made.store.info.kind == "regression":
        assert found[0, 0] == pytest.approx(made.scores.rows.targets.mean())
        assert made.scores.constant == pytest.approx(1.0)
    else:
        np.testing.assert_allclose(found[0], np.bincount(made.scores.rows.targets) / len(made.scores.rows.targets))


@pytest.mark.parametrize("made", ["classes"], indirect=True)
def test_a_perfect_model_with_one_person_in_each_part_generalizes(made):
    classes_S = np.arange(24) % 2
    right = one_person_each(made, classes_S, 0.1 + 0.8 * np.eye(2)[classes_S])
    assert right.score == 1.0 and right.constant == 0.5
    assert write_verdict(made.store, right).endswith("better than chance (0.5): it generalizes to new people.")
    few = one_person_each(made, classes_S[:6], 0.1 + 0.8 * np.eye(2)[classes_S[:6]])
    assert "6 subjects are too few" in write_verdict(made.store, few)


def test_baselines_are_scored_on_all_people_by_those_of_the_part_that_holds_them_out(made):
    scores, parts = made.scores, [Ensemble.load(run.store) for run in made.parts]
    usable = [one.name for one in parts[0].baselines if one.usable]
    assert list(scores.baselines) == usable and usable
    for name, predictions in scores.baselines.items():
        for number, part in enumerate(parts, start=1):
            own = scores.rows.folds == number
            found = score(scores.metric, scores.rows.targets[own], predictions[own])
            assert found == pytest.approx(part.table.at[name, "held_out"], abs=1e-5)
    best = max(usable, key=lambda name: -get_metric(scores.metric).sign * table_score(scores, name))
    compared = compare_with_baseline(scores)
    assert f", {best}" in compared.sentence and f"{table_score(scores, best):.3f}" in compared.sentence


def table_score(scores: OuterScores, name: str) -> float:
    return scores.evaluation_set.score(scores.metric, scores.baselines[name])


@pytest.mark.parametrize("made", ["classes"], indirect=True)
def test_a_baseline_that_is_better_on_all_people_is_the_first_sentence(made):
    rng, classes_S = np.random.default_rng(0), np.arange(24) % 2
    right, noise_S = 0.1 + 0.8 * np.eye(2)[classes_S], rng.uniform(size=24)
    noise = np.c_[1 - noise_S, noise_S]
    worse = replace(one_person_each(made, classes_S, noise), baselines={"ridge on x": right, "ridge on y": noise})
    verdict = write_verdict(made.store, worse)
    assert verdict.startswith(
        "A classical baseline, ridge on x, is better than the ensembles: held-out AUC 1.000 against "
    )
    assert "97.5 % CI +" in verdict and "Over all 24 subjects" in verdict
    better = replace(one_person_each(made, classes_S, right), baselines={"ridge on x": noise})
    first, second = write_verdict(made.store, better).split("new people. ")
    assert first.startswith("Over all") and second.startswith("They are better than the best classical baseline, ridge")
    same = replace(one_person_each(made, classes_S, right), baselines={"ridge on x": right})
    assert "No detectable difference between the ensembles and a classical baseline" in write_verdict(made.store, same)
    few = replace(one_person_each(made, classes_S[:4], right[:4]), baselines={"ridge on x": noise[:4]})
    assert "Too few subjects to compare the ensembles with a classical baseline" in write_verdict(made.store, few)
    unknown = replace(better, baselines={"ridge on x": np.full((24, 2), np.nan)})
    assert "baseline" not in write_verdict(made.store, unknown)


def test_the_next_step_is_named_until_there_is_a_score(copied):
    cv = CrossValidation(copied.where)
    shutil.rmtree(f"{copied.where}/part-2/ensemble")
    assert cv.status().splitlines()[-1].strip() == f"next: raypipe ensemble {copied.where}"
    with pytest.raises(UserError, match="part-2: no ensemble yet"):
        _ = cv.scores
    shutil.rmtree(f"{copied.where}/part-3")
    assert "part-3: not begun; 3 subjects to hold out" in cv.status()
    assert cv.status().splitlines()[-1].strip() == f"continue with: raypipe resume {copied.where}"
    with pytest.raises(UserError, match="2 of 3 parts are begun"):
        cv.ensemble()


def test_runs_in_each_others_place_are_refused(copied, capsys):
    first, second, aside = (f"{copied.where}/{name}" for name in ("part-1", "part-2", "aside"))
    for source, target in ((first, aside), (second, first), (aside, second)):
        shutil.move(source, target)
    with pytest.raises(UserError, match="part-1: holds out other subjects than this part"):
        _ = CrossValidation(copied.where).scores
    with pytest.raises(SystemExit):
        app.main(["doctor", copied.where])
    assert "holds out other subjects than this part" in capsys.readouterr().out


def test_the_same_call_trains_nothing_again_and_another_is_refused(made, copied):
    space, data = f"{copied.where}/space.py", made.store.info.data
    before = {name: copied.folder.read(name) for name in copied.folder.names() if "/trials/" in name}
    plain_cross_validation(space, data, copied.where, **OPTIONS)
    assert {name: copied.folder.read(name) for name in copied.folder.names() if "/trials/" in name} == before
    for changed, message in (
        ({"outer": 4}, "--outer 3, not 4"),
        ({"folds": 3}, "--folds 2, not 3"),
        ({"repeats": 2}, "--repeats 1, not 2"),
        ({"seed": 1}, "--seed 0, not 1"),
    ):
        with pytest.raises(UserError, match=f"made with {message}; this cannot change"):
            plain_cross_validation(space, data, copied.where, **OPTIONS | changed)


@pytest.mark.parametrize("lost", ["no part", "the last part", "all but the first part"])
def test_resume_trains_what_is_missing_and_gives_the_numbers_of_an_unbroken_search(made, copied, lost):
    for place in copied.places[{"no part": 3, "the last part": 2, "all but the first part": 1}[lost] :]:
        shutil.rmtree(place)
    before = {name: copied.folder.read(name) for name in copied.folder.names() if "/trials/" in name}
    with parts_without_ray():
        found = resume_outer(copied.where)
    after = {name: copied.folder.read(name) for name in copied.folder.names() if "/trials/" in name}
    assert before.items() <= after.items() and (lost != "no part" or before == after)
    assert [len(run.results()) for run in found.runs] == [2, 2, 2]
    for run, whole in zip(found.runs, made.store.runs, strict=True):
        assert (run.folds, run.info.seed) == (whole.folds, whole.info.seed)
        for number in range(2):
            assert run.record(number).params == whole.record(number).params
            np.testing.assert_array_equal(run.oof(number).predictions, whole.oof(number).predictions)


def test_resume_takes_other_limits_and_nothing_that_a_score_depends_on(copied, capsys):
    with parts_without_ray():
        with pytest.raises(SystemExit) as end:
            app.main(["resume", copied.where, "--trials", "3"])
        assert end.value.code == 0
        assert [len(run.results()) for run in copied.runs] == [3, 3, 3]
        assert read_options(copied.folder)["trials"] == 3
        with pytest.raises(UserError, match="made with --seed 0, not 1; this cannot change"):
            resume_outer(copied.where, seed=1)
        (copied.folder.path / "options.json").unlink()
        with pytest.raises(UserError, match="its search has not begun; start it with: raypipe sweep"):
            resume_outer(copied.where)


def test_limits_are_divided_among_the_parts(made, copied):
    plain_cross_validation(
        f"{copied.where}/space.py",
        made.store.info.data,
        copied.where,
        **OPTIONS,
        time_budget="3h",
        gpu_hours=6,
        gpus_per_worker=1,
    )
    for run in copied.runs:
        options = read_options(run.folder, run.run_id)
        assert (options["time_budget"], options["gpu_hours"]) == (3600.0, 2.0)
    assert read_options(copied.folder)["time_budget"] == 3 * 3600.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outer": 10}, r"--outer 10: the data has 9 subject\(s\)"),
        ({"outer": 1}, "--outer 1: an outer cross-validation needs at least 2 parts"),
        ({"held_out": 0.2}, "--held-out cannot be given"),
        ({"folds": 9}, "9 folds need at least 9 subjects beside the 3 held out"),
    ],
)
def test_mistakes_are_one_line(made, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        plain_cross_validation(
            made.store.folder.path / "space.py", made.store.info.data, tmp_path / "x", **OPTIONS | options
        )
    assert not (tmp_path / "x").exists()


def test_a_space_that_a_part_refuses_leaves_no_folder(made, tmp_path):
    space = tmp_path / "space.py"
    space.write_text('def space(trial):\n    return {"init/name": "pretrained"}\n')
    with pytest.raises(UserError, match="give a pretrained run with --init RUN"):
        plain_cross_validation(space, made.store.info.data, tmp_path / "x", **OPTIONS)
    assert not (tmp_path / "x").exists()


def test_other_verbs_and_other_folders_are_one_line(made, copied, capsys):
    def error_of(*words: object) -> str:
        with pytest.raises(SystemExit) as end:
            app.main([str(word) for word in words])
        assert end.value.code == 2
        return capsys.readouterr().err

    where, part = copied.where, copied.places[0]
    space = f"{where}/space.py"
    for words in (("export", where, "out.zip"), ("trials", where), ("rerun", where), ("dashboard", where)):
        assert "an outer cross-validation (sweep --outer); its parts are runs" in error_of(*words), words
    new = ("sweep", space, "--data", made.store.info.data, "--run")
    assert "an outer cross-validation" in error_of(*new, where)
    assert "a run without --outer" in error_of(*new, part, "--outer", 3)
    assert "have seen subjects" in error_of(*new, f"{where}-new", "--outer", 3, "--warm-start", part)
    assert "a run without --outer" in error_of("compare", where, part)
    assert "shuffling is no test" in error_of("chance", where)
    with pytest.raises(UserError, match="no outer cross-validation there"):
        CrossValidation(f"{where}-new")


def test_all_parts_are_pulled(made, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        app.main(["pull", made.where, str(tmp_path / "there")])
    assert end.value.code == 0, capsys.readouterr().err
    assert open_folder(tmp_path / "there").names() == open_folder(made.where).names()
    assert CrossValidation(tmp_path / "there").scores.score == made.scores.score


def test_compared_with_itself_there_is_no_difference(made, copied):
    found = compare_outer([made.store, copied])
    (pair,) = found.differences[0]
    assert (pair.difference, pair.subjects, pair.mismatched) == (0.0, 9, 0)
    assert [condition.same for condition in found.conditions[0]] == [True, True, True]
    assert found.cost["trials"].tolist() == [6, 6]


def test_records_that_were_changed_are_one_line(copied):
    (copied.folder.path / "space.py").write_text("def space(trial): return {}")
    with pytest.raises(UserError, match=r"space\.py: changed since the run was made"):
        copied.read_space()
    copied.folder.write("outer.json", copied.folder.read("outer.json").replace(b'"folds": 2', b'"folds": 3'))
    with pytest.raises(UserError, match=r"outer\.json"):
        OuterRun(copied.where)


def test_places_of_parts_behind_a_uri_keep_its_settings(made):
    outer = OuterRun.__new__(OuterRun)
    outer.where, outer.info = "s3://lab/cv?region=here", made.store.info
    assert outer.places[1] == "s3://lab/cv/part-2?region=here"


def test_parts_draw_other_configurations_and_the_same_again(made, copied):
    seeds = [run.info.seed for run in copied.runs]
    assert len(set(seeds)) == 3 and all(0 <= seed <= MAX_SEED for seed in seeds)
    first, drawn = ({str(run.record(number).params) for run in copied.runs} for number in (0, 1))
    assert len(first) == 1 and len(drawn) == 3  # every search begins with the defaults
    plain_cross_validation(f"{copied.where}/space.py", made.store.info.data, copied.where, **OPTIONS)
    assert [run.info.seed for run in OuterRun(copied.where).runs] == seeds


@pytest.mark.long  # a run behind a URI, and parts in a folder, are tested in any case
@pytest.mark.usefixtures("all_baselines")  # as `made` has them
@pytest.mark.parametrize("made", ["values"], indirect=True)
def test_behind_a_uri_the_numbers_are_those_of_a_folder(made, s3, capsys):
    where, space, data = s3.new_folder(), made.store.folder.path / "space.py", made.store.info.data
    cv = plain_cross_validation(space, data, where, **OPTIONS)
    assert cv.where == where and [run.where for run in cv.parts] == OuterRun(where).places
    assert all("/part-" in run.where.partition("?")[0] for run in cv.parts)  # before the settings of the server
    before = {name for name in cv.store.folder.names() if "/trials/" in name}
    with pytest.raises(SystemExit) as end:
        app.main(["ensemble", where, "--method", "equal"])
    assert end.value.code == 0
    found = CrossValidation(where)
    np.testing.assert_array_equal(found.predictions(), made.predictions())
    assert (found.scores.score, found.verdict) == (made.scores.score, made.verdict)
    assert compare_outer([made.store, found.store]).differences[0][0].difference == 0.0
    capsys.readouterr()
    for words in (("status", where), ("doctor", where)):
        with pytest.raises(SystemExit) as end:
            app.main(list(words))
        assert end.value.code == 0, capsys.readouterr()
    said = capsys.readouterr().out
    assert "outer cross-validation of 3 parts" in said and " ".join(made.verdict.split()) in " ".join(said.split())
    found.report()
    assert "report.html" in found.store.folder.names()
    plain_cross_validation(space, data, where, **OPTIONS)
    assert {name for name in OuterRun(where).folder.names() if "/trials/" in name} == before
    with pytest.raises(UserError, match="--outer 3, not 4"):
        plain_cross_validation(space, data, where, **OPTIONS | {"outer": 4})


@pytest.mark.parametrize("uri", [False, True])
@pytest.mark.parametrize(("verb", "part"), [("watch", "watch one of its parts"), ("stop", "stop the part that runs")])
def test_verbs_of_one_run_name_the_parts(made, verb, part, uri, capsys):
    where = Path(made.where).as_uri() if uri else str(made.where)
    with pytest.raises(SystemExit) as left:
        app.main([verb, where])
    said = " ".join(capsys.readouterr().err.split())
    assert left.value.code == 2 and f"{where}: an outer cross-validation; {part}" in said and said.endswith("/part-1")


def test_all_parts_behind_a_uri_are_tidied(copied, capsys):
    where = Path(copied.where).as_uri()
    with pytest.raises(SystemExit) as left:
        app.main(["tidy", where, "--keep", "best:1", "--dry-run"])
    said = capsys.readouterr().out.splitlines()
    assert not left.value.code and len(said) == 3
    assert all(f"{where}/part-{n + 1}: would be removed" in line for n, line in enumerate(said))


def test_the_parts_of_distilled_networks_have_the_scores_of_these():
    scores = {"subjects": [6, 6, 6], "nested": [0.7, np.nan, 0.5], "held_out": [0.6, 0.65, 0.5]}
    table = pd.DataFrame(scores, index=["ensemble", "distilled", "prior baseline"])
    parts = [SimpleNamespace(table=table, method="equal", distilled=distilled) for distilled in (False, True)]
    found = _table_of_parts(parts)
    assert found["score"].tolist() == [0.6, 0.65] and found["nested"].tolist() == [0.7, 0.7]
    assert found["method"].tolist() == ["equal", "equal, distilled"]
