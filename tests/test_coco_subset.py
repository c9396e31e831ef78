"""`ddetr-lite data coco` against a small COCO of our own: what is chosen, what is fetched, and what a fault leaves behind."""

import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_server import Site, cut, instead, serve, status
from PIL import Image

from ddetr_lite.cli import main
from ddetr_lite.cli.data_coco import CocoOptions, make_coco
from ddetr_lite.datasets import coco_site
from ddetr_lite.datasets.coco import CocoDetection, CocoFolder
from ddetr_lite.datasets.coco_site import CocoDownload
from ddetr_lite.datasets.coco_subset import CocoSubset, choose, describe, write_subset
from ddetr_lite.datasets.web import Client, DownloadError, Patience

Record = dict[str, Any]

ARCHIVE = "/annotations/annotations_trainval2017.zip"
SMALL = CocoSubset(images=6, val_images=3, classes=("person", "car"))


def annotations(count: int, first: int) -> Record:
    """`count` pictures: two of three have a person, every fourth has cars, every sixth a dog, every eighth a crowd."""
    images, objects = [], []
    for i in range(count):
        number = first + 7 * i
        images.append(
            {"id": number, "file_name": f"{number:012d}.jpg", "width": 16 + i % 3, "height": 12, "license": 1}
        )
        side = 1 + i % 9  # of the person's box, in a picture of about 192 pixels
        if i % 3:
            objects.append((number, 1, [1, 1, side, side], 0))
        if i % 4 == 0:
            objects += [(number, 3, [0, 0, 8, 8], 0), (number, 3, [4, 4, 8, 8], 0)]
        if i % 6 == 0:
            objects.append((number, 18, [0, 0, 5, 5], 0))
        if i % 8 == 0:
            objects.append((number, 1, [0, 0, 16, 4], 1))
    return {
        "info": {"description": "a small COCO", "year": 2017},
        "licenses": [{"id": 1, "name": "a licence"}],
        "images": images,
        "annotations": [
            {"id": 100 + k, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": crowd}
            for k, (i, c, b, crowd) in enumerate(objects)
        ],
        "categories": [
            {"id": 1, "name": "person"},
            {"id": 3, "name": "car"},
            {"id": 10, "name": "traffic light"},
            {"id": 18, "name": "dog"},
        ],
    }


CONTENT = {"train": annotations(48, 5), "val": annotations(24, 1000)}


def jpeg(width: int, height: int, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def archive(content: dict[str, Any] | None = None) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("annotations/captions_train2017.json", "{}")
        for split, value in (content or CONTENT).items():
            text = value if isinstance(value, str) else json.dumps(value)
            opened.writestr(f"annotations/instances_{split}2017.json", text)
    return file.getvalue()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    files = {ARCHIVE: archive()}
    for split, content in CONTENT.items():
        for image in content["images"]:
            files[f"/{split}2017/{image['file_name']}"] = jpeg(image["width"], image["height"], image["id"])
    with serve(files.items()) as site:
        yield site


def make(folder: Path, site: Site, subset: CocoSubset = SMALL, **options: Any) -> None:
    client = Client(Patience(timeout=5, tries=2), sleep=lambda _: None)
    make_coco(CocoOptions(folder, subset, site.url, connections=4, **options), client, progress=False)


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def ids(content: Record) -> list[int]:
    return [image["id"] for image in content["images"]]


def pick(subset: CocoSubset, content: Record = CONTENT["train"]) -> Record:
    return choose(content, subset, "train", "instances_train2017.json")


# --- which pictures ---


def test_chosen_are_pictures_with_an_object_of_the_classes_and_what_belongs_to_them() -> None:
    content = pick(replace(SMALL, images=0))
    cars_or_persons = {
        a["image_id"] for a in CONTENT["train"]["annotations"] if a["category_id"] in (1, 3) and not a["iscrowd"]
    }
    assert set(ids(content)) == cars_or_persons
    assert content["categories"] == CONTENT["train"]["categories"][:2]
    wanted = [
        a for a in CONTENT["train"]["annotations"] if a["category_id"] in (1, 3)
    ]  # each picture has one that counts
    assert sorted(content["annotations"], key=lambda a: a["id"]) == wanted
    assert any(a["iscrowd"] for a in content["annotations"])
    assert content["info"] == CONTENT["train"]["info"]
    assert content["licenses"] == CONTENT["train"]["licenses"]
    assert describe(content) == f"{len(cars_or_persons)} pictures; person 32, car 24"


def test_an_unclear_crowd_is_refused() -> None:
    content = annotations(8, 5)
    content["annotations"][1]["iscrowd"] = "0"
    with pytest.raises(ValueError, match=r"instances_train2017.json: annotation 101 of image id .*iscrowd must be"):
        pick(SMALL, content)


def test_a_crowd_alone_does_not_make_a_picture_fit() -> None:
    content = annotations(1, 5)
    content["annotations"] = [a for a in content["annotations"] if a["iscrowd"]]
    assert content["annotations"]
    with pytest.raises(ValueError, match="has no picture with these classes"):
        pick(replace(SMALL, images=0), content)
    assert ids(pick(replace(SMALL, images=0, min_objects=0), content)) == [5]


def test_a_larger_count_keeps_the_pictures_of_a_smaller_one() -> None:
    whole = ids(pick(replace(SMALL, images=0)))
    for count in (1, 5, 20):
        assert ids(pick(replace(SMALL, images=count))) == whole[:count]
    assert whole != sorted(whole), "in the file's order, the first pictures are no fair sample"
    assert ids(pick(replace(SMALL, images=0, seed=1))) != whole
    shuffled = {**CONTENT["train"], "images": CONTENT["train"]["images"][::-1]}
    assert ids(pick(replace(SMALL, images=0), shuffled)) == whole
    assert whole[:3] == [61, 180, 271]  # fixed for good: folders of earlier versions must be able to grow


def test_limits_on_number_and_size_of_objects() -> None:
    def counts(content: Record) -> set[int]:
        return {sum(a["image_id"] == i and not a["iscrowd"] for a in content["annotations"]) for i in ids(content)}

    everything = replace(SMALL, images=0)
    assert counts(pick(everything)) == {1, 2, 3}
    assert counts(pick(replace(everything, min_objects=2))) == {2, 3}
    assert counts(pick(replace(everything, max_objects=2))) == {1, 2}
    assert counts(pick(replace(everything, min_objects=0))) == {0, 1, 2, 3}
    content = pick(replace(everything, min_size=0.5))
    area = {image["id"]: image["width"] * image["height"] for image in content["images"]}
    shares = {
        (a["bbox"][2] * a["bbox"][3] / area[a["image_id"]]) ** 0.5 for a in content["annotations"] if not a["iscrowd"]
    }
    assert min(shares) >= 0.5
    assert 0 < len(area) < len(pick(everything)["images"])


def test_too_many_pictures_and_unknown_classes() -> None:
    with pytest.raises(
        ValueError, match=r"--images is 1000, but instances_train2017.json has 36 pictures with these classes"
    ):
        pick(replace(SMALL, images=1000))
    with pytest.raises(ValueError, match="with these classes and limits"):
        pick(replace(SMALL, images=1000, min_size=0.1))
    with pytest.raises(ValueError, match="'persn' is unknown: did you mean 'person'"):
        pick(replace(SMALL, classes=("persn",)))
    with pytest.raises(ValueError, match="'traffic_light' is unknown: did you mean 'traffic light'"):
        pick(replace(SMALL, classes=("traffic_light",)))
    with pytest.raises(ValueError, match="'xyzzy' is unknown: choose from person, car, traffic light, dog"):
        pick(replace(SMALL, classes=("xyzzy",)))


def test_classes_are_given_with_commas_and_may_have_spaces() -> None:
    assert CocoSubset(classes=("person,traffic light", "car")).classes == ("person", "traffic light", "car")
    assert len(pick(CocoSubset(images=0))["categories"]) == 4
    for classes in (("",), ("person,",), ("person,person",), ("person", "person")):
        with pytest.raises(ValueError, match=r"--classes .* name each class once"):
            CocoSubset(classes=classes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"images": -1}, "--images is -1"),
        ({"val_images": -1}, "--val-images is -1"),
        ({"min_objects": 3, "max_objects": 2}, "--max-objects is 2"),
        ({"min_size": 1.0}, "--min-size is 1.0"),
        ({"min_size": float("nan")}, "--min-size is nan"),
    ],
)
def test_options_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CocoSubset(**values)


@pytest.mark.parametrize(
    "name",
    [
        "../../x.jpg",
        "/etc/x.jpg",
        "a/b.jpg",
        "..\\x.jpg",
        "C:x.jpg",
        "",
        ".",
        "..",
        ".x.jpg",
        "x\0.jpg",
        "x.jpg\n",
        "a b?",
        None,
    ],
)
def test_names_that_could_lead_out_of_the_folder_are_refused(name: Any) -> None:
    content = annotations(3, 5)
    content["images"][1]["file_name"] = name
    with pytest.raises(ValueError, match=r"instances_train2017.json: image id 12: file_name .* is refused"):
        pick(CocoSubset(images=0), content)


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (lambda c: c["images"][1].update(width=0), "image id 12: width is 0"),
        (lambda c: c["images"][1].pop("height"), "image id 12: height is None"),
        (lambda c: c["images"][1].update(id="x"), "image id 'x': id is 'x'"),
        (lambda c: c["images"][1].update(id=5), "image id 5 occurs twice"),
        (lambda c: c["images"][1].update(file_name="000000000005.JPG"), "image id .* is that of image id .* too"),
        (lambda c: c["annotations"][0].update(image_id=6), "annotation 100: image_id 6 is not in 'images'"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "annotation 100 of image id 5: bbox must be"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3, "4"]), "annotation 100 of image id 5: bbox must be"),
        (lambda c: c.pop("annotations"), "lacks the list 'annotations'"),
        (lambda c: c["categories"][0].pop("name"), "a category needs"),
    ],
)
def test_broken_annotations_are_named(breakage: Any, message: str) -> None:
    content = annotations(3, 5)
    breakage(content)
    with pytest.raises(ValueError, match=message):
        pick(CocoSubset(images=0), content)


def test_the_same_subset_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_subset(tmp_path / name / "instances.json", pick(SMALL))
    assert (tmp_path / "a" / "instances.json").read_bytes() == (tmp_path / "b" / "instances.json").read_bytes()


# --- the whole command ---


def test_a_subset_is_fetched_and_can_be_trained_on(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "coco"
    words = ["data", "coco", "--folder", str(folder), "--site", site.url, "--images", "6", "--val-images", "3"]
    assert main([*words, "--classes", "person,car"]) == 0
    said = capsys.readouterr().out
    assert f"annotations: {site.url}{ARCHIVE}, {len(site.files[ARCHIVE]) / 1000:.0f} kB\n" in said
    assert "train: 6 pictures; " in said
    assert "pictures to download: 9 of 9, about" in said
    assert "(estimated from the sizes of 9)" in said
    for split, count in (("train", 6), ("val", 3)):
        data = CocoDetection(CocoFolder.find(folder, split))
        assert len(data) == count
        assert data.classes == ["person", "car"]
        for index in range(count):
            image, target = data[index]
            assert image.shape[1:] == (data.images[index]["height"], data.images[index]["width"])
            assert len(target["labels"]) > 0
    files = set(tree(folder))
    assert {f for f in files if not f.endswith(".jpg")} == {
        "annotations/instances_train.json",
        "annotations/instances_val.json",
        "download.json",
        "source/instances_train2017.json",
        "source/instances_val2017.json",
    }
    assert len([path for _, path, _ in site.log if path.endswith(".jpg")]) == 9 + 9  # HEAD and GET, of the chosen alone


def test_nothing_is_done_and_asked_for_when_all_is_there(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "coco", site)
    before = tree(tmp_path)
    site.log.clear()
    for subset in (SMALL, replace(SMALL, classes=("car", "person"))):
        capsys.readouterr()
        make(tmp_path / "coco", site, subset)
        assert "holds all of it already: nothing to do" in capsys.readouterr().out
    assert site.log == []
    assert tree(tmp_path) == before


@pytest.mark.parametrize("damage", ["gone", "shorter", "annotations"])
def test_a_folder_that_was_changed_is_mended(site: Site, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "coco"
    make(folder, site)
    before = tree(folder)
    picture = min((folder / "train").iterdir())
    if damage == "gone":
        picture.unlink()
    elif damage == "shorter":
        picture.write_bytes(picture.read_bytes()[:-9])
    else:
        (folder / "annotations" / "instances_val.json").write_text("{}", encoding="utf-8")
    site.log.clear()
    make(folder, site)
    assert tree(folder) == before
    fetched = [Path(path).name for method, path, _ in site.log if method == "GET"]
    assert fetched == ([] if damage == "annotations" else [picture.name])


def test_a_set_grows_without_fetching_again_what_it_has(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "coco"
    make(folder, site)
    small = tree(folder)
    site.log.clear()
    make(folder, site, replace(SMALL, images=10))
    large = tree(folder)
    assert [path for method, path, _ in site.log if method == "GET"] != []
    assert len([path for method, path, _ in site.log if method == "GET"]) == 4
    assert all(large[name] == small[name] for name in small if name.endswith(".jpg"))
    fresh = tmp_path / "fresh"
    make(fresh, site, replace(SMALL, images=10))
    assert tree(fresh) == large
    site.log.clear()
    make(folder, site)  # smaller again: the pictures stay, the annotations leave them out
    assert site.log == []
    assert tree(folder)["annotations/instances_train.json"] == small["annotations/instances_train.json"]


def test_a_dry_run_only_asks_for_sizes(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "coco"
    make(folder, site, dry_run=True)
    said = capsys.readouterr().out
    assert not folder.exists()
    assert [method for method, _, _ in site.log] == ["HEAD"]
    assert "pictures: 9, about 1 MB (estimated by the mean size" in said
    assert "Nothing was downloaded (--dry-run)" in said
    make(folder, site)
    before = tree(folder)
    site.log.clear()
    make(folder, site, replace(SMALL, images=30), dry_run=True)
    assert "pictures to download: 24 of 33" in (said := capsys.readouterr().out)
    assert "(estimated from the sizes of 20)" in said
    assert tree(folder) == before
    assert [method for method, _, _ in site.log] == ["HEAD"] * 20


def test_pictures_that_do_not_come_are_listed_and_the_annotations_wait(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "coco"
    make(folder, site)
    before = tree(folder)
    larger = replace(SMALL, images=12)
    missing = [image for image in pick(larger)["images"] if f"train/{image['file_name']}" not in before]
    good = {image["id"]: site.files[f"/train2017/{image['file_name']}"] for image in missing}
    paths = [f"/train2017/{image['file_name']}" for image in missing]
    del site.files[paths[0]]
    site.spoil(paths[1], instead(b"<!DOCTYPE html><p>Log in"), always=True)
    site.files[paths[2]] = jpeg(5, 7, 0)
    site.files[paths[3]] = good[missing[3]["id"]][:-40]  # as long as announced, but cut before it was stored
    site.spoil(paths[4], cut(50), status(500))
    with pytest.raises(DownloadError, match=r"5 of 6 pictures did not come. The others are kept"):
        make(folder, site, larger)
    lines = sorted(capsys.readouterr().err.splitlines())
    expected = ["answers 404", "a web page came", "5×7 pixels, the annotations say", "does not decode: ", "answers 500"]
    for image, message in zip(missing, expected, strict=False):
        (line,) = [line for line in lines if line.startswith(f"image id {image['id']}: ")]
        assert message in line
    assert len(lines) == 5
    after = tree(folder)
    assert set(after) - set(before) == {paths[5][1:].replace("2017", "")}
    assert all(after[name] == before[name] for name in before)  # the earlier set is still whole
    for path, content in zip(paths, good.values(), strict=True):
        site.files[path] = content
    site.faults.clear()
    make(folder, site, larger)
    assert len(CocoDetection(CocoFolder.find(folder, "train"))) == 12


def test_an_interrupted_run_goes_on(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "coco"
    half = len(site.files[ARCHIVE]) // 2
    site.spoil(ARCHIVE, cut(half), status(404))
    with pytest.raises(DownloadError, match="404"):
        make(folder, site)
    assert set(tree(folder)) == {"download.json", f"source/{ARCHIVE[13:]}.part", f"source/{ARCHIVE[13:]}.part.json"}
    site.log.clear()
    real = coco_site._PictureCheck.__call__
    seen: list[int] = []

    def interrupt(check: Any, content: bytes) -> None:
        seen.append(len(content))
        if len(seen) == 5:
            raise KeyboardInterrupt
        real(check, content)

    monkeypatch.setattr(coco_site._PictureCheck, "__call__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(folder, site)
    monkeypatch.setattr(coco_site._PictureCheck, "__call__", real)
    assert [headers.get("Range") for headers in site.asked(ARCHIVE)] == [f"bytes={half}-"]
    there = {name for name in tree(folder) if name.endswith(".jpg")}
    assert 4 <= len(there) < 9
    assert not [name for name in tree(folder) if "unfinished" in name or name.startswith("annotations/")]
    site.log.clear()
    capsys.readouterr()
    make(folder, site)
    assert f"pictures to download: {9 - len(there)} of 9" in capsys.readouterr().out
    assert len([path for method, path, _ in site.log if method == "GET"]) == 9 - len(there)
    assert site.asked(ARCHIVE) == []
    fresh = tmp_path / "fresh"
    make(fresh, site)
    assert tree(fresh) == tree(folder)


def _words(site: Site, folder: Path, images: int, val_images: int) -> list[str]:
    """The command line of a download from the test's own server."""
    counts = ["--images", str(images), "--val-images", str(val_images)]
    return ["data", "coco", "--folder", str(folder), "--site", site.url, *counts]


def test_ctrl_c_is_answered_in_one_line(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ddetr_lite.cli.data_coco.fetch_many", interrupt)
    words = _words(site, tmp_path / "coco", images=6, val_images=3)
    assert main(words) == 130
    assert "the same command goes on from here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive()[:-100], "no whole zip archive"),
        (b"<html>Not here</html>", "no whole zip archive"),
        (
            archive().replace(b"\x00\x00\x00\x00", b"\x00\x00\x00\x00")[:200] + b"????" + archive()[204:],
            "damaged|no whole",
        ),
        (archive({"train": CONTENT["train"]}), "no item named 'annotations/instances_val2017.json'"),
        (archive({"train": CONTENT["train"], "val": '{"images": ['}), "instances_val2017.json is no JSON"),
        (archive({"train": CONTENT["train"], "val": "[]"}), "instances_val2017.json lacks the list 'images'"),
    ],
    ids=["truncated", "page", "crc", "lacks a file", "no JSON", "another JSON"],
)
def test_an_archive_that_is_not_coco(site: Site, tmp_path: Path, content: bytes, message: str) -> None:
    site.files[ARCHIVE] = content
    with pytest.raises((DownloadError, ValueError), match=message):
        make(tmp_path / "coco", site)
    assert not [name for name in tree(tmp_path / "coco") if ".zip" in name or name.startswith("annotations/")]


def test_the_hash_is_that_of_coco_s_own_site_only(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(archive())
    CocoDownload(tmp_path, "https://mirror.example", SMALL)._check_archive(path)
    for site in ("http://images.cocodataset.org", "https://images.cocodataset.org/"):
        with pytest.raises(ValueError, match=r"its MD5 is .* and should be f4bbac642086de4f52a3fdda2de5fa2c"):
            CocoDownload(tmp_path, site, SMALL)._check_archive(path)


def test_a_full_disk_is_seen_before_anything_is_fetched(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "coco"
    free = shutil._ntuple_diskusage(10**9, 0, 10_000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: free)
        with pytest.raises(OSError, match=r"annotations and pictures need 1 MB, and the disk of .* has 10 kB free"):
            make(folder, site)
    assert not folder.exists()
    make(folder, site)
    before = tree(folder)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: free)
        with pytest.raises(OSError, match=r"30 pictures need .* has 10 kB free"):
            make(folder, site, replace(SMALL, images=0))
    assert tree(folder) == before


def test_folders_of_others_are_left_alone(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "coco"
    folder.mkdir()
    make(folder, site)  # an empty one is as good as none
    with pytest.raises(FileExistsError, match=f"comes from {site.url}: give that --site"):
        make_coco(CocoOptions(folder, SMALL, "http://127.0.0.1:9"), Client(), progress=False)
    (folder / "download.json").unlink()
    before = tree(folder)
    with pytest.raises(FileExistsError, match=r"holds other files, and no download\.json of this command"):
        make(folder, site)
    assert tree(folder) == before
    with pytest.raises(NotADirectoryError, match="is a file"):
        make(folder / "annotations" / "instances_train.json", site)


def test_a_class_that_coco_lacks_is_seen_before_anything_is_fetched(tmp_path: Path) -> None:
    client = Client(Patience(timeout=0.1, tries=1))
    options = CocoOptions(tmp_path / "coco", replace(SMALL, classes=("persn",)))
    with pytest.raises(ValueError, match="'persn' is unknown: did you mean 'person'"):
        make_coco(options, client, progress=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--site", "file:///etc"], "--site is 'file:///etc': give an address that begins with http"),
        (["--connections", "0"], "--connections is 0"),
        (["--timeout", "0"], "--timeout is 0"),
        (["--tries", "0"], "--tries is 0"),
        (["--images", "-3"], "--images is -3"),
        (["--imags", "3"], "did you mean --images"),
        (["--classes", "person,persn"], "did you mean 'person'"),
        (["--images", "1000"], "has 40 pictures"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    start = _words(site, tmp_path / "coco", images=1, val_images=1)
    assert main([*start, *words]) == 2
    said = capsys.readouterr().err.splitlines()
    assert message in said[-1]
    assert said[-1].startswith("ddetr-lite: ")
