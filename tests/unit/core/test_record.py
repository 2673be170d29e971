from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import raypipe
from raypipe.core.errors import UserError
from raypipe.core.record import Record
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

    with pytest.raises(ValueError, match="not JSON compliant"):
        write_record(open_folder(tmp_path), "loss.json", Loss(value=float("nan")))


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*(subclasses(each) for each in kind.__subclasses__()))


def test_every_model_is_frozen_and_refuses_unknown_names():
    for module in pkgutil.walk_packages(raypipe.__path__, "raypipe."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    models = {each for each in subclasses(BaseModel) if each.__module__.startswith("raypipe.")}
    assert len(models) > 40
    lenient = {each.__name__ for each in models if each.model_config.get("extra") != "forbid"}
    assert lenient == {"NetworkSpec"}, "whose other names are arguments of a network"
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
