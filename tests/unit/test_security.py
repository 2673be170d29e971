"""Files from elsewhere run no code and are written only to their folder; each test is an attack."""

from __future__ import annotations

import ast
import io
import pickle
import shutil
import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from raypipe.cli import app
from raypipe.core.errors import UserError
from raypipe.packaging.bundle import export_bundle, load_ensemble
from raypipe.packaging.bundle_files import FILES, RECORD, TENSORS
from raypipe.packaging.check import check_submission
from raypipe.storage.records import digest
from raypipe.storage.run_store import RunStore
from raypipe.training.loader import WindowLoader
from raypipe.trial.fold_runner import FoldRunner
from tests.support.records import edit_record
from tests.support.toys import ToyWindows, make_run, tiny

PACKAGE = Path(__file__).parents[2] / "raypipe"


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.fixture
def mark(tmp_path):
    """A file that no test may bring about."""
    path = tmp_path / "owned"
    yield path
    assert not path.exists()


def one_line(caught) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Bundles


@pytest.fixture
def bundle(values, tmp_path):
    return export_bundle(values.run, values.ensemble(top=1), tmp_path / "bundle", windows=values.windows)


def test_a_pickle_in_place_of_the_weights_is_not_read(bundle, mark):
    for poison in (pickle.dumps(Evil(mark)), saved(Evil(mark))):
        (bundle / TENSORS).write_bytes(poison)
        with pytest.raises(UserError, match="its checksum is not the one"):
            load_ensemble(bundle)
        record = (bundle / RECORD).read_text()
        edit_record(str(bundle), RECORD, {"sha256": {TENSORS: digest(poison)}})
        with pytest.raises(UserError, match=r"not the weights that bundle\.json describes") as caught:
            load_ensemble(bundle)
        one_line(caught)
        (bundle / RECORD).write_text(record)


def saved(thing) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["extra.pkl", "notes.txt", "sub/deep.dat", "conftest.py", ".hidden"])
@pytest.mark.parametrize("evil", [True, False])
def test_a_file_that_is_no_part_of_a_bundle_is_refused(bundle, mark, name, evil):
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_bytes(pickle.dumps(Evil(mark)) if evil else b"hello")
    with pytest.raises(UserError, match="not part of a bundle") as caught:
        load_ensemble(bundle)
    assert name in one_line(caught)
    assert ("a pickle" in str(caught.value)) == (evil or name.endswith(".pkl"))


def test_a_bundle_is_these_three_files(bundle):
    assert sorted(path.name for path in bundle.iterdir()) == sorted(FILES)
    assert load_ensemble(bundle).info.sha256.keys() == set(FILES) - {RECORD}


def test_a_byte_that_flips_in_a_bundle_is_noticed(bundle):
    data = bytearray((bundle / TENSORS).read_bytes())
    data[-3] ^= 1  # a weight: it would load
    (bundle / TENSORS).write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"members\.safetensors: damaged \(its checksum"):
        load_ensemble(bundle)


@pytest.mark.parametrize("header", [2**63, 10**9, 7])
def test_a_forged_safetensors_header_is_refused(bundle, header):
    poison = struct.pack("<Q", header) + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'
    (bundle / TENSORS).write_bytes(poison)
    edit_record(str(bundle), RECORD, {"sha256": {TENSORS: digest(poison)}})
    with pytest.raises(UserError, match="not the weights"):
        load_ensemble(bundle)


# What trials leave


def test_pickles_in_place_of_what_a_trial_left_are_not_read(values, tmp_path, mark):
    run = RunStore.open(shutil.copytree(values.run.local, tmp_path / "run"))
    number = run.ranked()[0].number
    run.write_result(run.result(number).model_copy(update={"files": {}}))  # as if no checksum were known
    objects = io.BytesIO()
    np.savez(objects, windows=np.array([Evil(mark)]), folds=np.zeros(1), predictions=np.zeros(1))
    for name, poison, read in [
        ("oof.npz", objects.getvalue(), lambda: run.oof(number)),
        ("oof.npz", pickle.dumps(Evil(mark)), lambda: run.oof(number)),
        ("fold-0.safetensors", saved(Evil(mark)), lambda: run.weights(number, 0)),
        ("trial.json", pickle.dumps(Evil(mark)), lambda: run.config(number)),
        ("history.json", pickle.dumps(Evil(mark)), lambda: run.history(number)),
        ("result.json", pickle.dumps(Evil(mark)), lambda: run.result(number)),
    ]:
        run.folder.write(f"trials/{number:04d}/{name}", poison)
        with pytest.raises(UserError, match=name) as caught:
            read()
        one_line(caught)


def test_a_poisoned_checkpoint_is_passed_over(tmp_path, mark, caplog):
    windows = ToyWindows()
    run = make_run(tmp_path / "run", windows)
    run.add_trial(0, tiny())
    for fold in range(3):
        payload = saved({"epoch": Evil(mark)})
        run.write_checkpoint(0, fold, 1, b"raypipe-checkpoint-2\n" + bytes.fromhex(digest(payload)) + payload)
    outcomes, states = FoldRunner(run, WindowLoader(windows), 0, range(3))._epoch(1, lambda: False)
    assert sorted(outcomes) == sorted(states) == [0, 1, 2]  # trained, not read
    assert "not what raypipe writes" in caplog.text


# Search spaces


@pytest.fixture
def foreign(simulated, tmp_path, mark):
    """A run from elsewhere, with an ensemble, whose search space does harm as soon as it is run."""
    path = shutil.copytree(simulated.run.local, tmp_path / "foreign")
    RunStore.open(path)
    (path / "space.py").write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\ndef space(trial): return {{}}\n"
    )
    return path


def trust(path: Path) -> None:
    """Write the checksum of the space, whatever it is, into the record."""
    edit_record(str(path), "run.json", {"space_hash": digest((path / "space.py").read_bytes())})


def test_a_search_space_that_is_not_the_recorded_one_is_not_run(foreign, mark):
    for text in ((foreign / "space.py").read_bytes(), b"\xff\xfe not text"):
        (foreign / "space.py").write_bytes(text)
        for call in (RunStore.open, lambda path: app.main(["resume", str(path)])):
            with pytest.raises((UserError, SystemExit)) as caught:
                call(foreign)
            assert caught.type is UserError or caught.value.code == 2


def test_looking_at_a_foreign_run_runs_nothing_of_it(four_channels, foreign, mark, tmp_path, capsys):
    trust(foreign)
    for command in (
        ["status", foreign],
        ["report", foreign],
        ["ensemble", foreign, "--top", "1"],
        ["export", foreign, tmp_path / "bundle"],
        ["export", foreign, tmp_path / "submission.zip"],
        ["export", foreign, tmp_path / "model.pt2"],
    ):
        with pytest.raises(SystemExit) as leave:
            app.main([str(word) for word in command])
        assert not leave.value.code, capsys.readouterr().err
    assert (tmp_path / "bundle" / RECORD).is_file()


# Archives


def archive(path: Path, *members: tuple[str, int, bytes]) -> Path:
    """A zip of ``(name, mode, data)`` beside a submission.py."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("submission.py", "class Submission: pass")
        for name, mode, data in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            file.writestr(info, data)
    return path


@pytest.mark.parametrize(
    ("name", "mode", "reason"),
    [
        ("../evil.py", 0o644, "outside the folder"),
        ("a/../../evil.py", 0o644, "outside the folder"),
        ("/evil.py", 0o644, "outside the folder"),
        ("..\\evil.py", 0o644, "outside the folder"),
        ("C:evil.py", 0o644, "outside the folder"),
        (".", 0o644, "outside the folder"),
        ("link", stat.S_IFLNK | 0o777, "is a link"),
        ("pipe", stat.S_IFIFO | 0o644, "is not a file"),
        ("disk", stat.S_IFBLK | 0o644, "is not a file"),
        ("sub/", stat.S_IFDIR | 0o755, "is in a folder"),
    ],
)
def test_a_zip_that_would_escape_or_surprise_is_not_unpacked(tmp_path, monkeypatch, name, mode, reason):
    monkeypatch.setattr(
        "raypipe.packaging.scorer_process.run_limited", lambda *_, **__: pytest.fail("its code was run")
    )
    before = sorted(tmp_path.rglob("*"))
    zipped = archive(tmp_path / "evil.zip", (name, mode, b"/etc/passwd"))
    report = check_submission(zipped)
    assert not report.ok and reason in report.failures[0].detail and "\n" not in report.failures[0].detail
    assert sorted(tmp_path.rglob("*")) == [*before, zipped]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_that_holds_a_file_twice_is_not_unpacked(tmp_path):
    report = check_submission(archive(tmp_path / "evil.zip", ("submission.py", 0o644, b"import os")))
    assert "twice" in report.failures[0].detail


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    path = archive(tmp_path / "bomb.zip", ("weights.pt", 0o644, b"0"))
    data = bytearray(path.read_bytes())
    entry = data.rfind(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = struct.pack("<I", 2**32 - 2)  # as large as it says
    path.write_bytes(bytes(data))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("more.pt", b"1" * 10)
    report = check_submission(path)
    assert not report.ok and "GB" in report.failures[0].detail


# The package itself


def calls(tree: ast.AST):
    """Return the calls in a module: their dotted names and keywords."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


RUNS_CODE = {
    "eval",
    "exec",
    "os.system",
    "pickle.load",
    "pickle.loads",
    "ray.cloudpickle.loads",
    "joblib.load",
    "yaml.load",
    "shutil.unpack_archive",
    "torch.export.load",
}
ALLOWED = {
    ("search_space.py", "exec"),
    ("own_code.py", "exec"),  # the search space: named by the user, or the run's copy with the recorded hash
    ("space_source.py", "eval"),  # a default in the source of the function that the caller has given
    ("parallel.py", "pickle.loads"),  # calls and results, between a process and the workers that it has started
    ("ray_compat.py", "ray.cloudpickle.loads"),  # handles of actors, pickled by this very sweep
    ("graph_runner.py", "torch.export.load"),  # what the user has made, in a process of its own; SECURITY.md says so
}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_nothing_in_the_package_reads_what_may_run_code(path):
    for name, keywords in calls(ast.parse(path.read_text())):
        assert name not in RUNS_CODE or (path.name, name) in ALLOWED, name
        assert not name.endswith((".extractall", ".extract")) and not name.startswith("tarfile."), name
        if name == "torch.load":
            assert keywords["weights_only"] == "True"
        if name == "np.load":
            assert keywords.get("allow_pickle") == "False"
        assert keywords.get("shell") != "True"


def test_safetensors_hold_tensors_only():
    with pytest.raises(Exception, match=r"[tT]ensor"):
        save({"a": Evil(Path("x"))})
