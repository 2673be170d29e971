"""What leaves a run: bundles and submissions, checked, scored and used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raypipe.cli.common import app, console, example, is_pretrained
from raypipe.core.errors import UserError

PANEL = "Shipping"
"""Under which `raypipe --help` lists these verbs."""

ROLES = {"learned from": "of subjects in training", "held out": "of held-out subjects", "new": "of unknown subjects"}
"""Of whom the windows may be that `predict` has predicted."""


@app.command(
    rich_help_panel=PANEL,
    epilog=example("raypipe export demo/run demo/bundle", "raypipe export run1 run2 submission.zip"),
)
def export(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="RUN [RUN2] OUT", help="One run, or one for each challenge; then a folder or a zip."),
    ],
    format: Annotated[str | None, typer.Option(help="bundle or submission. Default: by OUT's name.")] = None,
) -> None:
    """Write a run's ensemble as a bundle (for Python and predict) or as a submission zip (needs torch only).

    A submission takes two runs, one for each half of the challenge.
    """
    from raypipe.packaging.export import export as write

    if not 2 <= len(paths) <= 3:
        raise UserError(f"export takes one run or two, then what to write: RUN [RUN2] OUT (given {len(paths)} names)")
    run, *also, out = paths
    if is_pretrained(run):
        from raypipe.pretraining.encoders import export_encoder

        if format is not None or also:
            raise UserError(f"{run}: a pretrained run is exported as an encoder: no second run, no --format")
        console.print(export_encoder(run, Path(out)), highlight=False, soft_wrap=True)
        return
    console.print(write(run, out, format=format, also=also[0] if also else None), highlight=False, soft_wrap=True)


@app.command(
    rich_help_panel=PANEL,
    epilog=example("raypipe score submission.zip --task challenge1 --data c1/store --task challenge2 --data c2/store"),
)
def score(
    submission: Annotated[Path, typer.Argument(metavar="OUT.zip", help="Submission to score.")],
    task: Annotated[list[str], typer.Option(help="challenge1 or challenge2; twice for the overall score.")],
    data: Annotated[list[Path], typer.Option(help="Windows made by prepare for that task, in the same order.")],
    release: Annotated[str | None, typer.Option(help="Only subjects of this release, such as R5.")] = None,
    subjects: Annotated[str, typer.Option(help="new: whom the models have not learned from; or all.")] = "new",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Score a submission as the challenge's organisers do: NRMSE, RMSE, R2, and overall for both tasks."""
    from raypipe.packaging.score import score_submission

    if len(task) != len(data) or len(set(task)) != len(task):
        raise UserError(f"score wants one --data for each --task, no task twice (given {len(task)} and {len(data)})")
    stores = dict(zip(task, data, strict=True))
    console.print(score_submission(submission, stores, release=release, whose=subjects, device=device).render())


@app.command(rich_help_panel=PANEL, epilog=example("raypipe check demo/submission.zip"))
def check(
    zip_file: Annotated[Path, typer.Argument(metavar="OUT.zip", help="Submission to check.")],
    bundle: Annotated[Path | None, typer.Option(help="A bundle whose answers it must give.")] = None,
) -> None:
    """Run the scorer's own loop on a submission, in a fresh process without raypipe and Ray."""
    from raypipe.packaging.check import check_submission

    found = check_submission(zip_file, bundle=bundle)
    console.print(found.render())
    if not found.ok:
        raise typer.Exit(1)


@app.command(rich_help_panel=PANEL, epilog=example("raypipe predict demo/bundle demo/bids --out predictions.csv"))
def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle made by export.")],
    recordings: Annotated[Path, typer.Argument(metavar="RECORDING-OR-BIDS", help="A recording or a BIDS folder.")],
    out: Annotated[Path, typer.Option(help="CSV file, a row a window.")],
) -> None:
    """Predict recordings that the ensemble has never seen."""
    from raypipe.cli.console import Counter
    from raypipe.packaging.predict import predict as run_bundle

    with Counter(console, "predicting") as counter:
        table = run_bundle(bundle, recordings, out, progress=counter)
    roles = [f"{(table['role'] == role).sum()} {words}" for role, words in ROLES.items()]
    console.print(f"{out}: {len(table)} windows: {', '.join(roles)}", highlight=False, soft_wrap=True)
