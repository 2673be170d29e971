from __future__ import annotations

import pytest

from raypipe.packaging.bundle import export_bundle, load_ensemble
from raypipe.packaging.model_card import model_card


@pytest.mark.parametrize(("score", "explained"), [(0.0, True), (0.43, True), (0.5, False), (None, False)])
def test_class_frequencies_below_chance_are_explained(classes, tmp_path, score, explained):
    ensemble = classes.ensemble(top=1)
    info = load_ensemble(export_bundle(classes.run, ensemble, tmp_path / "bundle", windows=classes.windows)).info
    last = list(info.table)[-1]
    info = info.model_copy(update={"table": info.table | {last: info.table[last] | {"oof": score}}})
    assert ("class frequencies score below 0.5" in model_card(info)) == explained
