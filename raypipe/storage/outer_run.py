"""An outer cross-validation on disk: who is held out by which part, and a run for each part."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from raypipe.core.errors import DamagedFileError, UserError
from raypipe.core.record import FrozenModel
from raypipe.core.search_space import SearchSpace
from raypipe.core.store_names import parse_stores
from raypipe.storage.code_files import read_code, read_metric, write_code, write_metric
from raypipe.storage.files import open_folder, read_record, write_record
from raypipe.storage.records import OUTER_FILE, SPACE_FILE, SearchInfo, describe_other_folder, digest
from raypipe.storage.run_store import RunStore


class EncoderInfo(FrozenModel):
    """The pretrained encoder that trials of all parts start from."""

    run: str
    """Folder or URI."""
    files: dict[str, str]
    """Checksums by file name."""


class OuterInfo(SearchInfo):
    """What an outer cross-validation was made from (``outer.json``)."""

    format: Literal["raypipe-outer/3"] = "raypipe-outer/3"
    folds: int
    """Subject folds inside each part."""
    repeats: int
    """Times that they are drawn."""
    parts: list[list[str]]
    """Subjects that each part holds out. Every subject of the data is in one part."""
    init: EncoderInfo | None = None
    """Of ``--init``, for the parts that are not made yet; each part that is made has a copy."""


class OuterRun:
    """An outer cross-validation: its record, and the runs of its parts.

    Parameters
    ----------
    where
        Folder or pyarrow.fs URI.

    Raises
    ------
    UserError
        There is none, or it is damaged.
    """

    def __init__(self, where: str | Path) -> None:
        self.folder = open_folder(where)
        self.where = self.folder.where
        if not self.folder.exists(OUTER_FILE):
            content = describe_other_folder(self.folder) or "no outer cross-validation there"
            raise UserError(f"{where}: {content}; make one with: raypipe sweep SPACE --data STORE --run RUN --outer 5")
        self.info = read_record(OuterInfo, self.folder, OUTER_FILE)
        read_metric(self.folder, self.info.metric)

    @staticmethod
    def exists(where: str | Path) -> bool:
        """Return whether there is an outer cross-validation at `where`."""
        return open_folder(where).exists(OUTER_FILE)

    @classmethod
    def create(cls, where: str | Path, info: OuterInfo, space: SearchSpace) -> OuterRun:
        """Create an outer cross-validation; its runs are made by the sweep.

        Raises
        ------
        UserError
            The folder has other content.
        """
        RunStore.check_new(where)
        folder = open_folder(where)
        folder.write(SPACE_FILE, space.source.encode())
        write_code(folder, space.files)
        write_metric(folder, info.metric)
        write_record(folder, OUTER_FILE, info)
        return cls(where)

    @property
    def places(self) -> list[str]:
        """Paths or URIs of the runs of all parts, whether they are made yet or not."""
        path, mark, settings = self.where.partition("?")
        return [f"{path.rstrip('/')}/part-{number}{mark}{settings}" for number in range(1, len(self.info.parts) + 1)]

    @property
    def runs(self) -> list[RunStore]:
        """Return the runs of the parts that are begun, in order.

        Raises
        ------
        UserError
            A run is damaged, or is that of another part or of other data.
        """
        found = []
        for place, part in zip(self.places, self.info.parts, strict=True):
            if not RunStore.exists(place):
                continue
            run = RunStore.open(place)
            if run.folds.held_out != sorted(part) or run.info.data_hash != self.info.data_hash:
                raise DamagedFileError(f"{place}: holds out other subjects than this part does; restore it from a copy")
            found.append(run)
        return found

    def read_space(self) -> SearchSpace:
        """Return the search space that all parts search.

        Raises
        ------
        DamagedFileError
            Its file, or one that it names, is lost or was changed.
        """
        try:
            source = self.folder.read(SPACE_FILE)
        except FileNotFoundError:
            raise DamagedFileError(f"{self.where}/{SPACE_FILE}: missing; restore it from a copy") from None
        if digest(source) != self.info.space_hash:
            raise DamagedFileError(f"{self.where}/{SPACE_FILE}: changed since the run was made; restore it")
        code, stores = read_code(self.folder, self.info.code), tuple(parse_stores(self.info.data))
        return SearchSpace(source.decode(), self.info.space, code, stores)
