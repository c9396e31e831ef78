"""The trained detectors that come with the course."""

from functools import cache
from pathlib import Path
from typing import Literal

import ddetr_lite
from ddetr_lite.engine.checkpoint import LoadedModel, load_model

FOLDER = Path("data/checkpoints")


def checkpoint(name: Literal["shapes", "photo"] = "shapes") -> Path:
    """The file of a shipped detector. Found beside the package, or above the working directory.

    "shapes" knows the generated pictures, "photo" the 80 classes of COCO. Raises ValueError for another name, and
    FileNotFoundError with the remedy where the repository's data are not at hand.
    """
    if name not in ("shapes", "photo"):
        raise ValueError(f"the course ships no detector {name!r}: choose 'shapes' or 'photo'")
    here = Path.cwd()
    for root in (Path(ddetr_lite.__file__).parents[1], here, *here.parents):
        path = root / FOLDER / f"{name}.pt"
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{(FOLDER / name).as_posix()}.pt is not there: work in a clone of the repository (`git status` names a file "
        f"that was deleted, `git restore {FOLDER.as_posix()}` brings it back), installed with `pip install -e .`"
    )


@cache
def detector(name: Literal["shapes", "photo"] = "shapes") -> LoadedModel:
    """A shipped detector with its classes, in evaluation mode; loaded once a session. Errors as in `checkpoint`."""
    return load_model(checkpoint(name))
