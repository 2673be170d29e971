"""An extension of griffe for `make docs`: name the options that docstrings list only once they are imported."""

from __future__ import annotations

from typing import Any

import griffe

LISTED = "{options}"
"""What `raypipe.core.options.document_options` replaces."""
SHOWN = "**options\n    Those of the command line, whose pages list them."


class Options(griffe.Extension):
    """Show one line in place of the options."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Change the docstring of a function."""
        if func.docstring:
            func.docstring.value = func.docstring.value.replace(LISTED, SHOWN)
