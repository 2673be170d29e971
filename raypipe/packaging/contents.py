"""What an ensemble is shipped as: its networks with their weights, and the record that describes them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from raypipe.core.errors import UserError
from raypipe.core.own_code import SourceFile, known_source
from raypipe.core.own_metrics import shown_metric
from raypipe.core.record import describe_problem, first_problem
from raypipe.core.versions import package_versions
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.members import members_by_store, read_members
from raypipe.ensembles.run_windows import windows_of_run
from raypipe.packaging.bundle_info import BundleInfo, Recipe
from raypipe.packaging.network_spec import NetworkMember, Program
from raypipe.packaging.programs import Spec, State, ship_networks
from raypipe.packaging.stored_predictions import check_stored
from raypipe.storage.remote import without_settings
from raypipe.storage.run_store import RunStore


def shipped_stores(ensemble: Ensemble) -> list[str]:
    """Return the stores that the networks of an ensemble take their windows from; one empty name for a single store."""
    members = ensemble.merged.members if ensemble.merged else ensemble.members
    return list(members_by_store(ensemble.run, members))


def shipped_windows(ensemble: Ensemble, windows: WindowStore | None, what: str) -> WindowStore:
    """Return the windows of the store that all networks of an ensemble take; None opens those of the run.

    Parameters
    ----------
    what
        What is exported, for the message.

    Raises
    ------
    UserError
        Networks take windows of different stores.
    """
    run, stores = ensemble.run, shipped_stores(ensemble)
    if len(stores) > 1:
        raise UserError(
            f"{run.where}: its networks take windows of stores {' and '.join(stores)}, and {what} takes those of one; "
            f"export a bundle, or fit the ensemble on one store, as with --method best"
        )
    return windows_of_run(run, windows).of(stores[0])


class Networks(NamedTuple):
    """The networks of an ensemble."""

    spec: Spec
    """See `raypipe.models.ensemble.EnsembleModule`."""
    state: State
    left: dict[str, str]
    """Users' networks that cannot be made programs, with the reasons."""

    def require_programs(self) -> None:
        """Raise UserError if a user's network is no program."""
        for network, why in self.left.items():
            raise UserError(f"{network}: it cannot run where raypipe is not installed ({why}); export a bundle instead")

    def as_code(self, why: str) -> Networks:
        """Return the networks with the files of users' networks in place of their programs, for this reason."""
        members, left = list(self.spec["members"]), dict(self.left)
        constants = []
        for number, member in enumerate(members):
            if "program" in member and known_source(member["model"]["code"]) is not None:
                members[number] = {name: value for name, value in member.items() if name != "program"}
                left[member["model"]["name"]] = why
                constants.append(f"members.{number}.constants.")
        state = {name: tensor for name, tensor in self.state.items() if not name.startswith(tuple(constants))}
        used = {member.get("program") for member in members}
        programs = {name: program for name, program in self.spec["programs"].items() if name in used}
        return Networks(self.spec | {"members": members, "programs": programs}, state, left)


def read_networks(run: RunStore, ensemble: Ensemble, windows: WindowStore) -> Networks:
    """Read the networks of an ensemble of a run.

    Raises
    ------
    UserError
        Weights are damaged or missing, a program gives other numbers than its network, or a user's network gives others
        here than in the run.
    """
    run.require_whole(ensemble.trials)
    check_stored(run, windows, ensemble.merged.members if ensemble.merged else ensemble.members)
    weights = ensemble.weights.tolist()
    calibration = ensemble.calibration.spec if ensemble.calibration else None
    if len(shipped_stores(ensemble)) > 1:
        return _networks_of_stores(ensemble, windows, calibration)
    own = windows.of(shipped_stores(ensemble)[0])
    spec, state = read_members(run, own, ensemble.members, weights, ensemble.rule, ensemble.merged, calibration)
    return Networks(*ship_networks(spec, state))


def _networks_of_stores(ensemble: Ensemble, windows: WindowStore, calibration: Mapping[str, Any] | None) -> Networks:
    """Read networks that take windows of different stores; the spec has `recipes`, the places of those of each store.

    Networks and their weights are numbered over all stores, in order of member, then fold.
    """
    run, n_folds = ensemble.run, ensemble.run.folds.n_folds
    placed: dict[int, dict[str, Any]] = {}
    state: State = {}
    left: dict[str, str] = {}
    programs: dict[str, Any] = {}
    recipes: dict[str, list[int]] = {}
    for store, indices in members_by_store(run, ensemble.members).items():
        some = [ensemble.members[index] for index in indices]
        shares = [float(ensemble.weights[index]) for index in indices]
        spec, own_state, own_left = ship_networks(*read_members(run, windows.of(store), some, shares))
        places = [index * n_folds + fold for index in indices for fold in range(n_folds)]
        for number, (place, member) in enumerate(zip(places, spec["members"], strict=True)):
            named = {"program": f"{store}/{member['program']}"} if "program" in member else {}
            placed[place] = member | named
            prefix = f"members.{number}."
            state |= {
                f"members.{place}.{name.removeprefix(prefix)}": tensor
                for name, tensor in own_state.items()
                if name.startswith(prefix)
            }
        programs |= {f"{store}/{name}": program for name, program in spec.get("programs", {}).items()}
        left |= own_left
        recipes[store] = places
    members = [placed[place] for place in sorted(placed)]
    whole: Spec = {"members": members, "recipes": recipes}
    whole |= {"programs": programs} if programs else {}
    whole |= {"calibration": dict(calibration)} if calibration is not None else {}
    return Networks(whole, state, left)


def _source_of(name: str, why: str, spec: Spec) -> SourceFile:
    """Return the file of a network that cannot be made a program.

    Raises
    ------
    UserError
        It is of a package, which a bundle does not contain.
    """
    code = next(member["model"]["code"] for member in spec["members"] if member["model"]["name"] == name)
    source = known_source(code)
    if source is None:
        raise UserError(f"{name}: it cannot be exported without its package ({why})")
    return source


def describe(run: RunStore, ensemble: Ensemble, windows: WindowStore, networks: Networks) -> BundleInfo:
    """Describe an ensemble; checksums are still missing.

    Raises
    ------
    UserError
        It is outside the limits of what a bundle can contain, or a network of a package is no program.
    """
    sources = [_source_of(name, why, networks.spec) for name, why in networks.left.items()]
    try:
        return _describe(run, ensemble, windows, networks.spec, sources)
    except ValidationError as error:
        raise UserError(f"{run.where}: cannot be exported: {describe_problem(first_problem(error))}") from None


def _recipe(windows: WindowStore, members: list[int]) -> Recipe:
    return Recipe(
        channels=list(windows.channels),
        sfreq=windows.sfreq,
        window_samples=windows.window_samples,
        n_times=windows.crop_samples,
        prepare=windows.manifest.plan,
        scale=windows.manifest.summary.scale,
        members=members,
    )


def _describe(
    run: RunStore, ensemble: Ensemble, windows: WindowStore, spec: Spec, sources: Sequence[SourceFile]
) -> BundleInfo:
    configs = {trial: run.config(trial) for trial in ensemble.trials}
    merged = ensemble.merged.members if ensemble.merged else []
    stores = shipped_stores(ensemble)
    all_stores, windows = windows, windows.of(stores[0])
    recipes = {name: _recipe(all_stores.of(name), places) for name, places in spec.get("recipes", {}).items()}
    return BundleInfo(
        created=time.time(),
        run=without_settings(run.where).rpartition("/")[2],
        target=run.info.target,
        kind=run.info.kind,
        classes=run.info.classes,
        metric=shown_metric(run.info.metric),
        channels=list(windows.channels),
        sfreq=windows.sfreq,
        window_samples=windows.window_samples,
        n_times=windows.crop_samples,
        n_outputs=windows.n_outputs,
        outputs=run.info.outputs,
        prepare=windows.manifest.plan,
        scale=windows.manifest.summary.scale,
        method=ensemble.method,
        rule=None if ensemble.rule is None else dict(ensemble.rule),
        calibration=spec.get("calibration"),
        decision_weights=ensemble.decision_weights,
        people=ensemble.people,
        soup=[member.trial for member in merged],
        student=ensemble.distilled,
        soup_epochs=[member.epoch for member in merged],
        members=[NetworkMember.model_validate(member) for member in spec["members"]],
        recipes=recipes,
        programs={name: Program.model_validate(program) for name, program in spec.get("programs", {}).items()},
        sources={source.code: source.text for source in sources},
        configs={trial: config.model_dump(mode="json") for trial, config in configs.items()},
        config_hashes={trial: config.hash() for trial, config in configs.items()},
        fold_map=run.folds,
        table=ensemble.table_record(),
        verdict=ensemble.verdict,
        notes=ensemble.notes,
        held_out_evaluations=ensemble.held_out_evaluations,
        seed=run.info.seed,
        data_hash=run.info.data_hash,
        versions=package_versions(),
        sha256={},
    )
