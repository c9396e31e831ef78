"""Pictures and boxes of one's own become a folder that everything else reads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from torchvision import tv_tensors

from ddetr_lite.datasets.check import check_folder
from ddetr_lite.datasets.coco import CocoDetection, CocoFolder
from ddetr_lite.datasets.pictures import read_picture
from ddetr_lite.datasets.write_coco import write_coco


def _samples(folder: Path, count: int = 5) -> list[tuple[Any, torch.Tensor, list[Any]]]:
    """Pictures in turn as a file and as a tensor, with 0, 1, 2, ... objects whose labels are in turn positions and names."""
    random = np.random.default_rng(3)
    samples: list[tuple[Any, torch.Tensor, list[Any]]] = []
    for index in range(count):
        pixels = random.integers(0, 256, (40 + index, 60, 3), dtype=np.uint8)
        low = torch.from_numpy(random.uniform(0, 30, (index, 2)))
        boxes = torch.cat((low, low + torch.from_numpy(random.uniform(2, 10, (index, 2)))), dim=1)
        labels: list[Any] = [("cat", 1)[k % 2] for k in range(index)]
        picture: Any = torch.from_numpy(pixels).permute(2, 0, 1)
        if index % 2:
            picture = folder / f"same{'' if index == 1 else ' name'}.png"
            Image.fromarray(pixels).save(picture)
        samples.append((picture, boxes, labels))
    return samples


def test_what_was_written_is_what_is_read(tmp_path: Path) -> None:
    samples = _samples(tmp_path)
    path = write_coco(tmp_path / "data", "train", iter(samples), ["cat", "dog"])
    data = CocoDetection(CocoFolder.find(tmp_path / "data", "train"))
    assert data.classes == ["cat", "dog"]
    assert len(data) == len(samples)
    for index, (picture, boxes, labels) in enumerate(samples):
        image, target = data[index]
        assert torch.equal(image, read_picture(picture) if isinstance(picture, Path) else picture)
        assert torch.allclose(target["boxes"], boxes.float(), atol=1e-4)
        assert target["labels"].tolist() == [0 if label == "cat" else label for label in labels]
    coco = COCO(str(path))  # pycocotools reads it too
    assert coco.anns[1]["area"] == pytest.approx(float((samples[1][1][0, 2:] - samples[1][1][0, :2]).prod()))
    findings = check_folder(tmp_path / "data", ("train",), pictures=True, queries=100).findings
    assert [finding.kind for finding in findings] == ["picture-without-objects"]  # the first: nothing else is wrong


def test_nothing_is_overwritten_and_what_was_not_finished_begins_anew(tmp_path: Path) -> None:
    good: Any = (torch.zeros(3, 8, 8, dtype=torch.uint8), [[1, 1, 5, 5]], [0])
    bad: Any = ("absent.png", [], [])
    with pytest.raises(ValueError, match=r"sample 1: picture absent\.png does not exist"):
        write_coco(tmp_path, "train", [good, bad], ["a"])
    assert not (tmp_path / "annotations" / "instances_train.json").exists()
    path = write_coco(tmp_path, "train", [good], ["a"])
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="is there already"):
        write_coco(tmp_path, "train", [good, good], ["a"])
    assert path.read_bytes() == before
    (tmp_path / "val").mkdir()
    theirs = tmp_path / "val" / "000000.png"  # as it would be called here, too
    theirs.write_bytes(b"x")
    with pytest.raises(FileExistsError, match="holds other files"):
        write_coco(tmp_path, "val", [good], ["a"])
    assert theirs.read_bytes() == b"x"
    assert [path.name for path in (tmp_path / "train").iterdir()] == ["000000.png"]


def test_all_that_is_wrong_is_said_at_once_up_to_twenty(tmp_path: Path) -> None:
    good: Any = (torch.zeros(3, 8, 8, dtype=torch.uint8), [[1, 1, 5, 5]], [0])
    bad: Any = (good[0], good[1], [1])
    with pytest.raises(ValueError, match=r"\Asample 1: object 0: label 1 .*\nsample 3: picture absent\.png .*\Z"):
        write_coco(tmp_path, "train", [good, bad, good, ("absent.png", [], [])], ["a"])
    seen = []
    with pytest.raises(
        ValueError, match=r"(?s)sample 0: .*\nsample 19: .*\nwhat comes after was not looked at\Z"
    ) as error:
        write_coco(tmp_path, "train", (seen.append(i) or bad for i in range(1000)), ["a"])  # type: ignore[func-returns-value]
    assert len(seen) == 21
    assert len(str(error.value).splitlines()) == 21
    assert not (tmp_path / "annotations" / "instances_train.json").exists()


@pytest.mark.parametrize(
    ("picture", "boxes", "labels", "message"),
    [
        (None, [[0, 0, 4, 4]], [2], r"sample 0: object 0: label 2 must be a whole number in 0\.\.1"),
        (None, [[0, 0, 4, 4]], [-1], r"label -1 must be"),
        (None, [[0, 0, 4, 4]], [True], r"label True must be"),
        (None, [[0, 0, 4, 4]], [1.0], r"label 1\.0 must be"),
        (None, [[0, 0, 4, 4]], ["cow"], r"label 'cow' is not among the classes \(cat, dog\)"),
        (None, [[5, 5, 4, 4]], [0], r"object 0: box \[5\.0, 5\.0, 4\.0, 4\.0\] has no area: corners"),
        (None, [[1, 1, 5, 5], [0.1, 0.2, 0.5, 0.9]], [0, 1], r"object 1: .* give pixels, not shares"),
        (None, [[0, 0, float("nan"), 4]], [0], "must be four finite numbers"),
        (None, [[0, 0, 4]], [0], r"boxes must be \(T, 4\) and labels \(T,\), got \(1, 3\) and \(1,\)"),
        (None, [[0, 0, 4, 4]], [0, 1], r"got \(1, 4\) and \(2,\)"),
        (None, [[0, 0, 4, 4]], [2], "they begin at 0; where 0 is the background, subtract 1"),
        (None, [[20, 0, 24, 4]], [0], r"object 0: box .* lies outside the picture, which is 8 wide and 8 high"),
        (None, None, [0], "sample 0: "),
        (None, [[0, 0, 4, 4], [1, 2]], [0, 1], "sample 0: "),
        (None, "boxes", [0], "sample 0: "),
        (None, [[0, 0, 4, 4]], 0, "sample 0: "),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), [], [], r"the picture is torch\.uint8 \(8, 8, 3\)"),
        (torch.zeros(3, 0, 8, dtype=torch.uint8), [], [], r"the picture is torch\.uint8 \(3, 0, 8\)"),
        (
            torch.zeros(3, 8, 8),
            [],
            [],
            r"the picture is torch\.float32 \(3, 8, 8\): .*make \(255 \* picture\)\.byte\(\)",
        ),
        (np.zeros((8, 8, 3)), [], [], r"the picture is torch\.float64 \(3, 8, 8\): give a path"),
        (3, [], [], "the picture is int: give a path"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, picture: Any, boxes: Any, labels: Any, message: str) -> None:
    picture = torch.zeros(3, 8, 8, dtype=torch.uint8) if picture is None else picture
    with pytest.raises(ValueError, match=message):
        write_coco(tmp_path, "train", [(picture, boxes, labels)], ["cat", "dog"])
    assert not (tmp_path / "annotations" / "instances_train.json").exists()


def test_pictures_boxes_and_labels_of_every_kind(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    box = torch.tensor([[1.0, 2.0, 4.0, 7.0]])
    kinds: list[tuple[Any, Any, Any]] = [
        (pixels, box.numpy(), np.array([1])),
        (Image.fromarray(pixels), box.bfloat16(), [np.int64(1)]),
        (torch.from_numpy(pixels).permute(2, 0, 1), box.clone().requires_grad_(), [torch.tensor(1)]),
        (pixels, tv_tensors.BoundingBoxes([[1, 2, 3, 5]], format="XYWH", canvas_size=(8, 9)), ["b"]),
        (pixels, [(1, 2, 4, 7)], torch.tensor([1])),
    ]
    write_coco(tmp_path, "train", kinds, {0: "a", 1: "b"})
    data = CocoDetection(CocoFolder.find(tmp_path, "train"))
    assert data.classes == ["a", "b"]
    for index in range(len(kinds)):
        image, target = data[index]
        assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))
        assert target["boxes"].tolist() == box.tolist()
        assert target["labels"].tolist() == [1]


@pytest.mark.parametrize("upright", [False, True])
def test_a_photo_that_is_to_be_turned(tmp_path: Path, upright: bool) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (8, 20, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    box = [[1, 9, 5, 19]] if upright else [[9, 1, 19, 5]]
    write_coco(tmp_path / "data", "train", [(tmp_path / "photo.png", box, [0])], ["a"], upright=upright)
    image, target = CocoDetection(CocoFolder.find(tmp_path / "data", "train"))[0]
    assert torch.equal(image, read_picture(tmp_path / "photo.png", upright=upright))
    assert image.shape[1:] == ((20, 8) if upright else (8, 20))
    assert target["boxes"].tolist() == box


@pytest.mark.parametrize("split", ["", "../x", "a/b"])
def test_a_split_is_a_name(tmp_path: Path, split: str) -> None:
    with pytest.raises(ValueError, match="must be a name"):
        write_coco(tmp_path, split, [], ["a"])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("classes", [[], ["a", "a"], [1], [""], "a", 3, {"a": 1, "b": 0}, {1: "a", 2: "b"}])
def test_classes_are_names(tmp_path: Path, classes: Any) -> None:
    with pytest.raises(ValueError, match=r"must be (names, at least one|a list of names, or name 0)"):
        write_coco(tmp_path, "train", [], classes)
    assert not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match="no samples"):
        write_coco(tmp_path, "train", [], ["a"])
