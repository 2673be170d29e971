from __future__ import annotations

import importlib
import sys
import threading

import pytest

from raypipe.core.hidden_module import hidden_module

NAME = "colorsys"
"""A module of the standard library that nothing here imports."""


@pytest.fixture(autouse=True)
def not_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, NAME, raising=False)


def test_a_hidden_module_is_not_found_in_the_block_and_by_this_thread_only():
    with hidden_module(NAME):
        with pytest.raises(ImportError, match="colorsys is hidden"):
            importlib.import_module(NAME)
        importlib.import_module("textwrap")
        other = threading.Thread(target=importlib.import_module, args=(NAME,))
        other.start()
        other.join()
        assert NAME in sys.modules
    del sys.modules[NAME]
    importlib.import_module(NAME)


def test_a_thread_that_looks_for_a_module_meanwhile_skips_no_finder():
    finders = set(sys.meta_path)
    with hidden_module(NAME):
        looking = iter(sys.meta_path)  # as Python does
        asked = {next(looking)}
    assert asked | set(looking) >= finders


def test_a_module_that_is_imported_already_is_not_hidden_and_one_is_found_after_an_error():
    module = importlib.import_module(NAME)
    with hidden_module(NAME):
        assert importlib.import_module(NAME) is module
    del sys.modules[NAME]
    with pytest.raises(ZeroDivisionError), hidden_module(NAME):
        raise ZeroDivisionError
    importlib.import_module(NAME)
