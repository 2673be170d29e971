from __future__ import annotations

import numpy as np
import pytest

from raypipe.ensembles.methods import METHODS
from tests.support.member_predictions import classes, independent, mse


def test_ridge_beats_the_optimum_without_shrinking():
    members, optimum = independent((0.5, 0.7, 1.0, 1.4))
    # With the prior that targets have variance 1, the best linear answer is shrunk towards the mean.
    assert mse(members, "ridge") < 1.02 * optimum / (1 + optimum)


@pytest.mark.parametrize("kind", ["values", "classes"])
def test_trees_are_those_of_scikit_learn(kind, monkeypatch):
    from sklearn import ensemble

    members = classes(n=600) if kind == "classes" else independent((1.0, 2.0, 3.0), n=600)[0]
    name = "HistGradientBoostingClassifier" if kind == "classes" else "HistGradientBoostingRegressor"
    grown = []

    class Kept(getattr(ensemble, name)):
        def fit(self, x, y, sample_weight=None):
            grown.append((self, x))
            return super().fit(x, y, sample_weight)

    monkeypatch.setattr(ensemble, name, Kept)
    rule = METHODS["boosting"].fit(members)
    model, x_NF = grown[-1]
    mean_N = members.predictions.mean(0)[:, 0]
    theirs = model.predict_proba(x_NF) if kind == "classes" else mean_N + model.predict(x_NF)
    np.testing.assert_allclose(members.combine(rule).squeeze(), theirs, rtol=1e-9)
