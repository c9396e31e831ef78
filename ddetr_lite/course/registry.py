"""All exercises of the course, by name."""

from collections.abc import Callable
from typing import Any

from ddetr_lite.course import (
    checks_00,
    checks_01,
    checks_02,
    checks_03,
    checks_04,
    checks_05,
    checks_06,
    checks_07,
    checks_08,
    checks_09,
    checks_10,
    checks_11,
    checks_12,
    checks_13,
)
from ddetr_lite.course.exercises import Exercise
from ddetr_lite.wording import did_you_mean

NOTEBOOKS = (
    checks_00.EXERCISES,
    checks_01.EXERCISES,
    checks_02.EXERCISES,
    checks_03.EXERCISES,
    checks_04.EXERCISES,
    checks_05.EXERCISES,
    checks_06.EXERCISES,
    checks_07.EXERCISES,
    checks_08.EXERCISES,
    checks_09.EXERCISES,
    checks_10.EXERCISES,
    checks_11.EXERCISES,
    checks_12.EXERCISES,
    checks_13.EXERCISES,
)
EXERCISES: dict[str, Exercise] = {exercise.name: exercise for exercises in NOTEBOOKS for exercise in exercises}


class NoExerciseError(ValueError):
    """A name that no exercise has. In a notebook one line says so, without the frames that led there."""

    def _render_traceback_(self) -> list[str]:
        return [f"✗ {self}"]


def find(name: str) -> Exercise:
    """The exercise of that name. Raises NoExerciseError, a ValueError, with the nearest known name, when there is none."""
    if name in EXERCISES:
        return EXERCISES[name]
    # Names are short: with the usual likeness "nope" would be near "slope".
    advice = did_you_mean(name, EXERCISES, likeness=0.7) or f"known are {', '.join(EXERCISES)}"
    raise NoExerciseError(f"there is no exercise {name!r}: {advice}")


def resolve(name: str | Callable[..., Any], function: Callable[..., Any] | None) -> tuple[Exercise, Callable[..., Any]]:
    """The exercise and the learner's function, from `("name", function)` or from `(function)` alone."""
    if callable(name):
        return find(getattr(name, "__name__", "")), name
    if not callable(function):
        raise NoExerciseError(f'give the function as well, as in check("{name}", {name})')
    return find(name), function
