from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.core.errors import UserError
from raypipe.recordings.participants import match_labels, read_participants, typed_column


def test_participants_are_indexed_by_subject_and_checked(tmp_path):
    path = tmp_path / "participants.tsv"
    path.write_bytes("\ufeffparticipant_id\tage\tsex\nsub-01\t7.5\tM\n02\tn/a\tNA\nSUB-3\t\t\n".encode())
    table = read_participants(tmp_path)
    assert table.index.tolist() == ["01", "02", "3"]
    assert table.loc["01", "age"] == "7.5" and table.loc["02", "age"] == "n/a"
    path.write_text("participant_id\tage\nsub-01\t7\n01\t8\n")
    with pytest.raises(UserError, match="subject '01' has two rows"):
        read_participants(tmp_path)
    path.write_text("participant\tage\nsub-01\t7\n")
    with pytest.raises(UserError, match="no column 'participant_id'; did you mean 'participant'"):
        read_participants(tmp_path)
    path.write_text("participant_id,age\nsub-01,7\n")
    with pytest.raises(UserError, match="not separated by tabs"):
        read_participants(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        read_participants(tmp_path)


def test_labels_are_matched_where_that_is_safe():
    assert match_labels(["01", "02"], ["01", "02"]) == {"01": "01", "02": "02"}
    assert match_labels(["01", "02", "10"], ["1", "2", "10"]) == {"01": "1", "02": "2", "10": "10"}
    assert match_labels(["SIM01"], ["sim1"]) == {"SIM01": "sim1"}
    assert match_labels(["a"], ["A"]) == {"a": "A"}
    assert match_labels(["Jos\u00e9"], ["jose\u0301"]) == {"Jos\u00e9": "jose\u0301"}
    assert match_labels(["01", "1"], ["1"]) == {"1": "1"}  # the row is that of the equal label
    assert match_labels(["001", "01"], ["1"]) == {}  # it could be either
    assert match_labels(["001"], ["1", "01"]) == {}
    assert match_labels(["x"], ["y"]) == {}
    rows = ["sub_01", "sub02", "subject-3", "4.0", "S05"]
    assert match_labels(["01", "02", "03", "4", "5"], rows) == {
        "01": "sub_01",
        "02": "sub02",
        "03": "subject-3",
        "4": "4.0",
    }


@given(
    st.lists(st.text("01aA", min_size=1, max_size=4), unique=True), st.lists(st.text("01aA", max_size=4), unique=True)
)
def test_no_row_is_that_of_two_labels(labels, rows):
    found = match_labels(labels, rows)
    assert len(set(found.values())) == len(found) and set(found) <= set(labels) and set(found.values()) <= set(rows)
    assert all(found[label] == label for label in labels if label in rows)


def column(*cells: str, as_text: bool = False):
    return typed_column(
        {f"s{i}": cell for i, cell in enumerate(cells)}, "participants.tsv: column 'x'", as_text=as_text
    )


@pytest.mark.parametrize("missing", ["n/a", "N/A", "NA", "na", "NaN", "", "-", "null", "None", "missing", "?", "."])
def test_spellings_of_missing_are_missing_in_a_column_of_numbers(missing):
    found = column("20", missing, "30.5")
    assert found.is_numeric and found.values == {"s0": 20.0, "s2": 30.5}


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (("20", "unknown", "30"), r"holds 2 numbers and cells that are no numbers: 'unknown' \(s1\); write n/a"),
        (("20,5", "30", "40"), r"'20,5' \(s0\); write numbers without commas and with a decimal point"),
        (("20,5", "30,5"), r"holds cells that are no numbers: '20,5' \(s0\), '30,5' \(s1\)"),
        (("1,200", "900"), "1,200"),
        (("1", "2", "3", "4", "a", "b", "c", "d"), r"'a' \(s4\), 'b' \(s5\), 'c' \(s6\) and 1 more"),
        (("20%", "30%", "40%"), r"cells that are no numbers: '20%' \(s0\)"),
        (("20 y", "30 years", "n/a", "41"), "'20 y'"),
        ((">89", "30", "41"), "'>89'"),
        (("F", "M", "m"), "spells one class in two ways: 'M' and 'm'"),
        (("1", "inf"), "is inf for subject 's1': not a finite number"),
        (("1", "1e39"), r"is 1e\+39 for subject 's1'"),
        (("1", "1e999"), "is inf for subject 's1'"),
        (("1700000001", "1700000002", "1700000003"), "rounded by up to .* in 32 bits"),
    ],
)
def test_columns_of_numbers_with_odd_cells_are_refused(cells, message):
    with pytest.raises(UserError, match=message):
        column(*cells)


def test_text_is_text():
    found = column("M", "F", "n/a", "none")
    assert not found.is_numeric and found.values == {"s0": "M", "s1": "F", "s3": "none"}
    mixed = column("1", "2", "3", "high", as_text=True)
    assert not mixed.is_numeric and mixed.values["s3"] == "high"
    assert not column("group 1", "group 2", "3").is_numeric
