"""Make stores of windows from data sets of MOABB and braindecode. Neither is imported unless it is named."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import UserError, first_line, nearest
from raypipe.core.metrics import Kind
from raypipe.core.progress import Progress, no_progress
from raypipe.core.shipped import install_command
from raypipe.data.arrays import BLOCK_BYTES, store_of_arrays
from raypipe.data.epochs import store_of_epochs
from raypipe.data.output_folder import store_folder
from raypipe.data.window_store import WindowStore

TARGET = "raypipe_target"
"""Column of the metadata that holds MOABB's labels."""


def from_moabb(
    dataset: Any,
    paradigm: Any,
    out: str | Path,
    *,
    subjects: Sequence[Any] | None = None,
    channels: Sequence[str] | None = None,
    crop: float | None = None,
    dtype: str = "float32",
    metric: str | None = None,
    progress: Progress = no_progress,
) -> WindowStore:
    """Write a store of the epochs that a paradigm of MOABB cuts from a data set, with their labels as classes.

    The paradigm filters and resamples. It reads one subject at a time; the epochs are kept on the disk beside `out`
    until the store is written.

    Parameters
    ----------
    dataset
        Data set of MOABB, or the name of its class, such as ``BNCI2014_001``.
    paradigm
        Paradigm of MOABB, or the name of its class, such as ``LeftRightImagery``.
    out
        Folder for the store: new, empty, or a store made with the same settings.
    subjects
        Subjects of the data set. Default: all.
    channels
        Names of EEG channels. Default: all.
    crop, dtype, metric
        See `from_arrays`.
    progress
        Called with the epochs done, their total and a short text.

    Returns
    -------
    WindowStore
        The windows with their targets. Its ``where`` is the folder.

    Raises
    ------
    UserError
        MOABB is not installed, has no such data set or paradigm, or cannot read a subject; or as `from_epochs`.
    DiskFullError
        The disk is full.
    """
    source, cutter = _of_moabb(dataset, "datasets"), _of_moabb(paradigm, "paradigms")
    if not hasattr(source, "subject_list") or not hasattr(cutter, "get_data"):
        raise UserError("from_moabb: needs a data set and a paradigm of MOABB, or the names of their classes")
    folder = store_folder(out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".moabb-", dir=folder.parent) as kept:
        for subject in source.subject_list if subjects is None else subjects:
            _save_subject(source, cutter, subject, Path(kept))
        stored: dict[str, Any] = {"crop": crop, "dtype": dtype, "metric": metric, "progress": progress}
        return store_of_epochs(
            "moabb",
            sorted(Path(kept).glob("*_epo.fif")),
            subject="metadata:subject",
            target=f"metadata:{TARGET}",
            out=folder,
            groups=None,
            channels=channels,
            **stored,
        )


def _of_moabb(given: Any, module: str) -> Any:
    """Return an object of MOABB, made of its class if that is named."""
    if not isinstance(given, str):
        return given
    try:
        found = import_module(f"moabb.{module}")
    except ImportError:
        raise UserError(f"{given}: moabb is not installed; {install_command('moabb')}") from None
    if not hasattr(found, given):
        names = [name for name in vars(found) if name[:1].isupper()]
        raise UserError(f"moabb.{module} has no '{given}'; {nearest(given, names)}")
    return getattr(found, given)()


def _save_subject(dataset: Any, paradigm: Any, subject: Any, folder: Path) -> None:
    """Save the epochs of a subject, in a file for each session and run."""
    try:
        epochs, labels, metadata = paradigm.get_data(dataset, [subject], return_epochs=True)
        epochs.metadata = metadata.reset_index(drop=True).assign(**{TARGET: list(labels)})
    except Exception as error:  # MOABB raises exceptions of many types
        raise UserError(f"subject {subject}: MOABB cannot give its epochs ({first_line(error)})") from None
    names = [str(name) for name in ("subject", "session", "run") if name in epochs.metadata]
    for labels_of, rows in epochs.metadata.groupby(names, sort=False).indices.items():
        parts = zip(("sub", "ses", "run"), labels_of, strict=False)
        stem = "_".join(f"{key}-{re.sub(r'[^A-Za-z0-9]', '', str(label))}" for key, label in parts)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            epochs[rows].save(folder / f"{stem}_epo.fif", fmt="double", overwrite=False, verbose="ERROR")


def from_braindecode(
    windows_dataset: Any,
    out: str | Path,
    *,
    subject: str = "subject",
    groups: str | None = None,
    mapping: Mapping[Any, int] | None = None,
    kind: Kind | None = None,
    name: str | None = None,
    unit: str = "V",
    crop: float | None = None,
    dtype: str = "float32",
    metric: str | None = None,
    progress: Progress = no_progress,
) -> WindowStore:
    """Write a store of the windows of a data set of braindecode.

    Windows are read one after the other, so the data set may be lazy. EEG channels are used. The recording of each
    window and its onset are kept.

    Parameters
    ----------
    windows_dataset
        A ``BaseConcatDataset`` of windows, as ``create_windows_from_events`` and the like return.
    out
        Folder for the store: new, empty, or a store made with the same settings.
    subject
        Field of the descriptions that names the subject.
    groups
        Field of the descriptions with the group of each subject, such as a site.
    mapping
        The mapping that braindecode was given from names of classes to its targets. Default: targets are the names.
    kind, name, unit, crop, dtype, metric
        See `from_arrays`. Windows are in volts unless a preprocessor has scaled them.
    progress
        Called with the windows done, their total and a short text.

    Returns
    -------
    WindowStore
        The windows with their targets. Its ``where`` is the folder.

    Raises
    ------
    UserError
        It is no such data set, recordings differ in channels or sampling rate, or as `from_arrays`.
    DiskFullError
        The disk is full.
    """
    parts = [
        _Recorded(part, number) for number, part in enumerate(getattr(windows_dataset, "datasets", [windows_dataset]))
    ]
    if not parts:
        raise UserError("from_braindecode: the data set is empty")
    first = parts[0]
    for part in parts[1:]:
        if (part.channels, part.sfreq) != (first.channels, first.sfreq):
            raise UserError(
                f"recording {part.number} has {len(part.channels)} EEG channels at {part.sfreq:g} Hz, the first one "
                f"{len(first.channels)} at {first.sfreq:g} Hz; all need the same ones"
            )
    names = {code: label for label, code in (mapping or {}).items()}
    y = [names.get(value, value) for part in parts for value in part.targets()]
    who = [part.described(subject) for part in parts]
    recordings = _recordings(parts, who)
    sizes = [len(part) for part in parts]
    stored: dict[str, Any] = {"crop": crop, "dtype": dtype, "metric": metric, "progress": progress}
    return store_of_arrays(
        "braindecode",
        chain.from_iterable(part.blocks() for part in parts),
        y,
        _repeat(who, sizes),
        sfreq=first.sfreq,
        ch_names=first.channels,
        out=out,
        groups=None if groups is None else _repeat([part.described(groups) for part in parts], sizes),
        recording=_repeat(recordings, sizes),
        onset=np.concatenate([part.onsets() for part in parts]),
        kind=kind,
        name=name,
        unit=unit,
        **stored,
    )


def _repeat(values: Sequence[Any], sizes: Sequence[int]) -> list[Any]:
    return [value for value, n in zip(values, sizes, strict=True) for _ in range(n)]


def _recordings(parts: Sequence[_Recorded], who: Sequence[Any]) -> list[str]:
    """Return the name of each part's recording, which differs from those of the subject's other ones."""
    names = [part.recording for part in parts]
    uses = Counter(zip(who, names, strict=True))
    return [
        name if uses[each, name] == 1 else f"{name}_part-{part.number}".lstrip("_")
        for part, name, each in zip(parts, names, who, strict=True)
    ]


class _Recorded:
    """The windows of one recording in a data set of braindecode.

    Raises
    ------
    UserError
        It is no such thing, or its targets are channels.
    """

    def __init__(self, part: Any, number: int) -> None:
        import mne

        holder = getattr(part, "windows", None) or getattr(part, "raw", None)
        if holder is None or not hasattr(part, "metadata") or not hasattr(part, "description"):
            raise UserError(f"from_braindecode: a {type(part).__name__} holds no windows; cut it into windows first")
        if getattr(part, "targets_from", "metadata") != "metadata":
            raise UserError("from_braindecode: its targets are channels; a window needs one target")
        self._part, self.number = part, number
        self._picks = mne.pick_types(holder.info, eeg=True, exclude=[])
        self.channels = [holder.ch_names[pick] for pick in self._picks]
        self.sfreq = float(holder.info["sfreq"])

    def __len__(self) -> int:
        return len(self._part)

    def targets(self) -> list[Any]:
        """Return the target of each window."""
        metadata = self._part.metadata
        return list(metadata["target"]) if "target" in metadata else list(self._part.y)

    def onsets(self) -> NDArray[np.float64]:
        """Return the start of each window in its recording (s)."""
        return np.asarray(self._part.metadata["i_start_in_trial"], np.float64) / self.sfreq

    def described(self, field: str) -> Any:
        """Return a field of the description."""
        found = self._part.description
        if found is None or field not in found:
            there = [] if found is None else list(found.keys())
            raise UserError(f"recording {self.number}: its description has no '{field}'; {nearest(field, there)}")
        return found[field]

    @property
    def recording(self) -> str:
        """Return the session and the run that the description names."""
        found = {} if self._part.description is None else dict(self._part.description)
        words = {key: found.get(name) for key, name in (("ses", "session"), ("run", "run"))}
        return "_".join(f"{key}-{value}" for key, value in words.items() if value not in (None, ""))

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield the windows in the unit of the data set, (n, C, T)."""
        if not len(self):
            return
        step = max(1, BLOCK_BYTES // (8 * max(1, np.asarray(self._part[0][0]).size)))
        for start in range(0, len(self), step):
            rows = range(start, min(start + step, len(self)))
            yield np.stack([np.asarray(self._part[row][0])[self._picks] for row in rows])
