"""Compare the histories and encoders of a pretrained run, and repair them from its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

from raypipe.core.errors import DamagedFileError
from raypipe.pretraining.encoders import CARD_FILE, PretrainedRun, epochs_of, read_card
from raypipe.storage.records import digest
from raypipe.storage.run_layout import require_layout


def differences(run: PretrainedRun) -> Iterator[tuple[str, str, str]]:
    """Yield part, file and what is wrong with it, for each history and encoder that is not what was written.

    Raises
    ------
    UserError
        A link or a folder is in place of a file, or the card is damaged.
    """
    card = read_card(run.where) if run.over else None
    for part in run.parts:
        encoder, name, record = run.encoder_name(part), run.history_name(part), None
        written = run.folder.exists(encoder)
        if run.folder.exists(name):
            data = run.folder.read(name)  # what is no file is refused here
            try:
                record = run.parse_history(part, data)
            except DamagedFileError as error:
                yield part, name, str(error).partition("; ")[0].removeprefix(f"{run.where}/{name}: ")
        elif card or written or run.checkpoints(part):
            yield part, name, "missing"
        if card is None:
            if written and digest(run.folder.read(encoder)) != (record.encoder if record else ""):
                yield part, encoder, f"not the encoder that {name} has the checksum of"
        elif record and (record.encoder, record.epochs[-1:]) != (card.files.get(encoder), [card.last.get(part)]):
            yield part, name, f"not the one that {CARD_FILE} was written with"


def reconcile(run: PretrainedRun) -> list[str]:
    """Repair histories from checkpoints, and remove encoders that are not what was written, to be made again.

    Returns
    -------
    list of str
        A line for each file.

    Raises
    ------
    UserError
        As `differences`; a file or folder is not of the kind that raypipe writes there; or the history of a finished
        run cannot be repaired.
    """
    require_layout(run.folder)
    lines = []
    for part, name, what in list(differences(run)):
        if name == run.encoder_name(part):
            run.folder.remove(name)
        else:
            _restore_history(run, part, what)
        lines.append(f"{run.where}/{name}: {what}; it is made again from the last checkpoint")
    return lines


def _restore_history(run: PretrainedRun, part: str, what: str) -> None:
    """Write a part's history again, as its last checkpoint and the card have it."""
    name, state = run.history_name(part), run.latest(part)
    epochs = epochs_of(state) if state else []
    if not run.over:
        run.write_history(part, epochs)
        return
    card = read_card(run.where)
    if epochs[-1:] != [card.last.get(part)]:
        raise DamagedFileError(f"{run.where}/{name}: {what}; restore it, or {CARD_FILE}, from a copy")
    run.write_history(part, epochs, card.files.get(run.encoder_name(part), ""))
