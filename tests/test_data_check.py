"""`ddetr-lite data check`: every way in which a folder can be broken has its own line, and a clean folder has none."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_coco
import torch
from PIL import Image

from ddetr_lite.cli import main
from ddetr_lite.datasets.check import FolderCheck, check_folder
from ddetr_lite.datasets.check_annotations import Split
from ddetr_lite.datasets.check_boxes import check_boxes
from ddetr_lite.datasets.check_pictures import look_at
from ddetr_lite.datasets.coco import CocoDetection, CocoFolder
from ddetr_lite.datasets.fields import leads_outside
from ddetr_lite.datasets.findings import KINDS, Finding, count, grouped
from ddetr_lite.datasets.summary import summarise
from ddetr_lite.engine.advice import Advice, DataFacts, Start, advise, finest_stride, head_size
from ddetr_lite.engine.checkpoint import save_model
from ddetr_lite.engine.recipes import Recipe, recipe, recipe_to_dict
from ddetr_lite.models.presets import ROWS, build
from ddetr_lite.plots.data_check import contact_sheet, histograms
from ddetr_lite.plots.style import png

Content = dict[str, Any]
Breakage = Callable[[Path, Content], Any]
TRAIN = "annotations/instances_train2017.json"


def clean() -> Content:
    """tiny_coco without its oddities: all boxes inside and with an area, every picture with an object."""
    content = tiny_coco.content()
    boxes = {1: [40, 20, 20, 20], 4: [8, 20, 6, 4], 5: [0, 0, 20, 20]}
    for annotation in content["annotations"]:
        if box := boxes.get(annotation["id"]):
            annotation.update(bbox=box, area=box[2] * box[3])
    content["annotations"].append({"id": 6, "image_id": 7, "category_id": 90, "bbox": [3, 4, 9, 9], "area": 81})
    return content


@pytest.fixture(scope="module")
def clean_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_coco.write(tmp_path_factory.mktemp("clean"), clean())


@pytest.fixture
def folder(clean_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean_folder, tmp_path / "coco"))


def save(folder: Path, content: Any) -> None:
    (folder / TRAIN).write_text(json.dumps(content), encoding="utf-8")


def broken(folder: Path, breakage: Breakage) -> Path:
    """The folder with one change; a breakage that returns bytes gives the whole file."""
    content = clean()
    result = breakage(folder, content)
    if isinstance(result, bytes):
        (folder / TRAIN).write_bytes(result)
    elif (folder / TRAIN).exists():
        save(folder, content)
    return folder


def image(content: Content, **changes: Any) -> None:
    content["images"][0].update(changes)


def annotation(content: Content, **changes: Any) -> None:
    content["annotations"][1].update(changes)  # id 2, a car in the picture 42, which is 60 × 40


def many_boxes(content: Content, form: Callable[[float, float, float, float, int, int], list[float]]) -> None:
    """Two hundred boxes inside the pictures, written in another form than COCO's."""
    random = np.random.default_rng(0)
    content["annotations"] = []
    for i in range(200):
        record = content["images"][i % 3]
        width, height = record["width"], record["height"]
        w, h = random.uniform(0.05, 0.6, 2) * (width, height)
        x, y = random.uniform(0, 1, 2) * (width - w, height - h)
        values = form(x, y, w, h, width, height)
        category = content["categories"][i % 2]["id"]
        known = {"id": i, "image_id": record["id"], "category_id": category, "area": w * h}
        content["annotations"].append({**known, "bbox": values})


def repaint(
    folder: Path, name: str = "a.jpg", mode: str = "RGB", size: tuple[int, int] = (60, 40), **options: Any
) -> None:
    Image.new(mode, size).save(folder / "train2017" / name, **options)


def as_floats(folder: Path, content: dict[str, Any]) -> None:
    next(image for image in content["images"] if image["id"] == 7)["file_name"] = "b.tif"
    (folder / "train2017/b.png").unlink()
    repaint(folder, "b.tif", "F", (30, 50))


def truncate(folder: Path, name: str, lost: int) -> None:
    path = folder / "train2017" / name
    path.write_bytes(path.read_bytes()[:-lost])


def turned(orientation: int) -> Any:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def turn(folder: Path, content: Content) -> None:
    """As many tools do with a camera's upright picture: the record has its upright size, the file lies."""
    repaint(folder, exif=turned(6))
    image(content, width=40, height=60)


def move(folder: Path, source: str, target: str) -> None:
    (folder / target).parent.mkdir(exist_ok=True)
    (folder / source).rename(folder / target)


def copy(folder: Path, source: str, target: str) -> None:
    """The same pixels under another name."""
    Image.open(folder / source).save(folder / target)


# Kind, what its line must say, and the one change that brings it about.
BREAKAGES: list[tuple[str, str, Breakage]] = [
    ("json-broken", r"line 1, column 13", lambda f, c: b'{"images": [}'),
    ("json-broken", r"line 1, column 1\b", lambda f, c: b""),
    ("json-not-object", r"instances_train2017.json: it holds a list", lambda f, c: b"[]"),
    ("list-missing", r"'categories': it is missing", lambda f, c: c.pop("categories")),
    ("list-missing", r"'annotations': it is a dict", lambda f, c: c.update(annotations={})),
    ("list-empty", r"'images'", lambda f, c: c.update(images=[])),
    ("record-not-object", r"annotations\[6\]: it is 17", lambda f, c: c["annotations"].append(17)),
    ("split-not-found", r"no file fits", lambda f, c: (f / TRAIN).unlink()),
    ("split-not-found", r"several files fit", lambda f, c: shutil.copy(f / TRAIN, f / TRAIN.replace("2017", "2014"))),
    ("split-not-found", r"no pictures for split 'train'", lambda f, c: (f / "train2017").rename(f / "elsewhere")),
    ("id-missing", r"images\[1\] \(b.png\): id is missing", lambda f, c: c["images"][1].pop("id")),
    ("id-not-integer", r"images\[0\] \(a.jpg\): id is '42'", lambda f, c: image(c, id="42")),
    ("id-not-integer", r"images\[0\] \(a.jpg\): id is True", lambda f, c: image(c, id=True)),
    ("id-too-large", r"images\[0\] \(a.jpg\): id is 9223372036854775808", lambda f, c: image(c, id=2**63)),
    ("id-not-integer", r"categories\[1\] \(car\): id is '3'", lambda f, c: c["categories"][1].update(id="3")),
    ("annotation-id-missing", r"annotations\[1\]", lambda f, c: c["annotations"][1].pop("id")),
    ("duplicate-image-id", r"image id 7: id 7 has 2 records: 'a.jpg', 'b.png'", lambda f, c: image(c, id=7)),
    ("duplicate-annotation-id", r"annotation id 6", lambda f, c: annotation(c, id=6)),
    ("duplicate-category-id", r"id 3 has 2 records: 'brush', 'car'", lambda f, c: c["categories"][0].update(id=3)),
    ("duplicate-category-name", r"ids 90, 3: name 'car'", lambda f, c: c["categories"][0].update(name="car")),
    ("category-name-missing", r"category id 90", lambda f, c: c["categories"][0].pop("name")),
    ("duplicate-file-name", r"image ids 42, 7: file_name 'b.png'", lambda f, c: image(c, file_name="b.png")),
    ("file-name-missing", r"image id 42 .*file_name is None", lambda f, c: c["images"][0].pop("file_name")),
    ("file-outside", r"image id 42 .*'../val2017/a.jpg'", lambda f, c: image(c, file_name="../val2017/a.jpg")),
    ("file-outside", r"image id 42 .*'/etc/a.jpg'", lambda f, c: image(c, file_name="/etc/a.jpg")),
    ("size-missing", r"image id 42 \(a.jpg\): width missing", lambda f, c: c["images"][0].pop("width")),
    ("size-not-number", r"image id 42 .*width '60', height 40", lambda f, c: image(c, width="60")),
    ("size-not-number", r"image id 42 .*width 60, height 0", lambda f, c: image(c, height=0)),
    ("unknown-image-id", r"annotation 2 of image id 43: image_id 43", lambda f, c: annotation(c, image_id=43)),
    ("image-id-unusable", r"annotation 2 .*'42'; there is one of another type", lambda f, c: annotation(c, image_id="42")),
    ("no-objects", r"train2017.json: it has no annotation", lambda f, c: c.update(annotations=[])),
    (
        "no-objects",
        r"train2017.json: its \d+ annotations are crowds",
        lambda f, c: [record.update(iscrowd=1) for record in c["annotations"]],
    ),
    ("image-id-unusable", r"annotation 2 .*image_id is missing", lambda f, c: c["annotations"][1].pop("image_id")),
    ("unknown-category-id", r"annotation 2 of image id 42: category_id 4", lambda f, c: annotation(c, category_id=4)),
    ("unknown-category-id", r"annotation 2 .*category_id is missing", lambda f, c: c["annotations"][1].pop("category_id")),
    ("bbox-not-numbers", r"annotation 2 .*bbox \[1, 2, 3\]", lambda f, c: annotation(c, bbox=[1, 2, 3])),
    ("bbox-not-numbers", r"annotation 2 .*nan", lambda f, c: annotation(c, bbox=[1, 2, 3, float("nan")])),
    ("bbox-not-numbers", r"annotation 2 .*'x'", lambda f, c: annotation(c, bbox=[1, 2, 3, "x"])),
    ("bbox-not-numbers", r"annotation 2 .*'5'", lambda f, c: annotation(c, bbox=["5", "5", "5", "5"])),
    ("bbox-not-numbers", r"annotation 2 .*bbox \[\[1\]", lambda f, c: annotation(c, bbox=[[1], [2], [3], [4]])),
    ("bbox-not-numbers", r"annotation 2 .*bbox None", lambda f, c: c["annotations"][1].pop("bbox")),
    ("bbox-not-numbers", r"annotation 2 .*bbox \[1000", lambda f, c: annotation(c, bbox=[10**400, 2, 3, 4])),
    ("iscrowd-unclear", r"annotation 2 of image id 42: iscrowd '0'", lambda f, c: annotation(c, iscrowd="0")),
    ("iscrowd-unclear", r"annotation 2 of image id 42: iscrowd 2", lambda f, c: annotation(c, iscrowd=2)),
    ("area-not-number", r"annotation 2 of image id 42: area None", lambda f, c: annotation(c, area=None)),
    ("area-not-number", r"annotation 2 of image id 42: area '400'", lambda f, c: annotation(c, area="400")),
    ("area-not-number", r"annotation 2 of image id 42: area nan", lambda f, c: annotation(c, area=float("nan"))),
    ("area-not-number", r"annotation 2 of image id 42: area 0", lambda f, c: annotation(c, area=0)),
    ("area-not-number", r"annotation 2 of image id 42: area -1", lambda f, c: annotation(c, area=-1)),
    ("area-missing", r"annotation 2 of image id 42: area is missing", lambda f, c: c["annotations"][1].pop("area")),
    ("box-without-area", r"annotation 2 .*\[5, 5, 0, 9\]", lambda f, c: annotation(c, bbox=[5, 5, 0, 9])),
    ("box-without-area", r"annotation 2 .*\[5, 5, -3, 9\]", lambda f, c: annotation(c, bbox=[5, 5, -3, 9])),
    ("box-outside", r"annotation 2 .*\[70, 5, 9, 9\] in 60×40", lambda f, c: annotation(c, bbox=[70, 5, 9, 9])),
    ("box-partly-outside", r"annotation 2 .*in 60×40, by 4 px", lambda f, c: annotation(c, bbox=[55, 5, 9, 9])),
    ("box-partly-outside", r"annotation 2 .*by 3 px", lambda f, c: annotation(c, bbox=[5, -3, 9, 9])),
    ("tiny-box", r"annotation 2 .*\[5, 5, 1.5, 9\]", lambda f, c: annotation(c, bbox=[5, 5, 1.5, 9])),
    (
        "duplicate-box",
        r"annotation 7 of image id 42: .*as annotation 2",
        lambda f, c: c["annotations"].append({**c["annotations"][1], "id": 7}),
    ),
    (
        "boxes-as-corners",
        r"fit as corners, such as annotation 0 of image id 42",
        lambda f, c: many_boxes(c, lambda x, y, w, h, width, height: [x, y, x + w, y + h]),
    ),
    (
        "boxes-as-centres",
        r"200 fit as centre and size",
        lambda f, c: many_boxes(c, lambda x, y, w, h, width, height: [x + w / 2, y + h / 2, w, h]),
    ),
    (
        "boxes-normalised",
        r"200 of 200 have all values in 0..1",
        lambda f, c: many_boxes(c, lambda x, y, w, h, W, H: [(x + w / 2) / W, (y + h / 2) / H, w / W, h / H]),
    ),
    (
        "many-objects",
        r"image id 1000 \(c.png\): 21 objects, 20 queries",
        lambda f, c: c.update(annotations=[{**c["annotations"][3], "id": i, "bbox": [i, 0, 9, 9]} for i in range(21)]),
    ),
    ("picture-without-objects", r"image id 7 \(b.png\)", lambda f, c: c["annotations"].pop()),
    (
        "class-without-objects",
        r"category id 5 \(dog\)",
        lambda f, c: c["categories"].append({"id": 5, "name": "dog"}),
    ),
    (
        "class-imbalance",
        r"car has 201 objects, brush only 2",
        lambda f, c: c["annotations"].extend({**c["annotations"][1], "id": i} for i in range(100, 298)),
    ),
    ("class-not-in-train", r"val2017.json: category id 90 \(brush\)", lambda f, c: c["categories"][0].update(name="broom")),
    ("class-not-in-val", r"category broom: the file lacks it", lambda f, c: c["categories"][0].update(name="broom")),
    (
        "category-ids-differ",
        r"val2017.json: category id 90 \(brush\): it is id 91",
        lambda f, c: [c["categories"][0].update(id=91), *(a.update(category_id=91) for a in c["annotations"][::5])],
    ),
    ("picture-missing", r"image id 42 \(a.jpg\)", lambda f, c: (f / "train2017/a.jpg").unlink()),
    (
        "picture-missing",
        r"image id 42 .*there is sub/A.JPG",
        lambda f, c: move(f, "train2017/a.jpg", "train2017/sub/A.JPG"),
    ),
    ("picture-broken", r"image id 42", lambda f, c: (f / "train2017/a.jpg").write_bytes(b"no picture")),
    ("picture-broken", r"image id 42", lambda f, c: (f / "train2017/a.jpg").write_bytes(b"")),
    ("picture-broken", r"image id 7 \(b.png\): .*truncated", lambda f, c: truncate(f, "b.png", 2000)),
    ("picture-broken", r"image id 42 .*truncated", lambda f, c: truncate(f, "a.jpg", 300)),
    ("size-differs", r"image id 42 .*width 60, height 40, the record width 64", lambda f, c: image(c, width=64)),
    ("size-swapped", r"image id 42 .*no EXIF", lambda f, c: image(c, width=40, height=60)),
    (
        "size-swapped",
        r"image id 42 .*EXIF orientation 6",
        turn,
    ),
    ("exif-orientation", r"image id 42 .*EXIF orientation 3", lambda f, c: repaint(f, exif=turned(3))),
    ("picture-mode", r"image id 42 .*greyscale", lambda f, c: repaint(f, mode="L")),
    ("picture-mode", r"image id 42 .*CMYK", lambda f, c: repaint(f, mode="CMYK")),
    ("picture-16-bit", r"image id 7 .*I;16", lambda f, c: repaint(f, "b.png", "I;16", (30, 50))),
    ("picture-broken", r"image id 7 \(b.tif\): .*floating-point", as_floats),
    (
        "duplicate-picture",
        r"image id 7 \(b.png\): the same pixels as c.png|image id 1000 .*the same pixels as b.png",
        lambda f, c: copy(f, "train2017/c.png", "train2017/b.png"),
    ),
    ("leak", r"val.*image id 1000 .*the same pixels as .*train", lambda f, c: copy(f, "val2017/c.png", "train2017/c.png")),
    ("picture-without-record", r"train2017/extra.png", lambda f, c: copy(f, "val2017/c.png", "train2017/extra.png")),
]  # fmt: skip
NAMES = [f"{kind}-{i}" for i, (kind, _, _) in enumerate(BREAKAGES)]


def lines(result: FolderCheck, kind: str) -> list[str]:
    return [f"{finding.where}: {finding.message}" for finding in result.findings if finding.kind == kind]


def test_a_clean_folder_has_no_findings(clean_folder: Path) -> None:
    assert check_folder(clean_folder, queries=20).findings == []


@pytest.mark.parametrize(("kind", "text", "breakage"), BREAKAGES, ids=NAMES)
def test_each_breakage_has_its_line(folder: Path, kind: str, text: str, breakage: Breakage) -> None:
    result = check_folder(broken(folder, breakage), queries=20)
    found = lines(result, kind)
    assert any(re.search(text, line) for line in found), (kind, text, result.findings)
    if kind not in ("folder-missing", "split-not-found", "picture-without-record"):
        assert all(".json" in line for line in found), "a line names the annotation file"


def test_every_kind_is_brought_about_by_a_test() -> None:
    assert {kind for kind, _, _ in BREAKAGES} | {"folder-missing"} == set(KINDS)


def test_one_change_brings_few_other_kinds(folder: Path) -> None:
    """One fault must not set off a flood: nothing but its own kind, and what follows from it."""
    expected = {
        "size-differs-": {"size-differs"},
        "duplicate-box-": {"duplicate-box"},
        "tiny-box-": {"tiny-box"},
        "boxes-as-corners-": {"boxes-as-corners"},
        "boxes-normalised-": {"boxes-normalised"},
        "duplicate-annotation-id-": {"duplicate-annotation-id"},
        "iscrowd-unclear-": {"iscrowd-unclear"},
        "area-not-number-": {"area-not-number"},
        "area-missing-": {"area-missing"},
    }
    for start, kinds in expected.items():
        name = next(name for name in NAMES if name.startswith(start))
        result = check_folder(broken(folder, BREAKAGES[NAMES.index(name)][2]), queries=200)
        assert {finding.kind for finding in result.findings} == kinds


def test_an_empty_box_with_an_area_of_nothing_is_one_finding(folder: Path) -> None:
    result = check_folder(broken(folder, lambda f, c: annotation(c, bbox=[5, 5, 0, 10], area=0)))
    assert {finding.kind for finding in result.findings} == {"box-without-area"}


def test_what_windows_and_macos_add_is_no_finding(folder: Path) -> None:
    """A byte order mark before the JSON, and hidden files beside the pictures."""
    (folder / TRAIN).write_bytes(b"\xef\xbb\xbf" + (folder / TRAIN).read_bytes())
    (folder / "train2017" / "._a.jpg").write_bytes(b"no picture")
    assert check_folder(folder).findings == []
    assert len(CocoDetection(CocoFolder.find(folder, "train"))) == 3


def test_a_crowd_without_a_number_is_no_finding(folder: Path) -> None:
    for value in (None, False):
        assert check_folder(broken(folder, lambda f, c, v=value: annotation(c, iscrowd=v))).findings == []  # type: ignore[misc]


def test_all_problems_are_found_in_one_go(folder: Path) -> None:
    content = clean()
    content["images"][0]["width"] = 64
    content["annotations"][0]["bbox"] = [1, 2, 3]
    content["annotations"][1]["category_id"] = 4
    content["annotations"][4]["image_id"] = 77
    (folder / "train2017/b.png").unlink()
    save(folder, content)
    (folder / TRAIN.replace("train", "val")).write_text("{", encoding="utf-8")
    kinds = list(grouped(check_folder(folder).findings))
    assert kinds[-1] == "unknown-image-id", "errors come before warnings"
    assert {"size-differs", "bbox-not-numbers", "unknown-category-id", "picture-missing", "json-broken"} < set(kinds)


def test_without_pictures_no_file_is_opened(folder: Path) -> None:
    (folder / "train2017/a.jpg").write_bytes(b"no picture")
    assert check_folder(folder, pictures=False).findings == []
    assert count(check_folder(folder).findings, "error") == 1


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    (finding,) = check_folder(tmp_path / "nowhere").findings
    assert finding.kind == "folder-missing"
    assert "nowhere" in finding.where


def split_of(content: Content, **changes: Any) -> Split:
    return Split("train", "train.json", Path("train"), **{**content, **changes})


@pytest.mark.parametrize("seed", range(5))
def test_boxes_like_cocos_are_not_taken_for_another_form(seed: int) -> None:
    """Many sizes, many at the border, whole pictures, and a few that reach beyond it, as annotators leave them."""
    random = np.random.default_rng(seed)
    images: list[Content] = []
    annotations: list[Content] = []
    for i in range(60):
        width, height = random.integers(200, 640, 2).tolist()
        images.append({"id": i, "file_name": f"{i}.jpg", "width": width, "height": height})
        for _ in range(5):
            w, h = np.exp(random.uniform(np.log(0.02), 0, 2)) * (width, height)
            x, y = random.uniform(-0.02, 1.02, 2) * (width - w, height - h)
            annotations.append({"id": len(annotations), "image_id": i, "category_id": 1, "bbox": [x, y, w, h]})
    split = split_of({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]})
    assert not {f.kind for f in check_boxes(split)} & {"boxes-as-corners", "boxes-as-centres", "boxes-normalised"}


def test_boxes_that_fill_their_pictures_are_no_corners() -> None:
    """They would fit as corners, but none reaches beyond the border."""
    content = clean()
    places = {i["id"]: [1, 1, i["width"] - 2, i["height"] - 2] for i in content["images"]}
    for record in content["annotations"]:
        record["bbox"] = places[record["image_id"]]
    assert {f.kind for f in check_boxes(split_of(content))} == {"duplicate-box"}


def test_as_many_objects_as_queries_are_enough() -> None:
    assert check_boxes(split_of(clean()), queries=2) == []
    assert {f.kind for f in check_boxes(split_of(clean()), queries=1)} == {"many-objects"}


@pytest.mark.parametrize("data", ["data/coco-mini", "data/shapes"])
def test_real_boxes_are_taken_for_what_they_are(data: str) -> None:
    """Where a set lies on this machine; read as COCO's, and as corners when they are made so."""
    root = Path(__file__).parents[1] / data
    if not root.is_dir():
        pytest.skip(f"{data} is not here")
    (split,) = check_folder(root, ("val",), pictures=False).splits
    forms = {"boxes-as-corners", "boxes-as-centres", "boxes-normalised"}
    assert not {f.kind for f in check_boxes(split)} & forms
    for record in split.annotations:
        x, y, w, h = record["bbox"]
        record["bbox"] = [x, y, x + w, y + h]
    assert {f.kind for f in check_boxes(split)} & forms == {"boxes-as-corners"}


@pytest.mark.parametrize("excess", [0.9, 1.1])
def test_a_pixel_of_rounding_is_allowed(excess: float) -> None:
    content = clean()
    annotation(content, bbox=[40, 30, 20 + excess, 10])
    assert ("box-partly-outside" in {f.kind for f in check_boxes(split_of(content))}) == (excess > 1)


@pytest.mark.parametrize("name", ["../a.jpg", "a/../../b.jpg", "/a.jpg", "..\\a.jpg", "C:/a.jpg", ".."])
def test_paths_that_leave_the_folder(name: str) -> None:
    assert leads_outside(name)


@pytest.mark.parametrize("name", ["a.jpg", "sub/a.jpg", "sub/../a.jpg", "..a.jpg", "a..b/c.jpg"])
def test_paths_that_stay(name: str) -> None:
    assert not leads_outside(name)


def test_equal_pixels_are_equal_content_whatever_the_file(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    for name in ("a.png", "b.bmp"):
        Image.fromarray(pixels).save(tmp_path / name)
    Image.fromarray(pixels.reshape(30, 20, 3)).save(tmp_path / "c.png")
    a, b, c = (look_at(tmp_path / name).content for name in ("a.png", "b.bmp", "c.png"))
    assert a == b
    assert a != c, "the same bytes in another shape are another picture"


def test_whatever_a_decoder_raises_is_a_finding(monkeypatch: pytest.MonkeyPatch, clean_folder: Path) -> None:
    def read(path: Path) -> torch.Tensor:
        raise Image.DecompressionBombError("too many pixels")

    monkeypatch.setattr("ddetr_lite.datasets.check_pictures.read_picture", read)
    found = lines(check_folder(clean_folder), "picture-broken")
    assert len(found) == 6
    assert found[0].endswith("damaged (DecompressionBombError: too many pixels)")


def test_summary_by_hand() -> None:
    content = clean()
    content["annotations"][1]["area"] = 32**2
    summary = summarise(split_of(content))
    assert (summary.pictures, summary.objects, summary.crowds) == (3, 5, 1)
    assert list(summary.classes.items()) == [("car", 3), ("brush", 2)]
    assert summary.per_picture.tolist() == [2, 1, 2]
    assert summary.sizes.tolist() == [[40, 60], [50, 30], [32, 32]]
    assert summary.bands() == {"small": 4, "medium": 1, "large": 0}
    assert summary.sides[1] == 32
    assert summary.shares[1] == pytest.approx(32 / 2400**0.5)


def test_an_area_that_is_no_number_does_not_spoil_the_summary() -> None:
    content = clean()
    for value in (float("inf"), "400", 0, None):
        content["annotations"][1]["area"] = value
        assert summarise(split_of(content)).sides[1] == pytest.approx(200**0.5)


def option(advice: Advice, name: str) -> float:
    return float(advice.options[name])


def test_advice_for_coco_is_the_papers_recipe() -> None:
    advice = advise(DataFacts("data/coco", 118_287, 93))
    assert [option(advice, name) for name in ("batch", "lr", "epochs", "drop-epoch")] == [32, 2e-4, 50, 40]
    assert not advice.options.keys() & {"start-from", "queries", "short-sides", "train-split"}
    dense = advise(DataFacts("data/coco", 118_287, 93), "detr")
    assert [option(dense, name) for name in ("lr", "epochs", "drop-epoch")] == [1e-4, 300, 200]


@pytest.mark.parametrize(("batch", "lr"), [(2, 5e-5), (8, 1e-4), (32, 2e-4), (64, 2.8e-4), (512, 4e-4)])
def test_the_learning_rate_goes_with_the_root_of_the_batch(batch: int, lr: float) -> None:
    assert option(advise(DataFacts("a", 50_000), batch=batch), "lr") == lr


def test_few_pictures_start_from_a_detector_and_still_make_enough_steps() -> None:
    for pictures, row in ((9_999, "deformable-detr"), (500, "detr"), (20, "deformable-detr-two-stage")):
        advice = advise(DataFacts("a", pictures), row)
        steps = option(advice, "epochs") * (pictures // option(advice, "batch"))
        assert advice.options["start-from"] == "FILE.pt"
        assert steps >= 10_000 or option(advice, "epochs") == 300
        assert option(advice, "batch") >= 8
        assert "without FILE.pt" in dict(advice.reasons)
        assert option(advice, "lr") < option(advise(DataFacts("a", 10_000), row, int(advice.options["batch"])), "lr")
    assert "start-from" not in advise(DataFacts("a", 10_000)).options


def test_very_few_pictures_are_not_seen_for_ever() -> None:
    advice = advise(DataFacts("a", 60))
    assert [option(advice, name) for name in ("batch", "epochs", "drop-epoch", "evaluate-every")] == [8, 300, 240, 15]
    reasons = dict(advice.reasons)
    assert "of 60 pictures fewer make more steps in an epoch" in reasons["batch"]
    assert "more often than that the same 60 pictures teach little" in reasons["epochs"]
    assert option(advise(DataFacts("a", 5)), "batch") == 5


def test_more_pictures_than_coco_need_fewer_epochs() -> None:
    assert option(advise(DataFacts("a", 10 * 118_287)), "epochs") == 5
    many = advise(DataFacts("a", 12_000), "detr", batch=16)
    assert option(many, "epochs") == 400  # 300 would be 225,000 steps, DETR's authors say 300,000
    assert option(many, "drop-epoch") == 267


def test_queries_follow_the_fullest_picture() -> None:
    assert "queries" not in advise(DataFacts("a", 20_000, 300)).options
    advice = advise(DataFacts("a", 20_000, 301))
    assert option(advice, "queries") == 400
    assert "evaluation" in dict(advice.reasons)
    assert "queries" not in advise(DataFacts("a", 20_000, 301), "faster-rcnn").options


def test_the_finest_cells_of_each_model() -> None:
    assert [finest_stride(recipe("coco", row)) for row in ROWS] == [4, 32, 16, 32, 16, 8, 8, 8]
    assert finest_stride(recipe("shapes", "detr")) == 8
    coco: Any = recipe("coco")
    assert finest_stride(replace(coco, model=replace(coco.model, levels=5, finest=4))) == 4


def test_sides_follow_the_pictures() -> None:
    advice = advise(DataFacts("a", 20_000, short_side=96, small_object=9))
    assert option(advice, "eval-short-side") == 160
    assert option(advice, "max-side") == 266
    sides = [int(side) for side in advice.options["short-sides"].split()]
    assert (sides[0], sides[-1]) == (96, 160)
    assert option(advice, "batch") == 64
    assert "small objects" not in dict(advice.reasons)
    assert "deformable-detr" in dict(advise(DataFacts("a", 20_000, small_object=9), "detr").reasons)["small objects"]
    assert "5.0 : 1" in dict(advise(DataFacts("a", 20_000, aspect=5)).reasons)["sides"]
    assert "group-orientations" in advise(DataFacts("a", 20_000, upright=0.5)).options
    assert "group-orientations" not in advise(DataFacts("a", 20_000, upright=0.02)).options


def test_what_cannot_be_advised_is_said() -> None:
    with pytest.raises(ValueError, match="pictures=0"):
        advise(DataFacts("a", 0))
    with pytest.raises(ValueError, match="batch=0"):
        advise(DataFacts("a", 10), batch=0)


@pytest.mark.parametrize(("row", "size"), [("detr", 81), ("deformable-detr-two-stage", 80), ("faster-rcnn", 81)])
def test_the_size_of_the_class_layer(row: str, size: int) -> None:
    assert head_size(row, 80) == size


def test_train_takes_the_advised_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    taken = []

    def train(recipe: Recipe, *_: Any, **__: Any) -> dict[str, float]:
        taken.append(recipe)
        return {}

    monkeypatch.setattr("ddetr_lite.engine.train.train", train)
    facts = DataFacts("my data", 20_000, 500, short_side=200, upright=0.5, splits=("train2017", "valid"))
    advice = advise(facts, "detr")
    program, *words = shlex.split(advice.command)
    assert program == "ddetr-lite"
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    (recipe,) = taken
    assert (recipe.data.folder, recipe.data.train_split, recipe.data.val_split) == ("my data", "train2017", "valid")
    assert getattr(recipe.model, "queries", None) == option(advice, "queries")
    assert (recipe.train.lr, recipe.train.epochs) == (option(advice, "lr"), option(advice, "epochs"))
    assert recipe.train.group_orientations
    assert recipe.augment.eval_short_side == recipe.augment.short_sides[-1] == 320


@pytest.mark.parametrize(("row", "resized"), [("deformable-detr-two-stage", True), ("detr", False)])
def test_train_takes_the_command_advised_for_a_checkpoint(
    clean_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    row: str,
    resized: bool,
) -> None:
    taken: list[Recipe] = []

    def train(chosen: Recipe, *_: Any, **__: Any) -> dict[str, float]:
        taken.append(chosen)
        return {}

    monkeypatch.setattr("ddetr_lite.engine.train.train", train)
    chosen = recipe("coco", row)
    small = replace(recipe("shapes", row), name="coco")
    sizes = replace(chosen.augment, short_sides=(100, 120), eval_short_side=110, max_side=200)
    about = {"recipe": recipe_to_dict(replace(small, augment=sizes if resized else small.augment))}
    source = tmp_path / "my model.pt"
    save_model(source, build(small.model, 2, load_backbone=False), ["car", "tree"], about)
    assert main(["data", "check", str(clean_folder), "--start-from", str(source), "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "it knows 1 of your 2 classes by name (car); the heads of others are made anew" in " ".join(text.split())
    _, *words = shlex.split(next(line for line in text.splitlines() if line.startswith("ddetr-lite train")))
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert taken[0].model == small.model
    assert taken[0].train.start_from == str(source)
    assert taken[0].augment.eval_short_side == (110 if resized else 64)
    assert taken[0].augment.max_side == (200 if resized else 106)
    assert ("as its pictures were" in text) == resized


def test_a_checkpoint_has_its_own_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(tmp_path), "--start-from", "x.pt", "--model", "detr"]) == 2
    assert "--model is that of the checkpoint to start from: leave it out" in capsys.readouterr().err


def test_queries_that_are_weights_cannot_be_more() -> None:
    fixed, free = (
        Start(recipe("coco", row), ["a"], resized=False) for row in ("deformable-detr", "deformable-detr-two-stage")
    )
    facts = DataFacts("a", 500, 301, classes=("a",))
    assert option(advise(facts, start=free), "queries") == 400
    advice = advise(facts, start=fixed)
    assert "queries" not in advice.options
    assert "model" not in advice.options
    assert "leave out the pictures with more" in dict(advice.reasons)["queries"]
    assert dict(advice.reasons)["start"].endswith("it knows all your 1 classes by name")
    assert "without FILE.pt" not in dict(advice.reasons)


def test_command_on_a_clean_folder(clean_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["data", "check", str(clean_folder), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "Nothing is wrong." in text
    assert "   3 →  0 → car" in text
    assert "  90 →  1 → brush" in text
    assert "2 logits" in text
    assert "would be 91" in text
    assert f"ddetr-lite train coco --model deformable-detr --folder {clean_folder}" in text
    assert text.endswith("0 errors, 0 warnings, 0 notes.\n")
    for name in ("contact_sheet.png", "contact_sheet_val.png", "histograms.png"):
        with Image.open(out / name) as drawn:
            drawn.load()
            assert min(drawn.size) > 300
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["findings"] == []
    assert report["classes"][1] == {"category_id": 90, "label": 1, "name": "brush"}
    assert report["splits"][0]["objects"] == 5
    assert report["advice"]["options"]["start-from"] == "FILE.pt"


def test_command_on_a_broken_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = clean()
    content["annotations"] = [{**content["annotations"][1], "id": i, "bbox": [1, 2, 3]} for i in range(5)]
    save(folder, content)
    out = tmp_path / "out"
    words = ["data", "check", str(folder), "--out", str(out), "--no-pictures", "--model", "detr"]
    assert main(words) == 1
    text = capsys.readouterr().out
    assert "ERROR   5 × bbox-not-numbers: bbox is not four finite numbers" in text
    assert "annotation 2 of image id 42: bbox [1, 2, 3]" in text
    assert "annotation 3 of" not in text
    assert "... and 2 more, in report.json" in text
    assert "3 logits" in text
    assert "5 errors" in text.splitlines()[-1]
    assert not (out / "contact_sheet.png").exists()
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert sum(finding["kind"] == "bbox-not-numbers" for finding in report["findings"]) == 5

    assert main(["data", "check", str(tmp_path / "nowhere"), "--out", str(tmp_path / "other")]) == 1
    assert "folder-missing" in capsys.readouterr().out
    assert main(["data", "check", str(folder), "--model", "detrr"]) == 2
    assert "'detrr' is unknown" in capsys.readouterr().err
    assert main(["data", "check"]) == 2
    assert main(["data", "check", str(folder), "--modl", "detr"]) == 2
    assert "did you mean --model?" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "breakage"), {kind: breakage for kind, _, breakage in BREAKAGES}.items())
def test_command_survives_each_kind(
    folder: Path, tmp_path: Path, kind: str, breakage: Breakage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures and the advice as well, of whatever could be read; drawing itself is tested elsewhere."""
    monkeypatch.setattr("ddetr_lite.plots.style.png", lambda figure: b"")
    code = main(["data", "check", str(broken(folder, breakage)), "--out", str(tmp_path / "out")])
    assert code == (1 if KINDS[kind].severity == "error" else code)
    assert code in (0, 1)
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert KINDS[kind].remedy in {finding["remedy"] for finding in report["findings"]} or kind == "many-objects"


def test_a_validation_set_is_not_taken_for_what_is_trained_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "annotations/instances_train2017.json").write_text("{", encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    (out / "contact_sheet.png").write_bytes(b"an earlier check's")
    assert main(["data", "check", str(folder), "--out", str(out)]) == 1
    said = capsys.readouterr().out
    assert "No advice: split 'train', which is trained on, cannot be read." in said
    assert "ddetr-lite train" not in said
    assert "class-without-objects" not in said
    assert f"{out}: report.json\n" in said


def test_dollars_in_names_are_no_mathematics(folder: Path) -> None:
    """Between two of them matplotlib reads a formula, and raises where it is none."""
    split = Split(
        "val", "f.json", folder / "train2017",
        [{"id": "$\\x$", "file_name": "a.jpg", "width": 60, "height": 40}],
        [{"id": 1, "image_id": "$\\x$", "category_id": 1, "bbox": [5, 5, 20, 20]}],
        [{"id": 1, "name": "$\\frac$ 5"}],
    )  # fmt: skip
    for drawn in (contact_sheet(split), histograms(summarise(split))):
        assert drawn is not None
        png(drawn)


def test_the_contact_sheet_shows_every_class_and_the_same_pictures_each_time(folder: Path) -> None:
    content = clean()
    content["categories"] += [{"id": 200 + i, "name": f"class {i}"} for i in range(20)]
    for i in range(20):  # each in a picture of its own
        name = f"{i}.png"
        Image.new("RGB", (40, 30), (9 * i, 0, 0)).save(folder / "train2017" / name)
        content["images"].append({"id": 2000 + i, "file_name": name, "width": 40, "height": 30})
        box = {"id": 2000 + i, "image_id": 2000 + i, "category_id": 200 + i, "bbox": [3, 4, 20, 20]}
        content["annotations"].append(box)
    save(folder, content)
    split = check_folder(folder).splits[0]
    drawn, again = contact_sheet(split, pictures=4), contact_sheet(split, pictures=4)
    assert "22 of 22 classes" in str(drawn.get_suptitle())
    names = {text.get_text() for ax in drawn.axes for text in ax.texts}
    assert names == {"car", "brush", "car, crowd", *(f"class {i}" for i in range(20))}
    dashed = [patch for ax in drawn.axes for patch in ax.patches if patch.get_linestyle() == "--"]
    assert len(dashed) == 1
    assert [ax.get_title() for ax in drawn.axes] == [ax.get_title() for ax in again.axes]
    assert "21 of 23 pictures" in str(drawn.get_suptitle()), (
        "no more than it takes: one picture shows both first classes"
    )
    few = contact_sheet(split, most=5)
    assert "5 of 23 pictures" in str(few.get_suptitle())


def test_findings_are_grouped_gravest_first() -> None:
    findings = [Finding("leak", "a", ""), Finding("picture-without-objects", "b", ""), Finding("list-empty", "c", "")]
    assert list(grouped(findings)) == ["list-empty", "leak", "picture-without-objects"]
    assert [count(findings, severity) for severity in ("error", "warning", "note")] == [1, 1, 1]


def test_class_map_is_that_of_training(clean_folder: Path) -> None:
    data = CocoDetection(CocoFolder.find(clean_folder, "train"))
    expected = [(category, data.label_of_category[category], name) for category, name in data.categories.items()]
    assert check_folder(clean_folder, pictures=False).class_map() == expected
    assert torch.equal(data[0][1]["labels"], torch.tensor([1, 0]))
