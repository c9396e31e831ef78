"""`use` and `reset`: the package runs on a learner's function, for as long as the learner wishes.

The package knows nothing of this. Its modules call plain functions by name; `use` walks over the modules of
`ddetr_lite` that are loaded, and puts the learner's function wherever the original stands.
"""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ddetr_lite.course import saving
from ddetr_lite.course.checking import Verdict, examine
from ddetr_lite.course.exercises import Exercise
from ddetr_lite.course.printing import say
from ddetr_lite.course.registry import EXERCISES, find, resolve
from ddetr_lite.course.tables import Table
from ddetr_lite.kernels import choose_backend


@dataclass(frozen=True)
class Plugged:
    """A learner's function in the package's place. The package calls `replacement`, and that calls it."""

    function: Callable[..., Any]
    replacement: Callable[..., Any]
    kept: str


_plugged: dict[str, Plugged] = {}


def use(
    name: str | Callable[..., Any],
    function: Callable[..., Any] | None = None,
    folder: str | Path = saving.FOLDER,
) -> Verdict:
    """Check `function`; if it is right, let the package run on it until `reset`, and keep it in `folder`.

    `use(function)` is enough where the function bears the exercise's name. What fails its check is never
    plugged in.
    """
    exercise, function = resolve(name, function)
    verdict = examine(exercise, function)
    say(verdict.text)
    if exercise.part is None:
        say("  The package has no part of this kind: there is nothing to plug in.")
    elif not verdict:
        own = "its own" if exercise.name not in _plugged else "your earlier one"
        say(f"  Not plugged in: the package keeps {own}.")
    else:
        kept = _keep(exercise, function, folder)
        _plug(exercise, function, kept)
        say(f"  Plugged in: the package runs on your {exercise.name} until course.reset().")
    return verdict


def reset(name: str | None = None) -> None:
    """Give the package its own functions back: all of them, or the one named. Files in `my_parts` stay."""
    for plugged in list(_plugged) if name is None else [find(name).name]:
        if plugged in _plugged:
            part = EXERCISES[plugged].part
            assert part is not None
            _swap(_plugged.pop(plugged).replacement, part)
    _call_parts()


def restore(folder: str | Path = saving.FOLDER) -> None:
    """Plug in every function that `use` kept in `folder` and that still passes its check; say which."""
    found = sorted(path for path in Path(folder).glob("*.py") if path.stem in EXERCISES)
    if not found:
        say("No part of yours is kept yet: the package runs on its own functions.")
    for path in found:
        exercise = EXERCISES[path.stem]
        try:
            function = saving.load(path)
            verdict = examine(exercise, function)
        except Exception as error:
            say(f"✗ {path.name} does not run ({type(error).__name__}: {error}). The package keeps its own.")
            continue
        if verdict and exercise.part is not None:
            _plug(exercise, function, path.name)
            say(f"✓ {exercise.name}: the package runs on yours, from {path.name}.")
        elif not verdict:
            say(f"{verdict.text}\n  {path.name} is not plugged in: the package keeps its own.")


def parts() -> Table:
    """Every function of the package that a learner can replace, and whose it is now."""
    rows = []
    for name, exercise in EXERCISES.items():
        if exercise.part is not None:
            mine = _plugged.get(name)
            place = f"{exercise.part.__module__}.{exercise.part.__name__}".removeprefix("ddetr_lite.")
            state = ("yours", mine.kept) if mine else ("the package's", "")
            rows.append((name, exercise.notebook, place, *state))
    return Table(("part", "notebook", "stands in", "runs on", "kept in"), rows)


def _keep(exercise: Exercise, function: Callable[..., Any], folder: str | Path) -> str:
    """Save the function, and see that the file does the same. Its name; "", with a printed reason, if not."""
    try:
        path = saving.save(exercise.name, function, folder)
        if not examine(exercise, saving.load(path)):
            path.unlink()
            raise saving.CannotSaveError("outside the notebook it gives other results")
    except (saving.CannotSaveError, OSError) as error:
        say(f"  Not kept for other notebooks: {error}.")
        return ""
    say(f"  Kept in {Path(folder).name}/{path.name} for the notebooks to come.")
    return path.name


def _plug(exercise: Exercise, function: Callable[..., Any], kept: str) -> None:
    assert exercise.part is not None
    reset(exercise.name)
    adapted = exercise.adapt(function) if exercise.adapt else function

    @functools.wraps(exercise.part)
    def replacement(*arguments: Any, **named: Any) -> Any:
        return adapted(*arguments, **named)

    _plugged[exercise.name] = Plugged(function, replacement, kept)
    _swap(exercise.part, replacement)
    _call_parts()


def _call_parts() -> None:
    """Keep the package from its fused kernel while a learner's function stands for a part of what that does."""
    if any(EXERCISES[name].fused for name in _plugged):
        _swap(choose_backend, _choose_unfused)
    else:
        _swap(_choose_unfused, choose_backend)


def _choose_unfused(value: Tensor) -> str:
    backend = choose_backend(value)
    return "reference" if backend == "triton" else backend


def _swap(old: Callable[..., Any], new: Callable[..., Any]) -> None:
    """Put `new` wherever a module of the package has `old`; `course` itself keeps what it compares with."""
    for name, module in list(sys.modules.items()):
        if name.startswith("ddetr_lite.") and not name.startswith("ddetr_lite.course"):
            for attribute, value in list(vars(module).items()):
                if value is old:
                    setattr(module, attribute, new)
