"""Predict windows that are given, as arrays or as MNE epochs, instead of cut from recordings."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from raypipe.core.errors import UserError, nearest
from raypipe.core.progress import Progress
from raypipe.data.arrays import array_blocks, in_microvolts, unit_in_volts
from raypipe.data.epochs import subjects_of
from raypipe.data.epochs_files import EpochsSource, find_epochs, is_epochs
from raypipe.data.epochs_target import DROPPED
from raypipe.data.given_subjects import read_subjects, recording_keys
from raypipe.data.given_windows import check_channel_names, given_recording
from raypipe.data.plan import RATE_TOLERANCE
from raypipe.data.preprocessing import flags
from raypipe.data.targets import parse_target
from raypipe.data.windower import MISSING_SAMPLES
from raypipe.packaging.bundle import LoadedEnsemble
from raypipe.packaging.challenge_windows import shown_from
from raypipe.packaging.roles import UNKNOWN, role_of
from raypipe.packaging.scale_check import FLAT, has_other_scale

NOT_APPLIED = "the given windows are taken as they are, so they must have had what the bundle's data had: {}"
AT_EVENTS = ("epochs", "moabb")
"""Targets of given windows that are at events, by their beginning; arrays have no such time."""
_EPOCHS_FILE = re.compile(r"[-_]epo(?:-\d+)?\.fif(?:\.gz)?$", re.IGNORECASE)


@dataclass(frozen=True)
class WindowFacts:
    """What arrays do not say of themselves."""

    subject: str | ArrayLike | None = None
    ch_names: Sequence[str] | None = None
    sfreq: float | None = None
    unit: str = "V"

    def check_unused(self) -> None:
        """Check that nothing is said of recordings, which say it themselves.

        Raises
        ------
        UserError
            Something is.
        """
        for name, default in (("subject", None), ("ch_names", None), ("sfreq", None), ("unit", "V")):
            value = getattr(self, name)
            if value is not default and not (isinstance(value, str) and value == default):
                raise UserError(f"{name}: recordings say it themselves; it is for arrays and epochs")


class _Block(NamedTuple):
    """Consecutive windows of one source."""

    keys: list[str]
    subjects: list[str]
    """Empty text for those that are not known."""
    onsets: list[float]
    samples: NDArray[np.float32]
    """(n, C, T) in microvolts, with the channels of the bundle."""


def holds_windows(given: object, is_path_to_epochs: bool) -> bool:
    """Return whether arrays or epochs are given, not recordings.

    Parameters
    ----------
    is_path_to_epochs
        Take any path for one to files of epochs; otherwise only those that end as MNE's do.
    """
    if isinstance(given, str | Path):
        return not Path(given).is_dir() and (is_path_to_epochs or bool(_EPOCHS_FILE.search(str(given))))
    return True


def predict_windows(
    ensemble: LoadedEnsemble,
    given: Any,
    facts: WindowFacts,
    level: str,
    progress: Progress | None,
) -> pd.DataFrame:
    """Return the table of predictions; see `raypipe.packaging.predict.predict`.

    Raises
    ------
    UserError
        Windows do not fit the bundle, or there is none.
    """
    by_store = isinstance(given, Mapping)
    ensemble.require_one_store("raypipe.predict" if by_store else "an array, or a set of epochs,")
    if by_store:
        names = ", ".join(map(str, given)) or "no store"
        raise UserError(f"windows of {names}: this bundle has one store; give an array")
    if align := ensemble.info.prepare.preprocessing.align:
        raise UserError(f"this bundle aligns the windows of each {align}, so it predicts recordings only")
    left_out: defaultdict[str, Counter[str]] = defaultdict(Counter)
    blocks, total = _blocks(ensemble, given, facts, left_out)
    parts: list[pd.DataFrame] = []
    spreads: defaultdict[str, list[float]] = defaultdict(list)
    done = 0
    for block in blocks:
        table = _predict_block(ensemble, block, left_out, spreads)
        parts.append(table)
        done += len(block.keys)
        if progress:
            progress(done, total or done, block.keys[-1])
    if not sum(map(len, parts)):
        reasons = "; ".join(f"{key}: {n} {what}" for key, lost in left_out.items() for what, n in lost.items())
        raise UserError(f"no window to predict{f' ({reasons})' if reasons else ''}")
    _check_scales(ensemble, spreads)
    found = pd.concat(parts, ignore_index=True)
    if level == "recording":
        found = _means(ensemble, found)
    found.attrs["left_out"] = {
        key: ", ".join(f"{n} {what}" for what, n in lost.items()) for key, lost in left_out.items() if +lost
    }
    if steps := flags(ensemble.info.prepare.preprocessing):
        found.attrs["not_applied"] = NOT_APPLIED.format(" ".join(steps))
    return found


def _blocks(
    ensemble: LoadedEnsemble, given: Any, facts: WindowFacts, left_out: defaultdict[str, Counter[str]]
) -> tuple[Iterator[_Block], int | None]:
    """Return windows in blocks, and their number where it is known; what epochs lost is added to `left_out`."""
    if _are_epochs(given):
        return _epochs_blocks(ensemble, find_epochs(given), facts, left_out)
    return _array_blocks(ensemble, given, facts)


def _are_epochs(given: object) -> bool:
    if isinstance(given, list | tuple) and given:
        return all(is_epochs(each) or isinstance(each, str | Path) for each in given)
    return is_epochs(given) or isinstance(given, str | Path)


def _array_blocks(ensemble: LoadedEnsemble, given: Any, facts: WindowFacts) -> tuple[Iterator[_Block], int | None]:
    if facts.sfreq is not None:
        _check_rate(ensemble, facts.sfreq, "sfreq")
    names = list(ensemble.channels if facts.ch_names is None else facts.ch_names)
    check_channel_names(names)
    picks = _picks(ensemble, names, "ch_names")
    if isinstance(facts.subject, str):
        raise UserError(f"subject '{facts.subject}': for arrays, give the subject of each window")
    subjects = None if facts.subject is None else read_subjects(facts.subject)
    keys = None if subjects is None else recording_keys(subjects, None)
    total = None if keys is None else len(keys)
    samples = in_microvolts(array_blocks(given, total), names, unit_in_volts(facts.unit))
    total = total or (given.shape[0] if hasattr(given, "shape") else None)
    return _labelled(samples, keys, subjects, picks, ensemble.sfreq), total


def _labelled(
    samples: Iterable[NDArray[np.float32]],
    keys: list[str] | None,
    subjects: list[str] | None,
    picks: list[int],
    sfreq: float,
) -> Iterator[_Block]:
    seen: Counter[str] = Counter()
    done = 0
    for x_NCT in samples:
        stop = done + len(x_NCT)
        if keys is not None and stop > len(keys):
            raise UserError(f"X holds more windows than subject has values ({len(keys)})")
        own = ["arrays"] * len(x_NCT) if keys is None else keys[done:stop]
        onsets = []
        for key in own:
            onsets.append(seen[key] * x_NCT.shape[2] / sfreq)
            seen[key] += 1
        yield _Block(own, [""] * len(own) if subjects is None else subjects[done:stop], onsets, x_NCT[:, picks])
        done = stop
    if keys is not None and done < len(keys):
        raise UserError(f"X holds {done} windows, subject has {len(keys)} values: both need one per window")


def _epochs_blocks(
    ensemble: LoadedEnsemble,
    sources: list[EpochsSource],
    facts: WindowFacts,
    left_out: defaultdict[str, Counter[str]],
) -> tuple[Iterator[_Block], int]:
    for name in ("ch_names", "sfreq"):
        if getattr(facts, name) is not None:
            raise UserError(f"{name}: epochs say it themselves; it is for arrays")
    for source in sources:
        _check_rate(ensemble, source.facts.sfreq, source.name)
        _picks(ensemble, source.facts.channels, source.name)
        _check_start(ensemble, source)
        dropped = {DROPPED.format(reason): n for reason, n in source.facts.dropped.items()}
        left_out[source.name] += Counter(dropped)
    people = [_people(source, facts.subject, len(sources)) for source in sources]
    return _read_epochs(ensemble, sources, people), sum(map(len, people))


def _people(source: EpochsSource, subject: Any, n_sources: int) -> list[str]:
    """Return the subject of each epoch: as is said, else by the usual column or the file's name, else empty text."""
    if subject is not None:
        return subjects_of(source, subject, n_sources)
    for usual in ("metadata:subject", "filename:sub"):
        try:
            return subjects_of(source, usual, n_sources)
        except UserError:
            continue
    return [""] * len(source.facts.onsets)


def _read_epochs(ensemble: LoadedEnsemble, sources: list[EpochsSource], people: list[list[str]]) -> Iterator[_Block]:
    for source, who in zip(sources, people, strict=True):
        known = recording_keys([each or "unknown" for each in who], [source.recording] * len(who))
        keys = [key if each else source.recording or source.name for key, each in zip(known, who, strict=True)]
        done = 0
        for x_NCT in source.read(np.arange(len(who)), ensemble.channels):
            part = slice(done, done + len(x_NCT))
            x_NCT = (x_NCT * 1e6).astype(np.float32)
            yield _Block(keys[part], who[part], source.facts.onsets[part].tolist(), x_NCT)
            done += len(x_NCT)


def _check_rate(ensemble: LoadedEnsemble, sfreq: float, where: str) -> None:
    if not abs(sfreq - ensemble.sfreq) <= RATE_TOLERANCE * ensemble.sfreq:
        raise UserError(
            f"{where}: {sfreq:.12g} Hz; the bundle was trained on {ensemble.sfreq:.12g} Hz, so resample first"
        )


def _check_start(ensemble: LoadedEnsemble, source: EpochsSource) -> None:
    """Check that epochs begin as long after their events as the windows that the bundle was trained on."""
    plan, facts = ensemble.info.prepare, source.facts
    if not (parse_target(plan).event_locked or plan.target.partition(":")[0] in AT_EVENTS):
        return
    begins = {plan.crop_samples: shown_from(plan), plan.window_samples: plan.tmin}.get(facts.samples)
    if begins is not None and abs(facts.tmin - begins) > 0.5 / plan.sfreq:
        raise UserError(
            f"{source.name}: begins {facts.tmin:g} s after the event; the bundle was trained on windows from "
            f"{begins:g} s on, so cut them there in MNE"
        )


def _picks(ensemble: LoadedEnsemble, names: Sequence[str], where: str) -> list[int]:
    """Return the places of the bundle's channels."""
    for name in ensemble.channels:
        if name not in names:
            raise UserError(f"{where}: no EEG channel '{name}', which the bundle needs; {nearest(name, names)}")
    return [list(names).index(name) for name in ensemble.channels]


def _predict_block(
    ensemble: LoadedEnsemble,
    block: _Block,
    left_out: defaultdict[str, Counter[str]],
    spreads: defaultdict[str, list[float]],
) -> pd.DataFrame:
    x_NCT = _crop(ensemble, block.samples)
    is_whole_N = np.isfinite(x_NCT).all(axis=(1, 2))
    for place in np.flatnonzero(~is_whole_N).tolist():
        left_out[block.keys[place]][MISSING_SAMPLES] += 1
    kept = np.flatnonzero(is_whole_N).tolist()
    predictions = ensemble.predict(x_NCT[is_whole_N]).astype(float)
    for place, spread in zip(kept, np.median(x_NCT[is_whole_N].std(axis=2), axis=1).tolist(), strict=True):
        spreads[block.keys[place]].append(spread)
    known = {key: _known(ensemble, key, who) for key, who in zip(block.keys, block.subjects, strict=True)}
    rows = [known[block.keys[place]] | {"onset": block.onsets[place]} for place in kept]
    table = pd.DataFrame(rows, columns=["recording", "subject", "session", "task", "run", "onset", "role"])
    return with_predictions(ensemble, table, predictions)


def with_predictions(ensemble: LoadedEnsemble, table: pd.DataFrame, predictions: NDArray[Any]) -> pd.DataFrame:
    """Add the columns of predictions (N, outputs) to a table, and return it."""
    table[ensemble.columns] = predictions
    if ensemble.classes:
        table["prediction"] = ensemble.decide(predictions)
    return table


def _known(ensemble: LoadedEnsemble, key: str, who: str) -> dict[str, str]:
    """Return what a row says of its recording; `who` is empty for an unknown subject."""
    recording = given_recording(key, who)
    return {
        "recording": recording.key,
        "subject": who,
        "session": recording.session or "",
        "task": recording.task or "",
        "run": recording.run or "",
        "role": role_of(ensemble, recording) if who else UNKNOWN,
    }


def _crop(ensemble: LoadedEnsemble, x_NCT: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what the networks see of windows: the middle of whole ones, or all of those that have its length."""
    info, samples = ensemble.info, x_NCT.shape[2]
    if samples not in (info.window_samples, info.n_times):
        lengths = " or ".join(str(n) for n in sorted({info.n_times, info.window_samples}))
        raise UserError(f"windows of {samples} samples: the bundle takes {lengths} samples at {ensemble.sfreq:g} Hz")
    start = (samples - info.n_times) // 2
    return x_NCT[:, :, start : start + info.n_times]


def _check_scales(ensemble: LoadedEnsemble, spreads: dict[str, list[float]]) -> None:
    """Check that samples are of the scale of those that the bundle was trained on."""
    usual = ensemble.info.scale
    for key, own in spreads.items():
        scale = float(np.median(own))
        if has_other_scale(usual, scale):
            hint = "arrays and epochs are in volts (unit='uV' says otherwise of arrays)" if scale else FLAT
            raise UserError(
                f"{key}: its samples spread over {scale:.3g} uV, those that the bundle was trained on over {usual:.3g} "
                f"uV; {hint}"
            )


def _means(ensemble: LoadedEnsemble, table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per recording: the mean prediction of its windows."""
    by = table.groupby("recording", sort=False)
    means = by.first()[["subject", "session", "task", "run"]].assign(windows=by.size())
    means["role"] = by["role"].first()
    return with_predictions(ensemble, means.reset_index(), by[ensemble.columns].mean().to_numpy())
