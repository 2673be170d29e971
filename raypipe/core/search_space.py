"""Search spaces: Python files in Optuna's define-by-run form, loaded only from a path that the user names."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from raypipe.core.config import TrialConfig, parse_config
from raypipe.core.errors import UserError


class _Recorder:
    """Wrap an Optuna trial and record what each ``suggest_*`` returns."""

    def __init__(self, trial: Any) -> None:
        self._trial = trial
        self.values: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._trial, name)
        if not name.startswith("suggest_"):
            return found

        def suggest(parameter: str, *args: Any, **kwargs: Any) -> Any:
            value = found(parameter, *args, **kwargs)
            self.values[parameter] = value
            return value

        return suggest


@dataclass(frozen=True)
class SearchSpace:
    """A search space: a Python file with a docstring, `START` (points that run first) and ``space(trial)``.

    The source is stored instead of the function, so that it can be pickled to any worker and copied to the run.
    """

    source: str
    name: str = field(default="space.py")

    def __reduce__(self) -> tuple[Any, ...]:
        return SearchSpace, (self.source, self.name)

    @property
    def hash(self) -> str:
        """Return the SHA-256 of the source in hex digits."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @cached_property
    def _module(self) -> dict[str, Any]:
        module: dict[str, Any] = {"__name__": "raypipe_search_space", "__file__": self.name}
        try:
            exec(compile(self.source, self.name, "exec"), module)
        except Exception as error:
            raise self._code_error(error) from None
        if not callable(module.get("space")):
            raise UserError(f"{self.name}: no function space(trial); see search_spaces/smoke.py for the form")
        if not isinstance(module.get("START", []), list | tuple):
            raise UserError(f"{self.name}: START must be a list of points such as {{'optim/lr': 1e-3}}")
        return module

    def _code_error(self, error: Exception) -> UserError:
        """Return the error that users see when the code of the space fails."""
        return UserError(f"{self.name}: {_line_of(error, self.name)}{type(error).__name__}: {error}")

    @property
    def description(self) -> str:
        """Return the docstring of the file."""
        return str(self._module.get("__doc__") or "").strip()

    @property
    def start(self) -> list[dict[str, Any]]:
        """Return the points that run first."""
        return [dict(point) for point in self._module.get("START", [])]

    def __call__(self, trial: Any) -> TrialConfig:
        """Draw one configuration.

        Raises
        ------
        UserError
            The space sets an unknown parameter or a value out of range, or its code fails (names the line).
        """
        recorder = _Recorder(trial)
        space = self._module["space"]
        try:
            constants = space(recorder)
        except (UserError, OSError):
            raise
        except Exception as error:
            raise self._code_error(error) from None
        if constants is not None and not isinstance(constants, Mapping):
            raise UserError(f"{self.name}: space(trial) must return a dict of constants or None")
        return parse_config({**recorder.values, **(constants or {})}, self.name)

    def draw(self, draws: int) -> list[TrialConfig]:
        """Draw configurations at random from a fixed seed; raises as `__call__`."""
        import optuna  # imported here because it is slow, and reading a run does not need it

        with silence_optuna():
            study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
            return [self(study.ask()) for _ in range(draws)]

    def check(self, draws: int = 20) -> None:
        """Draw at random and try every `START` point, so that errors are found before anything is launched.

        Raises
        ------
        UserError
            As `__call__`; or a start point lacks a parameter, has one too many, or is out of range.
        """
        import optuna

        self.draw(draws)
        for number, point in enumerate(self.start):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")  # Optuna only warns about values out of range
                    fixed = optuna.trial.FixedTrial(point)
                    self(fixed)
            except UserError as error:
                raise UserError(f"START[{number}]: {error}") from None
            except Exception as error:
                raise UserError(f"{self.name}: START[{number}]: {error}") from None
            extra = sorted(point.keys() - fixed.params.keys())
            if extra:
                raise UserError(f"{self.name}: START[{number}] sets '{extra[0]}', which space(trial) does not ask for")


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


def _line_of(error: Exception, name: str) -> str:
    """Return ``line N: ``, where N is the line of the file in which the error was raised; empty if unknown."""
    line = getattr(error, "lineno", None)
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == name:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"line {line}: " if line else ""


def load_space(path: str | Path) -> SearchSpace:
    """Read and check a search space.

    Raises
    ------
    UserError
        There is no such file, it does not run, or it is not a valid space.
    """
    file = Path(path)
    if not file.is_file():
        there = sorted(p.as_posix() for p in Path("search_spaces").glob("*.py"))
        raise UserError(f"{path}: no such search space" + (f"; available: {', '.join(there)}" if there else ""))
    space = SearchSpace(file.read_text(encoding="utf-8"), str(path))
    space.check()
    return space
