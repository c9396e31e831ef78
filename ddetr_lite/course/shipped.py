"""The trained detectors that come with the course, and the logs of runs."""

from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import ddetr_lite
from ddetr_lite.engine.checkpoint import LoadedModel, load_model
from ddetr_lite.engine.log import read_log

DATA = Path("data")
Name = Literal["shapes", "detr", "photo"]


def checkpoint(name: Name = "shapes") -> Path:
    """The file of a shipped detector.

    "shapes" (Deformable DETR) and "detr" (DETR) know the generated pictures, "photo" the 80 classes of COCO. Raises
    ValueError for another name, and FileNotFoundError with the remedy where the repository's data are not at hand.
    """
    if name not in get_args(Name):
        raise ValueError(f"the course ships no detector {name!r}: choose {', '.join(map(repr, get_args(Name)))}")
    return _find(DATA / "checkpoints" / f"{name}.pt")


@cache
def detector(name: Name = "shapes") -> LoadedModel:
    """A shipped detector with its classes, in evaluation mode; loaded once a session. Errors as in `checkpoint`."""
    return load_model(checkpoint(name))


def run_log(name: str) -> list[dict[str, Any]]:
    """The lines of a committed run's log, `data/results/NAME/log.jsonl`. FileNotFoundError as in `checkpoint`."""
    return read_log(_find(DATA / "results" / name / "log.jsonl"))


def _find(file: Path) -> Path:
    """A file of the repository: beside the package, or above the working directory."""
    here = Path.cwd()
    for root in (Path(ddetr_lite.__file__).parents[1], here, *here.parents):
        if (path := root / file).is_file():
            return path
    raise FileNotFoundError(
        f"{file.as_posix()} is not there: work in a clone of the repository (`git status` names a file that was deleted, "
        f"`git restore {file.parent.as_posix()}` brings it back), installed with `pip install -e .`"
    )
