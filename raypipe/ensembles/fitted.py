"""A fitted ensemble: members, how they are combined, how they score; kept in its run."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raypipe.core.errors import UserError
from raypipe.core.folds import HELD_OUT, Index
from raypipe.core.versions import package_versions
from raypipe.ensembles import verdict
from raypipe.ensembles.members import Soup, listed, unlisted
from raypipe.ensembles.oof import Floats
from raypipe.ensembles.scores import Side
from raypipe.models.combine import Rule
from raypipe.storage.files import read_json, write_json
from raypipe.storage.records import Member
from raypipe.storage.run_store import RunStore

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = "raypipe-ensemble/1"
RECORD, ARRAYS, TABLE = "ensemble/ensemble.json", "ensemble/held_out.npz", "ensemble/table.csv"


@dataclass(frozen=True)
class HeldOut:
    """Predictions for the windows of the held-out subjects."""

    windows: Index
    """(N,) window numbers in the store."""
    subjects: NDArray[np.str_]
    """(N,)."""
    targets: NDArray[Any]
    """(N,) values, or class numbers."""
    predictions: NDArray[np.float32]
    """(N, outputs) of the ensemble: the value in target units, or class probabilities."""
    trials: NDArray[np.float32]
    """(M, N, outputs): each member's mean over its fold models."""
    constant: NDArray[np.float64]
    """(outputs,): the training mean or class frequencies, the answer without EEG."""

    @property
    def side(self) -> Side:
        """Targets and subjects, as scores take them."""
        return Side(self.targets, self.subjects, np.full(len(self.targets), HELD_OUT))


@dataclass(frozen=True)
class Ensemble:
    """Members and how they are combined: a weighted mean, or a rule (`raypipe.models.combine`) fold by fold."""

    run: RunStore
    method: str
    members: list[Member]
    """Trials, and snapshots of them, best out-of-fold score first."""
    weights: Floats
    """(M,) none negative, sum one; of a rule whose weights are of another kind, what is nearest to that."""
    table: pd.DataFrame
    """Scores; see `verdict.score_table` and `standing.nested_columns`."""
    verdict: str
    """What the held-out scores show, in words."""
    held_out: HeldOut
    looks: int
    """How often this run has been scored on its held-out subjects, this time included."""
    rule: Rule | None = None
    """How the members are combined, where `weights` do not say it all."""
    diversity: dict[str, Any] | None = None
    """`members` (names), `correlations` of their errors, and `curve`: nested score against the number of members."""
    left_out: dict[str, str] | None = None
    """Methods that could not be used, and why."""
    soup: Soup | None = None
    """Networks that stand for those of the members: their weights averaged (`raypipe.ensembles.soup`), or a student."""

    @property
    def trials(self) -> list[int]:
        """Numbers of the trials of members, and of what stands for them, each once."""
        others = self.soup.members if self.soup else []
        return list(dict.fromkeys(member.trial for member in [*self.members, *others]))

    def save(self) -> None:
        """Write the ensemble to its run: arrays (``ensemble/``), ``ensemble/table.csv``, then its record."""
        buffer = io.BytesIO()
        np.savez(buffer, **vars(self.held_out))
        self.run.folder.write(ARRAYS, buffer.getvalue())
        self.run.folder.write(TABLE, self.table.to_csv().encode())
        soup = self.soup.save(self.run) if self.soup else None
        write_json(self.run.folder, RECORD, self.record() | ({"soup": soup} if soup else {}))

    def record(self) -> dict[str, Any]:
        """What `save` writes as JSON."""
        table = self.table.astype(object).where(self.table.notna(), None)
        return {
            "format": FORMAT,
            "created": time.time(),
            "method": self.method,
            **listed(self.members),
            "weights": self.weights.tolist(),
            "table": {str(name): row for name, row in table.to_dict("index").items()},
            "verdict": self.verdict,
            "looks": self.looks,
            "rule": self.rule,
            "diversity": self.diversity,
            "left_out": self.left_out,
            "data_hash": self.run.info.data_hash,
            "versions": package_versions(),
        }

    @staticmethod
    def exists(run: RunStore) -> bool:
        """Whether the run has a saved ensemble."""
        return run.folder.exists(RECORD)

    @classmethod
    def load(cls, run: RunStore) -> Ensemble:
        """Read the ensemble that `save` wrote.

        Raises
        ------
        UserError
            The run has none, or it is damaged.
        """
        if not cls.exists(run):
            raise UserError(f"{run.where}: no ensemble yet; fit one with: raypipe ensemble RUN")
        record = read_json(run.folder, RECORD)
        try:
            if record["format"] != FORMAT:
                raise ValueError(f"format {record['format']}")
            with np.load(io.BytesIO(run.folder.read(ARRAYS)), allow_pickle=False) as arrays:
                held_out = HeldOut(**{name: arrays[name] for name in HeldOut.__annotations__})
            table = pd.DataFrame.from_dict(record["table"], orient="index").astype(float).rename_axis("predictor")
            table = table.astype({"subjects": int, "windows": int})
            weights = np.array(record["weights"], dtype=np.float64)
            fitted = unlisted(record), weights, table, record["verdict"], held_out, record["looks"]
            extra = {name: record.get(name) for name in ("rule", "diversity", "left_out")}  # none in raypipe 0.1
            soup = Soup.load(run, record["soup"]) if "soup" in record else None
            return cls(run, record["method"], *fitted, **extra, soup=soup)
        except (KeyError, ValueError, TypeError, OSError, BadZipFile) as error:
            raise UserError(
                f"{run.where}/{RECORD}: damaged ({error}); fit the ensemble again with: raypipe ensemble RUN"
            ) from None

    def render(self) -> Table:
        """The scores that count, as a table for a terminal of 80 columns: per subject where targets belong to them."""
        from rich.table import Table

        level = "subject_" if "subject_held_out" in self.table else ""
        metric = verdict.spoken(self.run.info.metric)
        table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
        nested = "nested" in self.table
        for name in ("", "nested" if nested else "out of fold", f"held-out {metric}, 95 %", "difference to no EEG"):
            table.add_column(name, justify="right" if name else "left", no_wrap=True)
        for predictor, row in self.table.iterrows():
            value, low, high = (row[level + name] for name in ("held_out", "low", "high"))
            apart, least, most = (row[level + "difference" + end] for end in ("", "_low", "_high"))
            table.add_row(
                str(predictor),
                "" if np.isnan(fitted := row["nested"] if nested else row[level + "oof"]) else f"{fitted:.3f}",
                f"{value:.3f} ({low:.3f} to {high:.3f})",
                "" if predictor == self.table.index[-1] else f"{apart:+.3f} ({least:+.3f} to {most:+.3f})",
            )
        return table
