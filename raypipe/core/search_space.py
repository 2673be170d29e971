"""Search spaces: Python files in Optuna's define-by-run form, loaded only where the user names them."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from raypipe.core import own_code
from raypipe.core.choices import as_drawn, choice_as_drawn
from raypipe.core.config import SECTIONS, TrialConfig
from raypipe.core.errors import UserError
from raypipe.core.foreign_code import describe_code_error, foreign_code
from raypipe.core.own_code import SourceFile
from raypipe.core.parameters import nest, parse_config
from raypipe.core.random_streams import seeded_numbers
from raypipe.core.seeds import derive_seed
from raypipe.core.shipped import find_space
from raypipe.core.space_source import source_of
from raypipe.core.store_names import PARAMETER as STORE
from raypipe.core.store_names import require_known_store
from raypipe.core.text import decode_source

Space = str | Path | Callable[[Any], Any] | Mapping[str, Any]
"""A search space: its file, or a function or dictionary of a program."""


class _Recorder:
    """Wrap an Optuna trial and record what each ``suggest_*`` returns."""

    def __init__(self, trial: Any) -> None:
        self._trial = trial
        self.values: dict[str, Any] = {}
        self.failure: OSError | None = None
        """Error of the storage that keeps the trial, which is no error of the space."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._trial, name)
        if not name.startswith("suggest_"):
            return found

        def suggest(parameter: str, *args: Any, **kwargs: Any) -> Any:
            try:
                value = found(parameter, *args, **kwargs)
            except OSError as error:
                self.failure = error
                raise
            self.values[parameter] = value
            return value

        def suggest_categorical(parameter: str, choices: Iterable[Any]) -> Any:
            own = list(choices)
            drawn = [choice_as_drawn(parameter, choice) for choice in own]
            value = suggest(parameter, drawn)
            if value in drawn and isinstance(own[drawn.index(value)], list | tuple):
                self.values[parameter] = value = own[drawn.index(value)]
            return value

        return suggest_categorical if name == "suggest_categorical" else suggest


class _LacksError(UserError):
    """A point lacks the parameter of this name, which the space draws."""


class _PointTrial:
    """Wrap Optuna's trial of a fixed point, and raise `_LacksError` for a parameter that the point lacks."""

    def __init__(self, fixed: Any, point: Mapping[str, Any]) -> None:
        self._fixed, self._point = fixed, point

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._fixed, name)
        if not name.startswith("suggest_"):
            return found

        def suggest(parameter: str, *args: Any, **kwargs: Any) -> Any:
            if isinstance(parameter, str) and parameter not in self._point:
                raise _LacksError(parameter)
            return found(parameter, *args, **kwargs)

        return suggest


@dataclass(frozen=True)
class SearchSpace:
    """A search space: a Python file with a docstring, `START` (points that run first) and ``space(trial)``.

    The source is stored instead of the function, so that it can be pickled to any worker and copied to the run. So are
    the users' files that it names.
    """

    source: str
    name: str = field(default="space.py")
    files: Mapping[str, SourceFile] = field(default_factory=dict)
    """By the paths that the source has."""
    stores: tuple[str, ...] = ()
    """Names of the stores that trials choose among (`data/store`); empty for a single store."""

    def __reduce__(self) -> tuple[Any, ...]:
        return SearchSpace, (self.source, self.name, self.files, self.stores)

    @property
    def hash(self) -> str:
        """Return the SHA-256 of the source in hex digits."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @cached_property
    def _module(self) -> dict[str, Any]:
        made = ModuleType(f"raypipe_space_{self.hash[:16]}")
        module = vars(made)
        module["__file__"] = self.name
        sys.modules[made.__name__] = made  # where dataclasses and pydantic look up annotations that are text
        try:
            with foreign_code(), seeded_numbers(derive_seed("space", self.hash)):  # each driver runs it anew
                exec(compile(self.source, self.name, "exec", dont_inherit=True), module)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit() and os._exit() too
            raise self._code_error(error) from None
        if not callable(module.get("space")):
            raise UserError(f"{self.name}: no function space(trial); raypipe init shows the form")
        points = module.get("START", [])
        if not isinstance(points, list | tuple) or not all(isinstance(point, Mapping) for point in points):
            raise UserError(f"{self.name}: START must be a list of points such as {{'optim/lr': 1e-3}}")
        return module

    def _code_error(self, error: BaseException) -> UserError:
        """Return the error that users see when the code of the space fails."""
        return UserError(f"{self.name}: {describe_code_error(error, self.name)}")

    @property
    def description(self) -> str:
        """Return the docstring of the file."""
        return str(self._module.get("__doc__") or "").strip()

    @property
    def start(self) -> list[dict[str, Any]]:
        """Return the points that run first. Those that name no store get the names of the stores in turn."""
        points = [self.point_as_drawn(point, f"START[{k}]") for k, point in enumerate(self._module.get("START", []))]
        if not self.stores:
            return points
        stores = itertools.cycle(self.stores)
        return [point if STORE in point else self._with_store(point, next(stores)) for point in points]

    def _with_store(self, point: dict[str, Any], name: str) -> dict[str, Any]:
        """Return a point with a store, unless the space sets it to a constant."""
        import optuna

        whole = {**point, STORE: name}
        with contextlib.suppress(Exception):  # `check` reports what is wrong with the point
            if STORE not in self._draw(optuna.trial.FixedTrial(whole))[0]:
                return point
        return whole

    def __call__(self, trial: Any, *, seed: int = 0) -> TrialConfig:
        """Draw one configuration; `seed` is its seed if the space sets none.

        Raises
        ------
        UserError
            The space sets an unknown parameter or a value out of range, or its code fails (names the line).
        """
        return self._draw(trial, seed)[1]

    def _draw(self, trial: Any, seed: int = 0) -> tuple[dict[str, Any], TrialConfig]:
        """Draw one configuration; return the drawn values by parameter too. Raises as `__call__`."""
        recorder = _Recorder(trial)
        space = self._module["space"]
        try:
            with foreign_code():
                constants = space(recorder)
                if self.stores and not _sets_store(recorder.values, constants):
                    recorder.suggest_categorical(STORE, list(self.stores))
        except (UserError, KeyboardInterrupt):
            raise
        except BaseException as error:  # sys.exit() and os._exit() too
            if error is recorder.failure:
                raise
            raise self._code_error(error) from None
        if constants is not None and not isinstance(constants, Mapping):
            raise UserError(f"{self.name}: space(trial) must return a dict of constants or None")
        for name in (*recorder.values, *(constants or {})):
            if not isinstance(name, str):
                raise UserError(f"{self.name}: names of parameters must be text such as 'optim/lr' (given {name!r})")
        params = {"seed": seed, **recorder.values, **(constants or {})}
        config = parse_config(self._with_code(params), self.name)
        if config.data.store or self.stores:
            require_known_store(config.data.store, self.stores, self.name)
        return recorder.values, config

    def _with_code(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameters with what identifies the code of users that they name."""
        nested = nest(params)
        for section in SECTIONS:
            values = nested.get(section)
            name = values.get("name") if isinstance(values, dict) else None
            if isinstance(values, dict) and "code" in values:
                raise UserError(f"{self.name}: {section}/code is set by raypipe; leave it out")
            if isinstance(values, dict) and isinstance(name, str) and own_code.is_code(name, section):
                what = f"{self.name}: {section}/name"
                values |= {"name": own_code.short_name(name), "code": own_code.code_of(name, self.files, what)}
        return nested

    def draw(self, draws: int) -> list[TrialConfig]:
        """Draw configurations at random from a fixed seed; raises as `__call__`."""
        return [config for _, config in self.draw_with_values(draws)]

    def draw_with_values(self, draws: int) -> list[tuple[dict[str, Any], TrialConfig]]:
        """Draw the same configurations as `draw`, each with the drawn values by parameter; raises as `__call__`."""
        import optuna  # imported here because it is slow, and reading a run does not need it

        with silence_optuna():
            study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
            return [self._draw(study.ask()) for _ in range(draws)]

    def check(self, draws: int = 20) -> None:
        """Draw at random and try every `START` point, so that errors are found before anything is launched.

        Raises
        ------
        UserError
            As `__call__`; or a start point lacks a parameter, has one too many, or is out of range.
        """
        self.draw(draws)
        for number, point in enumerate(self.start):
            self.check_point(point, f"START[{number}]")

    def point_as_drawn(self, point: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Return a point as a study has it: lists as text, users' code by the paths of its files that the space has.

        Raises
        ------
        UserError
            A list has what no record can have; `name` is what the message calls the point.
        """
        try:
            return {key: as_drawn(own_code.known_name(value, self.files)) for key, value in point.items()}
        except ValueError as error:
            raise UserError(f"{self.name}: {name}: {error}") from None

    def check_point(self, point: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Check that the space can draw a point, and return it as a study has it; `name` is what messages call it.

        Raises
        ------
        UserError
            As `__call__`; or the point lacks a parameter, has one too many, or is out of range.
        """
        import optuna

        point = self.point_as_drawn(point, name)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # Optuna only warns about values out of range
                fixed = optuna.trial.FixedTrial(dict(point))
                self(_PointTrial(fixed, point))
        except _LacksError as error:
            raise UserError(f"{self.name}: {name} lacks {error}, which the space draws") from None
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        except Exception as error:
            raise UserError(f"{self.name}: {name}: {error}") from None
        extra = sorted(point.keys() - fixed.params.keys())
        if extra:
            raise UserError(f"{self.name}: {name} sets '{extra[0]}', which space(trial) does not ask for")
        return point


def _sets_store(drawn: Mapping[str, Any], constants: object) -> bool:
    """Return whether a space has drawn the store, or set it to a constant."""
    if STORE in drawn or not isinstance(constants, Mapping):
        return STORE in drawn
    section = constants.get("data")
    return STORE in constants or (isinstance(section, Mapping) and "store" in section)


@contextlib.contextmanager
def silence_optuna() -> Iterator[None]:
    """Suppress Optuna's log lines for the duration of the block."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def load_space(space: Space, stores: tuple[str, ...] = ()) -> SearchSpace:
    """Read and check a search space.

    Parameters
    ----------
    space
        A file, the name of one that comes with raypipe, a function ``space(trial)`` or a dictionary; see
        docs/search-spaces.md.
    stores
        Names of the stores that trials choose among; empty for a single store.

    Raises
    ------
    UserError
        There is no such file or one that it names, two of those have one name, it is no UTF-8 text, it does not run, it
        is not a valid space, or a function or a dictionary uses what cannot be written down.
    """
    if isinstance(space, str | Path):
        file = find_space(space)
        text, name, folder = decode_source(file.read_bytes(), space), str(space), file.parent
    else:
        text, name, folder = source_of(space)
    files = {path: own_code.read_source(path, folder, name) for path in own_code.named_files(text)}
    own_code.check_file_names(files, name)
    found = SearchSpace(text, name, files, stores)
    found.check()
    return found
