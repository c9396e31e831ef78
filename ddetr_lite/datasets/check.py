"""A folder in COCO's format, looked at as a whole: everything that is wrong with it, instead of the first thing."""

from dataclasses import dataclass
from pathlib import Path

from ddetr_lite.datasets.check_annotations import Split, check_classes, check_split, read_split
from ddetr_lite.datasets.check_boxes import check_boxes
from ddetr_lite.datasets.check_pictures import check_leaks, check_pictures, check_unnamed, look_at_all
from ddetr_lite.datasets.coco import CocoFolder
from ddetr_lite.datasets.fields import is_id
from ddetr_lite.datasets.findings import Finding


@dataclass(frozen=True)
class FolderCheck:
    """What was found, and the splits that could be read."""

    findings: list[Finding]
    splits: list[Split]
    trained_on: bool = True
    """Whether the first of them is the one that is trained on: else that one could not be read."""

    def class_map(self) -> list[tuple[int, int, str]]:
        """(category id, label, name) as `CocoDetection` numbers them: labels in the order of the ids, from the first split."""
        categories = self.splits[0].categories if self.splits else []
        names = {c["id"]: str(c.get("name")) for c in categories if is_id(c.get("id"))}
        return [(category, label, names[category]) for label, category in enumerate(sorted(names))]


def check_folder(
    root: str | Path,
    splits: tuple[str, ...] = ("train", "val"),
    pictures: bool = True,
    queries: int | None = None,
    progress: bool = False,
) -> FolderCheck:
    """Look for everything that is wrong with the splits of a folder; the first one is trained on.

    pictures: decode every picture as well, not just read the annotations. queries: of the model, None: it has none.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        return FolderCheck([Finding("folder-missing", str(root), "no such folder")], [])
    found: list[Finding] = []
    read: list[Split] = []
    for name in splits:
        try:
            place = CocoFolder.find(root, name)
        except FileNotFoundError as error:
            found.append(Finding("split-not-found", f"{root}, split {name!r}", str(error)))
            continue
        split, broken = read_split(name, place.annotations, str(place.annotations.relative_to(root)), place.images)
        found += broken
        if split is not None:
            read.append(split)
            found += [*check_split(split), *check_boxes(split, queries)]
    trained_on = bool(read) and read[0].name == splits[0]
    if trained_on:
        found += check_classes(read)
    if pictures:
        seen = look_at_all(read, progress)
        for split in read:
            found += check_pictures(split, seen)
        found += [*check_leaks(read, seen), *check_unnamed(read)]
    return FolderCheck(found, read, trained_on)
