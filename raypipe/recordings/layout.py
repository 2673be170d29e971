"""Find the recordings of a BIDS folder (BIDS specification 1.10, EEG), and account for every file that is not used.

It replaces mne-bids, which refuses sidecars of HBN-EEG releases 10 and 11, whose types and units are all ``n/a``
(docs/data.md compares the two).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unicodedata import normalize

from raypipe.core.errors import UserError, first_line
from raypipe.recordings.recording import Recording, entities_of, same_label
from raypipe.recordings.remote_bids import RemoteBids
from raypipe.recordings.tables import list_some
from raypipe.storage.regular_files import read_whole

EXTENSIONS = (".bdf", ".edf", ".set", ".vhdr", ".fif")
LAYOUT = "sub-*/[ses-*/]eeg/*_eeg.{" + ",".join(e[1:] for e in EXTENSIONS) + "}"

_EEG_ONLY = (".cnt", ".gdf", ".mff", ".egi", ".nxe", ".trc")
"""Suffixes of formats that raypipe does not read and that hold nothing but EEG, whatever the file's name."""
_NO_SIGNAL = (".json", ".tsv", ".tsv.gz", ".vmrk", ".md", ".png", ".jpg", ".jpeg", ".pdf", ".html")
"""Suffixes of files that hold no signal."""
_COMPANIONS = {".eeg": ".vhdr", ".dat": ".vhdr", ".fdt": ".set"}
"""Suffixes of files that are read with a header in the same folder."""
_OTHER_MODALITIES = (
    "anat", "beh", "dwi", "fmap", "func", "ieeg", "meg", "micr", "motion", "mrs", "nirs", "perf", "pet", "phenotype",
)  # fmt: skip
"""Folders of BIDS that hold no EEG."""

NO_SUFFIX = "file name without the suffix _eeg"
OTHER_PLACE = "outside a folder eeg of a subject"
OTHER_LABEL = "named for another subject or session than its folder"
NO_SUBJECT = "no subject in the file name"
DERIVED = "derived copy (desc-, proc- or rec-) of another recording"
NO_FIRST_PART = "later part of a split recording whose first part is missing"
"""Reasons for leaving files out."""

_DERIVED_FOLDERS = ("derivatives", "sourcedata", "code", "stimuli")


@dataclass
class Layout:
    """The content of a BIDS folder.

    Attributes
    ----------
    root
        The folder.
    recordings
        The recordings that raypipe can try to read, sorted by path.
    left_out
        The reason for leaving out, by path of each other file that looks like a recording.
    subjects
        Labels of all subject folders, with recordings or without.
    """

    root: Path
    recordings: list[Recording] = field(default_factory=list)
    left_out: dict[Path, str] = field(default_factory=dict)
    subjects: list[str] = field(default_factory=list)


def read_layout(root: str | Path, mirror: RemoteBids | None = None) -> Layout:
    """List the recordings of a BIDS folder.

    Parameters
    ----------
    root
        The folder.
    mirror
        The mirror that contains the folder; None for a local folder.

    Raises
    ------
    UserError
        There is no such folder, or it has the same recording in two formats.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder" if not root.exists() else f"{root}: a file, not a BIDS folder")
    layout = Layout(root)
    candidates: list[Path] = []
    for path in _visible(root):
        label = _label_of(path, "sub")
        if label is None:
            _leave_out_strays(layout, path)
            continue
        layout.subjects.append(label)
        candidates += _files_of_subject(path, layout)
    _add_recordings(layout, sorted(candidates), mirror)
    return layout


def find_recordings(root: str | Path, mirror: RemoteBids | None = None) -> list[Recording]:
    """Return the recordings of a BIDS folder, sorted by path; raises as `read_layout`, and if there is none."""
    layout = read_layout(root, mirror)
    if not layout.recordings:
        raise UserError(no_recording(layout))
    return layout.recordings


def no_recording(layout: Layout) -> str:
    """Return the message for a folder without recordings; it names files that look like some."""
    deeper = next((path.parent for depth in ("*/*/sub-*", "*/*/*/sub-*") for path in layout.root.glob(depth)), None)
    if deeper is not None and not layout.subjects:
        return f"{layout.root}: no recording there; did you mean {deeper}?"
    seen = [f"{path.relative_to(layout.root)} ({reason})" for path, reason in layout.left_out.items()]
    instead = f"; left out: {list_some(seen)}" if seen else ""
    return f"{layout.root}: no recording there; raypipe looks for {LAYOUT}{instead}"


def recording_from_file(path: str | Path) -> Recording:
    """Make a `Recording` of a single file, with labels from its name. Without a subject label, the name is the subject.

    Raises
    ------
    UserError
        There is no such file, or its format cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix.lower() not in EXTENSIONS:
        raise UserError(f"{path}: not a supported format ({', '.join(EXTENSIONS)})")
    return recording_at(path)


def recording_at(path: Path) -> Recording:
    """Make a `Recording` of a path, with labels from its name."""
    root = next((folder.parent for folder in path.parents if _label_of(folder, "sub")), path.parent)
    return _parse(path, root)


def dataset_folders(folder: Path) -> list[Path]:
    """Return the BIDS folders at a path: itself if it holds subjects, else the folders in it that do, sorted.

    Folders of derived data (``derivatives``, or ``DatasetType`` in dataset_description.json) are not returned beside
    others.
    """
    if not folder.is_dir() or _has_subjects(folder):
        return [folder]
    inside = [path for path in _visible(folder) if path.is_dir() and _has_subjects(path)]
    return [path for path in inside if not is_derived(path)] or inside or [folder]


def is_derived(folder: Path) -> bool:
    """Return whether a BIDS folder holds data derived from recordings of another."""
    if folder.name.lower().startswith(_DERIVED_FOLDERS) or folder.parent.name.lower() == "derivatives":
        return True
    try:
        description = json.loads(read_whole(folder / "dataset_description.json").decode("utf-8-sig"))
    except (OSError, ValueError, UserError):
        return False
    return isinstance(description, dict) and str(description.get("DatasetType", "")).lower() == "derivative"


def _has_subjects(folder: Path) -> bool:
    return any(_label_of(path, "sub") for path in _visible(folder))


def _visible(folder: Path) -> Iterator[Path]:
    """Yield the entries of a folder, but for hidden ones: macOS puts ``._name`` beside ``name``.

    Raises
    ------
    UserError
        The folder cannot be read.
    """
    try:
        return iter([path for path in sorted(folder.iterdir()) if not path.name.startswith(".")])
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({first_line(error)})") from None


def _label_of(folder: Path, key: str) -> str | None:
    """Return the label of a subject's or session's folder; None for other folders and files."""
    name = normalize("NFC", folder.name)
    is_one = name.lower().startswith(f"{key}-") and len(name) > len(key) + 1 and folder.is_dir()
    return name[len(key) + 1 :] if is_one else None


def _files_of_subject(folder: Path, layout: Layout) -> Iterator[Path]:
    """Yield the files of a subject's folders ``eeg``; note EEG files elsewhere in its folder as left out."""
    sessions = [path for path in _visible(folder) if _label_of(path, "ses") is not None]
    for place in [folder, *sessions]:
        for path in _visible(place):
            if path.name.lower() == "eeg" and path.is_dir():
                for inside in _visible(path):
                    if inside.is_dir() and inside.suffix.lower() not in _EEG_ONLY:
                        _leave_out_strays(layout, inside)
                    else:
                        yield inside
            elif path not in sessions:
                _leave_out_strays(layout, path)


def _leave_out_strays(layout: Layout, path: Path) -> None:
    """Note EEG files outside a folder ``eeg`` of a subject, at a path or anywhere below it, as left out."""
    if path.is_dir():
        if path.name.lower() not in _DERIVED_FOLDERS and not path.is_symlink():  # a link may lead to a folder above
            for inside in _visible(path):
                _leave_out_strays(layout, inside)
    elif path.suffix.lower() in EXTENSIONS and (
        path.parent.name.lower() not in _OTHER_MODALITIES or path.stem.lower().endswith("_eeg")
    ):
        layout.left_out[path] = OTHER_PLACE


def _add_recordings(layout: Layout, candidates: list[Path], mirror: RemoteBids | None) -> None:
    """Add the files that are recordings to a layout, and the others with the reason."""
    names = {path.with_suffix(path.suffix.lower()) for path in candidates}
    by_key: dict[str, Recording] = {}
    in_folder: dict[str, Recording] = {}
    for path in candidates:
        reason = _reason_to_leave_out(path, layout.root, names)
        if reason is None:
            continue
        if reason:
            layout.left_out[path] = reason
            continue
        recording = _parse(path, layout.root, mirror)
        same_folder = f"{path.parent}/{recording.key.casefold()}"
        twin = in_folder.setdefault(same_folder, recording)
        if twin is not recording:
            raise UserError(f"{path}: {twin.path.name} is the same recording in another format; keep one of them")
        by_key[recording.key] = recording
    originals = {key for key in by_key if without_desc(key) == key}
    for key, recording in by_key.items():
        if key not in originals and without_desc(key) in originals:
            layout.left_out[recording.path] = DERIVED
        else:
            layout.recordings.append(recording)


def without_desc(key: str) -> str:
    """Return a recording's key without ``desc``, ``proc`` and ``rec``, which name a way of processing."""
    return re.sub(r"_(?:desc|proc|rec)-[^_]+", "", key)


def _reason_to_leave_out(path: Path, root: Path, names: set[Path]) -> str | None:
    """Return why a file in a folder ``eeg`` is left out; empty for a recording, and None for a file that is none."""
    extension = path.suffix.lower()
    if extension not in EXTENSIONS:
        return _other_format(path, names)
    if extension == ".fif" and _split_of(path) > 1:
        first = re.sub(r"_split-0*\d+", "_split-", path.name)
        has_first = any(
            _split_of(name) == 1 and re.sub(r"_split-0*\d+", "_split-", name.name) == first for name in names
        )
        return None if has_first else NO_FIRST_PART
    later = re.fullmatch(r"(.+_eeg)-\d+", path.stem, re.IGNORECASE)
    if extension == ".fif" and later and path.with_name(f"{later[1]}.fif") in names:
        return None
    if not path.stem.lower().endswith("_eeg"):
        return NO_SUFFIX
    entities = entities_of(path.stem)
    if "sub" not in entities:
        return NO_SUBJECT
    for folder in path.relative_to(root).parts[:-2]:
        key, _, label = normalize("NFC", folder).partition("-")
        if not same_label(key.lower(), label, entities.get(key.lower(), "")):
            return OTHER_LABEL
    return ""


def _other_format(path: Path, names: set[Path]) -> str | None:
    """Return why a file of another format is left out; None if it is no recording, or part of one."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] in (".gz", ".bz2", ".xz", ".zip", ".7z")
    extension = "".join(suffixes[-2:] if packed else suffixes[-1:])
    is_eeg = path.name.lower().removesuffix(extension).endswith("_eeg")
    if extension in _NO_SIGNAL or not (is_eeg or extension in _EEG_ONLY):
        return None
    header = _COMPANIONS.get(extension)
    if header and any(name.suffix == header and name.parent == path.parent for name in names):
        return None
    return f"a format that raypipe does not read ({extension})"


def _parse(path: Path, root: Path, mirror: RemoteBids | None = None) -> Recording:
    entities = entities_of(path.stem)
    return Recording(
        path=path,
        root=root,
        subject=_subject_of(path, root) or entities.get("sub") or normalize("NFC", path.stem),
        session=entities.get("ses"),
        task=entities.get("task"),
        run=entities.get("run"),
        mirror=mirror,
    )


def _subject_of(path: Path, root: Path) -> str | None:
    """Return the label of the subject's folder that a file is in, as the folder spells it."""
    inside = path.relative_to(root).parts
    return _label_of(root / inside[0], "sub") if len(inside) > 1 else None


def _split_of(path: Path) -> int:
    """Return the number in the entity ``split`` of a file's name; 0 without one."""
    split = re.search(r"_split-(\d+)", path.name)
    return int(split.group(1)) if split else 0
