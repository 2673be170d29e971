"""The private attributes of scikit-learn that raypipe reads are there."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from raypipe.ensembles.sklearn_compat import NODE_FIELDS, boosted_trees


@pytest.mark.parametrize(("kind", "outputs"), [("regression", 1), ("two classes", 1), ("three classes", 3)])
def test_the_trees_of_a_model_can_be_read(kind, outputs):
    rng = np.random.default_rng(0)
    x_NF = rng.normal(size=(200, 3))
    if kind == "regression":
        model = HistGradientBoostingRegressor(max_iter=4, max_depth=2).fit(x_NF, x_NF[:, 0])
    else:
        y = np.digitize(x_NF[:, 0], [0.0] if kind == "two classes" else [-0.5, 0.5])
        model = HistGradientBoostingClassifier(max_iter=4, max_depth=2).fit(x_NF, y)
    trees = boosted_trees(model)
    assert trees.start.shape == (outputs,)
    assert len(trees.rounds) == 4 and all(len(each) == outputs for each in trees.rounds)
    for nodes in trees.rounds[0]:
        assert set(NODE_FIELDS) <= set(nodes.dtype.names)
        assert nodes["is_leaf"].any() and not nodes["is_leaf"][0]
