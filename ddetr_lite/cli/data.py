"""`ddetr-lite data`: where pictures and annotations come from."""

import dataclasses
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
    """Make data: `ddetr-lite data shapes`."""
    what, words = take_positional(words, "WHAT", "shapes", "data shapes")
    if what != "shapes":
        raise Mistake(f"data {what!r} is unknown: choose 'shapes'")
    options = parse(ShapesOptions, words, "ddetr-lite data shapes")
    from ddetr_lite.datasets.shapes import write_shapes

    print(f"{write_shapes(options.folder, options.shapes)} is ready.")


def make_shapes(folder: str) -> None:
    """The generated set costs a minute and no download: it is made where it is missing."""
    from ddetr_lite.datasets.shapes import write_shapes

    if not Path(folder).exists():
        print(f"Generating the data set in {folder} (once, about a minute).", flush=True)
        write_shapes(folder, ShapesConfig())
