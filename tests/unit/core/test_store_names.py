"""Names of stores on the command line and in a dictionary."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.core.errors import UserError
from raypipe.core.store_names import join_stores, parse_stores, places_of

NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,8}", fullmatch=True)
PLACES = st.from_regex(r"[A-Za-z0-9/._:-]{1,12}", fullmatch=True)


@given(st.dictionaries(NAMES, PLACES, min_size=1, max_size=4))
def test_what_is_joined_is_parsed(places):
    assert parse_stores(join_stores(places)) == places == parse_stores(places)
    assert places_of(places) == list(places.values())


@pytest.mark.parametrize("single", ["store", "/data/a=b", "s3://bucket/a=b?x=y", "1=store", "=store", "a="])
def test_one_place_has_no_name(single):
    assert parse_stores(single) == {}
    assert places_of(single) == [single]


def test_a_folder_with_such_a_name_is_a_folder(tmp_path, monkeypatch):
    (tmp_path / "a=b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_stores("a=b") == {}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("a=x,a=y", "'a' is there twice"),
        ({}, "no store"),
        ({"a b": "x"}, "'a b' is no name of a store"),
        ({"a": "x,b=y"}, "rename the folder"),
    ],
)
def test_wrong_names_are_one_line(given, words):
    with pytest.raises(UserError, match=words):
        parse_stores(given)
