"""Check a store of windows, a run, a pretrained run, a bundle or a storage.

Nothing is changed. On a storage behind a URI, one small file is written and removed.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from raypipe.cli.machine import Finding
from raypipe.cli.windows_checks import check_run_windows, check_windows
from raypipe.core.errors import CheckpointError, DamagedFileError, UserError, first_line
from raypipe.core.folds import LeakError
from raypipe.core.options import parse_options, parse_pretrain_options
from raypipe.data.manifest import MANIFEST, SETTINGS
from raypipe.data.window_cache import open_windows
from raypipe.ensembles.evaluation_log import EVALUATION_LOG, read_evaluations
from raypipe.ensembles.fitted import ARRAYS, RECORD, Ensemble
from raypipe.packaging.bundle import load_ensemble
from raypipe.pretraining.encoders import PretrainedRun, encoder_files
from raypipe.pretraining.reconcile import differences
from raypipe.search.points import read_points
from raypipe.search.reconcile import study_difference
from raypipe.search.reruns import read_reruns
from raypipe.storage.files import Folder, open_folder
from raypipe.storage.journal import JOURNAL_FILE
from raypipe.storage.lease import DRIVER_FILE, read_driver, read_lease
from raypipe.storage.outer_run import OuterRun
from raypipe.storage.records import OPTIONS_FILE, OUTER_FILE, PRETRAIN_FILE, RUN_FILE, read_options
from raypipe.storage.remote import RemoteFolder, without_settings
from raypipe.storage.remote_retry import RetryPolicy
from raypipe.storage.run_layout import misplaced
from raypipe.storage.run_store import RunStore
from raypipe.storage.trial_records import TrialRecords, read_trials
from raypipe.trial.autotune import ComputePlan
from raypipe.trial.evaluator import read_fold_checkpoint
from raypipe.trial.failures import read_retry

STORAGE_TIMEOUT_SECONDS = 10.0
"""Time for which operations on a storage are retried before it counts as unreachable."""


def diagnose(target: str | Path) -> Iterator[Finding]:
    """Check what is at a path or URI.

    Yields
    ------
    Finding
        One per check, as each is done. Reading a large store takes a while.
    """
    where = str(target)
    try:
        if "://" in where:
            folder: Folder = RemoteFolder(where, retry=RetryPolicy(without_settings(where), STORAGE_TIMEOUT_SECONDS))
            yield reachable(folder)
        else:
            folder = open_folder(where)
        if folder.exists(RUN_FILE) or os.path.lexists(Path(where) / RUN_FILE):
            yield from _run(where)
        elif folder.exists(OUTER_FILE):
            yield from _outer(where)
        elif folder.exists(PRETRAIN_FILE):
            yield from _pretrained(where)
        elif folder.exists("bundle.json"):
            bundle = load_ensemble(where)
            yield Finding(
                "ok",
                f"{without_settings(where)}: an intact bundle: {bundle.info.target}, {len(bundle.info.members)} models",
            )
        elif folder.exists(MANIFEST) or folder.exists(SETTINGS):
            yield from check_windows(open_windows(where))
        elif "://" not in where:
            there = "not a store, run, pretrained run or bundle" if Path(where).exists() else "no such folder"
            yield Finding("broken", f"{where}: {there}", "name what raypipe prepare, sweep, pretrain or export wrote")
    except (UserError, LeakError) as error:
        yield Finding("broken", first_line(error))
    except OSError as error:
        what = f"cannot be read ({error.strerror or type(error).__name__})"
        yield Finding("broken", f"{error.filename or where}: {what}", "restore it from a copy")


def reachable(folder: Folder) -> Finding:
    """Write a small file to a storage, read it back and remove it.

    Raises
    ------
    UserError
        The storage cannot be reached, or denies access.
    """
    name, content = f"doctor-{uuid.uuid4().hex}.txt", uuid.uuid4().bytes
    started = time.perf_counter()
    folder.write(name, content)
    back = folder.read(name)
    took = time.perf_counter() - started
    folder.remove(name)
    if back != content:
        return Finding(
            "broken",
            f"{without_settings(folder.where)}: returns other bytes than were written",
            "use another storage",
        )
    return Finding(
        "ok", f"{without_settings(folder.where)}: can be written, read and listed ({1000 * took:.0f} ms for a file)"
    )


def _outer(where: str) -> Iterator[Finding]:
    """Check an outer cross-validation, and the run of each part that is begun."""
    outer = OuterRun(where)
    outer.read_space()
    windows = open_windows(outer.info.data)
    known, named = sorted(set(windows.subjects.tolist())), sorted(name for part in outer.info.parts for name in part)
    if known == named:
        yield Finding("ok", f"{without_settings(where)}: {len(outer.info.parts)} parts hold out every subject once")
    else:
        yield Finding("broken", f"{without_settings(where)}: its parts do not hold out every subject of the data once")
    for run in outer.runs:
        yield from _run(run.where)


def _run(where: str) -> Iterator[Finding]:
    if lines := misplaced(open_folder(where)):  # nothing below a link is read
        yield from (Finding("broken", *_line_and_fix(line)) for line in lines)
        return
    run = RunStore.open(where)
    numbers = run.numbers()
    yield Finding("ok", f"{run.where}: original fold map and search space; {len(numbers)} trials")
    yield from _driver(run)
    driver = read_lease(run.folder)
    if driver and not driver.alive and not driver.ended:
        yield Finding("warning", f"its driver (process {driver.pid} on {driver.host}) died", "raypipe resume RUN")
    settings = list(_settings(run))
    yield from settings
    trials, problems = read_trials(run)
    damaged = run.verify()
    for line in dict.fromkeys([*problems, *damaged.values()]):
        yield Finding("broken", *_line_and_fix(line))
    if not damaged and not problems:
        yield Finding("ok", "the records of its trials agree, and the files of ended trials match their checksums")
    if foreign := run.foreign():
        yield Finding("warning", f"{run.where}/{foreign[0]}: not a file of raypipe's ({len(foreign)} such); not read")
    yield from _initial(run)
    if not problems and not settings:
        yield from _study(run, trials)
    yield from _checkpoints(run, trials)
    yield from _ensemble(run)
    yield from check_run_windows(run, whole=not damaged)


def _driver(run: RunStore) -> Iterator[Finding]:
    """Check the record of the last driver, which has the time and the GPU-hours that the run has used."""
    try:
        driver = read_driver(run.folder, run.run_id)
    except UserError as error:
        yield Finding("broken", *_line_and_fix(str(error)))
        return
    if driver is None and run.recorded():
        fix = "raypipe resume counts the time spent from the records of the trials, without idle time"
        yield Finding("warning", f"{run.where}/{DRIVER_FILE}: missing", fix)


def _ensemble(run: RunStore) -> Iterator[Finding]:
    """Check the ensemble, and the log of scorings of held-out people."""
    try:
        scored = len(read_evaluations(run))
        if not Ensemble.exists(run):
            if run.folder.exists(ARRAYS):
                fix = "restore it from a copy, or fit the ensemble again with: raypipe ensemble RUN"
                yield Finding("broken", f"{run.where}/{RECORD}: missing", fix)
            return
        fitted = Ensemble.load(run)
        if scored == 0:
            times = f"missing, and the ensemble reports {fitted.held_out_evaluations} scoring(s) of held-out people"
            fix = "restore it from a copy; the next ensemble counts on from there"
            yield Finding("broken", f"{run.where}/{EVALUATION_LOG}: {times}", fix)
        yield Finding("ok", f"its ensemble can be read: {fitted.method}, {len(fitted.trials)} trial(s)")
    except UserError as error:
        yield Finding("broken", *_line_and_fix(str(error)))


def _initial(run: RunStore) -> Iterator[Finding]:
    if run.info.init is None:
        return
    try:
        for fold in range(run.folds.n_folds):
            run.encoder(fold)
    except UserError as error:
        yield Finding("broken", str(error))
    else:
        yield Finding("ok", "the pretrained encoders of the run are intact")


def _settings(run: RunStore) -> Iterator[Finding]:
    """Read the small records of a run that are not a trial's: options, reruns, points, and choices of algorithms."""
    try:
        options = read_options(run.folder, run.run_id)
        parse_options(options)
        if not options and run.numbers():
            yield Finding("broken", f"{run.where}/{OPTIONS_FILE}: missing", "give the same raypipe sweep command again")
        read_reruns(run)
        read_points(run)
        for number in run.numbers():
            read_retry(run, number)
        for name in run.folder.names("compute"):
            if name.endswith(".json"):
                run.compute(ComputePlan, name.removeprefix("compute/").removesuffix(".json"))
    except UserError as error:
        yield Finding("broken", *_line_and_fix(str(error)))


def _study(run: RunStore, trials: Mapping[int, TrialRecords]) -> Iterator[Finding]:
    """Compare the study with the records of the trials. The next driver rebuilds it where they disagree."""
    journal = run.folder.read(JOURNAL_FILE) if run.folder.exists(JOURNAL_FILE) else b""
    if journal and not journal.endswith(b"\n"):
        yield Finding(
            "warning",
            f"{run.where}/{JOURNAL_FILE}: its last line is cut short",
            "nothing to do: raypipe resume removes it",
        )
    try:
        difference = study_difference(run, trials)
    except DamagedFileError as error:
        difference = first_line(error)
    except UserError as error:
        yield Finding("broken", *_line_and_fix(str(error)))
        return
    if difference:
        fix = "raypipe resume rebuilds the study from the records of the trials, with the same parameters and scores"
        yield Finding("warning", difference, fix)
    else:
        yield Finding("ok", "the Optuna study agrees with the records of the trials")


def _line_and_fix(line: str) -> tuple[str, str]:
    what, _, fix = line.partition("; ")
    return what, fix


def _checkpoints(run: RunStore, trials: Mapping[int, TrialRecords]) -> Iterator[Finding]:
    whole = damaged = 0
    for number, trial in trials.items():
        if trial.result is not None or trial.record is None:
            continue  # its checkpoints are not needed any more
        config = trial.record.config
        for fold in range(run.folds.n_folds):
            good = 0
            for epoch in run.checkpoints(number, fold):
                try:
                    read_fold_checkpoint(run, number, config, fold, epoch)
                    good, whole = epoch, whole + 1
                except CheckpointError as error:
                    damaged += 1
                    after = f"continues from the one of epoch {good}" if good else "trains that fold's epochs again"
                    line = f"trial {number}, fold {fold}, checkpoint of epoch {epoch}: {first_line(error)}"
                    yield Finding("broken", line, f"check the disk; raypipe resume {after}")
                except FileNotFoundError:
                    continue  # a driver has removed it since
    if whole and not damaged:
        yield Finding("ok", f"{whole} checkpoints of trials that have not ended are intact")


def _pretrained(where: str) -> Iterator[Finding]:
    if lines := misplaced(open_folder(where)):
        yield from (Finding("broken", *_line_and_fix(line)) for line in lines)
        return
    run = PretrainedRun(where)
    yield Finding("ok", f"{run.where}: a pretrained run with its original fold map")
    yield from _pretrained_settings(run)
    whole = True
    for _, name, what in differences(run):
        whole = False
        yield Finding("broken", f"{run.where}/{name}: {what}", "raypipe resume makes it again from the last checkpoint")
    for part in run.parts:
        for epoch in run.checkpoints(part):
            name = f"{part}/epoch-{epoch:04d}.ckpt"
            try:
                run.checkpoint(part, epoch)
            except CheckpointError as error:
                yield Finding(
                    "broken", f"{run.where}/{name}: {first_line(error)}", "check the disk; raypipe resume continues"
                )
            except FileNotFoundError:
                continue  # its driver has removed it since
    if not run.over:
        yield Finding("warning", "its pretraining has not finished", "raypipe resume RUN")
    elif whole:
        yield Finding("ok", f"{len(encoder_files(where))} encoder(s), intact")


def _pretrained_settings(run: PretrainedRun) -> Iterator[Finding]:
    """Read the options of a pretrained run, and the record of its last driver."""
    try:
        options = read_options(run.folder, run.info.id)
        parse_pretrain_options(options)
        if not options:
            fix = "give the same raypipe pretrain command again"
            yield Finding("broken", f"{run.where}/{OPTIONS_FILE}: missing", fix)
        read_driver(run.folder, run.info.id)
    except UserError as error:
        yield Finding("broken", *_line_and_fix(str(error)))
