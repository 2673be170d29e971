"""Packages of other hands that tests compare with."""

from __future__ import annotations

import numpy as np
import pytest

needs_numpy_2 = pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.0.0",
    reason="pyRiemann 0.12 uses transposed arrays as numpy 2 has them, though it asks for 1.25",
)
