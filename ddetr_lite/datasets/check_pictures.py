"""What is wrong with the picture files of a split. Each is decoded just as training does it."""

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath

from PIL import Image
from tqdm import tqdm

from ddetr_lite.datasets.check_annotations import Split
from ddetr_lite.datasets.fields import Record, leads_outside, size_of
from ddetr_lite.datasets.findings import Finding
from ddetr_lite.datasets.pictures import ORIENTATION, is_picture, read_picture
from ddetr_lite.progress import hidden

MODES = {
    "1": "black and white", "L": "greyscale", "LA": "greyscale with transparency", "P": "a palette",
    "PA": "a palette with transparency", "RGBA": "with transparency", "CMYK": "CMYK", "YCbCr": "YCbCr", "LAB": "Lab",
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A file, looked at. Those that cannot be decoded have a `problem` and no size."""

    height: int = 0
    width: int = 0
    mode: str = ""
    orientation: int = 1
    content: str = ""
    """A hash of the decoded pixels: equal for equal pictures, whatever their files are called."""
    problem: str = ""


MISSING = Picture(problem="missing")


def look_at(path: Path) -> Picture:
    """One file's size, mode and pixels."""
    if not path.is_file():
        return MISSING
    try:
        pixels = read_picture(path)
        with Image.open(path) as head:
            # In a PNG, Pillow looks for EXIF by decoding it all once more; cameras do not write PNGs.
            exif = head.getexif() if head.format != "PNG" else {}
            mode, orientation = head.mode, int(exif.get(ORIENTATION, 1))
    except Exception as error:  # decoders raise what they like on broken files, and the next file must have its turn
        cause = error.__cause__ or error
        reason = str(cause).replace(str(path), path.name)
        return Picture(problem=reason if isinstance(cause, OSError) else f"damaged ({type(cause).__name__}: {reason})")
    height, width = pixels.shape[1:]
    content = hashlib.blake2b(pixels.numpy().data, digest_size=16).hexdigest()
    return Picture(height, width, mode, orientation, f"{height}x{width} {content}")


def look_at_all(splits: list[Split], progress: bool = False) -> dict[Path, Picture]:
    """Every file that a record names, once; those outside the folder are not opened. Threads decode in parallel."""
    paths = list(dict.fromkeys(path for split in splits for _, path in named_files(split)))
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as threads:
        warnings.simplefilter("ignore")  # Pillow's, about odd metadata and huge pictures; what matters is found below
        work = tqdm(threads.map(look_at, paths), "reading pictures", len(paths), disable=hidden(progress), leave=False)
        return dict(zip(paths, work, strict=True))


def named_files(split: Split) -> Iterator[tuple[Record, Path]]:
    """The records whose file_name lies in the folder, and the file."""
    for image in split.images:
        name = image.get("file_name")
        if isinstance(name, str) and name and not leads_outside(name):
            yield image, split.folder / os.path.normpath(name)


def check_pictures(split: Split, pictures: Mapping[Path, Picture]) -> list[Finding]:
    """Missing and broken files, and what differs from the records."""
    found: list[Finding] = []
    first: dict[str, str] = {}
    missing = []
    for image, path in named_files(split):
        picture, where = pictures[path], split.image(image)
        if picture is MISSING:
            missing.append((where, image["file_name"]))
        elif picture.problem:
            found.append(Finding("picture-broken", where, picture.problem))
        else:
            found += _against_record(where, image, picture)
            twin = first.setdefault(picture.content, image["file_name"])
            if twin != image["file_name"]:
                found.append(Finding("duplicate-picture", where, f"the same pixels as {twin}"))
    near = _by_stem(split.folder) if missing else {}
    for where, name in missing:
        twin = near.get(_stem(name), "")
        found.append(
            Finding("picture-missing", where, f"not in {split.folder}" + (f"; there is {twin}" if twin else ""))
        )
    return found


def _against_record(where: str, image: Record, picture: Picture) -> Iterator[Finding]:
    named, true = size_of(image), (float(picture.height), float(picture.width))
    sizes = f"the file has width {picture.width}, height {picture.height}"
    if named is not None and named != true:
        sizes += f", the record width {named[1]:g}, height {named[0]:g}"
        if named == true[::-1]:
            turned = f"EXIF orientation {picture.orientation}" if picture.orientation >= 5 else "no EXIF orientation"
            yield Finding("size-swapped", where, f"{sizes} ({turned})")
        else:
            yield Finding("size-differs", where, sizes)
    elif picture.orientation != 1:
        yield Finding("exif-orientation", where, f"EXIF orientation {picture.orientation}; {sizes}")
    if picture.mode.startswith("I;16"):
        yield Finding("picture-16-bit", where, f"Pillow's mode {picture.mode}")
    elif picture.mode != "RGB":
        yield Finding("picture-mode", where, MODES.get(picture.mode, f"Pillow's mode {picture.mode}"))


def check_leaks(splits: list[Split], pictures: Mapping[Path, Picture]) -> list[Finding]:
    """Pictures of the later splits that the first one has too, under whatever name."""
    found: list[Finding] = []
    known: dict[str, str] = {}
    for place, split in enumerate(splits):
        own = [(split.image(image), pictures[path].content) for image, path in named_files(split)]
        if place == 0:
            known = {content: where for where, content in own if content}
        else:
            twins = ((where, known[content]) for where, content in own if content in known)
            found += [Finding("leak", where, f"the same pixels as {twin}") for where, twin in twins]
    return found


def check_unnamed(splits: list[Split]) -> list[Finding]:
    """Picture files in the folders of these splits that none of their records names."""
    named = {path for split in splits for _, path in named_files(split)}
    folders = list(dict.fromkeys(split.folder for split in splits))
    return [
        Finding("picture-without-record", str(path.relative_to(folder.parent)), "no record has it as file_name")
        for folder in folders
        for path in sorted(_files(folder))
        if path not in named
    ]


def _files(folder: Path) -> Iterator[Path]:
    return (p for p in folder.rglob("*") if is_picture(p))


def _stem(name: str) -> str:
    return PurePath(name.replace("\\", "/")).stem.casefold()


def _by_stem(folder: Path) -> dict[str, str]:
    """For a missing file the nearest: the same name in another folder, with another suffix or in other letters."""
    return {_stem(path.name): str(path.relative_to(folder)) for path in _files(folder)}
