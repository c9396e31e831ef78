"""Copies of the notebooks for a class: without solutions, with them, or with every exercise solved."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import ddetr_lite

Kind = Literal["class", "solutions", "solved"]
Cell = dict[str, Any]


def notebooks() -> list[Path]:
    """The course's notebooks, in order. FileNotFoundError with the remedy where they are not beside the package."""
    folder = Path(ddetr_lite.__file__).parents[1] / "notebooks"
    found = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise FileNotFoundError(
            "the notebooks are not beside the package: clone the repository and install it with `pip install -e .`"
        )
    return found


def export(folder: str | Path, kind: Kind = "class", numbers: Sequence[str] = (), outputs: bool = False) -> list[Path]:
    """Write copies of the notebooks, and return their paths.

    kind: "class" leaves out the solutions; "solutions" keeps them, folded up as they are; "solved" also writes them into the
    cells of the exercises. numbers: "00", "05", ..., all by default. outputs: keep what cells have shown; otherwise a copy is
    as it was before it was run. Nothing is overwritten: a file of the same name raises FileExistsError. ValueError for a
    notebook that does not exist.
    """
    folder, known = Path(folder), {path.name[:2]: path for path in notebooks()}
    numbers = [number.zfill(2) for number in numbers]
    for number in numbers:
        if number not in known:
            raise ValueError(f"there is no notebook {number!r}: choose from {', '.join(known)}")
    chosen = [path for number, path in known.items() if not numbers or number in numbers]
    if taken := [path.name for path in chosen if (folder / path.name).exists()]:
        raise FileExistsError(
            f"{folder / taken[0]} exists, and may hold somebody's work: give another folder, or move it away"
        )
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for path in chosen:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        notebook["cells"] = copied(notebook["cells"], kind, outputs)
        target = folder / path.name
        target.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        written.append(target)
    rules = chosen[0].parent
    for name in ("conftest.py", "nbval_sanitize.cfg"):  # how outputs are compared
        if not (folder / name).exists():
            shutil.copyfile(rules / name, folder / name)
    return written


def copied(cells: Sequence[Cell], kind: Kind, outputs: bool = False) -> list[Cell]:
    """The cells of a copy. A solution stands behind its exercise, in a cell that folds up."""
    result: list[Cell] = []
    exercise: Cell | None = None
    for cell in cells:
        new = {**cell, "metadata": dict(cell["metadata"])}
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            if not outputs:
                new |= {"outputs": [], "execution_count": None}
            if "exercise" in cell["metadata"].get("tags", []):
                exercise = new
        if code := _solution(text):
            if kind == "class":
                continue
            if kind == "solved" and exercise is not None:
                exercise["source"] = code.rstrip("\n").splitlines(keepends=True)
                exercise = None
        result.append(new)
    return result


def _solution(text: str) -> str | None:
    """The code of a cell that is a solution."""
    found = re.search(r"<summary>Solution</summary>.*?```python\n(.*?)```", text, re.S)
    return found[1] if found else None
