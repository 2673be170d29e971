"""Write and read bundles: folders with an ensemble that raypipe alone can run. No pickle is ever read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raypipe.core.errors import UserError
from raypipe.core.model_config import OwnConfig
from raypipe.core.own_code import SourceFile, keep_source
from raypipe.core.progress import Progress
from raypipe.core.text import short_line
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.decisions import decide
from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.members import build_module, own_errors
from raypipe.ensembles.run_windows import windows_of_run
from raypipe.models.ensemble import EnsembleModule
from raypipe.packaging.bundle_files import CARD, RECORD, TENSORS, empty_folder, require_bundle_files
from raypipe.packaging.bundle_info import BundleInfo, Recipe
from raypipe.packaging.contents import Networks, describe, read_networks
from raypipe.packaging.model_card import model_card
from raypipe.packaging.network_spec import NetworkSpec
from raypipe.packaging.readback import layout_of, require_readable
from raypipe.packaging.store_modules import StoreModules
from raypipe.packaging.weights import check_tensors, max_file_bytes
from raypipe.storage.files import write_record
from raypipe.storage.local_path import local_path
from raypipe.storage.out_of_fold import unpack_tensors
from raypipe.storage.records import digest
from raypipe.storage.regular_files import read_regular
from raypipe.storage.run_store import RunStore
from raypipe.training.device import parse_device
from raypipe.training.transfer import to_device

BATCH_SIZE = 64
"""Windows that are computed at a time."""


def export_bundle(run: RunStore, ensemble: Ensemble, out: str | Path, *, windows: WindowStore | None = None) -> Path:
    """Write an ensemble as a bundle: ``members.safetensors``, ``README.md`` (a model card), ``bundle.json`` last.

    Programs that are too large for a bundle are replaced by the files of their networks.

    Parameters
    ----------
    run, ensemble
        The run and its ensemble.
    out
        A new or empty folder, or a bundle to replace.
    windows
        The run's windows; None opens the store it was made from.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    UserError
        `out` contains something else, weights are damaged or missing, or the bundle could not be read.
    """
    path = local_path(out, "a bundle is written", "name a folder here, and copy it")
    folder = empty_folder(path)
    windows = windows_of_run(run, windows)
    networks = read_networks(run, ensemble, windows)
    info, files = _content(run, ensemble, windows, networks)
    if networks.spec.get("programs") and (excess := info.excess(info.to_json())):
        networks = networks.as_code(f"with its program, the bundle's record has {excess}")
        info, files = _content(run, ensemble, windows, networks)
    require_readable(info, files[TENSORS], run.where)
    folder.remove(RECORD)  # an old record must not describe new tensors, should this be interrupted
    for name, data in files.items():
        folder.write(name, data)
    write_record(folder, RECORD, info)
    return path


def _content(
    run: RunStore, ensemble: Ensemble, windows: WindowStore, networks: Networks
) -> tuple[BundleInfo, dict[str, bytes]]:
    """Return the record of a bundle, and its other files."""
    from safetensors.torch import save

    info = describe(run, ensemble, windows, networks)
    files = {TENSORS: save(networks.state), CARD: model_card(info).encode()}
    return info.model_copy(update={"sha256": {name: digest(data) for name, data in files.items()}}), files


class LoadedEnsemble:
    """An ensemble read from a bundle: ``load_ensemble("bundle").predict(x_NCT)``.

    Parameters
    ----------
    info
        Record of the bundle.
    module
        Maps prepared windows (B, C, T) to (B, outputs); in evaluation mode, on the device that it is run on. Or
        the networks of several stores (`BundleInfo.recipes`).
    """

    def __init__(self, info: BundleInfo, module: EnsembleModule | StoreModules) -> None:
        self.info = info
        self._module = module
        self._code = info.code_members()

    @property
    def stores(self) -> StoreModules | None:
        """Return the networks by store, where they take windows of several; else None."""
        return self._module if isinstance(self._module, StoreModules) else None

    @property
    def module(self) -> EnsembleModule:
        """Return the module; raise as `require_one_store`."""
        self.require_one_store("this")
        assert isinstance(self._module, EnsembleModule)
        return self._module

    def require_one_store(self, what: str) -> None:
        """Check that all networks take the same windows.

        Parameters
        ----------
        what
            What needs that, for the message.

        Raises
        ------
        UserError
            They do not.
        """
        if self.info.recipes:
            given = ", ".join(f"{name!r}: ..." for name in self.info.recipes)
            raise UserError(
                f"the bundle's networks take windows of stores {' and '.join(self.info.recipes)}, which are prepared "
                "differently: it predicts recordings, or prepared windows by store with "
                f"load_ensemble(bundle).predict({{{given}}}); {what} takes windows of one"
            )

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return next(iter(self.stores.modules.values())).device if self.stores else self.module.device

    @property
    def channels(self) -> list[str]:
        """Names of the channels, in the order that `predict` takes them; raises as `require_one_store`."""
        self.require_one_store("this")
        return self.info.channels

    @property
    def sfreq(self) -> float:
        """Sampling rate in Hz; raises as `require_one_store`."""
        self.require_one_store("this")
        return self.info.sfreq

    @property
    def classes(self) -> list[str]:
        """Names of the classes; empty for regression."""
        return self.info.classes

    @property
    def columns(self) -> list[str]:
        """Names of the outputs in tables of predictions."""
        if self.classes:
            return [f"probability_{name}" for name in self.classes]
        return [f"prediction_{name}" for name in self.info.outputs] or ["prediction"]

    def decide(self, probabilities: NDArray[Any]) -> list[str]:
        """Return the predicted class of each row of probabilities (N, n_classes).

        It is the one with the largest product of its probability and its weight (`decision_weights`).
        """
        weights = np.array(self.info.decision_weights)
        return [self.classes[k] for k in decide(probabilities, weights).argmax(axis=1)]

    @torch.no_grad()
    def predict(
        self,
        x_NCT: NDArray[Any] | Mapping[str, NDArray[Any]],
        *,
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
    ) -> NDArray[np.float32]:
        """Predict windows.

        Parameters
        ----------
        x_NCT
            Windows (N, channels, samples) prepared as ``info.prepare`` says, channels in the order of `channels`: in
            microvolts; or, of a bundle whose ``info.prepare.preprocessing.align`` is not None, aligned and without a
            unit, as the store of ``prepare --align`` holds them. Other windows are not recognised, and their
            predictions are wrong. Where networks take windows of several stores, the same windows of each, by its name,
            as ``info.recipes`` says.
        batch_size
            Windows that are computed at a time.
        progress
            Called with windows done, windows in all, and a text.

        Returns
        -------
        predictions
            Regression: (N, 1), or (N, K) of several values, in target units. Classes: probabilities (N, n_classes).

        Raises
        ------
        UserError
            Windows have another shape, or values that are not finite; a prediction is not finite; or the code of a
            user's network raises an error.
        """
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size}: must be 1 or more")
        given = self._checked(x_NCT)
        n = len(next(iter(given.values())))
        out_NO = np.empty((n, self.info.n_outputs), dtype=np.float32)
        for start in range(0, n, batch_size):
            part = slice(start, start + batch_size)
            if self.stores is not None:
                stores = self.stores
                out_NO[part] = stores.combine({name: stores.predict(name, x[part]) for name, x in given.items()})
            else:
                x_BCT = to_device(np.ascontiguousarray(given[""][part], dtype=np.float32), self.device)
                with own_errors(self._code):
                    out_NO[part] = self.module(x_BCT).cpu().numpy()
            if not np.isfinite(out_NO[part]).all():
                raise UserError(
                    f"a prediction of windows {start} to {min(start + batch_size, n) - 1} is not a finite number; the "
                    f"weights are damaged, or the windows are not {self._samples}"
                )
            if progress:
                progress(min(start + batch_size, n), n, "windows")
        return out_NO

    @property
    def _samples(self) -> str:
        recipes = self.info.recipes.values() or [self.info]
        return " or ".join(dict.fromkeys(recipe.prepare.preprocessing.samples for recipe in recipes))

    def _checked(self, x_NCT: NDArray[Any] | Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return windows by store, under an empty name where there is one, after a check of their shapes and values."""
        recipes: Mapping[str, BundleInfo | Recipe] = self.info.recipes or {"": self.info}
        if not isinstance(x_NCT, Mapping):
            self.require_one_store("this array")
            x_NCT = {"": x_NCT}
        if set(x_NCT) != set(recipes):
            wanted = ", ".join(self.info.recipes) or "an array, since it has one store"
            raise UserError(f"windows of {', '.join(x_NCT) or 'no store'}: this ensemble takes {wanted}")
        given = {name: np.asarray(x_NCT[name]) for name in recipes}
        for name, recipe in recipes.items():
            check_windows(given[name], recipe, name)
        counts = {name: len(each) for name, each in given.items()}
        if len(set(counts.values())) > 1:
            raise UserError(f"windows by store: {counts}; each store has the same windows")
        return given


def check_windows(x_NCT: NDArray[Any], recipe: BundleInfo | Recipe, store: str = "") -> None:
    """Check windows that networks take.

    Raises
    ------
    UserError
        They have another shape, or values that are not finite.
    """
    wanted, of = (len(recipe.channels), recipe.n_times), f" of store {store}" if store else ""
    if x_NCT.ndim != 3 or x_NCT.shape[1:] != wanted:
        raise UserError(
            f"windows{of} of shape {x_NCT.shape}: this ensemble takes (N, {wanted[0]} channels, {wanted[1]} samples at "
            f"{recipe.sfreq:g} Hz)"
        )
    if not np.isfinite(x_NCT).all():
        raise UserError(f"windows{of} hold {int(np.sum(~np.isfinite(x_NCT)))} values that are not finite numbers")


def load_ensemble(path: str | Path, *, device: str = "cpu", trust_code: bool = False) -> LoadedEnsemble:
    """Read a bundle made by `export`. No code in it is run, unless it is trusted.

    Parameters
    ----------
    path
        Folder of the bundle.
    device
        Where it predicts, ``cpu`` or ``cuda``.
    trust_code
        Run the code of users' networks that the bundle contains, where there is no other way. It can do whatever you
        can: trust what you have made or read.

    Returns
    -------
    LoadedEnsemble
        ``predict(x_NCT)`` predicts windows in microvolts, or aligned ones.

    Raises
    ------
    UserError
        There is no bundle, it is damaged, it contains a file that is not part of a bundle, such as a pickle, it
        needs code that is not trusted, or that raises an error, or torch can use no GPU.
    """
    where = parse_device(device)
    folder = local_path(path, "a bundle is read", "copy the bundle here")
    if not (folder / RECORD).exists():
        raise UserError(f"{path}: no bundle ({RECORD} is missing); make one with: raypipe export RUN OUT")
    require_bundle_files(folder)
    info = BundleInfo.parse(read_regular(folder / RECORD, BundleInfo.max_bytes), f"{path}/{RECORD}")
    spec = info.networks()
    _trust(info, spec, str(path), trust_code)
    layout = layout_of(info)
    try:
        data = read_regular(folder / TENSORS, max_file_bytes(layout))
    except FileNotFoundError:
        raise UserError(f"{path}: {TENSORS} is missing; copy the bundle again") from None
    if info.sha256.get(TENSORS) != digest(data):
        raise UserError(f"{path}/{TENSORS}: damaged (its checksum is not the one in {RECORD}); copy the bundle again")
    try:
        tensors = unpack_tensors(data)
        del data
        check_tensors(layout, tensors)
        module: EnsembleModule | StoreModules
        if info.recipes:
            module = StoreModules(info, tensors, where)
        else:
            module = build_module(spec.model_dump(mode="json"), tensors, where)
    except (RuntimeError, ValueError) as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"{path}/{TENSORS}: not the weights that {RECORD} describes ({line})") from None
    return LoadedEnsemble(info, module)


def _trust(info: BundleInfo, spec: NetworkSpec, path: str, trusted: bool) -> None:
    """Make known the code that a bundle's networks need, if it is trusted."""
    needed = [m.model for m in spec.members if isinstance(m.model, OwnConfig) and m.program is None]
    if needed and not trusted:
        raise UserError(
            f"{path}: {short_line(needed[0].name)} is there as code, which is run when the bundle is read; if you "
            "trust it: load_ensemble(..., trust_code=True), or raypipe predict --trust-code"
        )
    for model in needed:
        source = SourceFile(model.name.rpartition(":")[0], info.sources.get(model.code, ""))
        if keep_source(source) != model.code:
            name = short_line(model.name)
            raise UserError(f"{path}/{RECORD}: the source of {name} is missing, or not the one of its members")
