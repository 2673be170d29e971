"""Users' networks in the training loop: their own random numbers, SAM's passes, micro-batches, and interruptions."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from raypipe.core.errors import UserError
from raypipe.core.fold_drawing import make_folds
from raypipe.core.options import SweepOptions
from raypipe.core.own_code import SourceFile, keep_source
from raypipe.core.parameters import flatten, parse_config
from raypipe.core.random_streams import seeded
from raypipe.core.search_space import load_space
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.members import build_module, read_members
from raypipe.models.ensemble import EnsembleModule
from raypipe.packaging.programs import ship_networks
from raypipe.search.run_setup import check_unchanged, open_run
from raypipe.storage.records import Member
from raypipe.storage.run_store import RunStore
from raypipe.training.sam import Sam
from raypipe.trial.local import run_trial
from tests.support.own import NET, write_space
from tests.support.toys import ToyWindows, break_off, fold_trainer, tiny, write_store

CPU = torch.device("cpu")
WITHOUT_NORM = NET.replace("self.norm = nn.BatchNorm1d(width)", "self.norm = nn.Identity()")
NORMALISED = "self.norm(self.conv(x))"
WRITES = {
    "dropout": ("self.norm(self.conv(nn.functional.dropout(x, 0.3, self.training{})))", ", inplace=True", ""),
    "subtraction": ("self.norm(self.conv(x.{}(x.mean(1, keepdim=True))))", "sub_", "sub"),
}
"""Calls of a network that write on its input, and that do not."""
PARTED = {
    "batch-norm": NET,
    "plain": WITHOUT_NORM,
    "mean": WITHOUT_NORM.replace(NORMALISED, "self.conv(x - x.mean(0))"),
    "functional": WITHOUT_NORM.replace(NORMALISED, "nn.functional.batch_norm(self.conv(x), None, None, training=True)"),
    "order": WITHOUT_NORM.replace(NORMALISED, "self.conv(x + x.roll(1, 0))"),
}
"""Files with a network whose windows depend on the others of their batch, but for the plain one."""
KEPT = {
    "instance-norm": NET.replace("BatchNorm1d(width)", "InstanceNorm1d(width, track_running_stats=True)"),
    "in place": WITHOUT_NORM.replace(
        "        y = self.norm",
        """        if self.training:
            self.mean.data.lerp_(x.detach().mean((0, 2), keepdim=True), 0.1)
        y = self.norm""",
    ),
    "replaced": WITHOUT_NORM.replace(
        "        y = self.norm",
        """        if self.training:
            self.mean = self.mean.lerp(x.detach().mean((0, 2), keepdim=True), 0.1)
        y = self.norm""",
    ),
    "spectral-norm": WITHOUT_NORM.replace(
        "self.norm = nn.Identity()",
        "self.norm = nn.Identity(); self.conv = nn.utils.parametrizations.spectral_norm(self.conv)",
    ),
}
"""Files with a network that keeps statistics of its training in buffers, none by BatchNorm."""
for kind in ("in place", "replaced"):
    with_mean = 'self.register_buffer("mean", torch.zeros(1, n_channels, 1))\n        self.head ='
    KEPT[kind] = KEPT[kind].replace("self.conv(x)", "self.conv(x - self.mean)").replace("self.head =", with_mean)
PARAMETRIZED = (
    NET.replace(
        "        self.drop =",
        """        self.conv = nn.utils.parametrizations.weight_norm(self.conv)
        self.mix = nn.utils.parametrizations.spectral_norm(nn.Linear(width, width))
        nn.utils.parametrize.register_parametrization(self.norm, "weight", MaxNorm())
        self.drop =""",
    )
    .replace("self.conv(x))", "self.mix(self.conv(x).mT).mT)")
    .replace(
        "class Net",
        """class MaxNorm(nn.Module):
    def forward(self, w):
        return w.clamp(max=1.0)

    def right_inverse(self, w):
        return w


class Net""",
    )
)
UNSEEDED = NET.replace(
    "return self.head(", "y = y * float(np.random.rand()) * random.random()\n        return self.head("
)
UNSEEDED = "import random\nimport numpy as np\n" + UNSEEDED.replace('"""', "#", 1).replace('"""', "", 1)


@pytest.fixture(scope="module")
def toy():
    return ToyWindows()


def own(net=NET, **changes):
    base = {"model/name": "my_nets.py:Net", "model/code": keep_source(SourceFile("my_nets.py", net))}
    changed = {name.replace("__", "/"): value for name, value in changes.items()}
    return parse_config(base | {"epochs": 4, "batch_size": 8, "patience": 4} | changed)


def trainer(toy, config, **options):
    folds = make_folds(toy.subjects, toy.targets, classes=False, n_folds=3, seed=0)
    return fold_trainer(config, toy, *folds.split(toy.subjects, 0), fold=0, **options)


def draw():
    return torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002


def test_global_generators_are_seeded_and_restored():
    with seeded(1, CPU):
        plain = [draw(), draw()]
    with seeded(1, CPU):
        first = draw()
        with seeded(5, CPU):
            inner = draw()
        assert [first, draw()] == plain
        with pytest.raises(KeyError), seeded(2**63 - 1, CPU):
            raise KeyError
    with seeded(5, CPU):
        assert draw() == inner
    with seeded(6, CPU):
        assert draw() != inner


@pytest.mark.parametrize(
    "net", [NET, WITHOUT_NORM, UNSEEDED, *KEPT.values()], ids=["batch-norm", "plain", "numpy", *KEPT]
)
@pytest.mark.parametrize("sam", ["none", "sam", "looksam"])
def test_an_epoch_draws_what_it_would_have_drawn_without_an_interruption(toy, net, sam):
    config = own(net, sam__name=sam)
    whole, first = trainer(toy, config), trainer(toy, config)
    for _ in range(3):
        expected = whole.run_epoch()
    first.run_epoch()
    state = first.state_dict()
    draw()
    second = trainer(toy, config)
    second.load_state_dict(state)
    for _ in range(2):
        found = second.run_epoch()
    assert found.loss == expected.loss and (found.predictions == expected.predictions).all()
    assert all(a.equal(b) for a, b in zip(whole.weights().values(), second.weights().values(), strict=True))


def test_both_passes_of_sam_have_the_same_masks_and_one_updates_the_statistics(toy, monkeypatch):
    one = trainer(toy, own(sam__name="sam"))
    kept, statistics = [], []
    drop = one.model.network.drop
    drop.register_forward_hook(lambda layer, given, out: kept.append((out != 0).clone()) if layer.training else None)
    perturb = Sam.perturb

    def perturbed(self):
        statistics.append(one.model.network.norm.running_mean.clone())
        return perturb(self)

    monkeypatch.setattr(Sam, "perturb", perturbed)
    one.start_epoch()
    for number, batch in enumerate(list(one.batches())[:2]):
        one.step(batch, number)
        statistics.append(one.model.network.norm.running_mean.clone())
    assert len(kept) == 4 and kept[0].equal(kept[1]) and kept[2].equal(kept[3]) and not kept[0].equal(kept[2])
    assert statistics[0].equal(statistics[1]) and not statistics[1].equal(statistics[2])
    assert one.model.network.norm.num_batches_tracked == 2


def buffers(one):
    return {name: buffer.clone() for name, buffer in one.model.network.named_buffers()}


@pytest.mark.parametrize("net", KEPT.values(), ids=KEPT)
def test_the_first_pass_of_sam_alone_updates_buffers(toy, net, monkeypatch):
    one = trainer(toy, own(net, sam__name="sam"))
    before, after_first = buffers(one), []
    perturb = Sam.perturb

    def perturbed(self):
        after_first.append(buffers(one))
        return perturb(self)

    monkeypatch.setattr(Sam, "perturb", perturbed)
    one.start_epoch()
    one.step(next(iter(one.batches())), 0)
    (first,), after = after_first, buffers(one)
    assert any(not first[name].equal(before[name]) for name in before)
    assert first.keys() == after.keys() and all(first[name].equal(after[name]) for name in after)


@pytest.mark.parametrize("net", KEPT.values(), ids=KEPT)
def test_micro_batches_update_buffers_once(toy, net):
    config = own(net, model__args__dropout=0.0, sam__name="sam")
    whole, parts = trainer(toy, config), trainer(toy, config, micro_batch=3)
    for _ in range(2):
        expected, found = whole.run_epoch(), parts.run_epoch()
    np.testing.assert_allclose(found.predictions, expected.predictions, atol=1e-5)
    torch.testing.assert_close(buffers(parts), buffers(whole))


def test_buffers_that_are_only_read_do_not_keep_batches_whole(toy):
    """A mask that is expanded cannot be written on, and NaN in a buffer is equal to itself."""
    made = 'self.register_buffer("gain", torch.ones(1, 1, 1).expand(1, n_channels, 1))\n        self.head ='
    made = 'self.register_buffer("unused", torch.tensor(float("nan")))\n        ' + made
    net = WITHOUT_NORM.replace("self.conv(x)", "self.conv(x * self.gain)").replace("self.head =", made)
    parts = trainer(toy, own(net, model__args__dropout=0.0, sam__name="sam"), micro_batch=3)
    gain = parts.model.network.gain
    parts.run_epoch()
    assert not parts.model.needs_whole(torch.zeros(1)) and parts.model.network.gain is gain


@pytest.mark.parametrize("net", PARTED.values(), ids=PARTED)
def test_micro_batches_give_the_gradient_of_the_whole_batch(toy, net):
    config = own(net, model__args__dropout=0.0)
    whole, parts = trainer(toy, config), trainer(toy, config, micro_batch=3)
    assert whole.run_epoch().loss == pytest.approx(parts.run_epoch().loss, rel=1e-4)
    assert parts.model.needs_whole(torch.zeros(1)) is (net != WITHOUT_NORM)


@pytest.mark.parametrize("sam", ["none", "sam"])
@pytest.mark.parametrize("call", WRITES)
def test_a_network_that_writes_on_its_input_trains_as_one_that_does_not(toy, call, sam):
    text, *ways = WRITES[call]
    one, other = (
        trainer(toy, own(NET.replace(NORMALISED, text.format(way)), model__norm="none", sam__name=sam)) for way in ways
    )
    for _ in range(2):
        found, expected = one.run_epoch(), other.run_epoch()
        assert found.loss == expected.loss and (found.predictions == expected.predictions).all()


def test_members_beside_a_network_that_writes_on_its_input_see_the_windows():
    writes = NET.replace(NORMALISED, WRITES["subtraction"][0].format("sub_"))
    shape = {"n_channels": 3, "n_times": 64, "n_outputs": 1, "sfreq": 50.0}
    configs = own(writes, model__norm="none"), tiny(model__name="tcn")
    members = [
        {"trial": 0, "fold": 0, "weight": 0.5, "centre": 0.0, "scale": 1.0, "model": config.model.model_dump()}
        for config in configs
    ]
    module = EnsembleModule({"kind": "regression", "members": members, **shape}).eval()
    x_BCT = torch.randn(4, 3, 64)
    given_BCT = x_BCT.clone()
    with torch.no_grad():
        both_MBK = module.predict_members(x_BCT)[0]
        alone_BK = module.members[1](given_BCT)
    assert x_BCT.equal(given_BCT) and both_MBK[1].equal(alone_BK)


def test_weights_follow_from_the_seed_whatever_was_drawn_before(toy):
    first, second = trainer(toy, own()), trainer(toy, own())
    assert first.initial == second.initial
    assert trainer(toy, own(seed=1)).initial != first.initial


def make_own_run(tmp_path, net=NET, windows=None):
    store = WindowStore(write_store(tmp_path / "store", windows or ToyWindows()))
    space = load_space(write_space(tmp_path, net))
    return open_run(space, store, str(tmp_path / "run"), SweepOptions(folds=3)), store, space


def test_a_run_keeps_the_file_and_continues_with_it_bit_for_bit(tmp_path, toy):
    run, store, space = make_own_run(tmp_path)
    for number in (0, 1):
        run.add_trial(number, space.draw(1)[0])
    run_trial(run, store, 0)
    (tmp_path / "my_nets.py").write_text("raise Exception")
    (tmp_path / "space.py").unlink()
    again = RunStore.open(tmp_path / "run")
    assert again.space == space and again.info.code == {"my_nets.py": space.files["my_nets.py"].sha256}
    break_off(again, store, 1, 2)
    run_trial(RunStore.open(tmp_path / "run"), store, 1)
    for fold in range(3):
        for name, tensor in again.weights(0, fold).items():
            assert tensor.equal(again.weights(1, fold)[name]), name
    assert (again.oof(0).predictions == again.oof(1).predictions).all()
    module = build_module(*read_members(again, store, [Member(1)], [1.0]))
    index = again.oof(1).windows[again.oof(1).folds == 0][:4]
    with torch.no_grad():
        member = module.predict_members(torch.from_numpy(store.gather(index)))[0][0].numpy()
    np.testing.assert_allclose(member, again.oof(1).predictions[again.oof(1).folds == 0][:4], atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"optim/ema": 0.5}, {"early_stop": "fold"}, {"optim/schedule": "cyclic", "optim/cycles": 2}, {}],
    ids=["average", "fold", "snapshots", "plain"],
)
def test_weights_that_are_computed_from_others_are_kept_as_they_are_trained(tmp_path, changes):
    run, store, space = make_own_run(tmp_path, PARAMETRIZED, ToyWindows(subjects=30, each=4))
    run.add_trial(0, parse_config(flatten(space.draw(1)[0]) | changes))
    run_trial(run, store, 0)
    names = {name for name in run.weights(0, 0) if ".parametrizations." in name}
    assert len(names) == 2 + 3 + 1
    for member in [Member(0), *(Member(0, epoch) for epoch in run.result(0).snapshots)]:
        oof = run.oof(0, member.epoch)
        rows = oof.folds == 1
        spec, state = read_members(run, store, [member], [1.0])
        x_NCT = torch.from_numpy(store.gather(oof.windows[rows]))
        with torch.no_grad():
            predicted = build_module(spec, state).predict_members(x_NCT)[0][1].numpy()
            np.testing.assert_allclose(predicted, oof.predictions[rows], atol=1e-5)
            spec, state, left = ship_networks(spec, state)
            assert not left
            shipped = build_module(spec, state).predict_members(x_NCT)[0][1].numpy()
        np.testing.assert_allclose(shipped, oof.predictions[rows], atol=1e-5)
    assert bool(run.result(0).snapshots) is ("optim/cycles" in changes)


def test_a_file_that_was_changed_is_one_line(tmp_path):
    run, store, _ = make_own_run(tmp_path)
    changed = load_space(write_space(tmp_path, NET + "# better\n"))
    with pytest.raises(UserError, match=r"my_nets.py has changed since the run was made \(its copy is code/\w+-my_n"):
        check_unchanged(run, store, changed, SweepOptions(folds=3))
    (copy,) = (tmp_path / "run" / "code").iterdir()
    copy.write_text(NET + "# worse\n")
    with pytest.raises(UserError, match=r"run/code/\w+-my_nets.py: changed since the run was made; restore it"):
        RunStore.open(tmp_path / "run")
    copy.unlink()
    with pytest.raises(UserError, match=r"run/code/\w+-my_nets.py: missing; restore it from a copy"):
        RunStore.open(tmp_path / "run")


def test_a_network_needs_its_source(toy):
    lost = own().model_copy(update={"model": own().model.model_copy(update={"code": "0" * 16})})
    with pytest.raises(UserError, match="its source is not at hand; it is in the folder code of the run"):
        trainer(toy, lost)
    assert tiny(model__name="tcn") != lost
