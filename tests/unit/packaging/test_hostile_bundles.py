"""Bundles that somebody else made, with digests that fit: wrong numbers and absurd sizes are refused."""

from __future__ import annotations

import copy
import json
import os
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from raypipe.core.errors import UserError
from raypipe.packaging.bundle import export_bundle, load_ensemble
from raypipe.packaging.bundle_files import CARD, RECORD, TENSORS
from raypipe.storage.records import digest
from tests.support.hostile import forged


@pytest.fixture(scope="module")
def originals(values, classes, tmp_path_factory):
    """Bundles of two trials, by kind of target."""
    root = tmp_path_factory.mktemp("originals")
    return {
        name: export_bundle(made.run, made.ensemble(top=2), root / name, windows=made.windows)
        for name, made in (("values", values), ("classes", classes))
    }


def forge(source, target, change):
    """Copy a bundle, its record changed by ``change(record)``."""
    target.mkdir()
    for name in (TENSORS, CARD):
        os.link(source / name, target / name)
    record = json.loads((source / RECORD).read_bytes())
    change(record)
    (target / RECORD).write_bytes(forged(record))
    return target


def setting(path, value):
    """Return a change that sets a value at ``a/0/b``."""

    def change(record):
        *above, last = [int(part) if part.isdigit() else part for part in path.split("/")]
        holder = record
        for key in above:
            holder = holder[key]
        holder[last] = value

    return change


def rule(**fields):
    return lambda record: record.update(rule=fields)


TREE = {"feature": [0, -1, -1], "threshold": [0.0] * 3, "left": [1, 0, 0], "right": [2, 0, 0], "value": [0.0, 1.0, 2.0]}


def trees(n_starts=1, **changes):
    return rule(kind="trees", start=[0.0] * n_starts, trees=[[TREE | {"depth": 1} | changes]])


def every_member(**changes):
    def change(record):
        for member in record["members"]:
            member.update(copy.deepcopy(changes))

    return change


def every_model(**changes):
    def change(record):
        for member in record["members"]:
            member["model"].update(changes)

    return change


def other_model(**model):
    def change(record):
        for member in record["members"]:
            member["model"] = model

    return change


def no_channels(record):
    record["channels"] = record["prepare"]["channels"] = []


def a_channel_twice(record):
    record["channels"] = record["prepare"]["channels"] = [record["channels"][0]] * len(record["channels"])


def longer_windows(n_times):
    def change(record):
        record["n_times"] = record["window_samples"] = n_times
        record["prepare"] |= {"crop_samples": n_times, "window_samples": n_times, "window": n_times / record["sfreq"]}

    return change


def rate(sfreq):
    def change(record):
        record["sfreq"] = record["prepare"]["sfreq"] = sfreq

    return change


SCALE = "members/0/scale/constrained-float: Input should be"
HOSTILE = {
    "a scale that is no number": (
        setting("members/0/scale", float("nan")),
        f"{SCALE} a fin",
    ),
    "an infinite scale": (
        setting("members/0/scale", float("inf")),
        f"{SCALE} a finite",
    ),
    "a scale that overflows": (
        setting("members/0/scale", 1e300),
        f"{SCALE} less",
    ),
    "a scale of zero": (setting("members/0/scale", 0.0), f"{SCALE} greater"),
    "a centre that overflows": (
        setting("members/0/centre", -1e300),
        "centre/constrained-float: Input should be greater",
    ),
    "weights that sum to five": (every_member(weight=5 / 6), "members: the weights sum to 5; they must sum to one"),
    "weights of zero": (every_member(weight=0.0), "members: the weights sum to 0; they must sum to one"),
    "a negative weight": (setting("members/0/weight", -0.5), "members/0/weight: Input should be greater"),
    "a weight that is text": (setting("members/0/weight", "heavy"), "members/0/weight: Input should be a valid number"),
    "no members": (setting("members", []), "members: List should have at least 1 item"),
    "members that are text": (setting("members", ["a", "b"]), "members/0: Input should be "),
    "a fold that does not exist": (setting("members/0/fold", 99), "members: a fold is none of 3"),
    "a subject's fold that does not exist": (setting("fold_map/fold_of/s0", 99), "fold_map: a subject's fold"),
    "an unknown field": (setting("surprise", 1), "surprise: Extra inputs are not permitted"),
    "an unknown kind of rule": (rule(kind="magic"), "rule: .*does not match any of the expected tags"),
    "a rule with an unknown key": (
        rule(kind="linear", weights=[0.5, 0.5], intercept=0.0, magic=1),
        "rule: linear/magic: Extra inputs",
    ),
    "a rule without a kind": (rule(weights=[1.0]), "rule: Unable to extract tag"),
    "a rule of other members": (
        rule(kind="linear", weights=[1.0], intercept=0.0),
        "combines 1 members, and there are 2",
    ),
    "a rule without finite numbers": (
        rule(kind="linear", weights=[float("nan"), 1.0], intercept=0.0),
        "rule: linear/weights/0: Input should be ",
    ),
    "a calibration that divides by zero": (
        rule(kind="precision", scale=[0.0, 0.0], floor=[0.0, 0.0]),
        "rule: precision/floor/0: Input should be greater than 0",
    ),
    "a rule for classes": (
        rule(kind="entropy", weights=[0.5, 0.5], temperatures=[1.0, 1.0], gamma=0.0),
        "rule: 'entropy' is for classes",
    ),
    "a tree with a feature too many": (trees(feature=[50, -1, -1]), "a tree asks for feature 50, and 2 members have"),
    "a tree with a node that does not exist": (trees(left=[9, 0, 0]), "a child is none of its 3 nodes"),
    "an endless tree": (trees(depth=10**12), "depth 1000000000000 of 3 nodes"),
    "a tree of unequal lists": (trees(value=[0.0]), "its lists have different lengths"),
    "trees for another number of outputs": (trees(n_starts=2), "a round has other than 2 trees"),
    "no trees": (rule(kind="trees", start=[0.0], trees=[]), "rule: trees/trees: List should have at least 1"),
    "no channels": (no_channels, "channels: there are none"),
    "a channel twice": (a_channel_twice, "channels: a name is empty, or is there twice"),
    "channels of another plan": (
        setting("prepare/channels", ["X", "Y", "Z"]),
        "prepare/channels: not that of the bundle",
    ),
    "channels that are not read": (setting("prepare/sources", ["X"]), "prepare/sources: not that of the bundle"),
    "bad channels without positions": (
        setting("prepare/preprocessing/bads", "interpolate"),
        "prepare/preprocessing: bads interpolate: needs the positions of a montage",
    ),
    "a baseline without a sample": (
        setting("prepare/preprocessing/baseline", [90.0, 99.0]),
        "prepare/preprocessing: baseline 90 99: holds no sample",
    ),
    "a band the wrong way round": (
        setting("prepare/preprocessing/band", [20.0, 5.0]),
        "prepare/preprocessing: band 20 5: needs a lower and a higher edge",
    ),
    "a band above half of the rate": (
        setting("prepare/preprocessing/band", [1.0, 400.0]),
        "prepare/preprocessing: band 1 400: windows at",
    ),
    "a band that is no number": (
        setting("prepare/preprocessing/band", [float("nan"), 10.0]),
        "prepare/preprocessing/band/0: Input should be a fin",
    ),
    "a stride of nothing": (setting("prepare/stride", 1e-9), "prepare/stride or tmin: out of range"),
    "a negative stride": (setting("prepare/stride", -1.0), "prepare/stride or tmin: out of range"),
    "a window of years": (setting("prepare/window", 1e300), "prepare/window: out of range"),
    "a window of another length": (setting("prepare/window", 9.0), "prepare/window: not the samples of a window"),
    "a rate of zero": (rate(0.0), "sfreq: Input should be greater than 0"),
    "an absurd rate": (rate(1e9), "sfreq: Input should be less than or equal to 20000"),
    "windows of two gigabytes": (longer_windows(2**29), "n_times: Input should be less than or equal to 4194304"),
    "long windows": (longer_windows(2**22), "windows of 3 x 4194304 values; at most 4,194,304 are read"),
    "many tokens": (longer_windows(2**20), "tokens in a window take"),
    "many blocks": (
        every_model(depth=10**9),
        "members/0/model/conformer/depth: Input should be less than or equal to 1000",
    ),
    "wide layers": (
        every_model(filters=10**9),
        "members/0/model/conformer/filters: Input should be less than or equal to 10000",
    ),
    "layers that the weights do not have": (every_model(filters=512), "not the weights that bundle.json describes"),
    "a network of another kind": (other_model(name="tcn"), "not the weights that bundle.json describes"),
    "a network that dilates beyond memory": (
        other_model(name="tcn", depth=26),
        "model/depth 26: its dilations are longer than any window",
    ),
    "classes of a regression": (setting("classes", ["a", "b"]), "classes: 2 names for regression with 1 outputs"),
    "weights of the classes of a regression": (
        setting("decision_weights", [0.5, 0.5]),
        "decision_weights: there must be one for each of 0 classes",
    ),
    "a weight that turns a class off": (
        setting("decision_weights", [1.0, 0.0]),
        "decision_weights/1: Input should be greater than 0",
    ),
    "a calibration of a regression": (
        setting("calibration", {"scale": 1.0, "shift": [0.0, 0.0]}),
        "calibration: 2 shifts for 1 outputs",
    ),
    "a calibration that turns the order round": (
        setting("calibration", {"scale": -1.0, "shift": [0.0, 0.0]}),
        "calibration/scale: Input should be greater than 0",
    ),
    "many outputs": (setting("n_outputs", 10**9), "n_outputs: Input should be less than or equal to 1000"),
    "the metric of classes": (setting("metric", "auc"), "metric: not a metric of regression"),
    "a metric in a folder": (setting("metric", "a/b.py:score"), "metric: not a metric of regression"),
    "a metric that a terminal obeys": (setting("metric", "\x1b[2J.py:score"), "metric: not a metric of regression"),
    "a long metric": (setting("metric", "m" * 300 + ".py:score"), "metric: not a metric of regression"),
    "an edited configuration": (setting("configs/0/epochs", 99), "config_hashes: not those of the configurations"),
    "deep arrays": (setting("configs", json.loads("[" * 400 + "]" * 400)), "damaged"),
    "arrays of text": (setting("table", ["a"] * 1000), "table: Input should be an object"),
    "an array of a million values": (setting("notes", [""] * 10**6), "values; at most 400,000 are read"),
    "a long note": (setting("notes", ["x" * 20_000_000]), "19.1 MB; at most 16.0 MB are read"),
    "an escape sequence in a name": (setting("\x1b]0;owned\x07\n", 1), r"\?\]0;owned\?\?: Extra inputs"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_bundle_that_would_give_wrong_numbers_or_take_the_machine_is_refused(originals, tmp_path, case):
    change, message = HOSTILE[case]
    if case == "an edited configuration":
        trial = next(iter(json.loads((originals["values"] / RECORD).read_bytes())["configs"]))
        change = lambda record: record["configs"][trial].update(epochs=99)  # noqa: E731
    if "a subject's fold" in case:
        change = lambda record: record["fold_map"]["fold_of"].update(dict.fromkeys(record["fold_map"]["fold_of"], 99))  # noqa: E731
    bundle = forge(originals["values"], tmp_path / "bundle", change)
    with pytest.raises(UserError, match=message) as caught:
        load_ensemble(bundle)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


CLASSES = {
    "an intercept": (rule(kind="linear", weights=[0.5, 0.5], intercept=1.0), "intercept: classes have none"),
    "weights that sum to five": (rule(kind="linear", weights=[2.5, 2.5], intercept=0.0), "sum to 5; they must sum to"),
    "a rule for values": (rule(kind="precision", scale=[0, 0], floor=[1, 1]), "rule: 'precision' is for regression"),
    "a temperature of zero": (
        rule(kind="entropy", weights=[0.5, 0.5], temperatures=[0.0, 1.0], gamma=0.0),
        "temperatures/0: Input should be greater",
    ),
    "an entropy factor that underflows": (
        rule(kind="entropy", weights=[0.5, 0.5], temperatures=[1.0, 1.0], gamma=1e9),
        "gamma: Input should be less than or equal to 100",
    ),
    "a class twice": (setting("classes", ["a", "a"]), "classes: a name is empty, or is there twice"),
    "a class too many": (setting("classes", ["a", "b", "c"]), "classes: 3 names for classification with 2 outputs"),
    "bins": (every_model(bins=16), "model/bins and model/variance are for regression"),
}


@pytest.mark.parametrize("case", CLASSES)
def test_a_bundle_of_classes_with_what_classes_do_not_have_is_refused(originals, tmp_path, case):
    change, message = CLASSES[case]
    with pytest.raises(UserError, match=message):
        load_ensemble(forge(originals["classes"], tmp_path / "bundle", change))


@pytest.mark.parametrize(
    "change",
    [
        rule(kind="linear", weights=[0.3, 0.4], intercept=2.0),
        rule(kind="precision", scale=[0.0, 0.0], floor=[1.0, 2.0]),
        trees(),
    ],
)
def test_rules_that_fit_are_applied(originals, tmp_path, change):
    loaded = load_ensemble(forge(originals["values"], tmp_path / "bundle", change))
    assert np.isfinite(loaded.predict(np.ones((2, 3, 64), np.float32))).all()


# Weights


def with_tensors(source, target, change):
    """Copy a bundle, its tensors changed, with checksums that fit."""
    data = change((source / TENSORS).read_bytes())
    bundle = forge(source, target, lambda record: record["sha256"].update({TENSORS: digest(data)}))
    (bundle / TENSORS).unlink()
    (bundle / TENSORS).write_bytes(data)
    return bundle


def edited(change):
    def apply(data):
        # safetensors reads a file's tensors in a random order
        tensors = dict(sorted(load(data).items()))
        change(tensors)
        return save(tensors)

    return apply


def poison(value):
    def change(tensors):
        next(t for t in tensors.values() if t.is_floating_point()).view(-1)[0] = value

    return edited(change)


def other_type(tensors):
    name = next(name for name, tensor in tensors.items() if tensor.dtype == torch.float32)
    tensors[name] = tensors[name].double()


def negative_variance(tensors):
    next(t for name, t in tensors.items() if name.endswith("running_var"))[0] = -1.0


def forged_header(data):
    text = b'{"a":{"dtype":"F32","shape":[' + b"9," * 50 + b'9],"data_offsets":[0,36]}}'
    return struct.pack("<Q", len(text)) + text + bytes(36)


WEIGHTS = {
    "not a number": (poison(float("nan")), "has values that are not finite"),
    "infinite": (poison(float("-inf")), "has values that are not finite"),
    "another type": (edited(other_type), "float64, expected .* float32"),
    "a variance below zero": (edited(negative_variance), "has variances below zero"),
    "a tensor too many": (
        edited(lambda t: t.update(more=next(iter(t.values())).clone())),
        "no network has a tensor 'more'",
    ),
    "a tensor too few": (edited(lambda t: t.pop(next(iter(t)))), "Missing key"),
    "a header of 51 axes": (forged_header, "not the weights"),
    "a deep header": (lambda _: struct.pack("<Q", 20_000) + b"[" * 20_000, "not the weights"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_are_not_those_of_the_networks_are_refused(originals, tmp_path, case):
    change, message = WEIGHTS[case]
    with pytest.raises(UserError, match=message) as caught:
        load_ensemble(with_tensors(originals["values"], tmp_path / "bundle", change))
    assert "\n" not in str(caught.value)


def test_finite_weights_that_overflow_give_an_error_and_no_blank_predictions(originals, tmp_path):
    def change(tensors):
        for name, tensor in tensors.items():
            if ".head." in name:
                tensor.fill_(3e38)

    loaded = load_ensemble(with_tensors(originals["values"], tmp_path / "bundle", edited(change)))
    with pytest.raises(UserError, match="a prediction of windows 0 to 1 is not a finite number"):
        loaded.predict(np.random.default_rng(0).normal(0, 10, (2, 3, 64)))


# Kinds of files


@pytest.mark.parametrize("name", [RECORD, TENSORS])
@pytest.mark.parametrize("kind", ["fifo", "folder", "endless", "sparse", "loop"])
def test_what_is_no_file_is_not_waited_for_and_not_read(originals, tmp_path, name, kind):
    from tests.support.hostile import replace_by

    bundle = forge(originals["values"], tmp_path / "bundle", lambda record: None)
    replace_by(bundle / name, kind)
    with pytest.raises(UserError, match=r"not a regular file|MB are read|cannot be read|no bundle|is missing"):
        load_ensemble(bundle)


def test_a_fifo_beside_a_bundle_is_not_waited_for(originals, tmp_path):
    bundle = forge(originals["values"], tmp_path / "bundle", lambda record: None)
    os.mkfifo(bundle / "more")
    with pytest.raises(UserError, match="more: not part of a bundle"):
        load_ensemble(bundle)
