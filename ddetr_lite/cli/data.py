"""`ddetr-lite data`: where pictures and annotations come from."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ddetr_lite.cli.parsing import FLAT, Mistake, parse, take_positional
from ddetr_lite.datasets.shapes import ShapesConfig


@dataclass(frozen=True)
class ShapesOptions:
    """Generate the `shapes` data set in COCO's format."""

    folder: Path = Path("data/shapes")
    shapes: Annotated[ShapesConfig, FLAT] = dataclasses.field(default_factory=ShapesConfig)


def data(words: list[str]) -> None:
    """Make data, download it, or check it: `ddetr-lite data shapes`, `data coco`, `data check FOLDER`."""
    what, words = take_positional(words, "WHAT", "shapes, coco, check", "data shapes")
    if what == "check":
        from ddetr_lite.cli.data_check import data_check

        data_check(words)
        return
    if what == "coco":
        from ddetr_lite.cli.data_coco import data_coco

        data_coco(words)
        return
    if what != "shapes":
        raise Mistake(f"data {what!r} is unknown: choose shapes, coco or check")
    options = parse(ShapesOptions, words, "ddetr-lite data shapes")
    from ddetr_lite.datasets.shapes import write_shapes

    print(f"{write_shapes(options.folder, options.shapes)} is ready.")


def make_shapes(folder: str) -> None:
    """The generated set costs a minute and no download: it is made where it is missing, by one process."""
    from ddetr_lite.datasets.shapes import write_shapes
    from ddetr_lite.engine.distributed import is_main

    while not is_main() and not Path(folder).exists():
        time.sleep(1)
    if not Path(folder).exists():
        print(f"Generating the data set in {folder} (once, about a minute).", flush=True)
        write_shapes(folder, ShapesConfig())
