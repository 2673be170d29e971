from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.core.errors import UserError
from raypipe.recordings.event_query import parse_query
from raypipe.recordings.signal import UnreadableRecordingError

FILE = Path("events.tsv")
EVENTS = pd.DataFrame(
    {
        "onset": ["0.5", "1", "1.5", "2"],
        "trial_type": ["target", "standard", "target", "n/a"],
        "correct": ["1", "0", "n/a", "1.0"],
        "rt": ["0.4", "0.6", "n/a", "1.2"],
        "my col": ["x", "y", "x", "y"],
        "value": ["1", "boundary", "2", "True"],
        "odd": ["0,5", "1", "1", "1"],
    },
    dtype=object,
)


def rows(text, events=EVENTS):
    return [int(number) for number in parse_query(text).rows(events, FILE).nonzero()[0]]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('trial_type == "target" and correct == 1', [0]),
        ("trial_type == 'target'", [0, 2]),
        ("trial_type != 'target'", [1, 3]),
        ("trial_type in ['target', 'standard'] and not correct", [1, 2]),
        ("trial_type not in ('target',)", [1, 3]),
        ("(trial_type == 'target') & (rt < 0.5) | (rt >= 1.2)", [0, 3]),
        ("~(rt < 0.5)", [1, 2, 3]),
        ("0.3 < rt <= 0.6", [0, 1]),
        ("rt - onset * 0.5 > 0", [0, 1, 3]),
        ("-rt < -0.5", [1, 3]),
        ("`my col` == 'x' and trial_type != '`my col`'", [0, 2]),
        ("value == 1", [0, 3]),
        ("value in [1, 2]", [0, 2, 3]),
        ("correct == True", [0, 3]),
        ("correct", [0, 3]),
        ("Trial_Type == 'target'", [0, 2]),
        ("trial_type == `my col`", []),
        ("correct == value", [0, 3]),
        ("correct != value", [1, 2]),
        ("correct == value and correct == 1 and value != 'True'", [0]),
        ("correct in [value, odd]", [0, 3]),
        ("correct in [odd, 0]", [1, 3]),
        ("trial_type == trial_type", [0, 1, 2]),
        ("value in [correct, 'boundary']", [0, 1, 3]),
        ("correct and rt > 1", [3]),
    ],
)
def test_rows_that_satisfy_a_condition(text, wanted):
    assert rows(text) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no condition; write one such as"),
        ("trial_type = 'target'", "no condition"),
        ("@x == 1", "no condition"),
        ("trial_type.str.startswith('t')", r"'trial_type.str.startswith\('t'\)' is no comparison"),
        ("__import__('os').system('x') == 0", "is neither a column nor a text or number"),
        ("trial_type.upper == 'x'", "compares text with numbers"),
        ("rt == rt.max", "'rt.max' is neither a column nor a text or number"),
        ("[x for x in rt] == 1", "is neither a column"),
        ("(lambda: 1)() == rt", "is neither a column"),
        ("rt ** 99999999 > 1", "is neither a column"),
        ("rt[0] == 1", "is neither a column"),
        ("f'{rt}' == 'x'", "compares text with numbers"),
        ("rt is None", "is no comparison; use =="),
        ("trial_type in 'target'", "is no list such as"),
        ("trial_type in []", "is no list such as"),
        ("trial_type == 1 and trial_type == 'a'", "'trial_type' is compared with text and with numbers"),
        ("trial_type in ['a', 1]", "compares text with numbers"),
        ("rt + 'a' == 'b'", "compares text with numbers"),
        ("rt == 1 & correct == 1", "comparisons beside & and | need parentheses"),
        ("1 == 1", "names no column"),
        ("rt", "'0.4' .row 1.; --select needs true, false, 1 or 0 there"),
        ("odd < 1", "'0,5' .row 1.; --select needs a number there"),
        ("rt == 1e999", "is neither a column"),
        (f"rt == {'9' * 400}", "is neither a column"),
        ("not " * 240 + "rt", "nested too deeply"),
        ("(" * 300 + "rt" + ")" * 300, "no condition"),
        ("-" * 900 + "1 == rt", "no condition|nested too deeply"),
        ("rt == 1" + " " * 1000, "longer than 1000 characters"),
        (
            "correkt == 1",
            r"events.tsv: no column 'correkt', which --select names \(columns: onset, trial_type, correct",
        ),
    ],
)
def test_conditions_that_are_refused_in_one_line(text, message):
    with pytest.raises((UserError, UnreadableRecordingError), match=message) as caught:
        rows(text)
    assert "\n" not in str(caught.value)


NUMBERS = st.sampled_from([-1.0, 0.0, 0.5, 2.0])
TEXTS = st.sampled_from(["a", "b", "c"])
NUMBER_TESTS = st.builds("number {} {}".format, st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), NUMBERS)
TEXT_TESTS = st.builds("text {} {!r}".format, st.sampled_from(["==", "!="]), TEXTS)
LIST_TESTS = st.builds("text {} {}".format, st.sampled_from(["in", "not in"]), st.lists(TEXTS, min_size=1, max_size=2))
CONDITIONS = st.recursive(
    NUMBER_TESTS | TEXT_TESTS | LIST_TESTS,
    lambda inner: (
        st.builds("({} and {})".format, inner, inner)
        | st.builds("({} or {})".format, inner, inner)
        | st.builds("(not {})".format, inner)
    ),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(cells=st.lists(st.tuples(NUMBERS | st.none(), TEXTS), min_size=1, max_size=8), condition=CONDITIONS)
def test_a_condition_takes_the_rows_that_pandas_takes(cells, condition):
    text = pd.DataFrame(
        [("n/a" if number is None else str(number), name) for number, name in cells],
        columns=["number", "text"],
        dtype=object,
    )
    typed = text.assign(number=[float("nan") if number is None else number for number, _ in cells])
    assert rows(condition, text) == typed.query(condition, engine="python").index.tolist()


CELLS = st.one_of(
    st.tuples(*[st.lists(NUMBERS | st.none(), min_size=6, max_size=6)] * 2),
    st.tuples(*[st.lists(TEXTS | st.none(), min_size=6, max_size=6)] * 2),
)


@settings(max_examples=60, deadline=None)
@given(
    columns=CELLS,
    condition=st.sampled_from(["a == b", "a != b", "b == a != b", "not a == b", "a == a"]),
    spelling=st.lists(st.sampled_from([str, "{:g}".format, "{:.2f}".format]), min_size=6, max_size=6),
)
def test_two_columns_are_compared_as_pandas_does(columns, condition, spelling):
    def written(cells, how):
        pairs = zip(cells, how, strict=True)
        return ["n/a" if cell is None else cell if isinstance(cell, str) else form(cell) for cell, form in pairs]

    a, b = columns
    text = pd.DataFrame({"a": written(a, spelling), "b": written(b, spelling[::-1])}, dtype=object)
    typed = pd.DataFrame({"a": pd.Series(a).fillna(float("nan")), "b": pd.Series(b).fillna(float("nan"))})
    assert rows(condition, text) == typed.query(condition, engine="python").index.tolist()
