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
    assert ("prior baseline scores below 0.5" in model_card(info)) == explained


def test_predictions_of_people_are_named_with_their_interval(classes, repeated, tmp_path):
    from raypipe.ensembles.people import People

    export = export_bundle(repeated.run, repeated.ensemble(top=1), tmp_path / "people", windows=repeated.windows)
    info = load_ensemble(export).info
    assert "`--level subject` writes a row per person." in model_card(info)
    interval = info.model_copy(update={"people": People(n=30, half_widths=(2.5,))})
    assert "± 2.5, which is to contain the target of 90% of new people (from the errors of 30" in model_card(interval)
    several = info.model_copy(update={"people": People(n=30, half_widths=(2.5, 4.0)), "outputs": ("age", "height")})
    assert "intervals of ± 2.5 (`age`), ± 4 (`height`), each of which is to contain" in model_card(several)
    trials = export_bundle(classes.run, classes.ensemble(top=1), tmp_path / "trials", windows=classes.windows)
    assert "--level subject" not in model_card(load_ensemble(trials).info)
