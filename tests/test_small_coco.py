"""The pictures of notebook 11: COCO's layout to the letter, the same each time, and a site that hands them out."""

import json
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ddetr_lite.cli import main
from ddetr_lite.course.small_coco import CATEGORIES, SIDES, site, write_small_coco
from ddetr_lite.datasets.check import check_folder
from ddetr_lite.datasets.coco import CocoDetection, CocoFolder
from ddetr_lite.datasets.findings import count
from ddetr_lite.datasets.shapes import ShapesConfig, render_picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_coco(tmp_path_factory.mktemp("small") / "coco2017", train=40, val=20)


def content(folder: Path, split: str) -> dict[str, Any]:
    return dict(json.loads((folder / f"annotations/instances_{split}2017.json").read_text(encoding="utf-8")))


def test_nothing_is_wrong_with_it(folder: Path) -> None:
    result = check_folder(folder, ("train2017", "val2017"))
    assert count(result.findings, "error") == count(result.findings, "warning") == 0
    assert [(category, name) for category, _, name in result.class_map()] == list(CATEGORIES.items())
    data = CocoDetection(CocoFolder.find(folder, "train2017"))
    assert data.label_of_category == {1: 0, 3: 1, 18: 2, 90: 3}
    assert 0 < sum(data.orientations()) < len(data)
    assert {tuple(sorted(data[i][0].shape[1:])) for i in range(len(data))} == {SIDES}


def test_the_fields_are_those_of_coco(folder: Path) -> None:
    for split in ("train", "val"):
        file = content(folder, split)
        ids = [image["id"] for image in file["images"]]
        assert len(set(ids)) == len(ids)
        assert ids != list(range(len(ids)))
        assert [a["id"] for a in file["annotations"]] == list(range(1, len(file["annotations"]) + 1))
        assert all(
            a.keys() == {"id", "image_id", "category_id", "bbox", "area", "iscrowd"} for a in file["annotations"]
        )
        assert all(0 < a["area"] <= a["bbox"][2] * a["bbox"][3] * 1.05 for a in file["annotations"])
        assert any(a["iscrowd"] for a in file["annotations"])


def test_boxes_are_those_of_the_square_picture_cut(folder: Path) -> None:
    file = content(folder, "train")
    look = ShapesConfig(
        size=SIDES[1], min_size=0.18, max_size=0.5, max_objects=4, classes=tuple(CATEGORIES.values()), seed=11
    )
    start = (SIDES[1] - SIDES[0]) // 2
    seen = 0
    for index in range(12):
        record, (_, objects) = file["images"][index], render_picture(look, "train", index)
        axis = 0 if record["height"] > record["width"] else 1
        for annotation in (a for a in file["annotations"] if a["image_id"] == record["id"] and not a["iscrowd"]):
            low = [found["bbox"][axis] - start for found in objects]
            high = [found["bbox"][axis] + found["bbox"][axis + 2] - start for found in objects]
            cut = [(max(a, 0), min(b, SIDES[0])) for a, b in zip(low, high, strict=True)]
            box = annotation["bbox"]
            assert any(
                box[axis] == pytest.approx(a, abs=0.01) and box[axis + 2] == pytest.approx(b - a, abs=0.02)
                for a, b in cut
            )
            seen += 1
    assert seen > 12


def test_it_is_always_the_same(folder: Path, tmp_path: Path) -> None:
    again = write_small_coco(tmp_path / "again", train=3, val=2)
    name = content(again, "train")["images"][2]["file_name"]
    assert (again / "train2017" / name).read_bytes() == (folder / "train2017" / name).read_bytes()
    with zipfile.ZipFile(again / "annotations/annotations_trainval2017.zip") as archive:
        packed = archive.read("annotations/instances_val2017.json")
    assert packed == (again / "annotations/instances_val2017.json").read_bytes()


def test_a_part_of_it_comes_from_the_site(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with site(folder) as address:
        options = f"--site {address} --folder {tmp_path / 'part'} --images 8 --val-images 4"
        assert main(["data", "coco", *options.split()]) == 0
        with urllib.request.urlopen(f"{address}/annotations/instances_val2017.json") as answer:
            assert len(json.loads(answer.read())["images"]) == 20
    assert "is ready" in capsys.readouterr().out
    assert len(list((tmp_path / "part/train").glob("*.jpg"))) == 8
    with pytest.raises(OSError):
        urllib.request.urlopen(f"{address}/annotations/instances_val2017.json", timeout=2)
