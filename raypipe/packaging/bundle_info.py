"""The record of a bundle (``bundle.json``)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, JsonValue, model_validator

from raypipe.core.config import config_hash
from raypipe.core.errors import UserError
from raypipe.core.folds import HELD_OUT, FoldMap
from raypipe.core.metrics import METRICS, Kind
from raypipe.core.model_config import OwnConfig
from raypipe.core.own_code import is_plain
from raypipe.core.record import FrozenModel, Record, leaving_out
from raypipe.data.manifest import Plan
from raypipe.data.plan import check_baseline_samples
from raypipe.data.preprocessing import check_values
from raypipe.data.table_target import without_file
from raypipe.ensembles.people import People
from raypipe.ensembles.rules import CalibrationMap, DecisionWeights
from raypipe.packaging.network_spec import CombinedSpec, NetworkMember, NetworkSpec, Program, make_spec

MAX_TIME = 1e6
"""Seconds."""
MAX_RECIPES = 32
"""Ways to make windows."""


class Recipe(FrozenModel):
    """How one store's windows are made, and which networks take them. Fields are those of `BundleInfo`."""

    channels: list[str]
    sfreq: float
    """Hz."""
    window_samples: int
    n_times: int
    """Samples of a window that the networks see."""
    prepare: Plan
    scale: float = Field(ge=0.0)
    members: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    """Places among the bundle's members."""


class BundleInfo(Record):
    """The content of a bundle, and how it was made.

    A file that fits this schema can be built and run: see `NetworkSpec`. The plan is one that `prepare` makes.
    """

    max_bytes: ClassVar[int] = 16 * 2**20
    max_values: ClassVar[int] = 400_000
    from_elsewhere: ClassVar[bool] = True

    format: Literal["raypipe-bundle/10"] = "raypipe-bundle/10"
    created: float
    """Unix time."""
    run: str
    """Name of the run's folder."""
    target: str
    kind: Kind
    classes: list[str]
    metric: str
    channels: list[str]
    sfreq: float
    """Hz."""
    window_samples: int
    n_times: int
    """Samples of a window that the networks see."""
    n_outputs: int
    outputs: list[str] = Field(default_factory=list)
    """Names of the values, where the target has several."""
    prepare: Plan
    """Plan by which recordings were cut into windows."""
    scale: float = Field(ge=0.0)
    """Usual spread of a window's samples before alignment (uV); 0 where it is unknown."""
    method: str
    rule: dict[str, Any] | None
    """Combines the members (`raypipe.models.combine`); None for their weighted mean."""
    calibration: CalibrationMap | None
    """Of class probabilities."""
    decision_weights: DecisionWeights | None
    """The class with the largest product of probability and weight is predicted; None for a regression."""
    people: People | None
    """How mean predictions of people are read; None where the target is not the person's."""
    soup: list[int]
    """Trials of averaged weights, or of a distilled network's configuration; empty if there are none."""
    student: bool
    """The only network was distilled."""
    soup_epochs: list[int]
    """Epoch of each in `soup`; 0 for the trial's best."""
    members: list[NetworkMember]
    recipes: Annotated[dict[str, Recipe], Field(max_length=MAX_RECIPES)] = Field(default_factory=dict)
    """By name, the stores whose windows networks take, where they take those of several. The fields above are then
    those of the first."""
    programs: dict[str, Program]
    """Of users' networks, by the names that members have."""
    sources: dict[str, str]
    """Files of users' networks that are no programs, by hash: code that is only run where it is trusted."""
    configs: dict[int, dict[str, JsonValue]]
    """Configuration by trial."""
    config_hashes: dict[int, str]
    fold_map: FoldMap
    table: dict[str, dict[str, float | None]]
    """See `raypipe.ensembles.scores.score_table`."""
    verdict: str
    notes: list[str]
    held_out_evaluations: int
    """Number of times that the run was scored on its held-out subjects."""
    seed: int
    data_hash: str
    versions: dict[str, str]
    sha256: dict[str, str]
    """Checksums of the other files by name."""

    _serializer = leaving_out("recipes")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        _check_channels(self.channels)
        self._check_recipes()
        self.networks()
        self._check_outputs()
        _check_plan(self)
        self._check_members()
        return self

    def _check_recipes(self) -> None:
        if not self.recipes:
            return
        places = sorted(place for recipe in self.recipes.values() for place in recipe.members)
        if len(self.recipes) < 2 or places != list(range(len(self.members))):
            raise ValueError("recipes: not those of two stores or more, or a member is in none or in several")
        first = next(iter(self.recipes.values()))
        if any(getattr(self, name) != getattr(first, name) for name in Recipe.model_fields if name != "members"):
            raise ValueError("recipes: the bundle's own fields are not those of the first")
        for recipe in self.recipes.values():
            _check_channels(recipe.channels)
            _check_plan(recipe)
            if without_file(recipe.prepare.target) != without_file(self.prepare.target):
                raise ValueError("recipes: one has another target")

    def _check_outputs(self) -> None:
        if len(self.classes) != (self.n_outputs if self.kind == "classification" else 0):
            raise ValueError(f"classes: {len(self.classes)} names for {self.kind} with {self.n_outputs} outputs")
        if len(set(self.classes)) < len(self.classes) or not all(self.classes):
            raise ValueError("classes: a name is empty, or is there twice")
        several = self.n_outputs if self.kind == "regression" and self.n_outputs > 1 else 0
        if len(self.outputs) != several or len(set(self.outputs)) < several or not all(self.outputs):
            raise ValueError(f"outputs: {len(self.outputs)} names for {self.kind} with {self.n_outputs} outputs")
        if len(self.decision_weights or []) != len(self.classes):
            raise ValueError(f"decision_weights: there must be one for each of {len(self.classes)} classes")
        if self.people is not None:
            self.people.check(self.kind, self.n_outputs)
        own = is_plain(self.metric)  # a user's, whose name alone is used
        if not own and (self.metric not in METRICS or METRICS[self.metric].kind != self.kind):
            raise ValueError(f"metric: not a metric of {self.kind}")

    def _check_members(self) -> None:
        trials = {member.trial for member in self.members} | set(self.soup)
        if len(self.soup) != len(self.soup_epochs) or (self.student and not self.soup):
            raise ValueError("soup: its lists have different lengths, or are empty")
        if not trials <= self.configs.keys() or self.configs.keys() != self.config_hashes.keys():
            raise ValueError("configs: not those of the members")
        if any(self.config_hashes[trial] != config_hash(config) for trial, config in self.configs.items()):
            raise ValueError("config_hashes: not those of the configurations")
        if any(member.fold >= self.fold_map.n_folds for member in self.members):
            raise ValueError(f"members: a fold is none of {self.fold_map.n_folds}")
        maps = (self.fold_map.fold_of, *self.fold_map.repeated)
        if not all(HELD_OUT <= fold < self.fold_map.n_folds for each in maps for fold in each.values()):
            raise ValueError(f"fold_map: a subject's fold is none of {self.fold_map.n_folds}")

    def networks(self) -> NetworkSpec:
        """Return the description of the networks.

        Raises
        ------
        ValueError
            They are outside the limits, or do not fit each other.
        """
        names = ("kind", "n_times", "n_outputs", "sfreq", "members", "rule", "calibration", "programs")
        fields = {name: getattr(self, name) for name in names} | {"n_channels": len(self.channels)}
        if not self.recipes:
            return make_spec(fields | {"stored": self.prepare.dtype})
        self.networks_of_stores()
        return make_spec(fields, CombinedSpec)

    def code_members(self) -> list[dict[str, Any]]:
        """Return the members that are built from users' code, as a spec has them."""
        own = [member for member in self.members if isinstance(member.model, OwnConfig) and member.program is None]
        return [{"model": member.model.model_dump()} for member in own]

    def networks_of_stores(self) -> dict[str, NetworkSpec]:
        """Return the networks of each store, without what combines them; raises as `networks`."""
        return {name: self._networks_of(recipe) for name, recipe in self.recipes.items()}

    def _networks_of(self, recipe: Recipe) -> NetworkSpec:
        members = [self.members[place] for place in recipe.members]
        share = 1.0 / len(members)
        named = {member.program for member in members}
        return make_spec(
            {
                "kind": self.kind,
                "n_channels": len(recipe.channels),
                "n_times": recipe.n_times,
                "n_outputs": self.n_outputs,
                "sfreq": recipe.sfreq,
                "stored": recipe.prepare.dtype,
                "members": [member.model_copy(update={"weight": share}) for member in members],
                "programs": {name: program for name, program in self.programs.items() if name in named},
            }
        )


def _check_channels(channels: list[str]) -> None:
    if not channels:
        raise ValueError("channels: there are none")
    if not all(channels) or len(set(channels)) < len(channels):
        raise ValueError("channels: a name is empty, or is there twice")


def _check_plan(windows: BundleInfo | Recipe) -> None:
    plan = windows.prepare
    same = {
        "channels": list(plan.channels) == windows.channels,
        "sources": set(plan.channels) <= set(plan.sources) and len(set(plan.sources)) == len(plan.sources),
        "sfreq": plan.sfreq == windows.sfreq,
        "window_samples": plan.window_samples == windows.window_samples,
        "crop_samples": plan.crop_samples == windows.n_times,
    }
    if wrong := [name for name, is_same in same.items() if not is_same]:
        raise ValueError(f"prepare/{wrong[0]}: not that of the bundle")
    if not 0 < plan.window <= MAX_TIME:
        raise ValueError("prepare/window: out of range")
    if not windows.n_times <= windows.window_samples == round(plan.window * plan.sfreq):
        raise ValueError("prepare/window: not the samples of a window, or shorter than what the networks see")
    if not 1 / plan.sfreq <= 2 * plan.stride <= MAX_TIME or abs(plan.tmin) > MAX_TIME:
        raise ValueError("prepare/stride or tmin: out of range")
    try:
        check_values(plan.preprocessing, plan.sfreq)
        check_baseline_samples(plan)
    except UserError as error:
        raise ValueError(f"prepare/preprocessing: {error}") from None
