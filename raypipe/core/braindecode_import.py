"""Import braindecode where packages are missing that most of its networks do not use.

braindecode 1.8 imports torchaudio, which has no build for every torch, and two packages for single networks. A stand-in
takes the place of each that cannot be imported. What uses one says in one line which package is missing.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NoReturn

NOT_NEEDED = {
    "torchaudio": ("functional", "transforms"),
    "linear_attention_transformer": (),
    "wfdb": (),
}
"""Packages that may be missing, each with its modules that are imported too."""


class _StandIn(ModuleType):
    """A module whose every name is a class that cannot be made."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        package, full = self.__name__.partition(".")[0], f"{self.__name__}.{name}"

        def refuse(*_: Any, **__: Any) -> NoReturn:
            raise ImportError(f"it needs {full}, and {package} cannot be imported")

        return type(name, (), {"__new__": refuse})


@contextmanager
def stand_ins(package: str) -> Iterator[None]:
    """Let braindecode be imported in the block without `NOT_NEEDED`; of other packages nothing is changed.

    Parameters
    ----------
    package
        The package that is imported in the block.
    """
    if package != "braindecode" or package in sys.modules:
        yield
        return
    made: dict[str, ModuleType] = {}
    for name, parts in NOT_NEEDED.items():
        if not _can_be_imported(name):
            module = _StandIn(name)
            made |= {name: module} | {f"{name}.{part}": _StandIn(f"{name}.{part}") for part in parts}
            for part in parts:
                setattr(module, part, made[f"{name}.{part}"])
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            sys.modules.pop(name, None)


def _can_be_imported(package: str) -> bool:
    try:
        importlib.import_module(package)
    except (ImportError, OSError):  # torchaudio for another torch raises OSError
        for loaded in [module for module in list(sys.modules) if module.partition(".")[0] == package]:
            del sys.modules[loaded]
        return False
    return True
