"""A learner's functions on disk: one small module for each, which runs without the notebook it came from."""

import ast
import dis
import importlib.util
import inspect
import math
import os
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

FOLDER = "my_parts"  # beside the notebooks: a notebook's working directory is its own folder


class CannotSaveError(Exception):
    """The function leans on something that cannot be written into a file."""


def save(name: str, function: Callable[..., Any], folder: str | Path = FOLDER) -> Path:
    """Write `function`, with the imports and helpers that it uses, to `folder/name.py`, whole or not at all.

    The folder keeps itself out of git. Raises CannotSaveError, with what is to be done, and leaves an older
    file as it is.
    """
    text = source_of(function)
    if function.__name__ != name:
        text += f"\n\n{name} = {function.__name__}\n"
    path = Path(folder) / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    ignore = path.parent / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n", encoding="utf-8")
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def load(path: Path) -> Callable[..., Any]:
    """The function in a file that `save` wrote. Raises CannotSaveError if there is none."""
    spec = importlib.util.spec_from_file_location(f"my_parts.{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # so that the function's source can be found, and saved, again
    spec.loader.exec_module(module)
    function = getattr(module, path.stem, None)
    if not callable(function):
        raise CannotSaveError(f"{path.name} has no function {path.stem}")
    return function


def source_of(function: Callable[..., Any]) -> str:
    """A module's text: what the function imports, the constants and helpers it uses, then the function."""
    imports: list[str] = []
    constants: list[str] = []
    functions: list[str] = []
    _collect(function, imports, constants, functions, set())
    head = ["from __future__ import annotations", *sorted(set(imports))]
    return "\n\n\n".join(filter(None, ["\n".join(head), "\n".join(constants), *functions])) + "\n"


def _collect(
    function: Callable[..., Any],
    imports: list[str],
    constants: list[str],
    functions: list[str],
    seen: set[str],
) -> None:
    if not isinstance(function, FunctionType):
        raise CannotSaveError("only a function written with `def` can be kept")
    seen.add(function.__name__)
    if function.__closure__:
        raise CannotSaveError(f"{function.__name__} uses variables of a function around it")
    try:
        text = textwrap.dedent(inspect.getsource(function)).rstrip()
    except (OSError, TypeError):
        raise CannotSaveError(f"the source of {function.__name__} cannot be found") from None
    if not text.startswith(("def ", "@")):
        raise CannotSaveError(f"{function.__name__} is not written with `def` at the start of a line")
    for name in (*_names_in_head(text), *_global_names(function.__code__)):
        if name in seen or name not in function.__globals__:
            continue  # a builtin, or taken already
        seen.add(name)
        value = function.__globals__[name]
        if isinstance(value, ModuleType):
            alias = "" if value.__name__ == name else f" as {name}"
            imports.append(f"import {value.__name__}{alias}")
        elif isinstance(value, float) and not math.isfinite(value):
            constants.append(f'{name} = float("{value}")')  # its repr is no Python
        elif isinstance(value, bool | int | float | str | None):
            constants.append(f"{name} = {value!r}")
        elif isinstance(value, FunctionType) and value.__module__ == function.__module__:
            _collect(value, imports, constants, functions, seen)
        elif getattr(sys.modules.get(getattr(value, "__module__", "")), name, None) is value:
            imports.append(f"from {value.__module__} import {name}")
        else:
            raise CannotSaveError(f"it uses the notebook's variable `{name}`: make that a parameter")
    functions.append(text)


def _names_in_head(text: str) -> Iterator[str]:
    """The names in a function's decorators and default values, which are read when it is defined."""
    definition = ast.parse(text).body[0]
    assert isinstance(definition, ast.FunctionDef)
    arguments = definition.args
    for tree in (*definition.decorator_list, *arguments.defaults, *filter(None, arguments.kw_defaults)):
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                yield node.id


def _global_names(code: CodeType) -> Iterator[str]:
    """The global names that a function's body reads, in order, those of functions inside it included."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)
