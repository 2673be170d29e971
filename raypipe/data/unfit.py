"""Mark errors of which the cause is in the data, so that the command line can name the verb that shows it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from raypipe.core.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")


class UnfitDataError(UserError):
    """The data lack what was asked of them, such as an event, a column or a common sampling rate."""


def refuses_data(function: Callable[P, T]) -> Callable[P, T]:
    """Make a function raise `UnfitDataError` instead of a plain `UserError`; subclasses of it are not changed."""

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            if type(error) is not UserError:
                raise
            raise UnfitDataError(str(error)) from None

    return checked
