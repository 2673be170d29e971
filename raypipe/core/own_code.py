"""Code of users: named by path (``mine.py:Net``), by package (``package.module:Net``) or by an entry point.

A file is kept as text and known by its hash. A search space reads the files that it names, and a run keeps them. So
workers, `resume` and `rerun` use the run's copy, wherever the file is by then.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.metadata
import linecache
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from raypipe.core.braindecode_import import stand_ins
from raypipe.core.errors import UserError, nearest
from raypipe.core.foreign_code import code_errors
from raypipe.core.random_streams import seeded
from raypipe.core.seeds import derive_seed
from raypipe.core.text import decode_source, short_line
from raypipe.core.worker_imports import check_imports, folder_of_script

T = TypeVar("T")
ENTRY_POINTS = "raypipe.models"
"""Group of the entry points by which packages register networks."""
MAX_NAME = 200
"""Bytes of a name without folders, at most: files of submissions are named by it."""

_FILE = re.compile(r"(.+\.py):([A-Za-z_]\w*)")
_PACKAGE = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")


@dataclass(frozen=True)
class SourceFile:
    """A user's file."""

    name: str
    """Without folders."""
    text: str

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the text in hex digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def code(self) -> str:
        """Return the first 16 digits of the hash, by which configurations name the file."""
        return self.sha256[:16]


_sources: dict[str, SourceFile] = {}
_modules: dict[str, ModuleType] = {}


def keep_source(source: SourceFile) -> str:
    """Make a file known to this process; return its `code`."""
    _sources[source.code] = source
    return source.code


def known_source(code: str) -> SourceFile | None:
    """Return the file of this `code`, if this process knows it."""
    return _sources.get(code)


def file_of(name: str) -> str | None:
    """Return the path in a name such as ``nets/my_nets.py:Net``; None for one of a package."""
    match = _FILE.fullmatch(name)
    return match[1] if match else None


def is_code(name: str, section: str = "model") -> bool:
    """Return whether a name is of a user's code: of a file, of a package, or (networks only) of an entry point."""
    return ":" in name or (section == "model" and name in registered())


def short_name(name: str) -> str:
    """Return a name without the folders of its file."""
    path = file_of(name)
    return name if path is None else f"{Path(path).name}:{name.rpartition(':')[2]}"


def known_name(name: Any, files: Mapping[str, SourceFile]) -> Any:
    """Return the name of code in a file by the path that `files` has of the file; anything else as it is."""
    path = file_of(name) if isinstance(name, str) else None
    if path is None or path in files:
        return name
    known = next((each for each in files if Path(each).name == Path(path).name), path)
    return f"{known}:{name.rpartition(':')[2]}"


def is_plain(name: str) -> bool:
    """Return whether a name such as ``mine.py:Net`` is without folders, short, and one that every system can store."""
    file, _, attribute = name.rpartition(":")
    usual = bool(file) and attribute.isidentifier() and name.isprintable() and not {"/", "\\", ":"} & {*file}
    return usual and len(name.encode()) <= MAX_NAME


def object_names(names: Sequence[str]) -> list[str]:
    """Return names without files and packages, such as ``Net`` of ``my_nets.py:Net``, where they stay different."""
    short = [name.rpartition(":")[2] for name in names]
    return [name if short.count(last) > 1 else last for name, last in zip(names, short, strict=True)]


# From names to the code that a configuration records


def named_files(text: str) -> list[str]:
    """Return the paths of all files that strings of a Python source name, such as ``"my_nets.py:Net"``.

    Docstrings, and other strings that stand alone, name none.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # running it reports the error
        return []
    nodes = list(ast.walk(tree))
    alone = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    constants = (node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in alone)
    strings = (value for value in constants if isinstance(value, str))
    return list(dict.fromkeys(path for value in strings if (path := file_of(value)) is not None))


def read_source(path: str, folder: Path, where: str) -> SourceFile:
    """Read a user's file.

    Parameters
    ----------
    path
        As it was written; relative to `folder`.
    where
        What names it, for messages.

    Raises
    ------
    UserError
        There is no such file, it is no text, it is no Python, or it imports what workers do not find.
    """
    file = folder / Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{where}: '{path}': there is no file {file}")
    source = SourceFile(file.name, decode_source(file.read_bytes(), file))
    with code_errors(str(file), file.name):
        tree = ast.parse(source.text, file.name)
    check_imports(tree, file)
    return source


def check_file_names(files: Mapping[str, SourceFile], where: str) -> None:
    """Check that files of different texts have different names, by which trials, families and messages know them.

    Parameters
    ----------
    files
        Files by the paths that name them.
    where
        What names them, for messages.

    Raises
    ------
    UserError
        Two files have one name.
    """
    first: dict[str, str] = {}
    for path, source in files.items():
        other = first.setdefault(source.name, path)
        if files[other].text != source.text:
            raise UserError(f"{where}: {other} and {path} are different files of one name; rename one of them")


def code_of(name: str, files: Mapping[str, SourceFile], what: str) -> str:
    """Return what identifies the code of a name: a file's hash, or a package and its version.

    Parameters
    ----------
    name
        Name of a network or another object.
    files
        Files that are known by their paths.
    what
        Where the name stands, for messages.

    Raises
    ------
    UserError
        The file is not known, the package is in the folder of the script, or it is no such name, or one that is not
        plain.
    """
    path = file_of(name)
    package = _module_name(name, what).split(".")[0] if path is None else ""
    if ":" in name and not is_plain(short_name(name)):
        raise UserError(
            f"{what}: '{short_line(short_name(name))}': too long, or its file has a colon, a backslash or a control "
            f"character in its name; rename it ({MAX_NAME} bytes at most)"
        )
    if path is None:
        if where := folder_of_script(package):
            raise UserError(f"{what}: '{name}': {package} is {where}, where workers do not look: install it")
        return _version(package)
    if path not in files:
        raise UserError(
            f"{what}: '{name}': write it as one whole string in the search space, so that the run can keep the file"
        )
    return keep_source(files[path])


@functools.cache
def registered() -> dict[str, importlib.metadata.EntryPoint]:
    """Return the networks that installed packages register, by name."""
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def check_registered(taken: Iterable[str]) -> None:
    """Check that no package registers a name of raypipe's own, or another package's.

    Raises
    ------
    UserError
        One does; names the package.
    """
    owners = dict.fromkeys(taken, "raypipe")
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        package = entry.dist.name if entry.dist else entry.value
        if owners.setdefault(entry.name, package) != package:
            raise UserError(
                f"the package {package} registers the network '{entry.name}', a name of {owners[entry.name]}; "
                f"uninstall it, or write {entry.value}"
            )


def _module_name(name: str, what: str) -> str:
    match = _PACKAGE.fullmatch(registered()[name].value if name in registered() else name)
    if match is None:
        raise UserError(f"{what}: '{short_line(name)}': write file.py:Name or package.module:Name")
    return match[1]


@functools.cache
def distributions() -> Mapping[str, list[str]]:
    """Return the installed packages by the modules that they have."""
    return importlib.metadata.packages_distributions()


def _version(package: str) -> str:
    """Return a package and its version; the package alone where it has none."""
    names = distributions().get(package)
    return f"{names[0]} {importlib.metadata.version(names[0])}" if names else package


# From configurations to objects


def load_object(name: str, code: str, what: str = "model/name") -> Any:
    """Return the object of a name.

    Raises
    ------
    UserError
        It cannot be imported, is of another version than `code`, or there is no such object.
    """
    path = file_of(name)
    if path is not None:
        module = _module_of(name, code, what)
    else:
        full = _module_name(name, what)
        if (found := _version(full.split(".")[0])) != code:
            raise UserError(f"{what}: '{name}' is of {code}, and here is {found}; install the same version")
        with (
            code_errors(f"{what}: '{name}' cannot be imported", "", f"; install {code} here and on every worker"),
            _seeded_by(code),
            stand_ins(full.split(".")[0]),
        ):
            module = importlib.import_module(full)
    attribute = (registered()[name].value if name in registered() else name).rpartition(":")[2]
    if not hasattr(module, attribute):
        defined = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{what}: '{name}': no '{attribute}' there; {nearest(attribute, defined)}")
    return getattr(module, attribute)


def _module_of(name: str, code: str, what: str) -> ModuleType:
    if code not in _modules:
        source = _sources.get(code)
        if source is None:
            raise UserError(f"{what}: '{name}': its source is not at hand; it is in the folder code of the run")
        _modules[code] = _run(source)
    return _modules[code]


def _run(source: SourceFile) -> ModuleType:
    """Run a file as a new module, in which what it draws follows from its text."""
    module = ModuleType(f"raypipe_own_{source.code}")
    module.__file__ = source.name
    lines = source.text.splitlines(keepends=True)
    linecache.cache[source.name] = (len(source.text), None, lines, source.name)
    sys.modules[module.__name__] = module  # where dataclasses and pickle look for it
    try:
        with code_errors(source.name, source.name), _seeded_by(source.code):
            exec(compile(source.text, source.name, "exec", dont_inherit=True), vars(module))
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module


@contextmanager
def _seeded_by(code: str) -> Iterator[None]:
    """Let what code draws when it is loaded be the same in every process."""
    import torch  # takes a second, which looking at a run need not

    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(gpus), seeded(derive_seed("code", code), torch.device("cpu")):
        yield


@contextmanager
def anew() -> Iterator[None]:
    """Run users' files anew within the context, as another process would."""
    kept = dict(_modules)
    _modules.clear()
    try:
        yield
    finally:
        _modules.update(kept)
        sys.modules.update({module.__name__: module for module in kept.values()})


def made_anew(make: Callable[[], T]) -> T:
    """Return what `make` makes of users' code as another process would, which runs their files again."""
    try:
        with anew():
            return make()
    except UserError:  # of a file that runs once only, as one that registers an operator of torch
        return make()
