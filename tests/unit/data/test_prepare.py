from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mne
import numpy as np
import pytest

import raypipe.data.shards
from raypipe.core.errors import DiskFullError, UserError
from raypipe.core.parallel import map_processes
from raypipe.data.kept_windows import windows_of
from raypipe.data.prepare import prepare
from raypipe.data.preprocessing import Preprocessing
from raypipe.data.targets import parse_target
from raypipe.data.window_store import WindowStore
from raypipe.data.windower import OpenRecording, place_windows, read_windows
from raypipe.recordings.layout import find_recordings
from tests.support.recordings import eeg_names, microvolts

TARGET = "challenge1"


@pytest.fixture
def bids(tiny_bids: Path, tmp_path: Path) -> Path:
    """Copy a BIDS folder of three subjects, which the test may change."""
    for path in tiny_bids.iterdir():
        if path.is_file():
            (tmp_path / "bids").mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / "bids")
    for number in range(3):
        shutil.copytree(tiny_bids / f"sub-SIM{number:04d}", tmp_path / "bids" / f"sub-SIM{number:04d}")
    return tmp_path / "bids"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "store"


def rewrite(recording, edit=None, sfreq: float | None = None, channels=None, name=None) -> None:
    """Replace a recording with a FIF file with an edited signal."""
    info = mne.create_info(eeg_names(recording), 100.0, "eeg")
    raw = mne.io.RawArray(microvolts(recording) * 1e-6, info, verbose="ERROR")
    if sfreq:
        raw.resample(sfreq, verbose="ERROR")
    if channels:
        raw.pick(channels)
    if name:
        raw.rename_channels(name)
    if edit:
        edit(raw._data)
    raw.save(recording.path.with_suffix(".fif"), verbose="ERROR")
    recording.path.unlink()
    recording.sidecar("channels.tsv").unlink()


def shard_times(store: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (store / "shards").glob("*.npy")}


def same_windows(a: WindowStore, b: WindowStore) -> bool:
    return a.data_hash == b.data_hash and np.array_equal(a.gather(range(len(a))), b.gather(range(len(b))))


def test_windows_hold_the_signal_in_microvolts(bids, out):
    store = prepare(bids, TARGET, out, jobs=1)
    recordings = {r.key: r for r in find_recordings(bids)}
    assert store.redone == 3
    for i in (0, 7, len(store) - 1):
        row = store.table.iloc[i]
        recording = recordings[row["recording"]]
        start = round(row["onset"] * 100)
        x_CT = microvolts(recording)[:, start : start + 200]
        np.testing.assert_allclose(store.gather([i])[0], x_CT, rtol=1e-6, atol=1e-5)
        assert row["subject"] == recording.subject and row["task"] == "contrastChangeDetection" and row["run"] == "1"
    assert 1 < store.gather([0])[:, :-1].std() < 100


def test_a_second_run_reads_nothing(bids, out, monkeypatch):
    first = prepare(bids, TARGET, out, jobs=1)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}

    def never(*_):
        raise AssertionError("a recording was opened")

    monkeypatch.setattr("raypipe.data.store_build.read_header", never)
    monkeypatch.setattr("raypipe.data.store_build.make_shard", never)
    calls = []
    second = prepare(bids, TARGET, out, jobs=1, progress=lambda *a: calls.append(a))
    assert second.redone == 0 and "up to date" in second.describe()
    assert calls == [(3, 3, "up to date, nothing to do")]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert second.data_hash == first.data_hash


def test_several_processes_give_the_same_store(bids, out, tmp_path):
    one = prepare(bids, TARGET, out, jobs=1)
    calls = []
    two = prepare(bids, TARGET, tmp_path / "two", jobs=2, progress=lambda *a: calls.append(a))
    assert same_windows(one, two)
    assert calls[-1][:2] == (3, 3)


def test_the_data_hash_depends_on_content_and_not_on_the_folder(bids, out, tmp_path):
    first = prepare(bids, TARGET, out, jobs=1)
    moved = Path(shutil.copytree(bids, tmp_path / "moved"))
    assert prepare(moved, TARGET, tmp_path / "other", jobs=1).data_hash == first.data_hash
    events = find_recordings(moved)[0].sidecar("events.tsv")
    lines = events.read_text().splitlines()
    press = next(i for i, line in enumerate(lines) if "buttonPress" in line)
    onset, rest = lines[press].split("\t", 1)
    lines[press] = f"{float(onset) + 0.01:.3f}\t{rest}"
    events.write_text("\n".join(lines) + "\n")
    assert prepare(moved, TARGET, tmp_path / "third", jobs=1).data_hash != first.data_hash


def test_a_killed_prepare_is_continued(bids, out, monkeypatch):
    real = raypipe.data.shards.make_shard
    done = []

    def killed(recording, *rest):
        if len(done) == 2:
            (out / "shards" / f".{recording.key}.npy.0000.part").write_bytes(b"half")
            raise KeyboardInterrupt
        done.append(recording.key)
        return real(recording, *rest)

    monkeypatch.setattr("raypipe.data.store_build.make_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(bids, TARGET, out, jobs=1)
    with pytest.raises(UserError, match="prepare did not finish"):
        WindowStore(out)
    before = shard_times(out)
    assert len(before) == 2
    monkeypatch.undo()
    store = prepare(bids, TARGET, out, jobs=1)
    assert store.redone == 1
    assert "1 recordings read now, the others kept" in store.describe()
    assert {name: time for name, time in shard_times(out).items() if name in before} == before
    assert not list(out.rglob("*.part"))
    store.verify()


def test_only_changed_recordings_are_read_again(bids, out):
    prepare(bids, TARGET, out, jobs=1)
    before = shard_times(out)
    recordings = find_recordings(bids)
    events = recordings[1].sidecar("events.tsv")
    events.write_text(events.read_text().replace("smiley_face", "sad_face") + "\n")
    store = prepare(bids, TARGET, out, jobs=1)
    assert store.redone == 1
    changed = {name for name, time in shard_times(out).items() if before[name] != time}
    assert changed == {f"{recordings[1].key}.npy"}
    shutil.rmtree(bids / "sub-SIM0002")
    store = prepare(bids, TARGET, out, jobs=1)
    assert store.redone == 0 and len(set(store.subjects)) == 2
    assert len(shard_times(out)) == 2 and len(list((out / "shards").glob("*.json"))) == 2


@pytest.mark.parametrize("name", ["windows.csv", "manifest.json", "shard"])
def test_a_deleted_file_is_made_again(bids, out, name):
    first = prepare(bids, TARGET, out, jobs=1)
    path = next((out / "shards").glob("*.npy")) if name == "shard" else out / name
    path.unlink()
    again = prepare(bids, TARGET, out, jobs=1)
    assert again.redone == (1 if name == "shard" else 0)
    assert again.data_hash == first.data_hash
    again.verify()


def test_other_settings_need_another_folder(bids, out):
    prepare(bids, TARGET, out, jobs=1)
    with pytest.raises(UserError, match=r"was made with sfreq left to its default, not '50\.0'; choose another folder"):
        prepare(bids, TARGET, out, sfreq=50, jobs=1)
    with pytest.raises(UserError, match="was made with target 'challenge1', not 'participants:age'"):
        prepare(bids, "participants:age", out, jobs=1)


def test_settings_may_change_after_a_prepare_without_windows(bids, out):
    with pytest.raises(UserError, match="no window was found"):
        prepare(bids, "participants:age", out, window=400, jobs=1)
    assert list((out / "shards").glob("*.json")) and not list((out / "shards").glob("*.npy"))
    store = prepare(bids, "participants:age", out, window=4, jobs=1)
    assert store.manifest.settings.window == 4 and len(store) > 0
    store.verify()


def test_settings_may_change_after_a_prepare_without_shards(bids, out):
    rewrite(find_recordings(bids)[1], sfreq=50)
    with pytest.raises(UserError, match=r"differ in sampling rate: 50 Hz \(sub-SIM0001.*\), 100 Hz \(sub-SIM0000"):
        prepare(bids, TARGET, out, jobs=1)
    store = prepare(bids, TARGET, out, sfreq=50, jobs=1)
    assert store.sfreq == 50 and store.window_samples == 100


def test_folders_with_other_files_are_refused_and_unchanged(bids, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("all of it")
    with pytest.raises(UserError, match="has other files and is not a store"):
        prepare(bids, TARGET, foreign, jobs=1)
    with pytest.raises(UserError, match="a file, not a folder"):
        prepare(bids, TARGET, foreign / "thesis.txt", jobs=1)
    assert (foreign / "thesis.txt").read_text() == "all of it"


def test_another_data_set_needs_another_folder(bids, out):
    prepare(bids, TARGET, out, jobs=1)
    for path in sorted(bids.glob("sub-*/eeg/*")):
        path.rename(path.with_name(path.name.replace("SIM", "NEW")))
    for path in sorted(bids.glob("sub-*")):
        path.rename(path.with_name(path.name.replace("SIM", "NEW")))
    with pytest.raises(UserError, match="has windows of another data set"):
        prepare(bids, TARGET, out, jobs=1)


def test_a_second_prepare_at_the_same_time_is_refused(bids, out):
    prepare(bids, TARGET, out, jobs=1)
    with open(out / "settings.json") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another prepare is writing there"):
            prepare(bids, TARGET, out, jobs=1)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (TARGET, {"sfreq": 0}, "sfreq 0: must be greater than 0"),
        (TARGET, {"window": -1}, "window -1: must be greater than 0"),
        (TARGET, {"window": float("nan")}, "window nan: must be a finite number"),
        (TARGET, {"stride": 1.0}, "its windows are placed at events; leave out stride"),
        (
            "participants:age",
            {"tmin": 1.0},
            "its windows are consecutive, from the start of a recording on; leave out tmin",
        ),
        (TARGET, {"crop": 3.0}, r"crop 3: longer than the window \(2 s\)"),
        ("latency:left_target", {"crop": 1.0}, "the crop must be shorter"),
        (TARGET, {"band": (10, 5)}, "band 10 5: needs a lower and a higher edge"),
        (TARGET, {"band": (1, 40), "sfreq": 50}, "have no frequencies above 25 Hz"),
        (TARGET, {"band": (0.5, 50)}, "upper edge must be below 50 Hz"),
        (TARGET, {"channels": ["E1", "E1"]}, "a name is given twice"),
        (TARGET, {"channels": []}, "the list is empty"),
        (TARGET, {"channels": ["E1", "Czz"]}, "no EEG channel 'Czz'; did you mean 'Cz'"),
        (TARGET, {"dtype": "int8"}, "dtype int8: must be 'float16' or 'float32'"),
        (TARGET, {"metric": "f1"}, f"--metric f1: target '{TARGET}' predicts values; use one of nrmse, rmse, mae"),
        (TARGET, {"metric": "nmrse"}, "--metric nmrse: there is no such metric; did you mean 'nrmse'"),
        (TARGET, {"jobs": 0}, "jobs 0: must be at least 1"),
        (TARGET, {"window": 0.001}, "shorter than a sample"),
        (TARGET, {"window": 500.0}, r"no window was found \(.*\d+ windows that reach beyond the recording"),
        ("participants:age", {"window": 500.0}, r"no window was found \(.*3 recordings shorter than a window"),
        (TARGET, {"band": (0.01, 40)}, "shorter than its filter"),
    ],
)
def test_wrong_settings_give_one_line(bids, out, target, options, message):
    with pytest.raises(UserError, match=message) as caught:
        prepare(bids, target, out, **({"jobs": 1} | options))
    assert "\n" not in str(caught.value)


def test_a_single_subject_is_refused(bids, out):
    for name in ("sub-SIM0001", "sub-SIM0002"):
        shutil.rmtree(bids / name)
    with pytest.raises(UserError, match=r"one subject only \('SIM0000'\)"):
        prepare(bids, TARGET, out, jobs=1)
    assert not out.exists()


def test_a_truncated_recording_is_an_error_or_is_left_out(bids, out):
    bad = find_recordings(bids)[1].path
    with open(bad, "r+b") as file:
        file.truncate(bad.stat().st_size // 2)
    with pytest.raises(UserError, match=f"{bad.name}: truncated"):
        prepare(bids, TARGET, out, jobs=1)
    store = prepare(bids, TARGET, out, jobs=1, skip_unreadable=True)
    assert store.manifest.accounting.counts()["unreadable"] == 1
    assert set(store.subjects) == {"SIM0000", "SIM0002"}


@pytest.mark.parametrize("jobs", [1, 2])
def test_finished_shards_are_kept_when_one_fails(bids, out, jobs):
    events = find_recordings(bids)[2].sidecar("events.tsv")
    whole = events.read_text()
    events.unlink()
    with pytest.raises(UserError, match=r"sub-SIM0002.*events\.tsv: no such file"):
        prepare(bids, TARGET, out, jobs=jobs)
    events.write_text(whole)
    assert prepare(bids, TARGET, out, jobs=jobs).redone == 1


def test_a_script_without_a_main_guard_prepares_in_two_processes(bids, out, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import raypipe\nprint(len(set(raypipe.prepare({str(bids)!r}, {TARGET!r}, {str(out)!r}, jobs=2).subjects)))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(raypipe.__file__).parents[1])}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "3\n", done.stderr


def test_a_killed_process_gives_one_line():
    with pytest.raises(UserError, match="one of 2 processes was killed"):
        list(map_processes(os._exit, [(1,), (1,)], jobs=2))


def test_a_full_disk_gives_one_line_and_keeps_finished_shards(bids, out, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    real = open
    monkeypatch.setattr(
        "raypipe.storage.files.open",
        lambda path, mode="r": Full(path, mode) if "SIM0001" in str(path) and ".npy" in str(path) else real(path, mode),
        raising=False,
    )
    with pytest.raises(DiskFullError, match="no space left on the disk"):
        prepare(bids, TARGET, out, jobs=1)
    monkeypatch.undo()
    assert not list((out / "shards").glob(".*"))
    assert prepare(bids, TARGET, out, jobs=1).redone == 2


def test_missing_samples_leave_their_windows_out(bids, out):
    recording = find_recordings(bids)[0]
    clean = len(prepare(bids, TARGET, out.with_name("clean"), jobs=1))
    onset = WindowStore(out.with_name("clean")).table["onset"].iloc[1]

    def edit(x_CT):
        x_CT[2, round(onset * 100) + 5] = np.nan

    rewrite(recording, edit)
    store = prepare(bids, TARGET, out, jobs=1)
    assert len(store) == clean - 1
    assert store.manifest.accounting.counts()["windows with missing samples"] == 1
    assert onset not in store.table["onset"][store.table["subject"] == "SIM0000"].tolist()
    store.verify()


def test_channels_are_the_common_ones_or_those_that_are_named(bids, out):
    rewrite(find_recordings(bids)[1], channels=["Cz", "E5", "E2", "E1"])
    store = prepare(bids, TARGET, out, jobs=1)
    assert store.channels == ["E1", "E2", "E5", "Cz"]
    assert len(store.manifest.accounting.channels_left_out["not in every recording"]) == 4
    named = prepare(bids, TARGET, out.with_name("named"), channels=["Cz", "E2"], jobs=1)
    np.testing.assert_array_equal(named.gather([0, 12]), store.gather([0, 12])[:, [3, 1]])
    with pytest.raises(UserError, match=r"SIM0001.*no EEG channel 'E3'"):
        prepare(bids, TARGET, out.with_name("more"), channels=["E3"], jobs=1)


def test_no_common_channel_names_two_recordings(bids, out):
    rewrite(find_recordings(bids)[1], channels=["E1", "E2"], name={"E1": "X", "E2": "Y"})
    with pytest.raises(UserError, match=r"no EEG channel is common.*SIM0001.*SIM0000"):
        prepare(bids, TARGET, out, jobs=1)


def test_float16_is_close_and_half_the_size(bids, out):
    full = prepare(bids, TARGET, out, jobs=1)
    half = prepare(bids, TARGET, out.with_name("half"), dtype="float16", jobs=1)
    x, y = full.gather(range(len(full))), half.gather(range(len(half)))
    assert y.dtype == np.float32
    assert np.abs(x - y).max() <= np.abs(x).max() * 2**-11
    half.verify()


def test_float16_overflow_is_refused(bids, out):
    def edit(x_CT):
        x_CT += 0.1

    rewrite(find_recordings(bids)[0], edit)
    with pytest.raises(UserError, match="do not fit float16"):
        prepare(bids, TARGET, out, dtype="float16", jobs=1)
    prepare(bids, TARGET, out, dtype="float32", jobs=1)


def test_an_offset_that_leaves_float16_no_digits_for_the_signal_is_refused(bids, out):
    def edit(x_CT):
        x_CT[1] += 0.02

    recording = find_recordings(bids)[0]
    rewrite(recording, edit)
    for _ in range(2):  # the second call continues the first
        with pytest.raises(
            UserError, match=r"float16 rounds channel 'E2' by 4\.\d uV, .* use float32, or a band"
        ) as caught:
            prepare(bids, TARGET, out, dtype="float16", jobs=1)
        assert recording.key in str(caught.value)
    store = prepare(bids, TARGET, out, dtype="float16", jobs=1, skip_unreadable=True)
    assert recording.key not in set(store.table["recording"])
    types = ("float32", "float16")
    full, half = (prepare(bids, TARGET, out.with_name(kind), dtype=kind, jobs=1, band=(1, 40)) for kind in types)
    x, y = full.gather(range(len(full))), half.gather(range(len(half)))
    assert (x - y).std() < 1e-3 * x.std()


def test_participants_without_a_value_are_left_out(bids, out):
    path = bids / "participants.tsv"
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    lines[2][lines[0].index("age")] = "n/a"
    path.write_text("\n".join("\t".join(line) for line in lines) + "\n")
    store = prepare(bids, "participants:age", out, jobs=1)
    assert set(store.subjects) == {"SIM0000", "SIM0002"}
    assert store.manifest.accounting.counts()["of a subject without a target"] == 1
    ages = {line[0]: np.float32(line[3]) for line in lines[1:] if line[3] != "n/a"}
    assert (
        store.targets[store.subjects == "SIM0002"].tolist()
        == [ages["sub-SIM0002"]] * (store.subjects == "SIM0002").sum()
    )
    # Another subject's target changes: this subject's shard stays.
    lines[1][3] = "12.5"
    path.write_text("\n".join("\t".join(line) for line in lines) + "\n")
    assert prepare(bids, "participants:age", out, jobs=1).redone == 1


def test_classes(bids, out):
    store = prepare(bids, "events:right_target,left_target", out, jobs=1)
    assert store.kind == "classification" and store.metric == "auc" and store.n_outputs == 2
    assert store.classes == ["right_target", "left_target"]
    assert store.targets.dtype == np.int64 and set(store.targets) == {0, 1}
    with pytest.raises(UserError, match="was made with metric left to its default, not 'f1'; choose another folder"):
        prepare(bids, "events:right_target,left_target", out, metric="f1", jobs=1)


def test_the_metric_of_a_store_is_the_one_asked_for(bids, out):
    asked = prepare(bids, TARGET, out, metric="pearson", jobs=1)
    assert asked.metric == WindowStore(out).metric == "pearson"
    assert asked.data_hash == prepare(bids, TARGET, out.with_name("default"), jobs=1).data_hash


@pytest.mark.parametrize("sfreq", [50.0, 64.0, 80.0, 100.0, 128.0])
@pytest.mark.parametrize("notch", [None, (12.0, 24.0)])
@pytest.mark.parametrize("band", [None, (1.0, 20.0), (0.0, 20.0)])
def test_pieces_equal_the_whole(tiny_bids, tiny_store, sfreq, band, notch):
    opened = OpenRecording(find_recordings(tiny_bids)[0])
    raw = mne.io.read_raw_bdf(opened.recording.path, verbose="ERROR").pick(tiny_store.channels)
    length = round(2 * sfreq)
    plan = tiny_store.manifest.plan.model_copy(
        update={
            "sfreq": sfreq,
            "preprocessing": Preprocessing(notch=notch, band=band),
            "window_samples": length,
            "crop_samples": length,
        }
    )
    rows, _ = place_windows(opened, parse_target("participants:age"), plan, None)
    assert len(rows) == int(raw.n_times / 200)
    small = list(read_windows(opened, rows, plan, piece_bytes=8 * 8 * 500))
    assert len(small) > 3
    x_NCT = np.concatenate([x for _, x in small])
    ((_, whole_NCT),) = read_windows(opened, rows, plan, piece_bytes=1 << 30)
    np.testing.assert_allclose(x_NCT, whole_NCT, atol=2e-5)

    reference = raw.copy().load_data(verbose="ERROR")
    if notch:
        reference.notch_filter(notch, verbose="ERROR")
    if band:
        reference.filter(band[0] or None, band[1], verbose="ERROR")
    if sfreq != 100:
        reference.resample(sfreq, method="polyphase", verbose="ERROR")
    x_CT = reference.get_data()[:, rows[3].start : rows[3].start + length] * 1e6
    np.testing.assert_allclose(x_NCT[3], x_CT, atol=1e-2 if sfreq != 100 else 2e-5)


def test_the_signal_is_read_in_pieces(tiny_bids, tiny_store, monkeypatch):
    """Memory does not grow with the recording: no piece is longer than the limit."""
    opened = OpenRecording(find_recordings(tiny_bids)[0])
    lengths, read = [], opened.signal.read

    def watched(picks, span, begin, stop):
        lengths.append(stop - begin)
        return read(picks, span, begin, stop)

    monkeypatch.setattr(opened.signal, "read", watched)
    rows, _ = place_windows(opened, parse_target("participants:age"), tiny_store.manifest.plan, None)
    for _ in read_windows(opened, rows, tiny_store.manifest.plan, piece_bytes=8 * 8 * 400):
        pass
    assert max(lengths) <= 401 and len(lengths) >= 100 * opened.signal.spans[0].duration / 401 - 1


def test_windows_for_prediction_need_no_response(tiny_bids, tiny_store):
    recording = find_recordings(tiny_bids)[0]
    parts, left_out = windows_of(recording, parse_target(TARGET), tiny_store.manifest.plan)
    (part,) = parts
    table, x_NCT = part.table, part.crops
    assert +left_out == {} and len(part.spreads) == 8
    assert len(table) == 8 == len(x_NCT)
    assert table["target"].isna().all()
    stored = tiny_store.table[tiny_store.table["recording"] == recording.key]
    place = table.index[table["onset"].isin(stored["onset"])]
    np.testing.assert_array_equal(x_NCT[place], tiny_store.gather(stored["window"]))


def test_prediction_names_a_missing_channel(tiny_bids, tiny_store):
    plan = tiny_store.manifest.plan.model_copy(update={"channels": ("E1", "E77"), "sources": ("E1", "E77")})
    with pytest.raises(UserError, match="no EEG channel 'E77'; did you mean 'E7'"):
        next(windows_of(find_recordings(tiny_bids)[0], parse_target(TARGET), plan)[0])


def test_the_manifest_records_settings_and_versions(tiny_store):
    manifest = json.loads((tiny_store.path / "manifest.json").read_text())
    assert manifest["plan"]["tmin"] == 0.5 and manifest["unit"] == "uV" and manifest["versions"]["mne"]


def _with_column(bids, name, cells):
    path = bids / "participants.tsv"
    head, *rows = path.read_text().splitlines()
    lines = [f"{row}\t{cells.get(row.split(chr(9))[0], 'n/a')}" for row in rows]
    path.write_text("\n".join([f"{head}\t{name}", *lines]) + "\n")


def test_groups_are_a_column_of_the_table(bids, out):
    _with_column(bids, "family", {"sub-SIM0000": "F1", "sub-SIM0002": "F1"})
    with pytest.raises(UserError, match=r"--groups famil: no participants.tsv has this column; did you mean 'family'"):
        prepare(bids, TARGET, out, groups="famil", jobs=1)
    store = prepare(bids, TARGET, out, groups="family", jobs=1)
    assert store.group_of == {"SIM0000": "F1", "SIM0002": "F1"}
    with pytest.raises(UserError, match="was made with groups 'family', not"):
        prepare(bids, TARGET, out, jobs=1)
    plain = prepare(bids, TARGET, out.with_name("plain"), jobs=1)
    assert plain.group_of == {} and plain.data_hash != store.data_hash


@pytest.mark.parametrize("align", [None, "recording", "subject"])
def test_windows_that_are_copies_are_noted_by_recording(bids, out, align):
    """The rest of a recording changes how its copied windows are aligned."""
    first, second, *_ = find_recordings(bids)
    signal = microvolts(first)
    half = signal.shape[1] // 2

    def edit(data):
        data[:, :half] = signal[:, :half] * 1e-6

    rewrite(second, edit)
    store = prepare(bids, "participants:age", out, dtype="float16", window=2, jobs=1, align=align)
    digests = store.table["digest"]
    n = int(digests[digests != ""].duplicated().sum())
    assert n > 3 and f"hold {n} windows with the same samples" in " ".join(store.manifest.accounting.notes)
