"""`shapes`: a generated set of pictures for object detection, in COCO's format.

Eight kinds of objects (sixteen in the hard form, `HARD`), known by their silhouette alone, lie in any rotation,
colour and pattern on textured grounds, hide parts of one another and reach a little over the border. Picture i
of a split is a pure function of the seed, the split, i, and the configuration's look (all of it but the two
counts): a set can grow, and its first pictures stay as they are.
"""

import hashlib
import json
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ddetr_lite.datasets.shapes_outlines import (
    FULL_COVER,
    SILHOUETTES,
    Draws,
    Floats,
    Ints,
    Window,
    clip_polygon,
    coverage,
    place,
)
from ddetr_lite.datasets.shapes_render import finish, paint_background, paint_object
from ddetr_lite.progress import hidden
from ddetr_lite.wording import known_names

VERSION = 1  # of the generator: another number means other pictures
ALL_KINDS: tuple[str, ...] = tuple(SILHOUETTES)
KINDS = ALL_KINDS[:8]  # those of the default set, which stays as it is when silhouettes are added
_KNOWN = ", ".join(ALL_KINDS)
SPLITS: tuple[str, ...] = ("train", "val")

MIN_VISIBLE = 0.6  # of an object's whole silhouette: what the border and the objects above it leave
MIN_INSIDE = 0.85  # of an object's whole silhouette: what the border leaves
TRIES = 40  # places tried for one object, the later ones with smaller sizes
LAYOUTS = 50  # fresh starts when fewer than `min_objects` found room


@dataclass(frozen=True)
class ShapesConfig:
    """What a `shapes` set looks like, and how large it is.

    size: height and width of a picture, pixels.
    train_images, val_images: pictures in the two splits.
    min_objects, max_objects: objects in a picture, drawn uniformly; where no room is left there are
        fewer than drawn, never fewer than the minimum.
    min_size, max_size: longer side of an object's box, before the border cuts it, as a share of the
        picture's side.
    classes: the kinds of objects, from `ALL_KINDS`; category ids are 1, 2, ... in this order.
    seed: another seed, another set.

    A bad value raises `ValueError`, naming field, value and remedy.
    """

    size: int = 96
    train_images: int = 4000
    val_images: int = 300
    min_objects: int = 1
    max_objects: int = 5
    min_size: float = 0.1
    max_size: float = 0.6
    classes: tuple[str, ...] = KINDS
    seed: int = 0

    def __post_init__(self) -> None:
        most = 1_000_000  # file names have six digits
        self._check_whole("size", 32, 2048)
        self._check_whole("train_images", 1, most)
        self._check_whole("val_images", 1, most)
        self._check_whole("min_objects", 0, 50)
        self._check_whole("max_objects", max(1, self.min_objects), 50)
        self._check_whole("seed", 0, 2**32 - 1)
        self._check_share("min_size", max(0.02, 6 / self.size), "an object is at least 6 pixels long")
        self._check_share("max_size", self.min_size, "at least min_size")
        room = int(0.4 / (self.min_size * self.min_size))
        if self.min_objects > max(1, room):
            raise ValueError(
                f"ShapesConfig.min_objects is {self.min_objects}: so many objects of min_size "
                f"{self.min_size} find no room; give at most {max(1, room)}, or a smaller min_size."
            )
        if not isinstance(self.classes, tuple) or not self.classes:
            raise ValueError(f"ShapesConfig.classes is {self.classes!r}: give a tuple of names from {_KNOWN}.")
        for name in self.classes:
            if name not in ALL_KINDS:
                raise ValueError(f"ShapesConfig.classes has {name!r}: {known_names(str(name), ALL_KINDS)}.")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"ShapesConfig.classes is {self.classes!r}: name each class once.")

    def _check_whole(self, field: str, low: int, high: int) -> None:
        value = getattr(self, field)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"ShapesConfig.{field} is {value!r}: give a whole number from {low} to {high}.")

    def _check_share(self, field: str, low: float, why: str) -> None:
        value = getattr(self, field)
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= 0.9:
            raise ValueError(
                f"ShapesConfig.{field} is {value!r}: give a share of the picture's side, {low:.3g} to 0.9 ({why})."
            )


# For comparisons at small scale: small objects, and about as many in a picture as in COCO's (6.6 on average).
HARD = ShapesConfig(
    size=256, train_images=8000, val_images=500, max_objects=12, min_size=0.06, max_size=0.5, classes=ALL_KINDS
)


@dataclass(frozen=True)
class _Placed:
    """An object of a layout: outline `points` (V, 2) in pixels, `window` and `counts` from `coverage`."""

    category: int
    points: Floats
    window: Window
    counts: Ints
    whole: int  # pixels of the silhouette, with those beyond the border

    def on_picture(self, size: int) -> NDArray[np.bool_]:
        """(size, size), true at the pixels of which the silhouette covers at least half."""
        x0, y0, x1, y1 = self.window
        mask = np.zeros((size, size), dtype=bool)
        left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, size), min(y1, size)
        covered = 2 * self.counts >= FULL_COVER
        mask[top:bottom, left:right] = covered[top - y0 : bottom - y0, left - x0 : right - x0]
        return mask


def _draw_object(draws: Draws, config: ShapesConfig, category: int, effort: float) -> _Placed:
    """An object of class `category` at a random place; `effort`, 0 to 1, lowers the largest size drawn."""
    largest = config.max_size + (config.min_size - config.max_size) * effort
    longest = config.size * draws.uniform(config.min_size, largest)
    points = place(config.classes[category], draws.uniform(0.78, 1.28), draws.turn(), longest)
    width, height = (float(side) for side in points.max(axis=0))
    left = draws.uniform(-0.15 * width, config.size - 0.85 * width)
    top = draws.uniform(-0.15 * height, config.size - 0.85 * height)
    points = points + np.array([left, top])
    window, counts = coverage(points)
    return _Placed(category, points, window, counts, max(1, int((2 * counts >= FULL_COVER).sum())))


def _lay_out(draws: Draws, config: ShapesConfig) -> tuple[list[_Placed], list[int]]:
    """The objects, lowest first, and for each the pixels that those above it leave visible."""
    for _ in range(LAYOUTS):
        placed: list[_Placed] = []
        owner = np.full((config.size, config.size), -1)  # which object each pixel shows
        for _ in range(draws.integer(config.min_objects, config.max_objects)):
            # Drawn once per object, not once per try: else a class that fits badly would be rarer.
            category = draws.integer(0, len(config.classes) - 1)
            for attempt in range(TRIES):
                new = _draw_object(draws, config, category, attempt / TRIES)
                mask = new.on_picture(config.size)
                trial = np.where(mask, len(placed), owner)
                visible = np.bincount(trial.ravel() + 1, minlength=len(placed) + 2)[1:]
                enough = all(seen >= MIN_VISIBLE * old.whole for seen, old in zip(visible, [*placed, new], strict=True))
                if enough and visible[-1] >= MIN_INSIDE * new.whole:
                    placed.append(new)
                    owner = trial
                    break
        if len(placed) >= config.min_objects:
            visible = np.bincount(owner.ravel() + 1, minlength=len(placed) + 1)[1:]
            return placed, [int(pixels) for pixels in visible]
    raise RuntimeError(
        f"ShapesConfig.min_objects is {config.min_objects}: found no room for so many objects of min_size "
        f"{config.min_size} in {LAYOUTS} layouts; lower either."
    )


def render_picture(config: ShapesConfig, split: str, index: int) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """Picture `index` of a split: (size, size, 3) bytes, RGB, and its annotations in COCO's format.

    Annotations come in the order of painting, the lowest object first. `bbox` is [x, y, width, height] in
    pixels: the tight box of the object's silhouette as far as it lies in the picture, whether or not other
    objects lie over it (enough stays visible to tell where it ends). `segmentation` is that silhouette, one
    polygon. `area` counts the visible pixels; `visible_fraction`, not among COCO's fields, is their share of
    the whole silhouette, at least `MIN_VISIBLE`. `image_id` is `index`.

    The result depends on the arguments alone, and not on the two counts in `config`. Raises `ValueError` for
    another split or an index below 0.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}: give one of {', '.join(SPLITS)}.")
    if index < 0:
        raise ValueError(f"index is {index}: give 0 or more.")
    draws = Draws(VERSION, config.seed, SPLITS.index(split), index)
    placed, visible = _lay_out(draws, config)
    canvas = paint_background(draws, config.size)
    annotations: list[dict[str, Any]] = []
    colours: list[Floats] = []
    for order, (thing, pixels) in enumerate(zip(placed, visible, strict=True)):
        colours.append(paint_object(draws, canvas, thing.window, thing.counts, colours))
        outline = clip_polygon(thing.points, config.size)
        polygon = [(round(float(x), 2), round(float(y), 2)) for x, y in outline]
        columns, rows = zip(*polygon, strict=True)
        box = (min(columns), min(rows), max(columns) - min(columns), max(rows) - min(rows))
        annotations.append(
            {
                "id": index * config.max_objects + order + 1,  # pycocotools takes id 0 for "no match"
                "image_id": index,
                "category_id": thing.category + 1,
                "bbox": [round(side, 2) for side in box],
                "area": pixels,
                "iscrowd": 0,
                "segmentation": [[c for point in polygon for c in point]],
                "visible_fraction": round(pixels / thing.whole, 3),
            }
        )
    return finish(draws, canvas), annotations


def fingerprint(config: ShapesConfig) -> str:
    """Sixteen hexadecimal digits that tell configurations, and versions of the generator, apart."""
    return hashlib.sha256(json.dumps([VERSION, asdict(config)]).encode()).hexdigest()[:16]


def write_shapes(
    folder: str | Path, config: ShapesConfig | None = None, progress: bool = True, processes: int = 1
) -> Path:
    """Write the set in COCO's layout, and return its folder.

    `folder/train/000000.png`, `folder/val/000000.png`, ... and
    `folder/annotations/instances_{train,val}.json`. All is written to a hidden folder beside, and moved when
    whole; a run that is killed outright leaves only that one. processes: that render, beside this one; a script that asks for
    more than one must have its own code below `if __name__ == "__main__":`. A set of the same configuration that is already
    there is kept, at once. Nothing is ever deleted: a folder with anything else in it raises
    `FileExistsError`, a file in its place `NotADirectoryError`.
    """
    config = ShapesConfig() if config is None else config
    folder = Path(folder).resolve()
    if _is_there(folder, config):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-unfinished-", dir=folder.parent) as unfinished:
        whole = Path(unfinished) / folder.name
        (whole / "annotations").mkdir(parents=True)
        with tqdm(
            total=config.train_images + config.val_images, desc="shapes", unit="picture", disable=hidden(progress)
        ) as bar:
            for split, count in (("train", config.train_images), ("val", config.val_images)):
                _write_split(whole, config, split, count, processes, bar.update)
        if _is_there(folder, config):  # another process was faster
            return folder
        if folder.is_dir():
            folder.rmdir()  # empty, as `_is_there` found; Windows moves nothing onto it
        whole.replace(folder)
    return folder


def _write_split(
    whole: Path, config: ShapesConfig, split: str, count: int, processes: int, step: Callable[[], Any]
) -> None:
    (whole / split).mkdir()
    images, annotations = [], []
    for index, found in enumerate(_write_pictures(whole, config, split, count, processes)):
        images.append({"id": index, "file_name": _name(index), "width": config.size, "height": config.size})
        annotations.extend(found)
        step()
    content = {
        "info": {
            "description": f"shapes, generated by ddetr_lite, split {split}",
            "version": str(VERSION),
            "seed": config.seed,
            "config": asdict(config),
            "fingerprint": fingerprint(config),
        },
        "licenses": [],
        "categories": [{"id": k + 1, "name": name, "supercategory": "shape"} for k, name in enumerate(config.classes)],
        "images": images,
        "annotations": annotations,
    }
    text = json.dumps(content, separators=(",", ":"))
    (whole / "annotations" / f"instances_{split}.json").write_text(text, encoding="utf-8")


def _write_pictures(
    whole: Path, config: ShapesConfig, split: str, count: int, processes: int
) -> Iterator[list[dict[str, Any]]]:
    """Write the pictures of a split, and give their annotations in order."""
    write = partial(_write_picture, whole, config, split)
    if processes == 1:
        yield from map(write, range(count))
        return
    # A forked process would inherit locks of threads that it does not have.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(write, range(count), chunksize=16)


def _write_picture(whole: Path, config: ShapesConfig, split: str, index: int) -> list[dict[str, Any]]:
    pixels, found = render_picture(config, split, index)
    Image.fromarray(pixels).save(whole / split / _name(index), compress_level=4)
    return found


def _name(index: int) -> str:
    return f"{index:06d}.png"


def _is_there(folder: Path, config: ShapesConfig) -> bool:
    """True for a whole set of this configuration, false where nothing is; an error for all else."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: give the name of a folder that is new or empty.")
    if not any(folder.iterdir()):
        return False
    remedy = "give another folder, or move this one away."
    for split, count in (("train", config.train_images), ("val", config.val_images)):
        path = folder / "annotations" / f"instances_{split}.json"
        try:
            info = json.loads(path.read_text(encoding="utf-8"))["info"]
            description, found = str(info["description"]), info.get("fingerprint")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            message = f"{folder} holds other files, and no readable {path.name}: {remedy}"
            raise FileExistsError(message) from None
        if found != fingerprint(config):
            raise FileExistsError(
                f"{folder} holds another set ({description!r}, config {info.get('config')}): {remedy}"
            )
        present = {picture.name for picture in (folder / split).glob("*.png")}
        missing = {_name(index) for index in range(count)} - present
        if missing:
            raise FileExistsError(f"{folder} lacks {len(missing)} pictures of {split}, {min(missing)} first: {remedy}")
    return True
