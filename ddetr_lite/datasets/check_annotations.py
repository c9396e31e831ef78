"""What is wrong with an annotation file: its lists, ids, names, and what refers to what. Boxes: `check_boxes`."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddetr_lite.datasets.fields import Record, area_of, four_numbers, is_crowd, is_id, is_whole, leads_outside, size_of
from ddetr_lite.datasets.findings import Finding


@dataclass(frozen=True)
class Split:
    """A split's annotations, as far as they could be read: records that are no objects are left out."""

    name: str
    file: str
    """The annotation file, relative to the data folder: what messages begin with."""
    folder: Path = Path()
    """Where its pictures lie."""
    images: list[Record] = field(default_factory=list)
    annotations: list[Record] = field(default_factory=list)
    categories: list[Record] = field(default_factory=list)

    def image(self, record: Record) -> str:
        """A picture's record in words."""
        return f"{self.file}: image id {record.get('id')} ({record.get('file_name')})"

    def annotation(self, record: Record) -> str:
        """An annotation in words."""
        return f"{self.file}: annotation {record.get('id')} of image id {record.get('image_id')}"

    def objects(self) -> Iterator[Record]:
        """The annotations that are single objects, not crowds; also those of which nobody can tell."""
        return (a for a in self.annotations if not is_crowd(a))


def read_split(name: str, path: Path, file: str, folder: Path) -> tuple[Split | None, list[Finding]]:
    """The annotations at `path`, and what is wrong with the form of the file; None where nothing can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        return None, [Finding("json-broken", file, f"line {error.lineno}, column {error.colno}: {error.msg}")]
    except (OSError, UnicodeDecodeError) as error:
        return None, [Finding("json-broken", file, str(error))]
    if not isinstance(content, dict):
        return None, [Finding("json-not-object", file, f"it holds a {type(content).__name__}")]
    found, lists = [], {}
    for key in ("images", "annotations", "categories"):
        records = content.get(key)
        if not isinstance(records, list):
            problem = f"it is a {type(records).__name__}" if key in content else "it is missing"
            found.append(Finding("list-missing", f"{file}: {key!r}", problem))
            records = []
        elif not records and key != "annotations":
            found.append(Finding("list-empty", f"{file}: {key!r}", "it has no record"))
        for place, record in enumerate(records):
            if not isinstance(record, dict):
                found.append(Finding("record-not-object", f"{file}: {key}[{place}]", f"it is {record!r:.40}"))
        lists[key] = [record for record in records if isinstance(record, dict)]
    return Split(name, file, folder, **lists), found


def check_split(split: Split) -> list[Finding]:
    """Everything about ids, names and references in one file."""
    parts = (_objects, _ids, _image_records, _category_names, _references, _areas_and_crowds)
    return [finding for part in parts for finding in part(split)]


def _objects(split: Split) -> Iterator[Finding]:
    if split.images and not any(True for _ in split.objects()):
        crowds = f"its {len(split.annotations)} annotations are crowds" if split.annotations else "it has no annotation"
        yield Finding("no-objects", split.file, crowds)


def _ids(split: Split) -> Iterator[Finding]:
    for key, kind in (("images", "image"), ("categories", "category"), ("annotations", "annotation")):
        records: list[Record] = getattr(split, key)
        for place, record in enumerate(records):
            name = record.get("file_name", record.get("name", ""))
            where = f"{split.file}: {key}[{place}]" + (f" ({name})" if name else "")
            if "id" not in record:
                yield Finding("annotation-id-missing" if kind == "annotation" else "id-missing", where, "id is missing")
            elif not is_id(record["id"]):
                kind_of_id = "id-too-large" if is_whole(record["id"]) else "id-not-integer"
                yield Finding(kind_of_id, where, f"id is {record['id']!r}")
        ids = Counter(record["id"] for record in records if is_id(record.get("id")))
        for value in (value for value, times in ids.items() if times > 1):
            shared = [r for r in records if r.get("id") == value]
            names = [repr(r.get("file_name", r.get("name", r.get("bbox")))) for r in shared]
            yield Finding(
                f"duplicate-{kind}-id",
                f"{split.file}: {kind} id {value}",
                f"id {value} has {len(shared)} records: {', '.join(names[:4])}",
            )


def _image_records(split: Split) -> Iterator[Finding]:
    names: dict[str, list[Any]] = {}
    for image in split.images:
        where, name = split.image(image), image.get("file_name")
        if not isinstance(name, str) or not name:
            yield Finding("file-name-missing", where, f"file_name is {name!r}")
        else:
            names.setdefault(name, []).append(image.get("id"))
            if leads_outside(name):
                yield Finding("file-outside", where, f"file_name {name!r}")
        lacking = [side for side in ("width", "height") if image.get(side) is None]
        if lacking:
            yield Finding("size-missing", where, f"{' and '.join(lacking)} missing")
        elif size_of(image) is None:
            yield Finding("size-not-number", where, f"width {image['width']!r}, height {image['height']!r}")
    yield from _shared(names, "duplicate-file-name", f"{split.file}: image ids", "file_name")


def _category_names(split: Split) -> Iterator[Finding]:
    names: dict[str, list[Any]] = {}
    for category in split.categories:
        name = category.get("name")
        if name is None or name == "":
            yield Finding(
                "category-name-missing", f"{split.file}: category id {category.get('id')}", f"name is {name!r}"
            )
        else:
            names.setdefault(str(name), []).append(category.get("id"))
    yield from _shared(names, "duplicate-category-name", f"{split.file}: category ids", "name")


def _shared(names: dict[str, list[Any]], kind: str, where: str, field: str) -> Iterator[Finding]:
    """Names that several records have; names: to the records' ids."""
    for name, ids in names.items():
        if len(ids) > 1:
            yield Finding(kind, f"{where} {', '.join(map(str, ids))}", f"{field} {name!r} in all of them")


def _references(split: Split) -> Iterator[Finding]:
    # As text, since a broken file may have anything as an id; a number and its text are told apart by their repr.
    images = {repr(image.get("id")) for image in split.images}
    categories = {repr(category.get("id")) for category in split.categories}
    for annotation in split.annotations:
        where = split.annotation(annotation)
        for name, known, kind in (
            ("image_id", images, "unknown-image-id"),
            ("category_id", categories, "unknown-category-id"),
        ):
            value = annotation.get(name)
            if name == "image_id" and not is_id(value):
                there = f"{name} is {value!r:.40}" if name in annotation else f"{name} is missing"
                other = "; there is one of another type" if isinstance(value, str) and value in images else ""
                yield Finding("image-id-unusable", where, there + other)
            elif name not in annotation:
                yield Finding(kind, where, f"{name} is missing")
            elif repr(value) not in known:
                twin = repr(str(value)) in known or (isinstance(value, str) and value in known)
                hint = "; there is one of another type, text instead of a number or the reverse" if twin else ""
                yield Finding(kind, where, f"{name} {value!r}{hint}")


def _areas_and_crowds(split: Split) -> Iterator[Finding]:
    for annotation in split.annotations:
        where = split.annotation(annotation)
        if is_crowd(annotation) is None:
            yield Finding("iscrowd-unclear", where, f"iscrowd {annotation['iscrowd']!r:.40}")
        if "area" not in annotation:
            yield Finding("area-missing", where, "area is missing")
        elif area_of(annotation) is None and not _is_empty(annotation):
            yield Finding("area-not-number", where, f"area {annotation['area']!r:.40}")


def _is_empty(annotation: Record) -> bool:
    """Whether an area of 0 is that of its box, which is a finding itself."""
    bbox: Any = annotation.get("bbox")
    return annotation["area"] == 0 and four_numbers(bbox) and min(bbox[2:]) == 0


def check_classes(splits: list[Split], imbalance: float = 100) -> list[Finding]:
    """Classes without objects, and what differs between the first split, which is trained on, and the others.

    imbalance: from how many times as many objects on the largest class counts as far more frequent than the smallest.
    """
    found: list[Finding] = []
    known: dict[str, Any] = {}
    for place, split in enumerate(splits):
        ids = {str(c["name"]): c.get("id") for c in split.categories if c.get("name") is not None}
        counts = class_counts(split)
        kind = "class-not-in-val" if place else "class-without-objects"
        found += [
            Finding(kind, f"{split.file}: category id {value} ({name})", "no annotation has it")
            for name, value in ids.items()
            if not counts.get(name)
        ]
        if place == 0:
            known = ids
            present = {name: n for name, n in counts.items() if n}
            if present and max(present.values()) >= imbalance * min(present.values()):
                most, least = max(present, key=present.__getitem__), min(present, key=present.__getitem__)
                numbers = f"{most} has {present[most]} objects, {least} only {present[least]}"
                found.append(Finding("class-imbalance", split.file, numbers))
            continue
        for name, value in ids.items():
            where = f"{split.file}: category id {value} ({name})"
            if name not in known:
                found.append(Finding("class-not-in-train", where, f"{splits[0].file} has no category of this name"))
            elif value != known[name]:
                found.append(Finding("category-ids-differ", where, f"it is id {known[name]} in {splits[0].file}"))
        for name in known.keys() - ids.keys():
            where = f"{split.file}: category {name}"
            found.append(Finding("class-not-in-val", where, f"the file lacks it, {splits[0].file} has it"))
    return found


def class_counts(split: Split) -> dict[str, int]:
    """Class name → number of its objects, in the order of the category ids."""
    categories = sorted((c for c in split.categories if is_id(c.get("id"))), key=lambda c: c["id"])
    numbers = Counter(a["category_id"] for a in split.objects() if is_id(a.get("category_id")))
    return {str(c.get("name")): numbers[c["id"]] for c in categories}
