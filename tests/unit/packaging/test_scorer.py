from __future__ import annotations

import numpy as np
import pytest

from raypipe.packaging.scorer import ImportGuard, difference_beyond_rounding, reference_windows


def test_predictions_may_differ_by_rounding():
    assert difference_beyond_rounding([1.0, 2.0], [1.0, 2.0 + 1e-6]) is None
    assert difference_beyond_rounding([1.0, 2.0], [1.0, 2.1]) == pytest.approx(0.1)
    assert difference_beyond_rounding([1.0], [1.0, 2.0]) == float("inf")
    assert difference_beyond_rounding([float("nan")], [1.0]) == float("inf")


def test_a_single_channel_of_the_reference_windows_is_not_flat():
    assert (reference_windows(1, 200).std(axis=2) > 1e-6).all()


def test_reference_windows_are_always_the_same_and_end_with_a_flat_channel():
    x_NCT = reference_windows(3, 20)
    assert x_NCT.dtype == np.float32 and not x_NCT[:, -1].any() and 1e-6 < x_NCT[:, 0].std() < 1e-4
    np.testing.assert_array_equal(x_NCT, reference_windows(3, 20))


def test_only_what_the_scorer_has_can_be_imported():
    assert ImportGuard(["mine"]).find_spec("mine", None) is None
    assert ImportGuard([]).find_spec("json.decoder", None) is None
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'mne\.io'"):
        ImportGuard([]).find_spec("mne.io", None)
