"""Pretrained runs, from the command to fine-tuning, in this process."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from raypipe.cli import app
from raypipe.core.errors import InterruptedEpochError, InterruptedSweepError, NonFiniteError, UserError
from raypipe.core.folds import LeakError
from raypipe.core.options import parse_options
from raypipe.core.parameters import parse_config
from raypipe.core.search_space import SearchSpace
from raypipe.core.stop import StopRequest
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.fit import fit_ensemble
from raypipe.models.conformer import Conformer
from raypipe.models.vit import ViT
from raypipe.packaging.bundle import export_bundle, load_ensemble
from raypipe.pretraining.encoders import PretrainedRun, export_encoder, load_encoder
from raypipe.pretraining.trainer import Pretrainer
from raypipe.pretraining.worker import _train_epoch, probe_score, train_encoders, tuned_score
from raypipe.reporting.pretrain_report import _spread_over_subjects, plot_curves, status_lines
from raypipe.search.outer import resume_outer, sweep_outer
from raypipe.search.pretrain import pretrain, resume
from raypipe.search.run_setup import open_run
from raypipe.storage.files import PARTIAL_SUFFIX
from raypipe.storage.lease import Lease
from raypipe.storage.records import read_options, write_options
from raypipe.training.finetuning import choose_trained, initial_id, merge_lora, parameter_groups, start_from
from raypipe.training.fold_trainer import never
from raypipe.training.loader import WindowLoader
from raypipe.training.trainer import SupervisedTrainer
from raypipe.trial.local import run_trial
from tests.support.plain import parts_without_ray
from tests.support.process import process_state
from tests.support.toys import ToyWindows, make_run, write_store

SMALL = {"model/filters": 8, "model/heads": 2, "model/depth": 1, "model/patch": 16, "batch_size": 8}
PARAMS = SMALL | {"epochs": 3}
CONFORMER = {name: value for name, value in SMALL.items() if name != "model/patch"} | {"model/name": "conformer"}
SPACE = f"""
START = [{{"init/tune": "full"}}]
def space(trial):
    trial.suggest_categorical("init/tune", ["full", "lora", "frozen"])
    return {SMALL | {"init/name": "pretrained", "model/name": "vit", "epochs": 2}!r}
"""
CONFORMER_SPACE = SPACE.replace("'vit'", "'conformer'").replace("'model/patch': 16, ", "")
SHIPPED = Path(__file__).parents[3] / "search_spaces"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return write_store(tmp_path_factory.mktemp("toy") / "store", ToyWindows())


@pytest.fixture(scope="module")
def encoder(store) -> Path:
    run = store.parent / "mae"
    pretrain("mae", store, run, params=PARAMS, folds=3, probe_every=1)
    return run


@pytest.fixture(scope="module")
def conformer(store) -> Path:
    run = store.parent / "conformer"
    pretrain("simclr", store, run, params=CONFORMER | {"epochs": 2}, folds=3, probe_every=1)
    return run


def test_a_pretrained_run_is_whole(encoder, tmp_path):
    run = PretrainedRun(encoder)
    history = run.history("all")
    assert [epoch.epoch for epoch in history] == [1, 2, 3]
    assert all(epoch.probe is not None for epoch in history)
    assert len(run.checkpoints("all")) == 2
    assert "finished" in status_lines(encoder)[-1]
    export_encoder(encoder, tmp_path / "out")
    x = torch.randn(2, 3, 64)
    one, two = load_encoder(encoder), load_encoder(tmp_path / "out")
    assert one.features(x).shape == (2, 8)
    assert torch.equal(one.features(x), two.features(x))


def test_a_kill_between_checkpoint_and_history_loses_no_epoch(store, encoder, tmp_path, monkeypatch):
    write, writes = PretrainedRun.write_history, []

    def die(self, part, history):
        writes.append(len(history))
        if len(writes) == 2:
            (self.folder.path / part / f".history.json.0{PARTIAL_SUFFIX}").write_bytes(b"{")
            raise KeyboardInterrupt
        write(self, part, history)

    run = tmp_path / "run"
    monkeypatch.setattr(PretrainedRun, "write_history", die)
    with pytest.raises(KeyboardInterrupt):
        pretrain("mae", store, run, params=PARAMS, folds=3, probe_every=1)
    monkeypatch.undo()
    assert len(PretrainedRun(run).history("all")) == 1
    pretrain("mae", store, run, params=PARAMS, folds=3, probe_every=1)
    found, expected = (PretrainedRun(where).history("all") for where in (run, encoder))
    assert [(e.epoch, e.loss, e.probe) for e in found] == [(e.epoch, e.loss, e.probe) for e in expected]
    assert PretrainedRun(run).folder.partial_files() == []
    name = "encoder.safetensors"
    assert PretrainedRun(run).folder.read(name) == PretrainedRun(encoder).folder.read(name)


@pytest.mark.parametrize("change", [lambda run: run.folder.remove("all/history.json"), lambda run: swap(run)])
def test_a_lost_history_and_a_checkpoint_of_another_epoch_change_nothing(store, encoder, tmp_path, change):
    run = tmp_path / "run"
    shutil.copytree(encoder, run)
    for name in ("card.json", "encoder.safetensors"):
        (run / name).unlink()
    change(PretrainedRun(run))
    pretrain("mae", store, run, params=PARAMS, folds=3, probe_every=1)
    name = "encoder.safetensors"
    assert PretrainedRun(run).folder.read(name) == PretrainedRun(encoder).folder.read(name)
    assert [e.loss for e in PretrainedRun(run).history("all")] == [
        e.loss for e in PretrainedRun(encoder).history("all")
    ]


def swap(run):
    """Put the checkpoint of one epoch in the place of another's."""
    run.folder.write("all/epoch-0003.ckpt", run.folder.read("all/epoch-0002.ckpt"))


@pytest.mark.parametrize("objective", ["mae", "simclr"])
def test_a_fine_tuned_probe_trains_copies_and_does_not_change_the_encoder(
    store, encoder, conformer, tmp_path, objective
):
    params = PARAMS if objective == "mae" else CONFORMER | {"epochs": 2}
    run = tmp_path / "run"
    pretrain(objective, store, run, params=params, folds=3, probe_every=1, tuned_probe=2)
    plain = PretrainedRun(encoder if objective == "mae" else conformer)
    assert PretrainedRun(run).folder.read("encoder.safetensors") == plain.folder.read("encoder.safetensors")
    history, without = PretrainedRun(run).history("all"), plain.history("all")
    assert [epoch.probe for epoch in history] == [epoch.probe for epoch in without]
    assert all(epoch.tuned is not None and np.isfinite(epoch.tuned) for epoch in history)
    assert all(epoch.tuned is None for epoch in without)
    assert f", fine-tuned {history[-1].tuned:.3f}" in " ".join(status_lines(run))
    assert {text.get_text() for text in plot_curves(PretrainedRun(run)).axes[1].get_legend().texts} >= {
        "linear",
        "fine-tuned",
    }


def test_a_probe_that_diverges_is_left_out(store, encoder, tmp_path, monkeypatch):
    def diverge(self, interrupted=None):
        raise NonFiniteError("fold 0, epoch 1: the training loss is not finite")

    monkeypatch.setattr("raypipe.pretraining.worker.SupervisedTrainer.run_epoch", diverge)
    run = pretrain("mae", store, tmp_path / "run", params=PARAMS, folds=3, probe_every=1, tuned_probe=1)
    assert [epoch.tuned for epoch in run.history("all")] == [None] * 3
    assert [epoch.probe for epoch in run.history("all")] == [e.probe for e in PretrainedRun(encoder).history("all")]


def test_a_probe_that_does_not_fit_in_memory_is_left_out_and_said(store, encoder, tmp_path, monkeypatch, caplog):
    def full(self, *_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr("raypipe.pretraining.worker.SupervisedTrainer.step", full)
    run = pretrain("mae", store, tmp_path / "run", params=PARAMS, folds=3, probe_every=1, tuned_probe=1)
    expected = PretrainedRun(encoder).history("all")
    assert [(epoch.loss, epoch.probe, epoch.tuned) for epoch in run.history("all")] == [
        (epoch.loss, epoch.probe, None) for epoch in expected
    ]
    assert "the fine-tuned probe does not fit in memory, and is left out: CUDA out of memory" in caplog.text


def test_a_fine_tuned_probe_has_the_micro_batches_of_pretraining(store, tmp_path, monkeypatch):
    step, sizes = SupervisedTrainer.step, set()
    monkeypatch.setattr(SupervisedTrainer, "step", lambda self, *args: sizes.add(self.micro_batch) or step(self, *args))
    options = {"folds": 3, "probe_every": 3, "tuned_probe": 1, "micro_batch": 2}
    run = pretrain("mae", store, tmp_path / "run", params=PARAMS, **options)
    assert sizes == {2} and run.history("all")[-1].tuned is not None


@pytest.mark.parametrize("last", [2, 3])
def test_a_run_that_ends_in_a_probe_keeps_its_epoch_and_is_probed_when_it_continues(
    store, encoder, tmp_path, monkeypatch, last
):
    where, options = tmp_path / "run", {"params": PARAMS, "folds": 3, "probe_every": 1}
    run_epoch, trained = Pretrainer.run_epoch, []

    def die(trainer, folds, fold):
        if trainer.epoch == last:
            raise KeyboardInterrupt
        return probe_score(trainer, folds, fold)

    def count(self, interrupted):
        trained.append(self.epoch + 1)
        return run_epoch(self, interrupted)

    monkeypatch.setattr(Pretrainer, "run_epoch", count)
    with monkeypatch.context() as patch:
        patch.setattr("raypipe.pretraining.worker.probe_score", die)
        with pytest.raises(BaseException) as stopped:
            pretrain("mae", store, where, **options)
    assert isinstance(stopped.value.__context__ or stopped.value, KeyboardInterrupt)
    history = PretrainedRun(where).history("all")
    assert len(history) == last and history[-1].probe is None
    run, expected = pretrain("mae", store, where, **options), PretrainedRun(encoder)
    assert trained == [1, 2, 3]
    assert [(e.loss, e.probe) for e in run.history("all")] == [(e.loss, e.probe) for e in expected.history("all")]
    assert [epoch["probe"] for epoch in run.checkpoint("all", 3)["history"]] == [e.probe for e in run.history("all")]
    assert run.folder.read("encoder.safetensors") == expected.folder.read("encoder.safetensors")


def test_a_fold_without_subjects_is_no_obstacle_to_probes(store, encoder):
    run = PretrainedRun(encoder)
    windows = WindowStore(store)
    index = run.folds.search_index(windows.subjects)
    one = Pretrainer(run.info.config, WindowLoader(windows), index)
    moved = {subject: 1 if fold == 0 else fold for subject, fold in run.folds.fold_of.items()}
    folds = run.folds.model_copy(update={"fold_of": moved})
    assert np.isfinite(tuned_score(one, folds, None, 1)) and np.isfinite(probe_score(one, folds, None))


def test_a_killed_run_continues_to_the_same_bits(store, encoder, tmp_path, monkeypatch):
    answers = iter([False] * 10 + [True] * 9)
    with monkeypatch.context() as patch:
        interrupted = partial(train_encoders, interrupted=lambda: next(answers))
        patch.setattr("raypipe.search.pretrain.train_encoders", lambda where, **_: interrupted(where))
        with pytest.raises(BaseException) as stopped:
            pretrain("mae", store, tmp_path / "run", params=PARAMS, folds=3, probe_every=1)
    assert isinstance(stopped.value.__context__ or stopped.value, InterruptedEpochError)
    assert 0 < len(PretrainedRun(tmp_path / "run").history("all")) < 3
    pretrain("mae", store, tmp_path / "run", params=PARAMS, folds=3, probe_every=1)
    assert (tmp_path / "run/encoder.safetensors").read_bytes() == (encoder / "encoder.safetensors").read_bytes()


def test_a_stop_request_ends_pretraining_after_the_epoch_under_way(store, encoder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopped = partial(train_encoders, stopping=lambda: True)
        patch.setattr("raypipe.search.pretrain.train_encoders", lambda where, **_: stopped(where))
        patch.setattr(PretrainedRun, "finish", lambda self: None)
        run = pretrain("mae", store, tmp_path / "run", params=PARAMS, folds=3, probe_every=1)
    assert len(run.history("all")) == 1
    pretrain("mae", store, tmp_path / "run", params=PARAMS, folds=3, probe_every=1)
    assert (tmp_path / "run/encoder.safetensors").read_bytes() == (encoder / "encoder.safetensors").read_bytes()


def test_a_damaged_checkpoint_is_passed_over(store, encoder, tmp_path):
    run = pretrain("mae", store, tmp_path / "run", params=PARAMS, folds=3, probe_every=1)
    for name in ("encoder.safetensors", "card.json"):
        run.folder.remove(name)
    run.folder.write("all/epoch-0003.ckpt", b"raypipe-checkpoint-2\nnothing")
    pretrain("mae", store, tmp_path / "run", params=PARAMS, folds=3, probe_every=1)
    assert (tmp_path / "run/encoder.safetensors").read_bytes() == (encoder / "encoder.safetensors").read_bytes()


def test_held_out_subjects_are_not_trained_on(store, encoder, monkeypatch, tmp_path):
    seen: set[str] = set()
    gather = WindowStore.gather

    def watched(self, index, offset=None):
        seen.update(self.subjects[np.asarray(index)])
        return gather(self, index, offset)

    monkeypatch.setattr(WindowStore, "gather", watched)
    run = pretrain("simclr", store, tmp_path / "run", params=PARAMS | {"epochs": 1}, folds=3)
    assert seen
    assert not seen & set(run.folds.held_out)


def test_pretraining_leaves_the_callers_process_as_it_was(store, tmp_path):
    before = process_state()
    pretrain("simclr", store, tmp_path / "run", params=PARAMS | {"epochs": 1}, folds=3)
    assert process_state() == before


class TakenOver(Lease):
    """A lease that another driver takes over at once."""

    def __enter__(self):
        self.lost = UserError("another raypipe is driving this run")
        return super().__enter__()


def test_pretraining_in_this_process_stops_when_asked_or_taken_over_and_continues(store, tmp_path, monkeypatch):
    train = partial(pretrain, "simclr", store, tmp_path / "run", params=PARAMS | {"epochs": 1}, folds=3)
    stop = StopRequest()
    stop.set()
    with pytest.raises(InterruptedSweepError):
        train(stop=stop)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="another raypipe is driving this run"):
        patch.setattr("raypipe.search.pretrain.Lease", TakenOver)
        train()
    assert train().over


def opened(store, where, encoder, **options):
    return open_run(
        SearchSpace(SPACE, "s.py"),
        WindowStore(store),
        str(where),
        parse_options({"folds": 3, **options}),
        init=encoder,
    )


@pytest.mark.parametrize("tune", ["full", "lora", "frozen"])
def test_trials_start_from_the_encoder_and_say_so(store, encoder, tmp_path, tune):
    run, windows = opened(store, tmp_path / "run", encoder), WindowStore(store)
    base = SMALL | {"init/name": "pretrained", "init/tune": tune, "model/name": "vit", "epochs": 2}
    for number, rate in enumerate((1e-3, 1e-2)):
        run.add_trial(number, parse_config(base | {"optim/lr": rate, "init/layer_decay": 0.7}))
        assert run_trial(run, windows, number).state == "complete"
    one, two = run.result(0), run.result(1)
    assert one.initial == two.initial
    assert len(set(one.initial)) == 1
    assert len(one.initial[0]) == 16
    left, start = run.weights(0, 0), load_encoder(encoder).state_dict()
    changed = [n for n, t in start.items() if not torch.equal(t.nan_to_num(), left[f"model.{n}"].nan_to_num())]
    if tune == "frozen":
        assert set(changed) <= {"head.weight", "head.bias"}
    elif tune == "lora":
        linear = ("qkv.weight", "projection.weight", "feed.0.weight", "feed.3.weight")
        assert all(n.startswith("head.") or n.endswith(linear) for n in changed)
        assert any("qkv" in n for n in changed)
    else:
        assert "embed.weight" in changed


@pytest.mark.parametrize("kind", ["vit", "conformer"])
def test_fine_tunes_of_one_encoder_make_a_greedy_soup(store, encoder, conformer, tmp_path, kind):
    start, windows = {"vit": encoder, "conformer": conformer}[kind], WindowStore(store)
    space = SearchSpace({"vit": SPACE, "conformer": CONFORMER_SPACE}[kind], "s.py")
    run = open_run(space, windows, str(tmp_path / "run"), parse_options({"folds": 3}), init=start)
    base = {"vit": SMALL, "conformer": CONFORMER}[kind] | {"init/name": "pretrained", "model/name": kind, "epochs": 2}
    for number, rate in enumerate((1e-3, 2e-3, 5e-3)):
        run.add_trial(number, parse_config(base | {"optim/lr": rate}))
        assert run_trial(run, windows, number).state == "complete"
    ensemble = fit_ensemble(run, windows=windows, method="soup")
    assert ensemble.merged is not None and {member.trial for member in ensemble.merged.members} <= {0, 1, 2}
    export_bundle(run, ensemble, tmp_path / "bundle")
    answers = load_ensemble(tmp_path / "bundle").predict(windows.gather(range(8)))
    assert np.isfinite(answers).all() and np.ptp(answers) > 0


def test_an_encoder_that_has_seen_held_out_subjects_is_refused(store, encoder, tmp_path):
    held = [PretrainedRun(encoder).folds.held_out[0]]
    others = [s for s in PretrainedRun(encoder).folds.fold_of if s not in PretrainedRun(encoder).folds.held_out]
    with pytest.raises(LeakError, match=others[0]):
        opened(store, tmp_path / "run", encoder, held_out=[others[0]])
    opened(store, tmp_path / "fine", encoder, held_out=held)


def test_parts_of_an_outer_search_that_are_made_later_start_from_the_same_encoder(
    encoder, conformer, tmp_path, monkeypatch
):
    toy = ToyWindows(subjects=6)
    toy.subjects = np.array([f"new-{name}" for name in toy.subjects])  # the encoder has seen none of them
    data, space, where = write_store(tmp_path / "new", toy), tmp_path / "space.py", tmp_path / "cv"
    space.write_text(SPACE)
    options = {"outer": 3, "trials": 1, "folds": 2}
    monkeypatch.chdir(encoder.parent)
    with parts_without_ray():
        found = sweep_outer(space, data, where, init=encoder.name, **options)
        monkeypatch.chdir(tmp_path)  # whoever resumes may be in another folder
        made = [run.info.init for run in found.runs]
        shutil.rmtree(where / "part-3")
        with pytest.raises(UserError, match=r"conformer: not the encoder that .*cv was made with \(.*mae"):
            sweep_outer(space, data, where, init=conformer, **options)
        shutil.rmtree(where / "part-2")
        assert [run.info.init["files"] for run in resume_outer(where).runs] == [one["files"] for one in made]
        shutil.rmtree(where / "part-3")
        assert len(sweep_outer(space, data, where, **options).runs) == 3  # the same without --init


def test_a_space_that_needs_an_encoder_says_so(store, encoder, tmp_path):
    with pytest.raises(UserError, match="--init RUN"):
        opened(store, tmp_path / "run", None)
    with pytest.raises(UserError, match="no pretrained encoder"):
        opened(store, tmp_path / "run", tmp_path / "nothing")


def test_an_encoder_of_other_sizes_is_one_line():
    one, two = ViT(3, 64, 1, patch=16, width=8, heads=2), ViT(3, 64, 1, patch=16, width=16, heads=2)
    with pytest.raises(UserError, match="model/filters"):
        start_from(one, two.state_dict())


def test_another_montage_takes_the_weights_and_keeps_its_electrodes():
    one, two = ViT(3, 64, 1, patch=16, width=8, heads=2), ViT(5, 96, 2, patch=16, width=8, heads=2)
    two.places.positions.copy_(torch.randn(5, 3))
    before = two.places.positions.clone()
    start_from(two, one.state_dict())
    assert torch.equal(two.places.positions, before)
    assert torch.equal(two.embed.weight, one.embed.weight)
    assert initial_id(one) != initial_id(two)


def test_lora_changes_nothing_at_first_and_rates_fall_with_depth():
    model = ViT(3, 64, 1, patch=16, width=8, heads=2, depth=2, dropout=0.0)
    x, before = torch.randn(2, 3, 64), None
    before = model(x)
    init = parse_config({"model/name": "vit", "init/name": "pretrained", "init/layer_decay": 0.5}).init
    groups = parameter_groups(model, init)  # of weights, which decay, and of vectors, which do not
    assert [group["rate"] for group in groups] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    assert [group.get("weight_decay") for group in groups] == [None, 0.0] * 4
    names = set(model.state_dict())
    choose_trained(model, init.model_copy(update={"tune": "lora"}))
    torch.testing.assert_close(model(x), before)
    assert set(merge_lora(model, model.state_dict())) == names


@pytest.mark.parametrize("name", ["pretrain_mae", "pretrain_simclr", "finetune", "finetune_conformer"])
def test_shipped_spaces_run_at_toy_size(name, store, encoder, conformer, tmp_path):
    space, windows = SearchSpace((SHIPPED / f"{name}.py").read_text(), name), WindowStore(store)
    small = {"filters": 8, "heads": 2, "depth": 1, "patch": 16}
    drawn = space.draw(1)[0].model_dump()
    small = {name: value for name, value in small.items() if name in drawn["model"]}
    config = parse_config(drawn | {"model": drawn["model"] | small, "batch_size": 8, "epochs": 1, "patience": 1})
    start = {"finetune": encoder, "finetune_conformer": conformer}.get(name)
    run = opened(store, tmp_path / "run", start) if start else make_run(tmp_path / "run", windows)  # type: ignore[arg-type]
    run.add_trial(0, config)
    result = run_trial(run, windows, 0)
    assert result.state == "complete", result.reason


def test_plots_show_several_subjects_and_whole_epochs(encoder):
    subjects = np.repeat(["a", "b", "c", "d"], [5, 1, 4, 2])
    assert _spread_over_subjects(subjects, np.arange(12)).tolist() == [2, 5, 8]
    assert _spread_over_subjects(subjects, np.arange(6)).tolist() == [2, 5, 1]
    assert _spread_over_subjects(subjects, np.array([5])).tolist() == [5]
    for axis in plot_curves(PretrainedRun(encoder)).axes:
        assert axis.get_xlim() == (0, 4)
        assert all(tick == round(tick) for tick in axis.get_xticks())


def test_one_worker_trains_on_the_gpu_that_it_was_given(store, tmp_path, monkeypatch):
    """In this process, without Ray: on the device that its option asks for, and not without it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^--gpus-per-worker 1: no GPU for the worker on \S+: torch "):
        pretrain("mae", store, tmp_path / "run", params=PARAMS, folds=3, gpus_per_worker=1)
    assert not (tmp_path / "run").exists()
    devices = []

    def train(where, *, device, **options):
        devices.append(device)
        raise InterruptedEpochError

    monkeypatch.setattr("raypipe.search.pretrain.train_encoders", train)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for gpus in (1, 0):
        with pytest.raises(InterruptedSweepError):
            pretrain("mae", store, tmp_path / "run", params=PARAMS, folds=3, gpus_per_worker=gpus)
    with pytest.raises(InterruptedSweepError):
        resume(tmp_path / "run")
    assert devices == [torch.device("cuda", 0), torch.device("cpu"), torch.device("cpu")]


def test_pretraining_gives_up_the_store_on_a_gpu_that_is_full(store, encoder, tmp_path, monkeypatch):
    """With a copy of the store on the CPU that counts as a GPU's: the numbers are the same."""
    run_epoch, kept = Pretrainer.run_epoch, []

    def full(self, interrupted):
        kept.append(self.loader.resident)
        if self.loader.resident and self.epoch == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return run_epoch(self, interrupted)

    monkeypatch.setattr("raypipe.pretraining.worker.WindowLoader", partial(WindowLoader, resident=True))
    monkeypatch.setattr(Pretrainer, "run_epoch", full)
    run = pretrain("mae", store, tmp_path / "run", params=PARAMS, folds=3, probe_every=1)
    assert kept == [True, True, False, False]
    expected = PretrainedRun(encoder).history("all")
    assert [epoch.loss for epoch in run.history("all")] == [epoch.loss for epoch in expected]


def test_pretraining_that_does_not_fit_on_a_gpu_is_one_line(monkeypatch):
    def full(interrupted):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore")

    for resident, world in ((False, 1), (True, 2)):
        loader = SimpleNamespace(resident=resident, device=torch.device("cuda"))
        with pytest.raises(UserError, match=r"GPU's memory \(CUDA out .* GiB\.\); .* with --micro-batch") as raised:
            _train_epoch(SimpleNamespace(loader=loader, run_epoch=full, world=world), never)
        assert len(str(raised.value).splitlines()) == 1
    loader = SimpleNamespace(resident=False, device=torch.device("cpu"))
    with pytest.raises(torch.OutOfMemoryError):
        _train_epoch(SimpleNamespace(loader=loader, run_epoch=full, world=1), never)


def test_the_command_line(store, encoder, tmp_path, capsys):
    app.app(["status", str(encoder)], standalone_mode=False)
    app.app(["report", str(encoder), "--out", str(tmp_path / "page.html")], standalone_mode=False)
    assert "<figure>" in (tmp_path / "page.html").read_text()
    app.app(["export", str(encoder), str(tmp_path / "enc")], standalone_mode=False)
    assert (tmp_path / "enc/card.json").exists()
    with pytest.raises(UserError, match="cannot change"):
        pretrain("simclr", store, encoder, params=PARAMS, folds=3)


def test_a_card_of_another_format_is_refused(encoder, tmp_path):
    copied = shutil.copytree(encoder, tmp_path / "copied")
    card = json.loads((copied / "card.json").read_text())
    assert card["format"] == "raypipe-encoder/1"
    (copied / "card.json").write_text(json.dumps(card | {"format": "raypipe-encoder/2"}))
    with pytest.raises(UserError, match=r"card\.json: format 'raypipe-encoder/2', expected 'raypipe-encoder/1'"):
        load_encoder(copied)


@pytest.mark.parametrize(
    ("changed", "message"), [({"cores": 2}, "cores: no such option"), ({"workers": 0}, "--workers 0")]
)
def test_recorded_options_that_are_wrong_are_one_line(encoder, tmp_path, changed, message):
    copied = shutil.copytree(encoder, tmp_path / "copied")
    run = PretrainedRun(copied)
    write_options(run.folder, read_options(run.folder, run.info.id) | changed, run.info.id)
    with pytest.raises(UserError, match=message):
        resume(copied)


def test_a_conformer_is_pretrained_exported_and_loaded(conformer, tmp_path):
    assert all(epoch.probe is not None for epoch in PretrainedRun(conformer).history("all"))
    export_encoder(conformer, tmp_path / "out")
    one, x = load_encoder(tmp_path / "out"), torch.randn(2, 3, 64)
    assert isinstance(one, Conformer)
    assert "sweep finetune_conformer --data" in status_lines(conformer)[-1]
    assert one.features(x).shape == (2, 8)
    # A window's vector is its own: no batch around it changes it.
    torch.testing.assert_close(one.features(x)[:1], one.features(x[:1]))
    assert int(one.batch_norm.num_batches_tracked) > 1


@pytest.mark.parametrize("tune", ["full", "lora", "frozen"])
def test_trials_start_from_a_pretrained_conformer(store, conformer, tmp_path, tune):
    options = parse_options({"folds": 3})
    run = open_run(
        SearchSpace(CONFORMER_SPACE, "s.py"), WindowStore(store), str(tmp_path / "run"), options, init=conformer
    )
    config = parse_config(CONFORMER | {"init/name": "pretrained", "init/tune": tune, "epochs": 2})
    run.add_trial(0, config)
    assert run_trial(run, WindowStore(store), 0).state == "complete"
    left, start = run.weights(0, 0), load_encoder(conformer).state_dict()
    changed = {n for n, t in start.items() if not torch.equal(t, left[f"model.{n}"])}
    if tune == "full":
        assert {"batch_norm.running_mean", "stem.temporal.weight"} <= changed
    else:  # what is frozen sees the statistics that it was pretrained with
        assert not {name for name in changed if name.startswith(("stem", "batch_norm", "pointwise"))}
        assert any("qkv" in name for name in changed) == (tune == "lora")
    assert any(name.startswith("head") for name in changed)


def test_a_conformer_of_another_montage_is_refused():
    one, two = (
        Conformer(3, 64, 1, kernel=5, pool=8, filters=8, heads=2),
        Conformer(4, 64, 1, kernel=5, pool=8, filters=8, heads=2),
    )
    with pytest.raises(UserError, match="has 3 channels, these windows 4"):
        start_from(two, one.state_dict())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model/name": "conformer", "pretrain/name": "mae"}, "mae needs model/name=vit"),
        ({"model/name": "tcn", "pretrain/name": "simclr"}, "model/name=conformer or vit"),
        ({"model/name": "tcn", "init/name": "pretrained"}, "model/name=conformer or vit"),
    ],
)
def test_networks_that_cannot_be_pretrained_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        parse_config(given)


def test_a_conformers_pretraining_cannot_be_a_trial(store, tmp_path):
    windows = WindowStore(store)
    run = make_run(tmp_path / "run", windows)  # type: ignore[arg-type]
    run.add_trial(0, parse_config(CONFORMER | {"pretrain/name": "simclr", "epochs": 1}))
    result = run_trial(run, windows, 0)
    assert (result.state, result.failure) == ("failed", "bad-configuration")
    assert "raypipe pretrain simclr" in result.reason
