"""The folder of a run: all reads and writes of its files.

The folder contains the whole state of a run. Every file is written whole or not at all, at the event that it records,
and can be read without Ray.

====================================  ==================================================================
``folds.json``                        the frozen subject-to-fold map, written first
``space.py``                          the copy of the search space that the run uses
``code/<hash>-<name>.py``             users' files: those that the space names, and their metric
``run.json``                          data, target, space and versions, with hashes; written last: it makes a run
``options.json``                      the options that the run was last driven with
``driver.json``                       the lease of its driver, and the time spent (`raypipe.storage.lease`)
``reruns.json``                       the reruns that were asked for (`raypipe.search.reruns`)
``points.json``                       the points that were enqueued (`raypipe.search.points`)
``requests/<id>.json``                what the driver was asked for, and its answers (`raypipe.storage.requests`)
``study.journal``                     the Optuna study (journal storage; optuna-dashboard reads it)
``init/encoder.safetensors``          the pretrained encoder that trials start from, if any
``compute/<key>.json``                the measured choice of algorithms for one shape (`raypipe.trial.autotune`)
``log/ray.txt``                       the end of Ray's output (`raypipe.backend.output`)
``trials/0007/trial.json``            a trial's configuration
``trials/0007/history.json``          the score over all folds, and of each fold, after every epoch
``trials/0007/fold-2/epoch-0005.ckpt``  a fold's whole state: of the newest two epochs, the best, and ends of cycles
``trials/0007/predictions/epoch-0005.npz``  out-of-fold predictions of an epoch, written once it is scored
``trials/0007/oof.npz``               out-of-fold predictions of the best epoch, with windows and folds
``trials/0007/fold-2.safetensors``    a fold's weights of the best epoch
``trials/0007/oof-epoch-0010.npz``    predictions of a snapshot (the end of a cycle of the learning rate); its weights
                                      are in ``fold-2-epoch-0010.safetensors``
``trials/0007/log/<writer>.txt``      events of the trial, a file per writer (`raypipe.storage.trial_log`)
``trials/0007/retry.json``            what saves memory, after it ran out of that (`raypipe.trial.failures`)
``trials/0007/result.json``           state and score, with checksums of the trial's files; written when it has ended
====================================  ==================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from raypipe.core.errors import DamagedFileError, UserError
from raypipe.core.folds import FoldMap
from raypipe.core.levels import describe_level
from raypipe.core.search_space import SearchSpace
from raypipe.core.store_names import parse_stores
from raypipe.storage.code_files import read_code, read_metric, write_code, write_metric
from raypipe.storage.creation import CLAIMS
from raypipe.storage.files import Folder, LocalFolder, open_folder, read_record, read_required, write_record
from raypipe.storage.lease import LOCK_FILE
from raypipe.storage.out_of_fold import unpack_tensors
from raypipe.storage.records import (
    FOLDS_FILE,
    RUN_FILE,
    SPACE_FILE,
    Owned,
    OwnedRecord,
    RunInfo,
    TrialResult,
    best_first,
    describe_other_folder,
    digest,
    read_owned,
)
from raypipe.storage.run_layout import require_layout
from raypipe.storage.trial_store import TrialStore

_CHECKPOINT_OF = re.compile(r"trials/(\d{4}|[1-9]\d{4,})/fold-\d+/epoch-\d{4,}\.ckpt")


class RunStore(TrialStore):
    """An open run: its records, fold map and search space. Use `create` or `open` to get one."""

    def __init__(self, folder: Folder, info: RunInfo, folds: FoldMap, space: SearchSpace) -> None:
        super().__init__(folder, info.id, describe_level(info.metric, info.level))
        self.info, self.folds, self.space = info, folds, space

    def __reduce__(self) -> tuple[Any, ...]:
        return RunStore.open, (self.where,)

    @property
    def local(self) -> Path | None:
        """Return the run's path; None for a run behind a URI."""
        return self.folder.path if isinstance(self.folder, LocalFolder) else None

    def gone_error(self) -> UserError | None:
        """Return the error of a local run that was renamed or removed while it was driven; None if it was not."""
        return self.folder.gone_error() if isinstance(self.folder, LocalFolder) else None

    @staticmethod
    def exists(where: str | Path) -> bool:
        """Return whether there is a run at `where`."""
        return open_folder(where).exists(RUN_FILE)

    @staticmethod
    def check_new(where: str | Path) -> None:
        """Check that a folder is empty, or has only the files that an interrupted `create` leaves.

        Raises
        ------
        UserError
            The folder has other content.
        """
        folder = open_folder(where)
        own = (FOLDS_FILE, SPACE_FILE, LOCK_FILE)
        foreign = [n for n in folder.names() if n not in own and not n.startswith(("study", "init/", "code/", CLAIMS))]
        if foreign:
            content = describe_other_folder(folder) or f"not a raypipe run, and not empty ({foreign[0]})"
            raise UserError(f"{where}: {content}; name a new folder")

    @classmethod
    def create(cls, where: str | Path, info: RunInfo, folds: FoldMap, space: SearchSpace) -> RunStore:
        """Create a run.

        Raises
        ------
        UserError
            The folder has other content.
        """
        folder = open_folder(where)
        cls.check_new(where)
        text = folds.to_json()
        folder.write(FOLDS_FILE, text)
        folder.write(SPACE_FILE, space.source.encode())
        write_code(folder, space.files)
        write_metric(folder, info.metric)
        write_record(folder, RUN_FILE, info.model_copy(update={"folds_hash": digest(text)}))
        return cls.open(where)

    @classmethod
    def open(cls, where: str | Path) -> RunStore:
        """Open a run, and check that its fold map and search space are the ones that it was made with.

        Raises
        ------
        UserError
            There is no run, or its records are damaged or were changed.
        """
        folder = open_folder(where)
        require_layout(folder, whole=False)
        if not folder.exists(RUN_FILE):
            content = describe_other_folder(folder) or "no raypipe run there"
            raise UserError(f"{where}: {content}; make one with: raypipe sweep SPACE --data STORE --run RUN")
        info = read_record(RunInfo, folder, RUN_FILE)
        folds_text, space_text = (read_required(folder, name) for name in (FOLDS_FILE, SPACE_FILE))
        if digest(folds_text) != info.folds_hash:
            raise UserError(
                f"{where}/{FOLDS_FILE}: changed since the run was made, but a run's fold map is frozen: restore it"
            )
        if digest(space_text) != info.space_hash:
            raise UserError(f"{where}/{SPACE_FILE}: changed since the run was made; restore it, or start a new run")
        read_metric(folder, info.metric)
        code, stores = read_code(folder, info.code), tuple(parse_stores(info.data))
        space = SearchSpace(space_text.decode(), info.space, code, stores)
        return cls(folder, info, FoldMap.parse(folds_text, f"{where}/{FOLDS_FILE}"), space)

    def ranked(self, results: Iterable[TrialResult] | None = None) -> list[TrialResult]:
        """Return the trials that have weights, best first; see `raypipe.storage.records.best_first`.

        Parameters
        ----------
        results
            All results, if the caller has read them already.
        """
        return best_first(self.results() if results is None else results, self.info.metric)

    def write_encoder(self, name: str, data: bytes) -> None:
        """Store a pretrained encoder (safetensors) in ``init``, before the run is made."""
        self.folder.write(f"init/{name}", data)

    def encoder(self, fold: int) -> dict[str, Any] | None:
        """Return the weights of the pretrained encoder that a fold starts from; None where the run has none.

        Raises
        ------
        UserError
            The file is damaged or missing.
        """
        files = (self.info.init or {}).get("files", {})
        names = (f"encoder-fold-{fold}.safetensors", "encoder.safetensors")
        name = next((name for name in names if name in files), None)
        if name is None:
            return None
        try:
            data = self.folder.read(f"init/{name}")
        except FileNotFoundError:
            raise DamagedFileError(f"{self.where}/init/{name}: missing; restore it from a copy") from None
        if digest(data) != files[name]:
            raise DamagedFileError(f"{self.where}/init/{name}: damaged (its checksum differs); restore it from a copy")
        return unpack_tensors(data)

    def compute(self, kind: type[Owned], key: str) -> Owned | None:
        """Return the recorded choice of algorithms for networks and data of one shape, or None.

        Parameters
        ----------
        kind
            Class of the record.
        key
            Hash of the shape (`raypipe.trial.autotune`).
        """
        name = f"compute/{key}.json"
        if not self.folder.exists(name):
            return None
        record = read_owned(kind, self.folder, name, self.run_id)
        if getattr(record, "key", key) != key:
            raise DamagedFileError(f"{self.where}/{name}: the choice for another shape; restore it from a copy")
        return record

    def write_compute(self, key: str, record: OwnedRecord) -> None:
        """Record the choice of algorithms for networks and data of one shape."""
        owned = record.model_copy(update={"run": self.run_id})
        write_record(self.folder, f"compute/{key}.json", owned)

    def remove_leftovers(self) -> None:
        """Remove files that are not needed after a sweep.

        These are checkpoints of trials that have ended (a worker may write its last one after the trial's end), and
        partial files of processes that were killed. Partial files of `report` and `ensemble` are kept, since these
        commands may be running.
        """
        for name in self.folder.partial_files():
            if name.startswith(("trials/", "compute/", "study/", "log/")) or ("/" not in name and ".json." in name):
                self.folder.remove(name)
        for name in self.folder.names("trials"):
            match = _CHECKPOINT_OF.fullmatch(name)
            if match and self.result(int(match[1])) is not None:
                self.folder.remove(name)
