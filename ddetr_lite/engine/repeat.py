"""From a recipe back to the command line that trains it."""

import shlex
from dataclasses import fields, is_dataclass
from typing import Any

from ddetr_lite.engine.recipes import Recipe, recipe, recipe_from_dict, recipe_names
from ddetr_lite.engine.scaling import follow
from ddetr_lite.models.presets import ROWS


def command(values: dict[str, Any], row: str, out: str = "runs/again") -> str:
    """`ddetr-lite train ...` with the options in which a recipe, given as plain values, differs from the named one.

    row: the model's row. out: the new run's folder. Raises ValueError where no command line gives this recipe: its name is
    not known, or it was made by another version.
    """
    wanted = recipe_from_dict(values)
    if wanted.name not in recipe_names():
        raise ValueError(f"recipe {wanted.name!r} has no name on the command line: it was made in Python")
    starts = [([], recipe(wanted.name)), *((["--model", r], recipe(wanted.name, r)) for r in ROWS if r == row)]
    words = min((option + _words(wanted, base) for option, base in starts if _same_model(wanted, base)), key=len)
    return shlex.join(["ddetr-lite", "train", wanted.name, *words, "--out", out])


def _words(wanted: Recipe, base: Recipe) -> list[str]:
    """The options that lead from one recipe to another with a model of the same architecture."""
    parts = ("model", "data", "augment", "train")
    words = [word for part in parts for word in options(getattr(wanted, part), getattr(base, part))]
    named = {word.lstrip("-").replace("-", "_") for word in words if word.startswith("--")}
    followed, _ = follow(wanted, base, named)
    # What would follow a new batch or length by itself is given too, where this recipe has it otherwise.
    return words + options(wanted.train, followed.train)


def _same_model(wanted: Recipe, base: Recipe) -> bool:
    return type(wanted.model) is type(base.model)


def options(wanted: Any, base: Any, prefix: str = "") -> list[str]:
    """The options that lead from one dataclass to another of its kind.

    Field by field; nested dataclasses have their names before the point, as in `--backbone.name`.
    """
    words: list[str] = []
    for field in fields(wanted):
        value, usual = getattr(wanted, field.name), getattr(base, field.name)
        name = prefix + field.name.replace("_", "-")
        if is_dataclass(value):
            words += options(value, usual, f"{name}.")
        elif value == usual:
            continue
        elif usual is not None and isinstance(value, bool | str) and type(value) is not type(usual):
            raise ValueError(f"{field.name}={value!r} is of another version, where this one has {usual!r}")
        elif isinstance(value, bool):
            head, _, tail = name.rpartition(".")
            words.append(f"--{name}" if value else f"--{head}{'.' if head else ''}no-{tail}")
        else:
            words += [f"--{name}", *(str(v) for v in (value if isinstance(value, tuple) else (value,)))]
    return words
