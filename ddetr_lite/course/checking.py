"""`check`: try a learner's function, and say what is wrong with it rather than only that it is wrong."""

import copy
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddetr_lite.course import printing
from ddetr_lite.course.exercises import Case, Exercise, Mistake
from ddetr_lite.course.registry import resolve

ADVICE = "course.hint({!r}) gives a hint."


@dataclass(frozen=True)
class Verdict:
    """What a check found. True when the function is right; as the last line of a cell it shows nothing."""

    right: bool
    text: str
    started: bool = True

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return ""

    def _ipython_display_(self) -> None:
        """Nothing: the text has been printed already."""


@dataclass(frozen=True)
class Outcome:
    """What a function did with one input: its value (a number as a tensor), or the error it raised; and the arguments it
    changed.
    """

    value: Any = None
    number: type | None = None
    """int or float where the value was a plain number."""
    error: Exception | None = None
    changed: tuple[int, ...] = ()
    unusual: str = ""
    """What is unusual about a tensor, which then equals none: in words, with the remedy."""


def check(name: str | Callable[..., Any], function: Callable[..., Any] | None = None) -> Verdict:
    """Try `function` on the inputs of the exercise `name`, print what was found, and raise nothing for it.

    `check(function)` is enough where the function bears the exercise's name. An unknown name is a ValueError.
    """
    verdict = examine(*resolve(name, function))
    printing.say(verdict.text)
    return verdict


def examine(exercise: Exercise, function: Callable[..., Any]) -> Verdict:
    """The same without printing."""
    cases = exercise.cases()
    outcomes = [run(function, case) for case in cases]
    if any(_is_stub(outcome.error) for outcome in outcomes):
        advice = f"  {exercise.task}\n  {ADVICE.format(exercise.name)}"
        return Verdict(False, f"○ {exercise.name} is not written yet.\n{advice}", started=False)
    expected = [run(exercise.reference, case) for case in cases]
    wrong = [i for i in range(len(cases)) if not same(outcomes[i], expected[i], exercise.tolerance)]
    if wrong:
        return Verdict(False, _explain(exercise, function, cases, outcomes, expected, wrong[0]))
    for outcome in outcomes:
        if outcome.changed:
            names = printing.names(exercise.reference, outcome.changed)
            why = f"the result is right, but your function changed its input {names}"
            advice = "Make a new tensor: no `+=`, `/=` or `x[...] =` on an argument."
            if any(isinstance(cases[0].arguments[i], list) for i in outcome.changed):
                advice = "Take a copy first, list(...): no `.pop()`, `.sort()` or `.append()` on an argument."
            return Verdict(False, _bad(exercise, why, [advice]))
    if (exercise.differentiable or exercise.part) and (kinds := _other_kind(outcomes, expected)):
        return Verdict(False, _bad(exercise, *kinds))
    if exercise.differentiable and (found := _gradient_problem(exercise, function, cases[1])):
        return Verdict(False, _bad(exercise, *found))
    text = f"✓ {exercise.name}: right on all {len(cases)} inputs."
    if exercise.noted and (found := _gradient_problem(exercise, function, cases[1])):
        text += f"\n  Only this: {found[0]}. With it plugged in the detector can look, but not learn."
    return Verdict(True, text)


def run(function: Callable[..., Any], case: Case) -> Outcome:
    """Call `function` on copies of the case's arguments."""
    copies = [x.clone() if isinstance(x, Tensor) else copy.deepcopy(x) for x in case.arguments]
    try:
        value = function(*copies)
    except Exception as error:
        return Outcome(error=error)
    pairs = enumerate(zip(copies, case.arguments, strict=True))
    changed = tuple(i for i, (a, b) in pairs if _differ(a, b))
    if unusual := _unusual(value):
        return Outcome(value, changed=changed, unusual=unusual)
    value = value.item() if isinstance(value, np.generic) else value  # NumPy's numbers, as math's
    number = type(value) if type(value) in (int, float) else None
    value = torch.tensor(value) if isinstance(value, bool | int | float) else value
    return Outcome(case.compared(value) if case.compared else value, number, changed=changed)


def _differ(a: Any, b: Any) -> bool:
    return not torch.equal(a, b) if isinstance(a, Tensor) else isinstance(a, list) and a != b


def _unusual(value: Any) -> str:
    if isinstance(value, Tensor) and value.layout != torch.strided:
        return "the result is sparse: `.to_dense()` makes a usual tensor of it"
    if isinstance(value, Tensor) and value.is_complex():
        return "the result is complex: `.real` and `.imag` are its parts"
    return ""


def _is_stub(error: Exception | None) -> bool:
    # torch raises NotImplementedError too, but always says what is missing.
    return isinstance(error, NotImplementedError) and not str(error)


def same(a: Outcome, b: Outcome, tolerance: float) -> bool:
    """Whether two functions did the same: equal values (NaN equals NaN), or the same error."""
    if a.error or b.error:
        return type(a.error) is type(b.error) and str(a.error) == str(b.error)
    if a.unusual or b.unusual:
        return False
    if not isinstance(a.value, Tensor) or not isinstance(b.value, Tensor):
        return type(a.value) is type(b.value) and a.value == b.value
    if a.value.shape != b.value.shape or (a.value.dtype == torch.bool) != (b.value.dtype == torch.bool):
        return False
    numbers = a.number is not None and b.number is not None  # 3 is as good a number as 3.0; of tensors that is not so
    if not numbers and a.value.is_floating_point() != b.value.is_floating_point():
        return False
    x, y = a.value.detach().double(), b.value.detach().double()
    return torch.allclose(x, y, rtol=tolerance, atol=tolerance, equal_nan=True)


def _explain(
    exercise: Exercise,
    function: Callable[..., Any],
    cases: list[Case],
    outcomes: list[Outcome],
    expected: list[Outcome],
    first: int,
) -> str:
    """The text for a function that fails, on input `first` and perhaps on larger ones after it."""
    outcome, case = outcomes[first], cases[first]
    shapes = printing.shapes(exercise.reference, case.arguments)
    evidence = [f"seen on: {case.what}; {shapes}" if shapes else f"seen on: {case.what}"]
    if outcome.unusual:
        return _bad(exercise, outcome.unusual, evidence)
    if outcome.error is None:
        evidence += printing.comparison(outcome.value, expected[first].value)
    else:
        evidence += _where(function, outcome.error)
    mistake, whole = recognise(exercise, cases, outcomes, first)
    if mistake is not None:
        if not whole:
            evidence.append("There is another difference behind this one: mend this first, then check again.")
        return _bad(exercise, f"it looks as if {mistake.message}", evidence)
    evidence.append(ADVICE.format(exercise.name))
    return _bad(exercise, _general(outcome, expected[first]), evidence)


def recognise(
    exercise: Exercise, cases: list[Case], outcomes: list[Outcome], first: int
) -> tuple[Mistake | None, bool]:
    """The known mistake that does the same on the smallest failing input, those before it, and most after it; if on all."""
    best, most = None, 0
    for mistake in exercise.mistakes:
        made = [run(mistake.wrong, case) for case in cases]
        agree = [same(a, b, exercise.tolerance) for a, b in zip(made, outcomes)]
        if all(agree[: first + 1]) and sum(agree) > most:
            best, most = mistake, sum(agree)
    return best, most == len(cases)


def _general(outcome: Outcome, wanted: Outcome) -> str:
    """What can be said about any function, whatever it should compute."""
    value, expected = outcome.value, wanted.value
    if outcome.error is not None:
        first_line = (str(outcome.error).splitlines() or [""])[0]
        return f"your function raised {type(outcome.error).__name__}: {first_line}"
    if value is None:
        return "your function returned None: is there a `return` at its end?"
    kind = Tensor if isinstance(expected, Tensor) else type(expected)
    if not isinstance(value, kind):
        if type(value).__module__ == "torch.return_types":
            return (
                f"your function returned values and indices together, as `{type(value).__name__}` does: take `.values`"
            )
        name = type(value).__name__ if outcome.number is None else outcome.number.__name__
        asked = "None" if expected is None else f"a {kind.__name__.lower()}" if wanted.number is None else "a number"
        return f"your function returned {_with_article(name)}, where {asked} is expected"
    if not isinstance(expected, Tensor):
        return "the result is another"
    if value.shape != expected.shape:
        return f"the result has shape {tuple(value.shape)}, where {tuple(expected.shape)} is expected"
    if any(kind(value) != kind(expected) for kind in (Tensor.is_floating_point, lambda x: x.dtype == torch.bool)):
        return f"the result has dtype {value.dtype}, where {expected.dtype} is expected"
    if value.isnan().any():
        return "the result has NaN in it: 0/0, ∞ − ∞, or the exponential of a number that is too large"
    return "the numbers differ"


def _where(function: Callable[..., Any], error: Exception) -> list[str]:
    """The learner's line that raised."""
    code: CodeType | None = getattr(function, "__code__", None)
    if code is None:
        return []
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == code.co_filename]
    if not frames or not frames[-1].line:
        return []
    line = (frames[-1].lineno or 0) - code.co_firstlineno + 1
    if not 1 <= line <= max(at or 0 for _, _, at in code.co_lines()) - code.co_firstlineno + 1:
        return [f"in `{frames[-1].name}`, which your function calls: {frames[-1].line}"]
    return [f"in line {line} of your function: {frames[-1].line}"]


def _with_article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _other_kind(outcomes: list[Outcome], expected: list[Outcome]) -> tuple[str, list[str]] | None:
    """Where the numbers are right, but of a kind that what comes after cannot use: a number where a tensor is expected, the
    other way round, or float64 where all else is float32.
    """
    for mine, theirs in zip(outcomes, expected):
        if (
            mine.number is None
            and isinstance(mine.value, Tensor)
            and mine.value.dtype == torch.float64 != theirs.value.dtype
        ):
            advice = "NumPy's numbers and .double() make float64: `.float()` brings it back, or dtype=torch.float32."
            return f"the numbers are right, but in float64, where {str(theirs.value.dtype)[6:]} is expected", [advice]
        if (mine.number is None) == (theirs.number is None):
            continue
        if mine.number is None:
            what = "it as a tensor; a plain number is expected"
            advice = "float(...) or .item() makes a number of a tensor; `math` has sqrt, cos and exp for numbers."
        else:
            what = f"{'an int' if mine.number is int else 'a float'}; a tensor is expected"
            advice = "Stay with torch: `.item()`, float(...) and `math` make plain numbers, which have no gradient."
        return f"the number is right, but your function returned {what}", [advice]
    return None


def _gradient_problem(exercise: Exercise, function: Callable[..., Any], case: Case) -> tuple[str, list[str]] | None:
    """Compare the gradients of the inputs; None when they agree."""

    def gradients(tried: Callable[..., Any]) -> list[Tensor | None]:
        floats = [isinstance(x, Tensor) and x.is_floating_point() for x in case.arguments]
        copies = [x.clone().requires_grad_() if f else x for x, f in zip(case.arguments, floats)]
        result = tried(*copies)
        if result.requires_grad:
            (result * torch.linspace(0.5, 1.5, result.numel()).reshape(result.shape)).sum().backward()
        return [x.grad for x, f in zip(copies, floats) if f]

    try:
        tried = gradients(function)
    except Exception as error:  # a step of the learner's that autograd cannot undo, or numpy
        why = (str(error).splitlines() or [type(error).__name__])[0]
        if "inplace operation" in why:
            why = "a result that the backward pass still needs was changed in place"
        advice = "Make new tensors: no `/=`, `+=` or `x[...] =` on a result that is still needed, and no numpy."
        return f"the numbers are right, but no gradient can be taken: {why}", [advice]
    for i, (mine, theirs) in enumerate(zip(tried, gradients(exercise.reference))):
        name = printing.names(exercise.reference, (i,))
        if mine is None:
            advice = "Stay with torch: `.item()`, `.detach()`, `.tolist()`, `torch.tensor()` and numpy cut it."
            return f"the numbers are right, but no gradient flows back to {name}: nothing could learn", [advice]
        if theirs is not None and not torch.allclose(mine, theirs, rtol=1e-3, atol=1e-4):
            return f"the numbers are right, but the gradient of {name} is not", []
    return None


def _bad(exercise: Exercise, what: str, evidence: list[str]) -> str:
    return "\n".join([f"✗ {exercise.name}: {what}", *(f"  {line}" for line in evidence)])
