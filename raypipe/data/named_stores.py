"""Several stores of the same windows, each with its own preprocessing, under names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raypipe.core.errors import UserError
from raypipe.core.folds import Index, name_some
from raypipe.core.store_names import join_stores, require_known_store
from raypipe.data.manifest import Shard
from raypipe.data.table_target import without_file
from raypipe.data.window_store import WindowStore


class StoreView(WindowStore):
    """Some windows of a store, in another order. Shards are mapped by the store.

    Parameters
    ----------
    store
        The store.
    rows_N
        (N,) its windows; window n of the view is window ``rows_N[n]`` of the store.
    name
        Name of the store.
    """

    def __init__(self, store: WindowStore, rows_N: Index, name: str = "") -> None:
        vars(self).update(vars(store))
        self._store, self._rows, self._name = store, rows_N, name
        self.table = store.table.iloc[rows_N].reset_index(drop=True).assign(window=np.arange(len(rows_N)))
        self.targets, self.subjects = store.targets[rows_N], store.subjects[rows_N]
        self._shard_N, self._row_N = store._shard_N[rows_N], store._row_N[rows_N]
        self._offset_N = store._offset_N[rows_N]

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return StoreView, (self._store, self._rows, self._name)

    def of(self, name: str) -> WindowStore:
        """Return these windows, by their own name or an empty one; raise UserError for another."""
        if name:
            require_known_store(name, (self._name,), self.where)
        return self

    def _map(self, number: int) -> NDArray[Any]:
        return self._store._map(number)

    def _open(self, shard: Shard) -> NDArray[Any]:
        return self._store._open(shard)


class NamedStores(StoreView):
    """Stores of the same windows: the windows that all of them have, in the order of the first.

    Read as one store, it is the first. `of` returns the windows of each, and window n is the same in all of them.

    Parameters
    ----------
    stores
        By name.

    Attributes
    ----------
    left_out
        By name, the number of windows that another store lacks.
    data_hash
        Hash of the names and of the stores' hashes.

    Raises
    ------
    UserError
        A window has another subject or target in another store; the stores predict different targets, have windows of
        different lengths or different groups; or no window is in all of them.
    """

    def __init__(self, stores: Mapping[str, WindowStore]) -> None:
        first_name, first = next(iter(stores.items()))
        for name, store in stores.items():
            _check_settings(first_name, first, name, store)
        rows = common_rows({name: window_keys(store) for name, store in stores.items()})
        if not len(rows[first_name]):
            raise UserError(
                f"--data {join_stores({name: store.where for name, store in stores.items()})}: no window is in all "
                "stores; they must be prepared from the same recordings with the same windows"
            )
        views = {name: StoreView(store, rows[name], name) for name, store in stores.items()}
        for name, view in views.items():
            _check_labels(first_name, views[first_name], name, view)
        super().__init__(first, rows[first_name])
        self._views = views
        self.left_out = {name: len(store) - len(self) for name, store in stores.items()}
        self.where = join_stores({name: store.where for name, store in stores.items()})
        self.data_hash = hash_of_stores({name: store.data_hash for name, store in stores.items()})

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return NamedStores, ({name: view._store for name, view in self._views.items()},)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the stores."""
        return tuple(self._views)

    @property
    def places(self) -> list[str]:
        """Return the folder or URI of each store."""
        return [view.where for view in self._views.values()]

    def of(self, name: str) -> WindowStore:
        """Return the windows of a store; those of the first for an empty name.

        Raises
        ------
        UserError
            There is no such store.
        """
        if not name:
            return self._views[self.names[0]]
        require_known_store(name, self.names, self.where)
        return self._views[name]

    def describe(self) -> str:
        """Return a summary in one line: windows, preprocessing of each store, and windows that not all have."""
        parts = [f"{len(self)} windows in each of {len(self.names)} stores"]
        for name, view in self._views.items():
            parts.append(f"{name}: {view.n_channels} channels x {view.window_samples} samples at {view.sfreq:g} Hz")
        return "; ".join([*parts, *([line] if (line := self.left_out_line()) else [])])

    def left_out_line(self) -> str:
        """Return what is left out because not all stores have it, in words; an empty text if nothing is."""
        lost = [f"{count} of store {name}" for name, count in self.left_out.items() if count]
        return f"left out everywhere, since not all stores have them: windows {', '.join(lost)}" if lost else ""

    def damaged(self) -> Iterator[str]:
        """Read all shards of all stores, and yield a line for each that is missing or differs from its manifest."""
        for view in self._views.values():
            yield from view._store.damaged()


def hash_of_stores(hashes: Mapping[str, str]) -> str:
    """Return `NamedStores.data_hash` of stores with these hashes, by name."""
    return hashlib.sha256(json.dumps(list(hashes.items())).encode()).hexdigest()


def window_keys(windows: WindowStore) -> NDArray[np.str_]:
    """Return a name for each window (N,) that is the same in every store.

    It consists of the recording, the onset rounded to milliseconds, and a counter of windows with the same onset.
    """
    return row_keys(windows.table)


def row_keys(table: pd.DataFrame) -> NDArray[np.str_]:
    """Return the name of the window of each row (N,) with a `recording` and an `onset`."""
    part = table[["recording", "onset"]].assign(onset=table["onset"].astype(float).round(3))
    counter = part.groupby(["recording", "onset"]).cumcount()
    names = zip(part["recording"], part["onset"], counter, strict=True)
    return np.array([f"{recording}@{onset:.3f}#{nth}" for recording, onset, nth in names])


def common_rows(keys: Mapping[str, NDArray[np.str_]]) -> dict[str, Index]:
    """Return, for each store, its rows of the windows that all have, in the order of the first store.

    Parameters
    ----------
    keys
        Names of each store's windows (`window_keys`).
    """
    first, *others = keys.values()
    kept = first[np.logical_and.reduce([np.ones(len(first), bool), *(np.isin(first, other) for other in others)])]
    rows = {}
    for name, own in keys.items():
        order = np.argsort(own)
        rows[name] = order[np.searchsorted(own, kept, sorter=order)]
    return rows


def _check_settings(first: str, one: WindowStore, name: str, other: WindowStore) -> None:
    """Check that two stores have the same target, and windows of the same length."""
    mine, theirs = one.manifest.plan, other.manifest.plan
    facts: list[tuple[str, object, object]] = [
        ("predict different targets", without_file(mine.target), without_file(theirs.target)),
        ("are of different BIDS tasks", ", ".join(sorted(mine.bids_task)), ", ".join(sorted(theirs.bids_task))),
        ("take events from different columns", mine.events_from or "any", theirs.events_from or "any"),
        ("select different events", mine.select or "all", theirs.select or "all"),
        ("have different kinds of targets", one.kind, other.kind),
        ("have different classes", ", ".join(one.classes), ", ".join(other.classes)),
        ("have different values", ", ".join(one.outputs) or "one", ", ".join(other.outputs) or "one"),
        ("have windows of different lengths (s)", mine.window, theirs.window),
        ("have windows at different times after their events (s)", mine.tmin, theirs.tmin),
        ("have crops of different lengths (s)", _crop_seconds(one), _crop_seconds(other)),
    ]
    for what, own, others in facts:
        if own != others:
            raise UserError(
                f"--data: stores {first} and {name} {what}: {own} and {others}; only preprocessing may differ"
            )


def _crop_seconds(windows: WindowStore) -> float:
    return round(windows.crop_samples / windows.sfreq, 2)


def _check_labels(first: str, one: WindowStore, name: str, other: WindowStore) -> None:
    """Check that two stores of the same windows have the same subjects, targets and groups."""
    for what, mine_N, theirs_N in (
        ("subjects", one.subjects, other.subjects),
        ("targets", one.targets, other.targets),
    ):
        unequal_N = (mine_N != theirs_N) & ~((mine_N != mine_N) & (theirs_N != theirs_N))  # NaN equals NaN
        wrong = np.flatnonzero(unequal_N.reshape(len(unequal_N), -1).any(axis=1))
        if len(wrong):
            n = int(wrong[0])
            raise UserError(
                f"--data: stores {first} and {name} have different {what} of {len(wrong)} windows, first of "
                f"{one.table['recording'][n]} at {one.table['onset'][n]:g} s: {mine_N[n]} and {theirs_N[n]}; prepare "
                "both with the same labels"
            )
    moved = sorted(who for who in {*one.group_of, *other.group_of} if one.group_of.get(who) != other.group_of.get(who))
    if moved:
        raise UserError(f"--data: stores {first} and {name} have different groups of people ({name_some(moved)})")
