"""Read private attributes of scikit-learn; no other module uses any.

scikit-learn has no public way to read the trees of its histogram gradient boosting.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

NODE_FIELDS = ("value", "feature_idx", "num_threshold", "left", "right", "is_leaf", "depth")
"""Fields of the nodes of a tree that are read."""


class BoostedTrees(NamedTuple):
    """The trees of a fitted histogram gradient boosting."""

    start: NDArray[Any]
    """(outputs,) values that the trees' values are added to."""
    rounds: list[list[NDArray[Any]]]
    """For each round and output, the nodes of a tree: an array with the fields `NODE_FIELDS`."""


def boosted_trees(model: Any) -> BoostedTrees:
    """Read the trees of a fitted ``HistGradientBoostingRegressor`` or ``HistGradientBoostingClassifier``."""
    rounds = [[tree.nodes for tree in trees] for trees in model._predictors]
    return BoostedTrees(np.ravel(model._baseline_prediction), rounds)
