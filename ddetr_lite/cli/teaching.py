"""`ddetr-lite course`: what teachers need."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from ddetr_lite.cli.parsing import Mistake, parse, take_positional


@dataclass(frozen=True)
class ExportOptions:
    """Copy the notebooks for a class: nothing is overwritten."""

    folder: Positional[Path]
    """A new folder, or one without notebooks of these names."""
    kind: Literal["class", "solutions", "solved"] = "class"
    """class: without solutions; solutions: with them, folded up; solved: also written into the exercises' cells."""
    notebooks: tuple[str, ...] = ()
    """Their numbers: 00 05 06; by default all."""
    outputs: bool = False
    """Keep what the cells have shown."""


def course(words: list[str]) -> None:
    """Copy the notebooks for a class: `ddetr-lite course export FOLDER`."""
    what, words = take_positional(words, "WHAT", "export", "course export class")
    if what != "export":
        raise Mistake(f"course {what!r} is unknown: choose export")
    options = parse(ExportOptions, words, "ddetr-lite course export")
    from ddetr_lite.course.export import export

    written = export(options.folder, options.kind, options.notebooks, options.outputs)
    line = shlex.join(["jupyter", "lab", str(options.folder)])
    count = f"{len(written)} notebook{'s' * (len(written) != 1)}"
    print(f"{options.folder} has {count} ({options.kind}). Open them with: {line}")
