from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from raypipe.backend.remote_call import RemoteSite
from raypipe.cli import app
from raypipe.core.errors import UserError
from raypipe.core.fold_drawing import make_folds
from raypipe.core.parameters import parse_config
from raypipe.core.search_space import SearchSpace, load_space
from raypipe.core.shipped import shipped_space
from raypipe.data.splits import outer_parts_of
from raypipe.data.window_store import WindowStore
from raypipe.pretraining.fold_trainer import PretrainTrainer
from raypipe.search.forecast import START_SECONDS, Forecast, _configurations, forecast
from raypipe.search.measurement import Cost, Measurement, cached_loaders, measure
from raypipe.storage.run_store import RunStore
from raypipe.training import checkpoint, step
from raypipe.training.loader import FoldData, WindowLoader
from raypipe.training.step import forward
from raypipe.training.trainer import SupervisedTrainer
from raypipe.trial.local import run_trial
from tests.support.toys import SPACE, TINY, ToyWindows, make_run, tiny, write_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("forecast") / "store", ToyWindows())


@pytest.fixture
def space(tmp_path):
    path = tmp_path / "space.py"
    path.write_text(SPACE)
    return path


@pytest.mark.parametrize("kind", ["mae", "simclr"])
def test_what_a_trial_trains_is_measured_also_where_it_pretrains(store, kind):
    vit = {"model/name": "vit", "model/filters": 8, "model/heads": 2, "model/depth": 1, "model/patch": 16}
    config = parse_config(vit | {"pretrain/name": kind, "epochs": 2, "batch_size": 8})
    windows = WindowStore(store)
    folds = make_folds(windows.subjects, windows.targets, classes=False, n_folds=3, seed=0)
    cost = measure(str(store), folds, config, {"cpus": 1.0, "gpus": 0.0}).cost
    train, validation = folds.split(windows.subjects, 0)
    groups_N = folds.groups(windows.subjects)
    trainer = PretrainTrainer(config, WindowLoader(windows), train, validation, fold=0, groups_N=groups_N)
    trainer.run_epoch()
    trained = [each for each in trainer.pretrainer.module.parameters() if each.requires_grad]
    assert cost.parameters == sum(each.numel() for each in trained)
    assert cost.checkpoint == pytest.approx(len(checkpoint.dumps(trainer.state_dict())), rel=0.1)
    assert cost.epoch > cost.step > 0.0 and cost.trial == pytest.approx(3 * 2 * cost.epoch)


@pytest.mark.parametrize("sam", [{"name": "sam"}, *({"name": "looksam", "every": each} for each in (2, 3, 50))])
def test_a_step_is_the_mean_of_an_epochs_steps(store, monkeypatch, sam):
    """With LookSAM some take two passes, and others one."""
    passes = []

    def counted(*given):
        passes.append(1)
        return forward(*given)

    def count(work, device):
        before = len(passes)
        work()
        return float(len(passes) - before)

    monkeypatch.setattr(step, "forward", counted)
    monkeypatch.setattr("raypipe.search.measurement.call_seconds", count)
    config, windows = tiny(batch_size=4, **{f"sam__{name}": value for name, value in sam.items()}), WindowStore(store)
    folds = make_folds(windows.subjects, windows.targets, classes=False, n_folds=3, seed=0)
    cost = measure(str(store), folds, config, {"cpus": 1.0, "gpus": 0.0}).cost
    trainer = SupervisedTrainer(
        config, FoldData(config, WindowLoader(windows), *folds.split(windows.subjects, 0), fold=0)
    )
    real = count(trainer.train_epoch, trainer.data.device) / len(trainer.data.batch_sizes)
    assert cost.step == pytest.approx(real) and len(trainer.data.batch_sizes) > 3


def made(trial=(60.0,), **changes):
    costs = [Cost(0.1, 1.0, seconds, 1000, 500, 400, int(100 * seconds)) for seconds in trial]
    fields = {"trials": 8, "folds": 4, "workers": 2, "concurrent": 2, "cpus": 1.0, "gpus": 0.0, "device": "a processor"}
    return Forecast(**(fields | changes), costs=costs, memory=10**9)


def test_time_is_counted_by_rounds_of_trials_and_the_busiest_worker():
    assert made().likely == START_SECONDS + 4 * 60 / 2
    assert made(workers=4, concurrent=1).likely == START_SECONDS + 8 * 60 / 4
    assert made(folds=5, workers=2).likely == START_SECONDS + 4 * 60 * 3 / 5, (
        "one of the two has three of the five folds"
    )
    assert made(trials=9).likely == START_SECONDS + 5 * 60 / 2, "the last round is not full"
    assert made(trials=9, parts=3).likely == START_SECONDS + 6 * 60 / 2, "nor is that of each part"


def test_the_range_is_of_the_quickest_and_the_slowest():
    both = made(trial=(30.0, 90.0))
    assert both.range == (START_SECONDS + 60, START_SECONDS + 180)
    assert both.likely == START_SECONDS + 120
    assert "a processor: 3,000 to 9,000 parameters, a step takes" in both.render()
    assert "a processor: 6,000 parameters, a step takes" in made().render()


def test_gpu_hours_and_disk():
    assert made(gpus=0.5).gpu_hours == pytest.approx(made().likely / 3600 * 2 * 2 * 0.5), "held by two trials of two"
    assert made(gpus=0.6).gpu_hours == made(gpus=1.0).gpu_hours, "what is left of a GPU is of no use to others"
    idle = made(gpus=1.0, folds=5, workers=4, concurrent=1, trials=1)
    assert idle.gpu_hours == pytest.approx((START_SECONDS + 60 * 2 / 5) / 3600 * 4), "three workers wait for the fourth"
    assert (
        "GPU memory 3.0 GB per worker with one fold, of 20.0 GB"
        in made(gpus=0.25, gpu_memory=3 * 10**9, worker_gpu_memory=20 * 10**9).render()
    )
    assert made().disk == 8 * 500 + 3 * 4 * 2 * 1000
    assert made().tidied_disk == 8 * 500 and made(trials=100).tidied_disk == 100 * 100 + 10 * 400
    assert made(trials=100, parts=5).tidied_disk == 100 * 100 + 50 * 400, "each search keeps its best"
    assert "50 kB after raypipe tidy" not in made().render() and "14 kB after" in made(trials=100).render()
    assert "GPU-hours" in made(gpus=0.5).render() and "GPU-hours" not in made().render()


def test_what_is_measured_is_what_the_space_draws_and_what_a_trial_leaves(space, store, tmp_path):
    seen = []
    found = forecast(space, store, cpus=4, trials=6, folds=3, progress=lambda *news: seen.append(news[:2]))
    assert seen == [(number, 6) for number in range(6)]
    assert (found.trials, found.folds, found.workers, found.concurrent) == (6, 3, 3, 1)
    for one in found.costs:
        assert 0 < one.step < one.epoch < one.trial
        assert one.trial == pytest.approx(one.epoch * TINY["epochs"] * 3)
    windows = WindowStore(store)
    run = make_run(tmp_path / "run", windows)
    run.add_trial(0, tiny())
    run_trial(run, windows, 0)
    learned = [weight for name, weight in run.weights(0, 0).items() if "running_" not in name and "num_b" not in name]
    (found_parameters,) = {one.parameters for one in found.costs}
    assert 0.95 < found_parameters / sum(weight.numel() for weight in learned) <= 1, "biases before norms are frozen"
    folder = Path(RunStore.open(run.where).local) / "trials/0000"
    left = sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in (".npz", ".safetensors"))
    assert 0.3 * left < found.costs[0].result < left, "headers are not counted"


def test_the_searches_of_all_outer_parts_count(space, store, monkeypatch, capsys):
    """People of one part are held out where it is measured, as in that part's own search."""
    seen, cost = [], Cost(0.1, 1.0, 60.0, 1000, 500, 400, 6000)

    def stand_in(_site, _where, folds, *_):
        seen.append(folds)
        return [Measurement(cost, "a processor", 10**9)]

    monkeypatch.setattr("raypipe.search.forecast._measure_all", stand_in)
    one, all_parts = (forecast(space, store, cpus=2, trials=4, folds=2, outer=n) for n in (None, 3))
    assert (one.trials, all_parts.trials) == (4, 12)
    assert all_parts.likely - START_SECONDS == pytest.approx(3 * (one.likely - START_SECONDS))
    assert seen[1].held_out == sorted(outer_parts_of(WindowStore(store), 3, 0)[0]) and seen[1].n_folds == 2
    with pytest.raises(SystemExit) as end:
        app.main(["plan", str(space), "--data", str(store), "--trials", "4", "--folds", "2", "--outer", "3"])
    assert end.value.code == 0 and "12 trials of 2 folds" in capsys.readouterr().out
    with pytest.raises(UserError, match="--outer 1: an outer cross-validation needs at least 2 parts"):
        forecast(space, store, cpus=2, trials=4, folds=2, outer=1)


def test_more_cores_take_less_time_and_too_few_are_one_line(space, store):
    options = {"trials": 12, "folds": 3}
    assert forecast(space, store, cpus=6, **options).concurrent == 2
    with pytest.raises(UserError, match=r"worker\(s\) of 4 CPU"):
        forecast(space, store, cpus=2, cpus_per_worker=4, **options)


def test_a_worker_is_on_one_machine_of_a_cluster(space, store, monkeypatch):
    nodes = [{"CPU": 0.0}, {"CPU": 3.0}, {"CPU": 3.0, "GPU": 1.0}]
    measured = Measurement(Cost(0.1, 1.0, 60.0, 1000, 500, 400, 6000), "a processor", 10**9)
    site = RemoteSite(lambda function, *arguments: measured, lambda: nodes)
    monkeypatch.setattr("raypipe.search.forecast.connect", lambda *_, **__: contextlib.nullcontext(site))
    options = {"address": "192.0.2.1:6379", "trials": 4, "folds": 3, "workers": 1, "cpus_per_worker": 2}
    assert forecast(space, store, **options).concurrent == 2
    assert forecast(space, store, cpus=6, **options).concurrent == 3, "what is given is reckoned as of one machine"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"workers": 0}, "--workers 0: "),
        ({"cpus_per_worker": 0}, "--cpus-per-worker 0: "),
        ({"cpus": float("nan")}, "--cpus nan: "),
        ({"cpus": -3}, "--cpus -3: "),
        ({"gpus": -3}, "--gpus -3: "),
    ],
)
def test_impossible_resources_are_one_line(space, store, given, words):
    with pytest.raises(UserError, match=words):
        forecast(space, store, **given)


def test_a_store_that_is_prepared_again_is_measured_again(space, store):
    forecast(space, store, trials=1, folds=3)
    assert cached_loaders.cache_info().currsize == 0


def test_a_bad_space_is_one_line(tmp_path, store):
    bad = tmp_path / "bad.py"
    bad.write_text(SPACE.replace('START = [{"optim/lr": 0.003', 'START = [{"optim/lr": 3'))
    with pytest.raises(UserError, match=r"START\[0\]"):
        forecast(bad, store, cpus=1)


def test_the_command_line(space, store, capsys):
    with pytest.raises(SystemExit) as end:
        app.main(["plan", str(space), "--data", str(store), "--folds", "3", "--trials", "5", "--cpus", "2"])
    out = capsys.readouterr().out
    assert end.value.code == 0
    for words in ("5 trials of 3 folds", "measured   6 configurations", "time ", "memory ", "disk ", "halving"):
        assert words in out


def test_a_step_that_does_not_fit_in_memory_is_one_line(space, store, monkeypatch):
    def full(*given, **named):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("raypipe.search.measurement.SupervisedTrainer", full)
    with pytest.raises(
        UserError, match=r"a step does not fit in this machine's memory \(.*9 bytes\): .*epochs="
    ) as raised:
        forecast(space, store, cpus=1)
    assert len(str(raised.value).splitlines()) == 1
    monkeypatch.setattr("raypipe.search.measurement.SupervisedTrainer", lambda *given, **named: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        forecast(space, store, cpus=1)


def test_a_gpu_that_is_not_here_is_one_line(space, store):
    with pytest.raises(UserError, match=r"--gpus-per-worker: \S+ has no GPU to measure on; name a cluster"):
        forecast(space, store, cpus=1, gpus=1, gpus_per_worker=1)


def test_a_fit_in_closed_form_is_measured_as_one_epoch(store, tmp_path):
    space = tmp_path / "space.py"
    space.write_text("def space(trial):\n    return {'model/name': 'covariance'}\n")
    (cost, *_) = forecast(space, store, trials=2, folds=3).costs
    assert cost.trial == pytest.approx(3 * cost.epoch) and cost.step == cost.epoch > 0
    assert cost.checkpoint > 600 and cost.result > 1000


def test_every_start_point_is_measured_and_some_draws():
    one = "START = [{'optim/lr': 1e-3}]\ndef space(trial):\n    trial.suggest_float('optim/lr', 1e-4, 1e-2)\n"
    few = SearchSpace(one, "few.py")
    assert len(_configurations(few)) == 6
    families = load_space(shipped_space("all_families"))
    found = _configurations(families)
    assert len(found) == len(families.start) + 4
    assert {"covariance", "linear", "conformer", "shallow", "eegnet"} <= {config.model.name for config in found}
