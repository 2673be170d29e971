from __future__ import annotations

import torch

from raypipe.pretraining.augmentations import augment


def made(seed: int = 0, x=None, **options):
    x = torch.randn(3, 4, 100, generator=torch.Generator().manual_seed(9)) if x is None else x
    return x, augment(x, 100.0, torch.Generator().manual_seed(seed), **options)


def test_no_strength_changes_nothing():
    x, same = made(strength=0.0, time_shift=True)
    torch.testing.assert_close(same, x, rtol=1e-4, atol=1e-5)


def test_views_follow_from_the_generator_and_differ_by_it():
    assert torch.equal(made(1)[1], made(1)[1])
    assert not torch.allclose(made(1)[1], made(2)[1])


def test_views_do_not_depend_on_the_unit_of_the_recording():
    x, one = made(3)
    torch.testing.assert_close(made(3, x * 1e-6)[1] * 1e6, one, rtol=1e-3, atol=1e-3)


def test_time_is_shifted_only_when_allowed():
    def peaks(time_shift):
        x = torch.zeros(64, 1, 100)
        x[:, 0, 50] = 1.0
        y = augment(x, 100.0, torch.Generator().manual_seed(0), time_shift=time_shift)
        # Where nothing covers the peak it is by far the largest sample.
        found = [
            int(row.abs().argmax()) for row in (y - y.median(2, keepdim=True).values)[:, 0] if row.abs().max() > 0.4
        ]
        return found

    still, moved = peaks(False), peaks(True)
    assert len(still) > 20
    assert set(still) == {50}
    assert len(set(moved)) > 5
    assert all(40 <= place <= 60 for place in moved)


def test_all_six_changes_happen():
    x = torch.randn(64, 8, 200, generator=torch.Generator().manual_seed(1))
    y = augment(x, 100.0, torch.Generator().manual_seed(2), strength=1.0)
    flat = y.std(2) < 1e-4
    assert 0.1 < flat.float().mean() < 0.3  # channels dropped
    gone = ((y - y[..., :1]).abs() < 1e-5).all(1)
    assert torch.isfinite(y).all()
    assert gone.any() or (y.diff(dim=2).abs() < 1e-6).float().mean() > 0.05  # stretches of time
    level = y.mean(2)[~flat] - x.mean(2)[~flat]
    assert level.abs().max() > 0.2  # offsets
    assert (y.std(2)[~flat] / x.std(2)[~flat]).max() > 1.2  # amplitude
    assert (y.std(2)[~flat] / x.std(2)[~flat]).min() < 0.85
