"""Changes of valid files as an attacker or an accident would make them; hypothesis draws which."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]

VALUES: list[Any] = [
    *(float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 1e-300, 5e-324),
    *(0, -1, 1, 2, 3, 7, 0.5, 2.5, 255, 65536, 10**6, 10**7, 2**31, 2**63, 10**30, 10**400),
    *("", "x", "NaN", "x" * 5000, "\x1b]0;owned\x07", "[bold]red[/]", "a\nb\rc\0", "../../etc/passwd", "é\u202e"),
    *(None, True, False, [], {}, [[]], [[[0]]], {"a": 1}, ["a"] * 50, [0] * 3000, ["text"], [None]),
]

MAX_REPEATED = 1_000_000
"""Most characters of a list that is repeated: lists of repeated lists, and of long texts or numbers, would take minutes
to be written before raypipe reads them."""


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of each value in nested lists and dicts."""
    out = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        out += paths_in(inner, (*path, key))
    return out


def change_json(value: Any, draw: Draw) -> Any:
    """Return JSON with one to three changes of its structure or its values."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        paths = paths_in(value)
        if not paths:
            return draw(st.sampled_from(VALUES))
        depth = draw(st.integers(1, max(map(len, paths))))  # else most changes are at the deepest level
        *above, last = draw(st.sampled_from([p for p in paths if len(p) == depth] or paths))
        holder = value
        for key in above:
            holder = holder[key]
        _change(holder, last, draw)
    return value


def _change(holder: Any, key: Any, draw: Draw) -> None:
    old = holder[key]
    action = draw(st.sampled_from(["replace", "scale", "delete", "add", "repeat", "reverse", "deep", "wrap"]))
    if action == "scale" and isinstance(old, int | float) and not isinstance(old, bool):
        with contextlib.suppress(OverflowError):  # an integer of hundreds of digits, by an earlier change
            holder[key] = old * draw(st.sampled_from([-1, 0, 1.0001, 5, 1000, 1e9, 1e-9]))
    elif action == "delete":
        del holder[key]
    elif action == "add" and isinstance(old, dict):
        old[draw(st.sampled_from(["surprise", "", "\x1b[31m", "n" * 3000, "kind", "0"]))] = 1
    elif action == "repeat" and isinstance(old, list):
        room = MAX_REPEATED // len(json.dumps(old, indent=1))
        holder[key] = old * draw(st.sampled_from([times for times in (2, 3, 20, 1000) if times <= room] or [1]))
    elif action == "reverse" and isinstance(old, list):
        holder[key] = old[::-1]
    elif action == "deep":
        deep: Any = 0
        for _ in range(draw(st.sampled_from([20, 150, 400]))):
            deep = [deep]
        holder[key] = deep
    elif action == "wrap":
        holder[key] = [old]
    else:
        holder[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))


def forged(record: Any) -> bytes:
    """Return a record as JSON with a digest that fits, also where raypipe would not write it."""
    if not isinstance(record, dict):
        return json.dumps(record).encode()
    body = json.dumps({k: v for k, v in record.items() if k != "digest"}, indent=1).encode()[:-2]
    return body + f',\n "digest": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()


def change_bytes(data: bytes, draw: Draw) -> bytes:
    """Return bytes with flips, a cut, an insertion or a repetition."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(out) - 1)))
        action = draw(st.sampled_from(["flip", "cut", "insert", "zero", "repeat", "long"]))
        if action == "flip" and out:
            out[place] ^= draw(st.integers(1, 255))
        elif action == "cut":
            del out[place:]
        elif action == "insert":
            out[place:place] = draw(st.binary(max_size=40))
        elif action == "zero":
            out[place : place + 64] = bytes(len(out[place : place + 64]))
        elif action == "repeat":
            out += out[place : place + 100_000]
        else:
            out[place : place + 8] = struct.pack("<Q", draw(st.sampled_from([0, 7, 2**31, 2**62, 2**64 - 1])))
    return bytes(out)


def change_tensors(data: bytes, draw: Draw) -> bytes:
    """Return a safetensors file with a changed header or changed values."""
    length = struct.unpack("<Q", data[:8])[0]
    header, values = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    action = draw(st.sampled_from(["header", "values", "bytes", "number"]))
    if action == "bytes":
        return change_bytes(data, draw)
    if action == "values":
        place = 4 * draw(st.integers(0, len(values) // 4 - 1))
        number = draw(st.sampled_from([float("nan"), float("inf"), 3e38, -1.0, 1e-40]))
        values[place : place + 4] = struct.pack("<f", number)
    elif action == "number":
        values = bytearray(len(values))
    text = json.dumps(change_json(header, draw) if action == "header" else header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(values)


KINDS_OF_FILE = ("fifo", "folder", "missing", "empty", "endless", "loop", "sparse", "dangling")


def replace_by(path: Path, kind: str) -> None:
    """Replace a file by something else that has its name."""
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "dangling":
        path.symlink_to(path.parent / "nowhere")
    elif kind == "sparse":
        with open(path, "wb") as file:
            file.truncate(3 * 2**30)


NAMES = (
    "submission.py",
    "x.py",
    "../x",
    "/x",
    "a/b",
    "",
    ".",
    "..",
    "C:x",
    "\x1b[31m",
    "n" * 300,
    "é",
    "SUBMISSION.PY",
)
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def write_hostile_zip(path: Path, files: dict[str, bytes], draw: Draw) -> None:
    """Write a zip of changed structure: other compressions, names, kinds of files, and damaged bytes."""
    method = draw(st.sampled_from(METHODS))
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            archive.writestr(info, data)
        for _ in range(draw(st.integers(0, 2))):
            info = zipfile.ZipInfo(draw(st.sampled_from(NAMES)) or "x")
            info.compress_type = draw(st.sampled_from(METHODS))
            info.external_attr = draw(st.sampled_from([0, 0o120777, 0o010644, 0o060644, 0o040755])) << 16
            size = draw(st.sampled_from([0, 10, 10**6, 10**8]) if draw(st.integers(0, 9)) == 0 else st.just(5))
            archive.writestr(info, bytes(size))
        if draw(st.integers(0, 19)) == 0:
            for number in range(draw(st.sampled_from([1001, 5000]))):
                archive.writestr(f"{number}", b"")
    if draw(st.booleans()):
        path.write_bytes(_damaged_zip(path.read_bytes(), draw))


def _damaged_zip(data: bytes, draw: Draw) -> bytes:
    """Damage the ends and the headers of a zip more often than what it contains."""
    marks = [b"PK\x05\x06", b"PK\x01\x02", b"PK\x03\x04"]
    mark = draw(st.sampled_from([*marks, b""]))
    start = data.rfind(mark) if draw(st.booleans()) else data.find(mark)
    if not mark or start < 0:
        return change_bytes(data, draw)
    end = min(len(data), start + draw(st.sampled_from([30, 60, 200])))
    return data[:start] + change_bytes(data[start:end], draw) + data[end:]
