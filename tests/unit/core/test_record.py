from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError

import raypipe
from raypipe.core.config import TrialConfig
from raypipe.core.errors import UserError
from raypipe.core.record import FrozenModel, Record, describe_problem, first_problem, leaving_out
from raypipe.storage.files import open_folder, read_record, write_record


class Sample(Record):
    format: Literal["raypipe-sample/2"] = "raypipe-sample/2"
    count: int


def test_a_record_comes_back_with_its_format(tmp_path):
    folder = open_folder(tmp_path)
    write_record(folder, "sample.json", Sample(count=3))
    written = (tmp_path / "sample.json").read_bytes()
    fields = {"format": "raypipe-sample/2", "count": 3}
    assert json.loads(written) == fields | {
        "digest": hashlib.sha256(json.dumps(fields, indent=1).encode()[:-2]).hexdigest()
    }
    assert read_record(Sample, folder, "sample.json") == Sample(count=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": "raypipe-sample/1", "count": 3}', r"format 'raypipe-sample/1', expected 'raypipe-sample/2'; use "),
        ('{"format": "raypipe-sample/1", "size": 3}', r"format 'raypipe-sample/1', expected"),
        ('{"format": 2, "count": 3}', r"format 2, expected"),
        ('{"count": 3}', r"no format number, expected 'raypipe-sample/2'; use"),
        ('{"size": 3}', r"no format number, expected"),
        ('{"format": "raypipe-sample/2", "count": "many"}', r"count: Input should be a valid integer"),
        ('{"format": "raypipe-sample/2", "count": 3, "size": 3}', r"size: Extra inputs"),
        (
            '{"format": "raypipe-sample/2", "count": 3}',
            r"changed since raypipe wrote it \(its digest differs, or is miss",
        ),
        ("[]", r"Input should be an object"),
        ('{"format": ', r"damaged \(not a JSON document\); restore it"),
        ("\x00", r"damaged \(not a JSON document\); restore it"),
    ],
)
def test_a_file_of_another_form_is_one_line(tmp_path, text, message):
    folder = open_folder(tmp_path)
    folder.write("sample.json", text.encode())
    with pytest.raises(UserError, match=rf"^{tmp_path}/sample\.json: {message}") as caught:
        read_record(Sample, folder, "sample.json")
    assert "\n" not in str(caught.value)


def test_numbers_that_are_not_finite_are_not_written(tmp_path):
    class Loss(Record):
        format: Literal["raypipe-loss/1"] = "raypipe-loss/1"
        value: float

    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite number"):
            Loss(value=value)
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_record(open_folder(tmp_path), "loss.json", Loss.model_construct(value=value))
    assert not list(tmp_path.iterdir())


def attack(text: str) -> bytes:
    """A record with a digest that fits, as somebody would write it who knows how."""
    body = text.encode(errors="surrogatepass")
    return body + f',\n "digest": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()


class Foreign(Record):
    max_bytes = 10_000
    max_values = 200
    from_elsewhere = True
    format: Literal["raypipe-foreign/1"] = "raypipe-foreign/1"
    value: float
    details: dict[str, Any] | None = None


HEAD = '{"format": "raypipe-foreign/1", "value": '
HOSTILE = {
    "not a number": (HEAD + "NaN", "value: Input should be a finite number"),
    "infinite": (HEAD + "-Infinity", "value: Input should be a finite number"),
    "too large for a float": (HEAD + "1e999", "value: Input should be a finite number"),
    "deep arrays": (HEAD + '0, "details": {"a": ' + "[" * 150 + "]" * 150 + "}", None),
    "deeper arrays": (HEAD + '0, "details": {"a": ' + "[" * 5000, "at most 200 are read"),
    "a long number": (HEAD + "1" * 5000, "damaged"),
    "a name twice": (HEAD + '0, "value": 1', "'value' is in one object twice"),
    "a name twice below": (HEAD + '0, "details": {"a": {"b": 1, "b": 1}}', "'b' is in one object twice"),
    "many values": (HEAD + '0, "details": {"a": [' + "1," * 300 + "1]}", "about 306 values; at most 200 are read"),
    "large": (HEAD + '0, "details": {"a": "' + "x" * 20_000 + '"}', "0 MB; at most 0 are read"),
    "a long name": (HEAD + '0, "' + "n" * 5000 + '": 1', r"n{80}\.\.\.: Extra inputs"),
    "an escape sequence": (HEAD + '0, "\\u001b]0;owned\\u0007\\n": 1', r"\?\]0;owned\?\?: Extra inputs"),
    "a long format": ('{"format": "' + "f" * 5000 + '", "value": 0', r"format 'f{79}\.\.\., expected"),
    "half a surrogate": (HEAD + '0, "details": {"a": "\\ud800"}', "damaged"),
    "a raw surrogate": (HEAD + '0, "details": {"a": "\ud800"}', "damaged"),
    "a list": ("[" + HEAD + "0}", "damaged"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_json_is_one_short_line(case):
    text, message = HOSTILE[case]
    data = attack(text)
    if message is None:
        assert Foreign.parse(data, "here.json").value == 0
        return
    with pytest.raises(UserError, match=f"^here.json: .*{message}") as caught:
        Foreign.parse(data, "here.json")
    assert len(str(caught.value)) < 250 and str(caught.value).isprintable()


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*(subclasses(each) for each in kind.__subclasses__()))


def test_every_model_is_frozen_and_refuses_unknown_names():
    for module in pkgutil.walk_packages(raypipe.__path__, "raypipe."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    models = {each for each in subclasses(BaseModel) if each.__module__.startswith("raypipe.")}
    assert len(models) > 40
    lenient = {each.__name__ for each in models if each.model_config.get("extra") != "forbid"}
    assert not lenient
    assert all(each.model_config.get("frozen") for each in models)


@settings(max_examples=300)
@given(data=st.data())
def test_no_change_of_a_record_is_read(data):
    """Property: whatever is flipped, cut, repeated or added, the record is refused in one line, or is as it was."""
    whole = Sample(count=3).to_json()
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
    changed = whole[:start] + data.draw(st.binary(max_size=4)) + whole[end:]
    if changed == whole:
        return
    with pytest.raises(UserError) as caught:
        Sample.parse(changed, "sample.json")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("sample.json: ")


class Extended(FrozenModel):
    number: int
    extra: dict[str, int] = Field(default_factory=dict)
    _serializer = leaving_out("extra")


def test_a_field_with_its_default_may_be_left_out():
    plain, other = Extended(number=1), Extended(number=1, extra={"a": 2})
    assert plain.model_dump() == {"number": 1} and plain.model_dump_json() == '{"number":1}'
    assert other.model_dump() == {"number": 1, "extra": {"a": 2}}
    for each in (plain, other):
        assert Extended.model_validate_json(each.model_dump_json()) == each
    assert plain.model_dump(include={"extra"}) == {}


HOSTILE_NAMES = ["x" * 5000, "x" * 90, "x'" * 2500, "x\x1b]0;owned\x07", "x\nraypipe is ready", "x\u202e" * 900]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_text_that_names_no_member_of_a_union_is_quoted_in_part(name):
    with pytest.raises(ValidationError) as caught:
        TrialConfig.model_validate({"model": {"name": name}})
    line = describe_problem(first_problem(caught.value))
    assert len(line) < 1200 and line.isprintable() and line.startswith("model: Input tag 'x")
