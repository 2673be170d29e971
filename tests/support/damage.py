"""Damage to the files of a folder, as disks, editors, copies and file managers do it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

OTHER_JSON = [None, [], {}, 3, "text", {"format": "raypipe-trial/2"}, {"number": 0, "state": "complete", "score": 0.0}]
STRAY = [".DS_Store", "0001 (copy)", "Thumbs.db", "._trial.json", "trial.json~", "epoch-0001.ckpt.bak", "99999"]

_DIGITS = re.compile(r"\d+")
_IDS = re.compile(rb'"worker_id":"[^"]*"')
"""What a line of a study's journal has of its writer, which means nothing later."""


def damage(folder: Path, data: st.DataObject) -> str:
    """Draw a damage and do it; return it in words."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "/log/" not in path.as_posix())
    kind = data.draw(st.sampled_from(sorted(KINDS)), label="kind")
    names = sorted({_DIGITS.sub("#", path.name) for path in files})  # not mostly checkpoints, which are the most
    name = data.draw(st.sampled_from(names), label="name")
    path = data.draw(st.sampled_from([path for path in files if _DIGITS.sub("#", path.name) == name]), label="file")
    done = KINDS[kind](path, files, data)
    return f"{kind} {path.relative_to(folder)}{done or ''}"


def _flip(path: Path, files: list[Path], data: st.DataObject) -> str:
    content = bytearray(path.read_bytes() or b"\0")
    place = data.draw(st.integers(0, len(content) - 1), label="place")
    content[place] ^= data.draw(st.integers(1, 255), label="mask")
    path.write_bytes(bytes(content))
    return f" at {place}"


def _cut(path: Path, files: list[Path], data: st.DataObject) -> str:
    content = path.read_bytes()
    place = data.draw(st.integers(0, max(0, len(content) - 1)), label="place")
    path.write_bytes(content[:place])
    return f" at {place}"


def _zero(path: Path, files: list[Path], data: st.DataObject) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _empty(path: Path, files: list[Path], data: st.DataObject) -> None:
    path.write_bytes(b"")


def _delete(path: Path, files: list[Path], data: st.DataObject) -> None:
    path.unlink()


def _delete_folder(path: Path, files: list[Path], data: st.DataObject) -> None:
    trial = next((p for p in path.parents if p.parent.name == "trials"), None)
    path.unlink() if trial is None else shutil.rmtree(trial)


def _other_json(path: Path, files: list[Path], data: st.DataObject) -> None:
    path.write_text(json.dumps(data.draw(st.sampled_from(OTHER_JSON), label="content")))


def _edit(path: Path, files: list[Path], data: st.DataObject) -> str:
    """Change a digit, so that the file is of the right form, of another content."""
    content = bytearray(path.read_bytes())
    digits = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
    if not digits:
        path.unlink()
        return " (removed)"
    place = data.draw(st.sampled_from(digits), label="place")
    content[place] = ord("1") if content[place] != ord("1") else ord("2")
    path.write_bytes(bytes(content))
    return f" at {place}"


def _edit_last_lines(path: Path, files: list[Path], data: st.DataObject) -> str:
    """Change a digit of what the study's journal has last, which is of the trial under way."""
    journal = next((file for file in files if file.name == "study.journal"), path)
    content = bytearray(journal.read_bytes())
    start = len(content) - sum(map(len, bytes(content).splitlines(keepends=True)[-4:]))
    ids = [found.span() for found in _IDS.finditer(content)]
    places = [i for i in range(start, len(content)) if not any(first <= i < last for first, last in ids)]
    digits = [i for i in places if chr(content[i]).isdigit()]
    if not digits:
        return " (nothing)"
    place = data.draw(st.sampled_from(digits), label="place")
    content[place] = data.draw(st.sampled_from(sorted({*b"0123456789"} - {content[place]})), label="digit")
    journal.write_bytes(bytes(content))
    return f": {journal.name} at {place}"


def _swap(path: Path, files: list[Path], data: st.DataObject) -> str:
    alike = [other for other in files if other.suffix == path.suffix]
    other = data.draw(st.sampled_from(alike), label="other")
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)
    return f" and {other.name} of {other.parent.name}"


def _replace(path: Path, files: list[Path], data: st.DataObject) -> str:
    alike = [other for other in files if other.suffix == path.suffix]
    other = data.draw(st.sampled_from(alike), label="other")
    path.write_bytes(other.read_bytes())
    return f" by {other.name} of {other.parent.name}"


def _repeat(path: Path, files: list[Path], data: st.DataObject) -> None:
    path.write_bytes(2 * path.read_bytes())


def _repeat_lines(path: Path, files: list[Path], data: st.DataObject) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    place = data.draw(st.integers(0, max(0, len(lines) - 1)), label="line")
    path.write_bytes(b"".join([*lines[:place], *lines[place : place + 1], *lines[place:]]))


def _lose_line(path: Path, files: list[Path], data: st.DataObject) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    place = data.draw(st.integers(0, max(0, len(lines) - 1)), label="line")
    path.write_bytes(b"".join([*lines[:place], *lines[place + 1 :]]))


def _stray(path: Path, files: list[Path], data: st.DataObject) -> str:
    name = data.draw(st.sampled_from(STRAY), label="name")
    (path.parent / name).write_bytes(path.read_bytes())
    return f": {name} beside it"


def _copy_folder(path: Path, files: list[Path], data: st.DataObject) -> str:
    name = data.draw(st.sampled_from(["0001 (copy)", "0009", "00001", "trial"]), label="name")
    trial = next((p for p in path.parents if p.parent.name == "trials"), None)
    if trial is None:
        shutil.copy(path, path.with_name(f"{path.name} (copy)"))
        return " (copy)"
    shutil.copytree(trial, trial.parent / name)
    return f": its trial as {name}"


def _replace_by_link(path: Path, files: list[Path], data: st.DataObject) -> str:
    """Put a link in place of a file, or of a folder above it: to what was there, to nothing, or to itself."""
    below = [path, *path.parents][: 1 + len(path.relative_to(_top(files)).parts[:-1])]
    place = data.draw(st.sampled_from(below), label="place")
    to = data.draw(st.sampled_from(["itself", "nothing", "what was there"]), label="to")
    aside = _top(files).with_name(f"{_top(files).name}-aside")
    place.rename(aside)
    place.symlink_to({"itself": place, "nothing": aside.with_name("nothing"), "what was there": aside}[to])
    return f": a link to {to} for {place.name}"


def _replace_by_fifo(path: Path, files: list[Path], data: st.DataObject) -> None:
    path.unlink()
    os.mkfifo(path)


def _replace_by_other(path: Path, files: list[Path], data: st.DataObject) -> str:
    """Put a folder in place of a file, or a file in place of a folder above it."""
    below = [path, *path.parents][: 1 + len(path.relative_to(_top(files)).parts[:-1])]
    place = data.draw(st.sampled_from(below), label="place")
    if place == path:
        path.unlink()
        path.mkdir()
    else:
        shutil.rmtree(place)
        place.write_text("")
    return f": {place.name}"


def _top(files: list[Path]) -> Path:
    """Return the damaged folder, which all files are in."""
    return Path(os.path.commonpath(files))


KINDS: dict[str, Callable[[Path, list[Path], st.DataObject], str | None]] = {
    "flip": _flip,
    "cut": _cut,
    "zero": _zero,
    "empty": _empty,
    "delete": _delete,
    "delete the trial of": _delete_folder,
    "other JSON in": _other_json,
    "edit": _edit,
    "edit the last lines beside": _edit_last_lines,
    "swap": _swap,
    "replace": _replace,
    "repeat": _repeat,
    "repeat a line of": _repeat_lines,
    "lose a line of": _lose_line,
    "stray file at": _stray,
    "copy": _copy_folder,
    "link": _replace_by_link,
    "fifo": _replace_by_fifo,
    "file for folder": _replace_by_other,
}
