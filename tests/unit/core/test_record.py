from __future__ import annotations

import importlib
import json
import pkgutil
from typing import Literal

import pytest
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
    assert json.loads((tmp_path / "sample.json").read_bytes()) == {"format": "raypipe-sample/2", "count": 3}
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
