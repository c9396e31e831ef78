"""`ddetr-lite data`: where pictures and annotations come from."""

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ddetr_lite.cli.parsing import FLAT, Mistake, parse, take_positional
from ddetr_lite.datasets.shapes import HARD, ShapesConfig


@dataclass(frozen=True)
class ShapesOptions:
    """Generate the `shapes` data set in COCO's format."""

    folder: Path = Path("data/shapes")
    shapes: Annotated[ShapesConfig, FLAT] = dataclasses.field(default_factory=ShapesConfig)


@dataclass(frozen=True)
class ShapesHardOptions(ShapesOptions):
    """Generate the hard form of the `shapes` data set: more classes, more and smaller objects, larger pictures."""

    folder: Path = Path("data/shapes-hard")
    shapes: Annotated[ShapesConfig, FLAT] = HARD


# The generated sets, by the name of the command and of the recipe.
GENERATED: dict[str, type[ShapesOptions]] = {"shapes": ShapesOptions, "shapes-hard": ShapesHardOptions}


def data(words: list[str]) -> None:
    """Make data, download it, or check it: `data shapes`, `data shapes-hard`, `data coco`, `data check FOLDER`."""
    what, words = take_positional(words, "WHAT", f"{', '.join(GENERATED)}, coco, check", "data shapes")
    if what == "check":
        from ddetr_lite.cli.data_check import data_check

        data_check(words)
        return
    if what == "coco":
        from ddetr_lite.cli.data_coco import data_coco

        data_coco(words)
        return
    if what not in GENERATED:
        raise Mistake(f"data {what!r} is unknown: choose {', '.join(GENERATED)}, coco or check")
    options = parse(GENERATED[what], words, f"ddetr-lite data {what}")
    from ddetr_lite.datasets.shapes import write_shapes

    print(f"{write_shapes(options.folder, options.shapes, processes=os.cpu_count() or 1)} is ready.")


def make_shapes(recipe: str | None, folder: str) -> None:
    """Make the recipe's generated set where it is missing in its usual folder, by one process: no download, some minutes.

    Other recipes and folders are left alone: what belongs there is not known.
    """
    if recipe not in GENERATED or Path(folder) != GENERATED[recipe]().folder:
        return
    from ddetr_lite.datasets.shapes import write_shapes
    from ddetr_lite.engine.distributed import is_main

    while not is_main() and not Path(folder).exists():
        time.sleep(1)
    if not Path(folder).exists():
        print(f"Generating the data set in {folder} (once, a few minutes).", flush=True)
        write_shapes(folder, GENERATED[recipe]().shapes, processes=os.cpu_count() or 1)
