from __future__ import annotations

import json

import numpy as np
import pandas as pd

from raypipe.data.confounds import without_eeg
from raypipe.reporting.sections.people import people_section
from raypipe.storage.run_store import RunStore
from tests.support.records import edit_record
from tests.support.toys import ToyWindows, make_run, write_store


def test_windows_by_class_and_confounds_are_shown(tmp_path):
    toy = ToyWindows(subjects=12, each=4, classes=True)
    toy.targets = np.unique(toy.subjects, return_inverse=True)[1] % 2
    store = write_store(tmp_path / "store", toy)
    run = make_run(tmp_path / "run", toy)
    manifest = json.loads((store / "manifest.json").read_text())
    edit_record(run.folder, "run.json", {"data": str(store), "data_hash": manifest["data_hash"]})
    assert people_section(RunStore.open(tmp_path / "run")) == ""  # a store without the account
    table = pd.DataFrame({"subject": toy.subjects, "recording": toy.subjects, "target": toy.targets})
    class_of = dict(zip(toy.subjects.tolist(), toy.targets.tolist(), strict=True))
    people = {who: {"sex": "<F>" if n else "M", "age": str(k)} for k, (who, n) in enumerate(class_of.items())}
    found = without_eeg(table, ["off", "on"], {}, people)
    edit_record(str(store), "manifest.json", {"without_eeg": found.model_dump(mode="json")})
    html = people_section(RunStore.open(tmp_path / "run"))
    assert "Confounds (p up to 0.01): sex." in html and "&lt;F&gt; 6" in html and "<F>" not in html
    assert ">off<" in html and "fewest per person" in html and ">age<" in html
