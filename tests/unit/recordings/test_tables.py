from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.recordings.signal import UnreadableRecordingError
from raypipe.recordings.tables import find_column, is_missing, is_number_with_commas, parse_number, read_tsv


@pytest.mark.parametrize(
    "data",
    [
        b"name\ttype\nFp1\tEEG\n",
        b"\xef\xbb\xbfname\ttype\r\nFp1\tEEG\r\n",
        b"name\ttype\rFp1\tEEG\r",
        b" name \ttype\t\n Fp1\tEEG \t\n\n",
        b'"name"\t"type"\n"Fp1"\t"EEG"\n',
        "name\ttype\nFp1\tEEG\n".encode("utf-16"),
        b"name\ttype\nFp1\tEEG",
    ],
)
def test_spellings_of_one_table(tmp_path, data):
    (tmp_path / "a.tsv").write_bytes(data)
    table = read_tsv(tmp_path / "a.tsv")
    assert table.columns.tolist() == ["name", "type"] and table.to_numpy().tolist() == [["Fp1", "EEG"]]


def test_cells_stay_text(tmp_path):
    (tmp_path / "a.tsv").write_bytes("a\tb\tc\n01\tTrue\t1.0\nn/a\t\u00b5V\n".encode())
    assert read_tsv(tmp_path / "a.tsv").to_numpy().tolist() == [["01", "True", "1.0"], ["n/a", "\u00b5V", ""]]
    (tmp_path / "a.tsv").write_bytes(b"a\n\xb5V\n")
    assert read_tsv(tmp_path / "a.tsv").to_numpy().tolist() == [["\u00b5V"]]


def test_a_quote_swallows_no_rows(tmp_path):
    (tmp_path / "a.tsv").write_text('onset\tvalue\n1\t"left\n2\tright\n3\tleft"\n4\tright\n')
    assert read_tsv(tmp_path / "a.tsv")["value"].tolist() == ["left", "right", "left", "right"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"\n\n", "it is empty"),
        (b"a\tb\n1\t2\t3\n", r"line 2 has 3 cells, its first line 2"),
        (b"a\ta\n1\t2\n", "names column 'a' twice"),
        (b"a\tb\n1\0\t2\n", "binary data"),
    ],
)
def test_damaged_tables_give_one_line(tmp_path, data, message):
    (tmp_path / "a.tsv").write_bytes(data)
    with pytest.raises(UnreadableRecordingError, match=rf"a\.tsv: .*{message}"):
        read_tsv(tmp_path / "a.tsv")


def test_columns_are_found_in_other_case_if_there_is_one(tmp_path):
    (tmp_path / "a.tsv").write_text("Name\tAge\tAGE\n")
    table = read_tsv(tmp_path / "a.tsv")
    assert (find_column(table, "name"), find_column(table, "AGE"), find_column(table, "age")) == ("Name", "AGE", None)


@given(st.floats(allow_nan=False))
def test_numbers_are_read_as_written(number):
    assert parse_number(repr(number)) == number


@pytest.mark.parametrize(
    "cell", ["1_000", "0x10", "\uff11\uff12", "20,5", "1,200", "nan", "", "-", "1 2", "5y", "True"]
)
def test_other_cells_are_no_numbers(cell):
    assert parse_number(cell) is None
    assert is_number_with_commas(cell) == (cell in ("20,5", "1,200"))


def test_spellings_of_numbers_and_of_missing_values():
    assert [parse_number(cell) for cell in ("+5", ".5", "5.", "1e3", "007")] == [5, 0.5, 5, 1000, 7]
    assert math.isinf(parse_number("-Infinity") or 0)
    assert all(map(is_missing, ("n/a", "N/A", "NA", "NaN", "null", "", "-", "?"))) and not is_missing("none")
