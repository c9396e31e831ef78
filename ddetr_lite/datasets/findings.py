"""What can be wrong with a folder in COCO's format: the kinds, how bad each is, and what to do.

error: training or evaluation stops, or learns from wrong data. warning: it runs, but something is lost or doubtful. note: good
to know.
"""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Kind:
    """One thing that can be wrong."""

    severity: Severity
    title: str
    remedy: str


KINDS: dict[str, Kind] = {
    # The folder and its files of annotations.
    "folder-missing": Kind("error", "the folder does not exist", "check the path"),
    "split-not-found": Kind(
        "error", "the annotations or pictures of a split are not found", "rename files, or name the split with --split"
    ),
    "json-broken": Kind("error", "the annotation file is not readable JSON", "export it again, or repair that place"),
    "json-not-object": Kind(
        "error", "the annotation file is no object", "COCO's format is {'images', 'annotations', 'categories'}: export as it"
    ),
    "list-missing": Kind("error", "a list of COCO's format is missing", "export in COCO's detection format"),
    "list-empty": Kind("error", "a list that training needs is empty", "export again: nothing can be learned"),
    "record-not-object": Kind("error", "a record is no object", "each must be {'id': ..., ...}: correct or delete it"),
    "no-objects": Kind(
        "error", "a split holds no object (crowds do not count)", "annotate some: nothing can be learned from it, or measured"
    ),
    # Ids and names.
    "id-missing": Kind("error", "a record has no id", "give it a whole number of its own"),
    "id-not-integer": Kind("error", "an id is not a whole number", "write ids as numbers, wherever they are used"),
    "id-too-large": Kind("error", "an id does not fit into 64 bits", "give smaller ids, below 2⁶³, wherever they are used"),
    "duplicate-image-id": Kind(
        "error", "several pictures share an id", "give each its own; which objects belong to which picture is lost"
    ),
    "duplicate-category-id": Kind("error", "several categories share an id", "give each its own, or merge them"),
    "duplicate-category-name": Kind("error", "several categories share a name", "rename one, or merge them"),
    "category-name-missing": Kind("error", "a category has no name", "give it one: classes are matched by name"),
    "duplicate-annotation-id": Kind("warning", "several annotations share an id", "number them anew"),
    "annotation-id-missing": Kind("warning", "annotations have no id", "number them: pycocotools and others need it"),
    "duplicate-file-name": Kind(
        "error", "several records name the same file", "merge them: an object of one is background in the other"
    ),
    # Records of pictures.
    "file-name-missing": Kind("error", "a picture's record has no file_name", "add it, or drop the record"),
    "file-outside": Kind("error", "a file_name leads outside the folder", "name files relative to the folder of pictures"),
    "size-missing": Kind("warning", "a picture's record lacks width or height", "add them; many tools need them"),
    "size-not-number": Kind("error", "width or height is not a positive number", "write the picture's true size"),
    # What annotations refer to.
    "image-id-unusable": Kind("error", "image_id is missing, or no whole number", "write the id of the annotation's picture"),
    "unknown-image-id": Kind("warning", "annotations of a picture that is not listed", "they are ignored; correct image_id"),
    "unknown-category-id": Kind("error", "annotations of a category that is not listed", "correct it, or add the category"),
    # Areas and crowds.
    "iscrowd-unclear": Kind("error", "iscrowd is neither 0 nor 1", "0 for an object, 1 for a crowd, or leave the field out"),
    "area-not-number": Kind(
        "warning", "area is not a number above 0", "w·h of the box is taken, for AP by size; correct or leave out the field"
    ),
    "area-missing": Kind("note", "annotations have no area", "w·h of the box is taken, for AP by size; pycocotools needs one"),
    # Boxes.
    "bbox-not-numbers": Kind("error", "bbox is not four finite numbers", "write [x, y, width, height], or delete it"),
    "boxes-as-corners": Kind("error", "boxes look like [x0, y0, x1, y1]", "subtract: COCO has [x, y, width, height]"),
    "boxes-as-centres": Kind("error", "boxes look like [cx, cy, w, h]", "x −= w/2, y −= h/2: COCO's x, y is the upper left"),
    "boxes-normalised": Kind(
        "error", "boxes look normalised to 0..1", "multiply by width and height; YOLO's x, y is the centre: x −= w/2, y −= h/2"
    ),
    "box-without-area": Kind("warning", "boxes without area", "training leaves them out; correct or delete them"),
    "box-outside": Kind("warning", "boxes entirely outside the picture", "training leaves them out; correct them"),
    "box-partly-outside": Kind("warning", "boxes reach beyond the picture", "training cuts them at the border; look at some"),
    "duplicate-box": Kind("warning", "an object is annotated twice", "delete one: two queries would have to find it"),
    "tiny-box": Kind("warning", "boxes thinner than 2 px", "hardly to be learned; delete specks, or annotate larger pictures"),
    "many-objects": Kind(
        "warning", "pictures with more objects than the model has queries", "train stops there: give --queries as advised below"
    ),
    "picture-without-objects": Kind("note", "pictures without objects", "fine as background, if nothing was forgotten"),
    # Classes.
    "class-without-objects": Kind("warning", "classes without any object to train on", "add pictures, or drop the class"),
    "class-not-in-val": Kind("note", "classes that validation cannot judge", "their AP is missing; add pictures"),
    "class-imbalance": Kind("note", "some classes are far more frequent than others", "look at AP by class; add rare ones"),
    "class-not-in-train": Kind("error", "validation has a class that training lacks", "use the same names in both files"),
    "category-ids-differ": Kind(
        "warning", "category ids differ between the splits", "use the same: here names decide, in other code ids do"
    ),
    # Files of pictures.
    "picture-missing": Kind("error", "picture files are missing", "restore them, or drop their records"),
    "picture-broken": Kind("error", "picture files cannot be decoded", "restore them, or drop their records"),
    "size-swapped": Kind(
        "error",
        "width and height are swapped: the file is turned by its EXIF orientation, or the record is wrong",
        "save pictures upright (PIL's ImageOps.exif_transpose): pixels are read as they lie in the file",
    ),
    "size-differs": Kind("error", "the file has another size than its record", "boxes are for that size: scale one of them"),
    "exif-orientation": Kind(
        "warning", "EXIF asks to turn or mirror the picture", "pixels are read as they lie: check boxes on the contact sheet"
    ),
    "picture-mode": Kind("note", "pictures that are not 8-bit RGB", "they become it: see that colours survive"),
    "picture-16-bit": Kind(
        "warning",
        "greyscale pictures of 16 bits",
        "the upper 8 are read: where only 10 or 12 bits are in use, they are dark; save the range that matters as 8 bits",
    ),
    "duplicate-picture": Kind("warning", "the same pixels in several files of a split", "keep one"),
    "leak": Kind("warning", "the same picture in training and validation", "drop one: AP would be measured on known ones"),
    "picture-without-record": Kind("note", "files in the folder that no record names", "unused; annotate or remove them"),
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: a key of `KINDS`, the place (file and ids), and the field with its value."""

    kind: str
    where: str
    message: str

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return KINDS[self.kind].severity


def grouped(findings: list[Finding]) -> dict[str, list[Finding]]:
    """Kind → its findings in the order found; errors first, then warnings, then notes, in the order of `KINDS`."""
    order = sorted(KINDS, key=lambda kind: SEVERITIES.index(KINDS[kind].severity))
    groups: dict[str, list[Finding]] = {kind: [] for kind in order}
    for finding in findings:
        groups[finding.kind].append(finding)
    return {kind: members for kind, members in groups.items() if members}


def count(findings: list[Finding], severity: Severity) -> int:
    """How many of this severity."""
    return sum(finding.severity == severity for finding in findings)
