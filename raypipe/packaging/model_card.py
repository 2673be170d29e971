"""The model card of a bundle (``README.md``)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

from raypipe.ensembles.labels import class_frequency_note, describe_target, metric_label, resampled
from raypipe.ensembles.scores import WINDOW
from raypipe.packaging.bundle_info import BundleInfo, Recipe


def model_card(info: BundleInfo) -> str:
    """Return the model card: prediction, scores, use, members, data and limits of a bundle."""
    sections = (_scores(info), _use(info), _members(info), _data(info), _limits(info))
    lines = [
        f"# Ensemble for {describe_target(info.target)}",
        "",
        info.verdict,
        *itertools.chain.from_iterable(sections),
    ]
    return "\n".join(lines) + "\n"


def _section(title: str, *lines: str) -> list[str]:
    return ["", f"## {title}", "", *lines]


def _scores(info: BundleInfo) -> list[str]:
    without_eeg = list(info.table.values())[-1]["oof"]
    notes = [*info.notes, *class_frequency_note(info.metric, math.nan if without_eeg is None else without_eeg)]
    label, by_subject = metric_label(info.metric), f"{WINDOW}held_out" in next(iter(info.table.values()))
    level = "one mean prediction per subject" if by_subject else "windows"
    return _section(
        "Scores",
        f"{label} of {level}. Nested: on search subjects who had no part in the choice of epoch, trials, method and "
        f"weights. Held out: nothing was fitted or chosen on these subjects; they were scored "
        f"{info.held_out_evaluations} time{'' if info.held_out_evaluations == 1 else 's'}. Intervals: 95 %, over "
        f"{_resampled(info)}; differences are paired.",
        "",
        f"| predictor | nested {label} | held-out {label} | nested difference from what is shipped "
        "| held-out difference from what is shipped |",
        "|---|---|---|---|---|",
        *(_score_row(name, row) for name, row in info.table.items()),
        *(_window_scores(info, label) if by_subject else []),
        *(f"\n{note}" for note in notes),
    )


def _score_row(name: str, row: dict[str, float | None]) -> str:
    cells = (("nested", "nested_"), ("held_out", ""))
    scores = [_interval(row[score], row[f"{ends}low"], row[f"{ends}high"]) for score, ends in cells]
    differences = [
        _interval(row[to], row[f"{to}_low"], row[f"{to}_high"], sign="+") for to in ("nested_to_shipped", "to_shipped")
    ]
    return f"| {' | '.join([name, *scores, *differences])} |"


def _interval(value: float | None, low: float | None, high: float | None, sign: str = "") -> str:
    if value is None:
        return "undefined"
    return f"{value:{sign}z.3f}" + ("" if low is None or high is None else f" ({low:{sign}z.3f} to {high:{sign}z.3f})")


def _window_scores(info: BundleInfo, label: str) -> list[str]:
    """Return a sentence on the scores of windows, which no row has beside those of subjects."""
    row = next(iter(info.table.values()))
    value, low, high = (row[f"{WINDOW}{name}"] for name in ("held_out", "low", "high"))
    return [f"\nWindow level, each window by itself: held-out {label} {_interval(value, low, high)}."]


def _resampled(info: BundleInfo) -> str:
    first = next(iter(info.table.values()))
    return resampled(int(first["subjects"] or 0), int(first["units"] or 0))


def _use(info: BundleInfo) -> list[str]:
    output = "one value per window, in the unit of the target"
    if info.outputs:
        output = f"values per window of {', '.join(f'`{name}`' for name in info.outputs)}, each in its unit"
    if info.kind == "classification":
        output = f"probabilities of {', '.join(f'`{name}`' for name in info.classes)}"
    if info.recipes:
        given = "{" + ", ".join(f'"{name}": x_{number}' for number, name in enumerate(info.recipes)) + "}"
        calls = [f"ensemble.predict({given})  # the same windows by each recipe"]
        channels = [f"Recipe `{name}`: {_windows(recipe)}" for name, recipe in info.recipes.items()]
    else:
        windows = (
            f"(N, {len(info.channels)}, {info.n_times}) at {info.sfreq:g} Hz, {info.prepare.preprocessing.samples}"
        )
        calls = [f"ensemble.predict(x)  # x: {windows}"]
        channels = [f"Channels, in order: {', '.join(info.channels)}."]
    code = {member["model"]["name"] for member in info.code_members()}
    trusted, trust = (", trust_code=True", " --trust-code") if code else ("", "")
    note = (
        ["", f"Reading it runs the code of {', '.join(sorted(code))}, which can do whatever you can."] if code else []
    )
    return _section(
        "Use",
        "```python",
        "import raypipe",
        "",
        'ensemble = raypipe.load_ensemble("this/folder"' + f"{trusted})",
        *calls,
        "```",
        "",
        f"or `raypipe predict this/folder RECORDINGS --out predictions.csv{trust}`. Output: {output}.{_people(info)}",
        *note,
        "",
        *"\n\n".join([*channels, *_alignment(info)]).split("\n"),
    )


def _alignment(info: BundleInfo) -> list[str]:
    """Return paragraphs on how windows are aligned; none where none are."""
    recipes: list[BundleInfo | Recipe] = [*info.recipes.values()] or [info]
    return [
        f"Windows aligned by {unit}: all windows of a {unit} in microvolts, multiplied by the inverse root of their "
        f"mean covariance (He & Wu 2020), as the store of `raypipe prepare --align {unit}` holds them. Windows that "
        "are not aligned are predicted too, but wrongly. `raypipe predict` aligns recordings by itself."
        for unit in dict.fromkeys(recipe.prepare.preprocessing.align for recipe in recipes)
        if unit is not None
    ]


def _people(info: BundleInfo) -> str:
    """Return a sentence on predictions of people, with a space before; empty where the target is not the person's."""
    if info.people is None:
        return ""
    text = " The target is the person's: `--level subject` writes a row per person"
    if not info.people.half_widths:
        return f"{text}."
    widths = [f"± {half:.3g}" for half in info.people.half_widths]
    if info.outputs:
        widths = [f"{width} (`{name}`)" for width, name in zip(widths, info.outputs, strict=True)]
    kind, each = ("intervals", ", each of") if info.outputs else ("an interval", ",")
    return (
        f"{text}, with {kind} of {', '.join(widths)}{each} which is to contain the target of "
        f"{info.people.nominal:.0%} of new people (from the errors of {info.people.n} people)."
    )


def _windows(recipe: Recipe) -> str:
    """Return the windows of a recipe in words."""
    size = f"{len(recipe.channels)} channels x {recipe.n_times} samples at {recipe.sfreq:g} Hz"
    return f"{size}, {recipe.prepare.preprocessing.samples}; channels, in order: {', '.join(recipe.channels)}."


def _members(info: BundleInfo) -> list[str]:
    weights = _member_weights(info)
    return _section(
        "Members",
        _describe_members(info, weights),
        "",
        "| trial | epoch | weight | configuration |",
        "|---|---|---|---|",
        *(
            f"| {trial} | {epoch or 'best'} | {weight:.3f} | `{info.config_hashes[trial]}` |"
            for (trial, epoch), weight in weights.items()
        ),
    )


def _member_weights(info: BundleInfo) -> dict[tuple[int, int], float]:
    """Return the weight of each member, by trial and epoch."""
    if info.soup:
        return {member: 1 / len(info.soup) for member in zip(info.soup, info.soup_epochs, strict=True)}
    weights: dict[tuple[int, int], float] = {}
    for model in info.members:
        member = model.trial, model.epoch
        weights[member] = weights.get(member, 0.0) + model.weight
    return weights


def _describe_members(info: BundleInfo, weights: dict[tuple[int, int], float]) -> str:
    if info.student:
        return (
            f"One network with the configuration of trial {info.soup[0]}, trained on all search subjects to predict "
            f"what the ensemble (`{info.method}`) predicts."
        )
    trials, snapshots = len({trial for trial, _ in weights}), sum(epoch > 0 for _, epoch in weights)
    members = f"{trials} trial(s)" + (f" and {snapshots} snapshot(s)" if snapshots else "")
    if info.soup:
        return f"{len(info.members)} networks, one per fold: the mean weights of {members} (`{info.method}`)."
    return (
        f"{len(info.members)} networks: {members} with {info.fold_map.n_folds} fold models each, weighted by "
        f"`{info.method}` on out-of-fold predictions."
    )


def _plan(name: str, windows: BundleInfo | Recipe) -> list[str]:
    """Return how windows are made; `name` is empty where there is one way."""
    heading = [f"Recipe `{name}`:", ""] if name else []
    return [*heading, "```json", windows.prepare.model_dump_json(indent=1), "```"]


def _data(info: BundleInfo) -> list[str]:
    recipes: Mapping[str, BundleInfo | Recipe] = info.recipes or {"": info}
    held_out = len(info.fold_map.held_out)
    trained_on = len(info.fold_map.fold_of) - held_out
    return _section(
        "Data",
        f"Task `{info.target}`; trained on {trained_on} subjects, scored on {held_out} others. "
        f"Windows: {info.window_samples / info.sfreq:g} s, data hash `{info.data_hash[:12]}`, seed {info.seed}.",
        "",
        *itertools.chain.from_iterable(_plan(name, recipe) for name, recipe in recipes.items()),
    )


def _limits(info: BundleInfo) -> list[str]:
    return _section(
        "Limits",
        "A research model of one data set. It has not been tested on devices, ages or clinics other than those of the "
        "subjects above, and is no basis for a diagnosis.",
        "",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in info.versions.items()) + ".",
    )
