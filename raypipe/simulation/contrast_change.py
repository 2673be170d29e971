"""Simulated EEG with a known answer, in the shape of HBN-EEG's contrast-change detection (BIDS, BDF)."""

from __future__ import annotations

import json
import math
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import UserError, disk_full
from raypipe.core.progress import Progress
from raypipe.data.challenge import CONTRAST_TASK
from raypipe.simulation.signal import Trial, signal
from raypipe.storage.files import PARTIAL_SUFFIX, write_atomic

Array = NDArray[np.float64]

RT_MEAN, RT_BETWEEN, RT_WITHIN = 1.598, 0.214, 0.347
"""Response times (s): mean, SD between and within subjects, as measured on all 116,149 usable trials of HBN-EEG."""
RT_RANGE = (0.2, 2.5)
FACTOR = (0.04, 0.73)
"""Mean and SD of the externalizing factor in HBN-EEG."""

_BLOCKS = (94, 95, 96)
LEAD, _TAIL, _GAP = 2.0, 4.0, 2.6
_MICROVOLT = 1000
"""Digital steps per microvolt."""
_SPAN = 8_000_000


@dataclass(frozen=True)
class _Design:
    channels: int
    trials: int
    runs: int
    sfreq: float
    seed: int
    null: bool


@dataclass(frozen=True)
class Template:
    """A real run's events, and its trials: start, stimulus (s) and response time (s; NaN where there is none)."""

    text: str
    trials: tuple[tuple[float, float, float], ...]


def simulate(
    out: str | Path,
    *,
    subjects: int = 24,
    channels: int = 129,
    trials: int = 24,
    runs: int = 1,
    sfreq: float = 100,
    seed: int = 0,
    null: bool = False,
    prefix: str = "",
    release: str = "SIM",
    templates: Sequence[Template] = (),
    progress: Progress | None = None,
) -> Path:
    """Write a BIDS folder of simulated subjects.

    The response time of a trial is the latency of a centro-parietal positivity that builds up to the button press
    (after O'Connell et al. 2012, doi:10.1038/nn.3248) and of a lateralised motor potential; the participant's
    `externalizing` factor sets the power of frontal theta. Both sit on 1/f activity, occipital alpha and sensor noise.
    The last channel is the flat reference ``Cz``. Events, their codes and participants.tsv follow HBN-EEG.

    Parameters
    ----------
    out
        Folder: new, empty, or one that was begun with the same arguments and is then completed.
    subjects, channels, trials, runs
        How many; trials are per run, and nineteen in twenty have a response.
    sfreq
        Hz.
    seed
        Subject k is the same for any number of subjects.
    null
        Draw response times and factors apart from the EEG, so that nothing can be predicted.
    prefix, release
        Before every subject's label, and in participants.tsv.
    templates
        Events of real runs, taken in turn; none for simulated ones.
    progress
        Called as ``progress(subjects done, subjects in all, text)``.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    UserError
        An argument is out of range, or the folder holds something else.
    DiskFullError
        No room is left; finished subjects are kept.

    Notes
    -----
    Measured with the defaults, by a ridge regression on 10 principal components of the task's windows at 10 Hz, six
    subjects left out at a time: NRMSE 0.61, and 1.01 with `null`. 24 subjects are 95 MB.
    """
    _check(subjects=subjects, channels=channels - 1, trials=trials, runs=runs)
    if runs > len(_BLOCKS):
        raise UserError(f"runs {runs}: the task has at most {len(_BLOCKS)}")
    if not sfreq >= 50:
        raise UserError(f"sfreq {sfreq:g}: must be at least 50 Hz")
    if sfreq != round(sfreq):
        raise UserError(f"sfreq {sfreq:g}: must be a whole number of Hz, as a BDF record of one second wants")
    if seed < 0:
        raise UserError(f"seed {seed}: must not be negative")
    design = _Design(channels, trials, runs, float(sfreq), seed, null)
    folder = Path(out).expanduser().absolute()
    _claim(folder, design)
    rows = []
    for number in range(subjects):
        rng = np.random.default_rng([seed, number])
        factors = rng.normal(*FACTOR, size=2)
        name = f"sub-{prefix}SIM{number:04d}"
        if not (folder / name).is_dir():
            template = templates[number % len(templates)] if templates else None
            _write_subject(folder, name, design, rng, float(factors[0]), template)
        rows.append(_participant(name, design, float(factors[1 if null else 0]), number, release))
        if progress:
            progress(number + 1, subjects, name)
    header = list(rows[0])
    lines = ["\t".join(header), *("\t".join(row[column] for column in header) for row in rows)]
    _write_text(folder / "participants.tsv", "\n".join(lines) + "\n")
    return folder


def _check(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"{name}: too few; needs at least {2 if name == 'channels' else 1}")


def _claim(folder: Path, design: _Design) -> None:
    path = folder / "dataset_description.json"
    description = {
        "Name": "Simulated contrast-change detection",
        "BIDSVersion": "1.9.0",
        "DatasetType": "raw",
        "License": "CC0",
        "GeneratedBy": [{"Name": "raypipe simulate", "Parameters": asdict(design)}],
    }
    if path.is_file():
        try:
            (made,) = json.loads(path.read_bytes())["GeneratedBy"]
            before = made["Parameters"] if made["Name"] == "raypipe simulate" else None
        except (ValueError, KeyError, TypeError):
            before = None
        if before is None:
            raise UserError(f"{folder}: holds a data set that raypipe did not simulate; choose another folder")
        if before != asdict(design):
            name = next(k for k, v in asdict(design).items() if before.get(k) != v)
            raise UserError(
                f"{folder}: was simulated with {name} {before.get(name)}, not {getattr(design, name)}; choose another "
                "folder"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is not an empty folder; choose another")
    _write_text(path, json.dumps(description, indent=1) + "\n")


def _write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda file: file.write(text.encode()))


def _participant(name: str, design: _Design, factor: float, number: int, release: str) -> dict[str, str]:
    rng = np.random.default_rng([design.seed, number, 1])
    others = rng.normal(0, 0.8, size=3)
    return {
        "participant_id": name,
        "release_number": release,
        "sex": "FM"[int(rng.integers(2))],
        "age": f"{rng.uniform(5, 21):.4f}",
        "ehq_total": f"{rng.uniform(-100, 100):.2f}",
        "commercial_use": "Yes",
        "full_pheno": "Yes",
        "p_factor": f"{others[0]:.3f}",
        "attention": f"{others[1]:.3f}",
        "internalizing": f"{others[2]:.3f}",
        "externalizing": f"{factor:.3f}",
    } | {
        f"{CONTRAST_TASK}_{run}": "available" if run <= design.runs else "unavailable"
        for run in range(1, len(_BLOCKS) + 1)
    }


def _write_subject(
    folder: Path, name: str, design: _Design, rng: np.random.Generator, factor: float, template: Template | None
) -> None:
    """Write all files of a subject into a folder that gets its name once it is complete."""
    for left in folder.glob(f".{name}.*{PARTIAL_SUFFIX}"):
        shutil.rmtree(left)
    temporary = folder / f".{name}.{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}"
    mean_rt, severed_mean = rng.normal(RT_MEAN, RT_BETWEEN, size=2)
    try:
        for run in range(1, design.runs + 1):
            if template is None:
                times = _trials(design, rng, float(mean_rt), float(severed_mean))
            else:
                times = _trials_like(template, design, rng, float(severed_mean))
            seconds = math.ceil(times[-1].stimulus + _GAP + _TAIL)
            apart = factor - FACTOR[0]
            x_CT = signal(rng, times, apart, channels=design.channels, sfreq=design.sfreq, seconds=seconds)
            stem = temporary / "eeg" / f"{name}_task-{CONTRAST_TASK}_run-{run}_"
            _write_bdf(Path(f"{stem}eeg.bdf"), x_CT, design)
            _write_text(Path(f"{stem}events.tsv"), template.text if template else _events(times, _BLOCKS[run - 1]))
            _write_text(Path(f"{stem}channels.tsv"), _channels(design))
            sidecar = {
                "TaskName": CONTRAST_TASK,
                "EEGReference": "Cz",
                "EEGChannelCount": design.channels,
                "SamplingFrequency": design.sfreq,
                "PowerLineFrequency": 60,
                "SoftwareFilters": "n/a",
                "RecordingType": "continuous",
                "RecordingDuration": x_CT.shape[1] / design.sfreq,
            }
            _write_text(Path(f"{stem}eeg.json"), json.dumps(sidecar, indent=1) + "\n")
        temporary.rename(folder / name)
    except OSError as error:
        raise disk_full(error, folder) or error from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _trials(design: _Design, rng: np.random.Generator, mean: float, severed_mean: float) -> list[Trial]:
    times = []
    clock = LEAD
    for _ in range(design.trials):
        rt = _draw_rt(rng, mean)
        severed = _draw_rt(rng, severed_mean)
        stimulus = clock + float(rng.choice([1.0, 1.2, 1.4]))
        times.append(
            Trial(
                start=clock,
                stimulus=stimulus,
                rt=rt,
                shown_rt=severed if design.null else rt,
                side=int(rng.integers(2)),
                pressed=bool(rng.random() < 0.95),
            )
        )
        clock = stimulus + _GAP + float(rng.uniform(0, 0.3))
    return times


def _trials_like(template: Template, design: _Design, rng: np.random.Generator, mean: float) -> list[Trial]:
    """A real run's trials; what is evoked follows its response times or, where the link is severed, other ones."""
    times = []
    for start, stimulus, rt in template.trials:
        severed, side, pressed = _draw_rt(rng, mean), int(rng.integers(2)), math.isfinite(rt)
        evoked = severed if design.null or not pressed else rt
        times.append(Trial(start=start, stimulus=stimulus, rt=evoked, shown_rt=rt, side=side, pressed=pressed))
    return times


def _draw_rt(rng: np.random.Generator, mean: float) -> float:
    while True:
        rt = float(rng.normal(mean, RT_WITHIN))
        if RT_RANGE[0] < rt < RT_RANGE[1]:
            return rt


def _names(design: _Design) -> list[str]:
    return [*(f"E{i + 1}" for i in range(design.channels - 1)), "Cz"]


def _write_bdf(path: Path, x_CT: Array, design: _Design) -> None:
    from edfio import Bdf, BdfSignal

    digital = np.clip(np.round(x_CT * _MICROVOLT), -_SPAN, _SPAN).astype(np.int32)
    signals = [
        BdfSignal.from_digital(
            row,
            design.sfreq,
            label=name,
            physical_dimension="uV",
            physical_range=(-_SPAN / _MICROVOLT, _SPAN / _MICROVOLT),
            digital_range=(-_SPAN, _SPAN),
        )
        for name, row in zip(_names(design), digital, strict=True)
    ]
    bdf = Bdf(signals, data_record_duration=1)
    write_atomic(path, bdf.write)


def _channels(design: _Design) -> str:
    return "name\ttype\tunits\n" + "".join(f"{name}\tEEG\tuV\n" for name in _names(design))


def _events(times: list[Trial], block: int) -> str:
    rows: list[tuple[float, str, Any, str]] = [
        (LEAD / 2, f"contrastChangeB{_BLOCKS.index(block) + 1}_start", block, "n/a")
    ]
    for trial in times:
        side = ("left", "right")[trial.side]
        rows.append((trial.start, "contrastTrial_start", 5, "n/a"))
        rows.append((trial.stimulus, f"{side}_target", 8 + trial.side, "n/a"))
        if trial.pressed:
            rows.append((trial.stimulus + trial.shown_rt, f"{side}_buttonPress", 12 + trial.side, "smiley_face"))
    rows.append((times[-1].stimulus + _GAP + 0.4, "contrastTrial_start", 5, "n/a"))
    rows.sort(key=lambda row: row[0])
    lines = [f"{onset:.3f}\tn/a\t{value}\t{code}\t{feedback}" for onset, value, code, feedback in rows]
    return "onset\tduration\tvalue\tevent_code\tfeedback\n" + "\n".join(lines) + "\n"
