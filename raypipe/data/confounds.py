"""What could be known of the target without EEG: how many windows a person has, how long, and who the person is.

Each predictor gets an AUC of its own, or a correlation where the target is a number, and the probability of one as
large by chance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raypipe.core.record import FrozenModel, leaving_out
from raypipe.data.association import (
    Classes,
    area,
    auc,
    chi_square,
    correlation_ratio,
    ranks,
    share_as_good,
    shares,
)
from raypipe.recordings.tables import is_missing, parse_number

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("age", "sex", "gender", "site", "center", "centre")
"""Columns of participants.tsv that are looked at, in any case."""
WINDOWS, DURATION = "number of windows", "recorded seconds"
MAX_P = 0.01
"""Probability by chance up to which a predictor is named as a confound."""
MIN_PEOPLE = 5
"""People of a class that a predictor is judged on."""
MAX_SHOWN = 4
"""Values of a category that are shown."""


def is_looked_at(column: str) -> bool:
    """Return whether a column of participants.tsv may be a predictor."""
    return column.strip().lower() in COLUMNS


class WindowsOfClass(FrozenModel):
    """The windows of one class, or all of a regression."""

    name: str
    """The class; empty for a regression."""
    people: int
    windows: int
    least: int
    """Windows of the person with the fewest, of those who have any."""
    median: float
    most: int


class Predictor(FrozenModel):
    """Something that is known without EEG, and how well it predicts the target."""

    name: str
    value: str = ""
    """Name of the value that it predicts, where the target has several; empty otherwise."""
    people: int
    """People of whom it is known."""
    auc: float | None = None
    """None for a numeric target. Of several classes, the mean of one against the rest. Of a number, the better
    direction; of a category, by the share of the class among other people."""
    correlation: float | None = None
    """With a numeric target, of ranks (Spearman); of a category, the correlation ratio of the target's ranks."""
    p_value: float
    """Share of permutations of the targets in which it is as good."""
    by_class: dict[str, str]
    """Median or counts, by class; of a category and a numeric target, the target's median by value."""

    @property
    def is_confound(self) -> bool:
        """Return whether it predicts better than chance explains."""
        return self.p_value <= MAX_P

    @property
    def label(self) -> str:
        """Return the name, after that of the value where the target has several."""
        return f"{self.value}: {self.name}" if self.value else self.name

    _serializer = leaving_out("value")


class WithoutEeg(FrozenModel):
    """Windows by class, and what predicts the class without EEG."""

    classes: tuple[WindowsOfClass, ...]
    predictors: tuple[Predictor, ...]
    known: dict[str, str] = Field(default_factory=dict)
    """What is known of the people, by column of participants.tsv: median and range, or counts."""

    def lines(self) -> list[str]:
        """Return lines of text; of the predictors, the confounds."""
        return [*map(_line, self.classes), *(_warning(each) for each in self.predictors if each.is_confound)]


def _line(each: WindowsOfClass) -> str:
    spread = f"{each.least} to {each.most}, median {each.median:g}" if each.least < each.most else f"{each.most}"
    name = f"class {each.name}: " if each.name else ""
    people = "1 person" if each.people == 1 else f"{each.people} people"
    return f"{name}{each.windows} windows of {people} ({spread} each)"


def _warning(each: Predictor) -> str:
    shown = "; ".join(f"{name}: {text}" for name, text in each.by_class.items())
    if each.auc is None:
        what = f"is correlated with {each.value or 'the target'}, {each.correlation:z.2f}"
    else:
        what = f"predicts the class with AUC {each.auc:.2f}"
    details = f"p {each.p_value:.3f}, {each.people} people" + (f"; {shown}" if shown else "")
    return f"confound: without EEG, the {each.name} of a person {what} ({details})"


def without_eeg(
    table: pd.DataFrame,
    classes: Sequence[str],
    durations: Mapping[str, float | None],
    people: Mapping[str, Mapping[str, str]],
) -> WithoutEeg:
    """Describe the windows by class, and judge what is known without EEG.

    It is judged where each person has one class or one number, and for each of several values: numbers of
    windows and who somebody is say nothing about targets that change within a person.

    Parameters
    ----------
    table
        A row per window: `subject`, `recording`, `target`, or ``target:NAME`` for each of several values.
    classes
        Names of the classes, of which targets are places; empty for a regression.
    durations
        Seconds of each recording, by key; None where they are unknown.
    people
        Cells of participants.tsv by person and column.
    """
    target_N = table["target"].to_numpy() if classes else np.zeros(len(table), np.int64)
    counts = Counter(zip(table["subject"], target_N.tolist(), strict=True))
    found = tuple(_windows_of(number, name, counts) for number, name in enumerate(classes or [""]))
    persons = list(dict.fromkeys(table["subject"]))
    columns = sorted({name for row in people.values() for name in row if is_looked_at(name)})
    cells = {name: [people.get(person, {}).get(name, "") for person in persons] for name in columns}
    known = {name: text for name in columns if (text := describe_cells(cells[name]))}
    seconds = dict.fromkeys(persons, 0.0)
    for person, recording in dict.fromkeys(zip(table["subject"], table["recording"], strict=True)):
        seconds[person] += durations.get(recording) or np.nan
    number_of = Counter(table["subject"])
    judged: list[Predictor | None] = []
    for judge in _judges(table, classes):
        judged.append(judge.number(WINDOWS, [float(number_of[person]) for person in persons]))
        judged.append(judge.number(DURATION, list(seconds.values())))
        judged += [judge.column(name, cells[name]) for name in cells]
    return WithoutEeg(classes=found, predictors=tuple(each for each in judged if each is not None), known=known)


def _judges(table: pd.DataFrame, classes: Sequence[str]) -> Iterator[_Columns]:
    """Yield what judges predictors of the target, or of each value, that is the same for all windows of a person."""
    for column in table:
        kind, _, name = str(column).partition(":")
        if kind != "target":
            continue
        pairs = list(zip(table["subject"], table[column].tolist(), strict=True))
        target_of = dict(pairs)
        if len(set(pairs)) == len(target_of):
            of_people = target_of.values()
            yield _Judge(np.array(list(of_people)), tuple(classes)) if classes else _JudgeOfValues(of_people, name)


def describe_cells(cells: Sequence[str]) -> str:
    """Return median and range of numbers, or counts of other values, and how many are known; empty if none is."""
    known = [cell.strip() for cell in cells if not is_missing(cell.strip()) and cell.strip()]
    if not known:
        return ""
    missing = f"; unknown for {len(cells) - len(known)}" if len(known) < len(cells) else ""
    numbers = [parse_number(cell) for cell in known]
    if None not in numbers and len(set(numbers)) > MAX_SHOWN:
        values = np.array(numbers, dtype=float)
        return f"median {np.median(values):.4g}, {values.min():.4g} to {values.max():.4g}{missing}"
    counted = Counter(known).most_common()
    shown = ", ".join(f"{value} {n}" for value, n in counted[:MAX_SHOWN])
    more = f", {len(counted) - MAX_SHOWN} other values" if len(counted) > MAX_SHOWN else ""
    return f"{shown}{more}{missing}"


def _windows_of(number: int, name: str, counts: Counter[tuple[str, int]]) -> WindowsOfClass:
    own = [n for (_, target), n in counts.items() if target == number]
    return WindowsOfClass(
        name=name,
        people=len(own),
        windows=sum(own),
        least=min(own, default=0),
        median=float(np.median(own)) if own else 0.0,
        most=max(own, default=0),
    )


class _Columns(ABC):
    """Judge predictors of the target of people."""

    @abstractmethod
    def number(self, name: str, values: Sequence[float]) -> Predictor | None:
        """Judge a number; None where it cannot be judged."""

    @abstractmethod
    def category(self, name: str, cells: Sequence[str]) -> Predictor | None:
        """Judge a category; None where it cannot be judged."""

    def column(self, name: str, cells: Sequence[str]) -> Predictor | None:
        """Judge a column of participants.tsv; None where it cannot be judged."""
        cells = ["" if is_missing(cell.strip()) else cell.strip() for cell in cells]
        numbers = [parse_number(cell) for cell in cells if cell]
        if None not in numbers and len(set(numbers)) > MAX_SHOWN:
            return self.number(name, [np.nan if not cell else float(parse_number(cell) or 0.0) for cell in cells])
        return self.category(name, cells)


class _Judge(_Columns):
    """Judge predictors of the class of people.

    Parameters
    ----------
    class_of
        Place of each person's class (U).
    classes
        Names of the classes.
    """

    def __init__(self, class_of: Classes, classes: tuple[str, ...]) -> None:
        self._class_U, self._classes = class_of, classes

    def number(self, name: str, values: Sequence[float]) -> Predictor | None:
        """Judge a number; None where it is the same for all, or of too few people."""
        value_U = np.array(values)
        known_U = np.isfinite(value_U)
        class_K, value_K = self._class_U[known_U], value_U[known_U]
        if not self._can_judge(class_K) or len(set(value_K.tolist())) < 2:
            return None
        rank_K = ranks(value_K)
        by_class = {
            label: f"median {np.median(value_K[class_K == number]):.4g}" for number, label in enumerate(self._classes)
        }
        return self._judged(name, known_U, lambda drawn_K: auc(rank_K, drawn_K), auc(rank_K, class_K), by_class)

    def category(self, name: str, cells: Sequence[str]) -> Predictor | None:
        """Judge a category by its share of each class among other people; None where it cannot be judged."""
        known_U = np.array([bool(cell) for cell in cells])
        class_K = self._class_U[known_U]
        names = sorted({cell for cell in cells if cell})
        if not self._can_judge(class_K) or not 1 < len(names) <= len(class_K) / 2:
            return None
        code_K = np.array([names.index(cell) for cell in cells if cell])
        score_KC = shares(code_K, class_K, len(names), len(self._classes))
        found = float(np.mean([area(ranks(score_KC[:, c]), class_K == c) for c in range(len(self._classes))]))
        counts = {
            label: Counter(np.array(names)[code_K[class_K == number]].tolist())
            for number, label in enumerate(self._classes)
        }
        by_class = {
            label: ", ".join(f"{value} {n}" for value, n in each.most_common(MAX_SHOWN))
            for label, each in counts.items()
        }
        return self._judged(
            name, known_U, lambda drawn_K: chi_square(code_K, drawn_K, len(names), len(self._classes)), found, by_class
        )

    def _can_judge(self, class_K: Classes) -> bool:
        return bool(np.bincount(class_K, minlength=len(self._classes)).min() >= MIN_PEOPLE)

    def _judged(
        self,
        name: str,
        known_U: NDArray[np.bool_],
        statistic: Callable[[Classes], float],
        auc: float,
        by_class: dict[str, str],
    ) -> Predictor:
        p_value = share_as_good(statistic, self._class_U[known_U])
        return Predictor(name=name, people=int(known_U.sum()), auc=auc, p_value=p_value, by_class=by_class)


class _JudgeOfValues(_Columns):
    """Judge predictors of a number of people; `values` has one for each, `value` its name if there are several."""

    def __init__(self, values: Iterable[float], value: str) -> None:
        self._value_U, self._value = np.array(list(values), dtype=float), value

    def number(self, name: str, values: Sequence[float]) -> Predictor | None:
        """Judge a number by Spearman's correlation."""
        value_U = np.array(values)
        known_U = np.isfinite(value_U)
        if not self._can_judge(known_U) or len(set(value_U[known_U].tolist())) < 2:
            return None
        rank_K, own_K = ranks(self._value_U[known_U]), ranks(value_U[known_U])
        r = float(np.corrcoef(rank_K, own_K)[0, 1])
        p_value = share_as_good(lambda drawn_K: abs(float(np.corrcoef(drawn_K, own_K)[0, 1])), rank_K)
        n = int(known_U.sum())
        return Predictor(name=name, value=self._value, people=n, correlation=r, p_value=p_value, by_class={})

    def category(self, name: str, cells: Sequence[str]) -> Predictor | None:
        """Judge a category by the correlation ratio of the target's ranks."""
        known_U = np.array([bool(cell) for cell in cells])
        names = sorted({cell for cell in cells if cell})
        if not self._can_judge(known_U) or not 1 < len(names) <= known_U.sum() / 2:
            return None
        code_K = np.array([names.index(cell) for cell in cells if cell])
        value_K = self._value_U[known_U]
        rank_K = ranks(value_K)
        by_value = {value: f"median {np.median(value_K[code_K == code]):.4g}" for code, value in enumerate(names)}
        return Predictor(
            name=name,
            value=self._value,
            people=int(known_U.sum()),
            correlation=correlation_ratio(code_K, rank_K),
            p_value=share_as_good(lambda drawn_K: correlation_ratio(code_K, drawn_K), rank_K),
            by_class=dict(list(by_value.items())[:MAX_SHOWN]),
        )

    def _can_judge(self, known_U: NDArray[np.bool_]) -> bool:
        return int(known_U.sum()) >= 2 * MIN_PEOPLE and len(set(self._value_U[known_U].tolist())) > 1
