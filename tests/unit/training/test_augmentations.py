"""Augmentations of training windows: each against NumPy, their laws, and the same in every way of training."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.core.config import AugmentConfig
from raypipe.core.effects import why_unused
from raypipe.core.errors import UserError
from raypipe.core.parameters import parse_config
from raypipe.training import checkpoint
from raypipe.training.augmentations import KINDS, augment_batch, shift_in_time
from raypipe.training.stacked_trainer import StackedTrainer
from tests.support.toys import ToyWindows, fold_trainer, tiny

SEEDS = st.integers(0, 2**32 - 1)
TIMES = st.integers(4, 33)
RATE = 100.0


def windows(seed: int, times: int = 32, batch: int = 5, channels: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng([seed, 1]).normal(2.0, 3.0, size=(batch, channels, times)))


def changed(name: str, x: torch.Tensor, seed: int, **options: float) -> torch.Tensor:
    cfg = AugmentConfig(name=name, **{"prob": 1.0, **options})
    return augment_batch(cfg, x, sfreq=RATE, rng=np.random.default_rng(seed))


def stream(seed: int, batch: int) -> np.random.Generator:
    """Return the generator after the draw of which windows are changed."""
    rng = np.random.default_rng(seed)
    rng.random(batch)
    return rng


@given(SEEDS)
def test_noise_is_white_and_in_the_channels_standard_deviations(seed):
    x = windows(seed)
    noise = stream(seed, 5).standard_normal(x.shape, np.float32)
    expected = x.numpy() + 0.3 * x.numpy().std(2, keepdims=True) * noise
    np.testing.assert_allclose(changed("noise", x, seed, noise=0.3), expected, atol=1e-6)


@given(SEEDS, st.floats(0.1, 20.0))
def test_amplitudes_change_by_decibels(seed, gain):
    x = windows(seed)
    decibels = gain * stream(seed, 5).uniform(-1, 1, (5, 3, 1))
    np.testing.assert_allclose(changed("amplitude", x, seed, gain=gain), x.numpy() * 10 ** (decibels / 20), rtol=1e-9)


@given(SEEDS, TIMES, st.floats(0.001, 1.0))
def test_shifts_are_circular_and_within_their_limit(seed, times, shift):
    x = windows(seed, times)
    found = changed("time-shift", x, seed, shift=shift).numpy()
    most = min(round(shift * RATE), times - 1)
    steps = stream(seed, 5).integers(-most, most, size=(5, 1), endpoint=True)[:, 0]
    np.testing.assert_array_equal(
        found, [np.roll(row, step, axis=1) for row, step in zip(x.numpy(), steps, strict=True)]
    )
    back = shift_in_time(torch.from_numpy(found), -torch.from_numpy(steps)[:, None])
    assert back.equal(x) and (abs(steps) <= most).all()


@given(SEEDS)
def test_dropped_channels_are_zero_and_the_others_as_they_were(seed):
    x = windows(seed)
    found = changed("channel-dropout", x, seed, dropped=0.4)
    dropped = stream(seed, 5).random((5, 3, 1))[..., 0] < 0.4
    assert (found[dropped] == 0).all() and found[~dropped].equal(x[~dropped])


@given(SEEDS, TIMES, st.floats(0.5, 30.0))
def test_a_band_is_removed_and_the_rest_is_kept(seed, times, width):
    x = windows(seed, times)
    centre_B1 = stream(seed, 5).uniform(0.0, RATE / 2, (5, 1))
    out_BW = abs(np.fft.rfftfreq(times, 1 / RATE) - centre_B1) < width / 2
    before, after = (np.fft.rfft(each.numpy()) for each in (x, changed("band-stop", x, seed, bandwidth=width)))
    np.testing.assert_allclose(after, np.where(out_BW[:, None], 0.0, before), atol=1e-9)


@given(SEEDS)
def test_a_sign_flipped_twice_is_as_it_was(seed):
    x = windows(seed)
    once = changed("sign-flip", x, seed)
    assert once.equal(-x) and changed("sign-flip", once, seed).equal(x)


@given(SEEDS, TIMES, st.floats(1.0, 180.0))
@settings(deadline=None)
def test_surrogates_keep_spectra_means_and_covariances(seed, times, phase):
    x = windows(seed, times)
    y = changed("fourier-surrogate", x, seed, phase=phase)
    before, after = np.fft.rfft(x.numpy()), np.fft.rfft(y.numpy())
    np.testing.assert_allclose(abs(after), abs(before), atol=1e-9)
    np.testing.assert_allclose(y.mean(2), x.mean(2), atol=1e-9)
    for one, other in zip(x.numpy(), y.numpy(), strict=True):
        np.testing.assert_allclose(np.cov(other), np.cov(one), atol=1e-8)
    angle_BW = np.deg2rad(phase) * stream(seed, 5).uniform(-1, 1, (5, 1, times // 2 + 1))
    inner = slice(1, (times + 1) // 2)
    np.testing.assert_allclose(after[..., inner], (before * np.exp(1j * angle_BW))[..., inner], atol=1e-9)


@given(st.sampled_from(sorted(KINDS)), SEEDS, st.floats(0.05, 1.0))
@settings(deadline=None)
def test_windows_are_changed_by_chance_and_the_others_are_not_touched(name, seed, prob):
    x = windows(seed, batch=8)
    before, options = x.clone(), {"dropped": 0.99, "shift": 0.3, "bandwidth": 60.0}
    found, again = (changed(name, x, seed, prob=prob, **options) for _ in range(2))
    assert found.equal(again) and x.equal(before), "it follows from the generator, and the windows are kept"
    chosen = np.random.default_rng(seed).random(8) < prob
    assert found[~chosen].equal(x[~chosen])
    assert found.isfinite().all() and found.dtype == x.dtype


def test_none_draws_nothing():
    rng = np.random.default_rng(0)
    x = windows(0)
    assert augment_batch(AugmentConfig(), x, sfreq=RATE, rng=rng) is x
    assert rng.random() == np.random.default_rng(0).random()


@pytest.mark.parametrize("name", [name for name in KINDS if name != "amplitude"])
def test_training_continues_bit_by_bit_and_a_stack_equals_its_folds(name):
    toy = ToyWindows(subjects=9, each=4)
    numbers = np.arange(len(toy))
    config = tiny(augment__name=name, mixup__name="mixup", sam__name="sam")

    def folds():
        return [fold_trainer(config, toy, numbers[12:], numbers[:12], fold=fold) for fold in range(2)]

    whole, killed, after, stacked = folds(), folds(), folds(), folds()
    expected = [[one.run_epoch().predictions for one in whole] for _ in range(3)]
    for one, dead in zip(after, killed, strict=True):
        dead.run_epoch()
        one.load_state_dict(checkpoint.loads(checkpoint.dumps(dead.state_dict())))
    for epoch in (1, 2):
        np.testing.assert_array_equal([one.run_epoch().predictions for one in after], expected[epoch])
    stack = StackedTrainer(stacked)
    for of_folds in expected:
        found = [outcome.predictions for outcome in stack.run_epoch()]
        np.testing.assert_allclose(found, of_folds, atol=1e-4)
    plain = fold_trainer(tiny(mixup__name="mixup", sam__name="sam"), toy, numbers[12:], numbers[:12], fold=0)
    assert not np.allclose(plain.run_epoch().predictions, expected[0][0], atol=1e-6)


def test_epochs_and_folds_draw_anew():
    toy = ToyWindows(subjects=9, each=4)
    numbers = np.arange(len(toy))
    one = fold_trainer(tiny(augment__name="noise", batch_size=36), toy, numbers, numbers[:8], fold=0)
    batches = [next(iter(one.data.batches(epoch, one.model.dropout_plan))).x for epoch in (1, 2, 3)]
    assert all(not np.allclose(a.sort(0).values, b.sort(0).values) for a, b in pairwise(batches))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"augment/name": "amplitude"}, "amplitude has no effect with model/norm=channel, which scales each channel"),
        ({"augment/name": "noise", "model/name": "covariance"}, "noise has no effect with model/name=covariance"),
        (
            {"augment/name": "noise", "model/name": "vit", "pretrain/name": "mae"},
            "augment/name=noise has no effect with pretrain/name=mae",
        ),
        ({"augment/name": "blur"}, "parameter 'augment/name'"),
        ({"augment/phase": 200}, "parameter 'augment/phase'"),
    ],
)
def test_what_does_nothing_is_refused_in_one_line(params, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_config(params)
    assert "\n" not in str(caught.value)


def test_strengths_of_other_kinds_have_no_effect():
    assert parse_config({"augment/name": "amplitude", "model/norm": "window"}).augment.gain == 3.0
    assert why_unused({"augment/name": "noise"}, "augment/gain") == "augment/name=noise"
    assert why_unused({"augment/name": "none"}, "augment/prob") == "augment/name=none"
    assert why_unused({"augment/name": "sign-flip"}, "augment/prob") is None
