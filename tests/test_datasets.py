"""COCO folders, augmentation, and the order of training."""

import json
import math
import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_coco
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ddetr_lite.datasets.coco import CocoDetection, CocoFolder, collate
from ddetr_lite.datasets.loading import EpochSampler, loader
from ddetr_lite.datasets.picture_cache import PictureCache
from ddetr_lite.datasets.transforms import (
    AugmentConfig,
    FileSize,
    RandomColor,
    RandomSizeCrop,
    ResizeShortSide,
    eval_transform,
    hue_matrix,
    resized_size,
    saturation_matrix,
    train_transform,
)
from ddetr_lite.engine.evaluate import ap_of

AUGMENT = AugmentConfig(short_sides=(24, 32, 48), max_side=70, color=True, flip_vertical=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_coco.write(tmp_path / "coco")


def dataset(folder: Path, **options: Any) -> CocoDetection:
    return CocoDetection(CocoFolder.find(folder, "train"), **options)


def test_ids_with_gaps_become_labels_in_the_order_of_the_ids(folder: Path) -> None:
    data = dataset(folder)
    assert data.classes == ["car", "brush"]
    assert data.label_of_category == {3: 0, 90: 1}
    assert len(data) == 3


def test_crowds_are_left_out_and_boxes_are_clipped_to_the_picture(folder: Path) -> None:
    image, target = dataset(folder)[0]
    assert image.shape == (3, 40, 60)
    assert image.dtype == torch.uint8
    assert target["boxes"].tolist() == [[50, 30, 60, 40], [5, 5, 25, 15]]
    assert target["labels"].tolist() == [1, 0]
    assert int(target["image_id"]) == 42


def test_the_truth_is_what_the_file_says(folder: Path) -> None:
    """Not clipped, and with the box that has no width: what is evaluated is judged against these."""
    boxes, labels = dataset(folder).truth(0)
    assert boxes.tolist() == [[50, 30, 70, 50], [5, 5, 25, 15]]
    assert labels.tolist() == [1, 0], "the crowd is left out"
    assert dataset(folder).truth(1)[0].shape == (0, 4)
    assert dataset(folder).truth(2)[0].tolist() == [[8, 8, 8, 12], [-5, -5, 15, 15]]


def test_a_picture_without_objects_and_a_box_without_area(folder: Path) -> None:
    data = dataset(folder)
    assert data[1][1]["boxes"].shape == (0, 4)
    assert data[2][1]["boxes"].tolist() == [[0, 0, 15, 15]]  # the one without width is gone


def test_classes_of_a_checkpoint_are_matched_by_name(folder: Path) -> None:
    assert dataset(folder, classes=["dog", "brush", "car"]).label_of_category == {3: 2, 90: 1}
    with pytest.raises(ValueError, match="'brush' is not among the model's classes"):
        dataset(folder, classes=["car"])


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (lambda c: c["annotations"][0].update(category_id=4), r"annotation 1 of image id 42: category_id 4"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), r"image id 42: bbox must be four"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3, float("nan")]), r"image id 42: bbox must be four finite"),
        (lambda c: c["images"][0].pop("file_name"), r"images\[0\] \(id 42\) lacks 'file_name'"),
        (lambda c: c["annotations"].append(17), r"annotations\[5\] is 17, not an object"),
        (lambda c: c["images"][0].update(id="42"), r"images\[0\] \(id 42\): id must be a whole number, got '42'"),
        (lambda c: c["categories"][0].update(id="90"), r"categories\[0\] .*whole number, got '90'"),
        (lambda c: c["annotations"][0].update(image_id="42"), r"\(id 1\): image_id must be a whole number"),
        (lambda c: c["annotations"][0].update(bbox=["5", "5", "5", "5"]), r"image id 42: bbox must be four finite"),
        (lambda c: c["annotations"][0].update(bbox=[10**400, 2, 3, 4]), r"image id 42: bbox must be four finite"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 1e300, 4]), r"image id 42: bbox must be four finite"),
        (lambda c: c["annotations"][0].update(iscrowd="0"), r"annotation 1 of image id 42: iscrowd must be .*got '0'"),
        (
            lambda c: c["annotations"][0].update(iscrowd=2),
            r"annotation 1 of image id 42: iscrowd must be .*, or drop it",
        ),
        (
            lambda c: c["annotations"][0].update(iscrowd=[]),
            r"annotation 1 of image id 42: iscrowd must be 0 for an object",
        ),
        (lambda c: c["images"][0].update(id=2**63), r"images\[0\] \(id 9223372036854775808\): id .*give smaller ids"),
        (lambda c: c["annotations"][0].update(image_id=2**63), r"annotations\[0\] \(id 1\): image_id .* 64 bits"),
        (lambda c: c["categories"][0].update(id=-(2**63) - 1), r"categories\[0\] .* does not fit into 64 bits"),
        (lambda c: c["images"][1].update(id=42), r"two of 'images' have the id 42"),
        (
            lambda c: c["images"][0].update(file_name="../a.jpg"),
            r"image id 42: file_name '\.\./a\.jpg' must be .* inside",
        ),
        (lambda c: c.pop("categories"), r"lacks the list 'categories'"),
        (lambda c: c.update(images=[]), r"lists no pictures"),
        (lambda c: c.update(categories=[]), r"lists no categories"),
        (lambda c: c["categories"][0].update(name="car"), r"two categories have the same name"),
    ],
)
def test_broken_annotations_are_named(tmp_path: Path, breakage: Any, message: str) -> None:
    folder = tiny_coco.write(tmp_path)
    annotations = tiny_coco.content()
    breakage(annotations)
    path = folder / "annotations" / "instances_train2017.json"
    path.write_text(json.dumps(annotations), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        dataset(folder)


def test_a_crowd_is_one_or_true_and_nothing_else(tmp_path: Path) -> None:
    content = tiny_coco.content()
    for value, objects in ((0, 3), (1, 2), (False, 3), (True, 2), (None, 3)):
        content["annotations"][2]["iscrowd"] = value
        data = dataset(tiny_coco.write(tmp_path, content))
        assert len(data.objects(0)) == objects
        assert len(data[0][1]["labels"]) == objects


@pytest.mark.parametrize(
    "value", [None, "400", float("nan"), float("inf"), -1, 0, [400], pytest.param(10**400, id="huge")]
)
def test_an_area_that_is_no_number_is_that_of_the_box(tmp_path: Path, value: Any) -> None:
    """As where it is missing. The object is medium: zero is an area that some exporters write, and would be small."""
    content = tiny_coco.content()
    content["annotations"] = [{**content["annotations"][1], "bbox": [5, 5, 50, 30], "area": value, "iscrowd": None}]
    data = dataset(tiny_coco.write(tmp_path, content))
    found = {"boxes": torch.tensor([[5.0, 5, 55, 35]]), "scores": torch.tensor([0.9]), "labels": torch.tensor([0])}
    metrics = ap_of({42: found}, data)
    assert metrics["AP"] == metrics["AP_medium"] == pytest.approx(1)
    assert metrics["AP_small"] == metrics["AP_large"] == -1


def test_an_id_of_64_bits_is_fine(tmp_path: Path) -> None:
    content = tiny_coco.content()
    content["images"][1]["id"] = 2**63 - 1
    assert int(dataset(tiny_coco.write(tmp_path, content))[1][1]["image_id"]) == 2**63 - 1


def test_missing_and_broken_files_are_named(folder: Path) -> None:
    (folder / "train2017" / "a.jpg").write_bytes(b"no picture")
    (folder / "train2017" / "b.png").unlink()
    data = dataset(folder)
    with pytest.raises(ValueError, match=r"image id 42: picture .*a\.jpg cannot be read"):
        data[0]
    with pytest.raises(ValueError, match=r"image id 7: picture .*b\.png does not exist"):
        data[1]
    (folder / "annotations" / "instances_train2017.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="not a readable JSON file"):
        dataset(folder)


@pytest.mark.parametrize("kept", [False, True])
def test_a_file_of_another_size_than_its_record_is_named(folder: Path, kept: bool) -> None:
    """Its boxes are in pixels of the record's size: such as those of a phone's photo that was annotated upright."""
    turned = Image.open(folder / "train2017" / "a.jpg").transpose(Image.Transpose.ROTATE_90)
    turned.save(folder / "train2017" / "a.jpg")
    data = dataset(folder)
    if kept:
        data.pictures = PictureCache([data.file_of(i) for i in range(3)], lambda size: size)
    with pytest.raises(
        ValueError,
        match=r"train2017\.json: image id 42 says width 60, height 40, but .*a\.jpg has width 40, height 60: .*data check",
    ):
        data[0]
    assert len(data[1]) == 2
    for record in data.images:
        record.pop("width")
    assert tuple(data[0][1]["original_size"]) == (60, 40)  # a record that names no size says nothing against it


def test_missing_pictures_are_found_without_reading_any(folder: Path) -> None:
    data = dataset(folder)
    data.check_files()
    (folder / "train2017" / "b.png").unlink()
    with pytest.raises(
        ValueError, match=r"image id 7: picture .*b\.png does not exist \(1 of 3 are missing\): restore"
    ):
        data.check_files()
    data.images[0]["file_name"] = "sub\\a.jpg"
    with pytest.raises(ValueError, match=r"2 of 3 .*; in a file_name write / instead of"):
        data.check_files()


def test_pictures_are_counted_from_nothing(folder: Path) -> None:
    for index in (-1, 3):
        with pytest.raises(IndexError, match=rf"picture {index} of 3"):
            dataset(folder)[index]


def test_where_a_split_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        CocoFolder.find(tmp_path / "nowhere", "train")
    folder = tiny_coco.write(tmp_path / "data", splits=("train",))
    with pytest.raises(FileNotFoundError, match="no annotations for split 'val'"):
        CocoFolder.find(folder, "val")
    (folder / "annotations" / "instances_train2014.json").write_text("{}", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="several files fit"):
        CocoFolder.find(folder, "train")
    assert CocoFolder.find(folder, "train2017").images == folder / "train2017"


def places(root: Path, *names: str) -> Path:
    """A folder with files (names that end in .json) and folders."""
    for name in names:
        path = root / name
        (path.parent if name.endswith(".json") else path).mkdir(parents=True, exist_ok=True)
        if name.endswith(".json"):
            path.write_text("{}", encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("names", "images"),
    [
        (("annotations/instances_train.json", "train_logs", "images/train"), "images/train"),
        (("annotations/instances_train.json", "train_logs", "train"), "train"),
        (("annotations/instances_train.json", "images/train2017", "images/x"), "images/train2017"),
        (("annotations/instances_train.json", "images"), "images"),
        (("annotations/instances_train2017.json", "train", "train2014", "images/train2017"), "images/train2017"),
        (("annotations/train.json", "annotations/train_old.json", "annotations/instances_val.json", "train"), "train"),
        (("train/_annotations.coco.json", "train_old/_annotations.coco.json"), "train"),
        (("train_v2/_annotations.coco.json", "train_logs"), "train_v2"),
    ],
)
def test_the_exact_name_of_a_split_is_preferred(tmp_path: Path, names: tuple[str, ...], images: str) -> None:
    found = CocoFolder.find(places(tmp_path, *names), "train")
    assert found.images == tmp_path / images
    assert found.annotations == tmp_path / next(name for name in names if name.endswith(".json"))


def test_several_folders_that_fit_are_named(tmp_path: Path) -> None:
    folder = places(tmp_path, "annotations/instances_train.json", "train_logs", "images/train2017")
    with pytest.raises(
        FileNotFoundError, match=r"several folders fit: train_logs/, images/train2017/; rename .* train/"
    ):
        CocoFolder.find(folder, "train")


def test_augmentation_is_a_function_of_seed_epoch_and_index(folder: Path) -> None:
    data = dataset(folder, transform=train_transform(AUGMENT), seed=3)
    before = torch.get_rng_state()
    first = data[5, 0]
    assert torch.equal(before, torch.get_rng_state())  # the model's dropout draws from it
    torch.rand(17)
    again = data[5, 0]
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1]["boxes"], again[1]["boxes"])
    others = [data[epoch, 0][0] for epoch in range(6)]
    assert len({(tuple(o.shape), int(o.sum())) for o in others}) > 3


@pytest.mark.parametrize("workers", [0, 2])
def test_any_number_of_workers_gives_the_same_batches(folder: Path, workers: int) -> None:
    data = dataset(folder, transform=train_transform(AUGMENT))
    sampler = EpochSampler(3, 1, seed=1, epoch=4)
    batches = DataLoader(data, batch_sampler=sampler, num_workers=workers, collate_fn=collate)
    alone = [collate([data[key] for key in batch]) for batch in sampler]
    for (images, targets), (expected, expected_targets) in zip(batches, alone, strict=True):
        assert torch.equal(images[0], expected[0])
        assert torch.equal(targets[0]["boxes"], expected_targets[0]["boxes"])


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes are made anew, as Python does it there")
def test_loading_processes_are_forks_whatever_python_prefers(folder: Path) -> None:
    data = dataset(folder, transform=lambda picture, target: (picture, target))  # which no other process could be sent
    preferred = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        (batch,) = loader(data, [[(0, 0)]], 1, torch.device("cpu"))
    finally:
        multiprocessing.set_start_method(preferred, force=True)
    assert torch.equal(batch.images.pixels[0], data[0, 0][0])


def test_order_depends_on_seed_and_epoch_alone_and_can_start_in_the_middle() -> None:
    whole = list(EpochSampler(103, 10, seed=2, epoch=5))
    assert len(whole) == 10
    assert list(EpochSampler(103, 10, seed=2, epoch=5, start=7)) == whole[7:]
    assert whole != list(EpochSampler(103, 10, seed=2, epoch=6))
    indices = [index for batch in whole for epoch, index, *_ in batch]
    assert len(set(indices)) == 100
    assert {epoch for batch in whole for epoch, *_ in batch} == {5}
    assert len(EpochSampler(4, 10, seed=0, epoch=0)) == 1  # fewer pictures than a batch still make one


def test_pictures_of_one_group_share_a_batch() -> None:
    groups = np.random.default_rng(7).integers(0, 2, 103).tolist()
    whole = list(EpochSampler(103, 10, seed=2, epoch=5, groups=groups))
    mixed = [batch for batch in whole if len({groups[index] for _, index, *_ in batch}) > 1]
    assert len(whole) == 10
    assert len(mixed) <= 1  # the rests of both groups
    assert len({index for batch in whole for _, index, *_ in batch}) == 100
    pure = [groups[batch[0][1]] for batch in whole if batch not in mixed]
    assert pure != sorted(pure), "one group after the other: the batches are not shuffled"
    assert list(EpochSampler(103, 10, seed=2, epoch=5, start=7, groups=groups)) == whole[7:]
    assert whole != list(EpochSampler(103, 10, seed=2, epoch=6, groups=groups))


def test_orientations_come_from_the_annotations(folder: Path) -> None:
    data = dataset(folder)
    data.images = [{"width": 3, "height": 4}, {"width": 4, "height": 3}, {"width": 4, "height": 4}, {}]
    assert data.orientations() == [1, 0, 0, 0]


def test_resize_rule_by_hand() -> None:
    assert resized_size(480, 640, 800, 1333) == (800, 1066)  # 1066.67 truncated
    assert resized_size(640, 480, 800, 1333) == (1066, 800)
    assert resized_size(300, 1000, 800, 1333) == (
        400,
        1333,
    )  # capped: 1333·300/1000 = 399.9, rounded; then int(400·1000/300)
    assert resized_size(100, 100, 50, 1333) == (50, 50)
    assert resized_size(32, 1000, 800, 1333) == (43, 1343)  # the shorter side is rounded, up from 42.66


def test_the_size_of_the_file_counts_until_the_picture_is_changed() -> None:
    kept = tv_tensors.Image(torch.zeros(3, 98, 206, dtype=torch.uint8))
    resize = ResizeShortSide((160,), 208)
    assert resize(kept).shape == (3, 99, 208)
    image, target = resize(kept, {"file": FileSize(303, 640)})
    assert (image.shape, target) == ((3, 98, 206), {"file": None})
    assert RandomSizeCrop(50, 60)(kept, {"file": FileSize(303, 640)})[1] == {"file": None}


def test_the_thinnest_pictures_keep_a_pixel() -> None:
    assert resized_size(1, 3000, 800, 1333) == (1, 1333)
    assert resized_size(3000, 1, 800, 1333) == (1333, 1)
    thin = tv_tensors.Image(torch.zeros(3, 1, 3000, dtype=torch.uint8))
    assert eval_transform(AugmentConfig())(thin).shape == (3, 1, 1333)
    for _ in range(8):
        assert min(train_transform(AugmentConfig())(thin).shape) >= 1


def test_pictures_like_threads_do_not_become_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    original = ResizeShortSide.transform

    def noted(self: ResizeShortSide, inpt: Any, params: dict[str, Any]) -> Any:
        made.append(math.prod(params["size"]))
        return original(self, inpt, params)

    monkeypatch.setattr(ResizeShortSide, "transform", noted)
    for _ in range(8):
        train_transform(AugmentConfig())(tv_tensors.Image(torch.zeros(3, 1, 3000, dtype=torch.uint8)))
    assert len(made) > 8  # some were cropped
    assert max(made) < 10**6


@pytest.mark.parametrize("seed", range(8))
def test_boxes_move_with_the_picture(seed: int) -> None:
    """A bright rectangle on black: wherever the augmentation takes it, the box must still frame it."""
    torch.manual_seed(seed)
    pixels = torch.zeros(3, 90, 120, dtype=torch.uint8)
    pixels[:, 30:60, 40:80] = 255
    boxes = tv_tensors.BoundingBoxes([[40.0, 30, 80, 60]], format="XYXY", canvas_size=(90, 120))
    config = AugmentConfig(short_sides=(60, 90, 120), max_side=200, flip_vertical=True, quarter_turn=True)
    image, target = train_transform(config)(tv_tensors.Image(pixels), {"boxes": boxes, "labels": torch.tensor([0])})
    height, width = image.shape[-2:]
    bright = (image[0] > 127).nonzero()
    x0, y0, x1, y1 = target["boxes"][0].clamp(min=0).tolist()
    assert abs(y0 - bright[:, 0].min()) <= 1.5
    assert abs(x0 - bright[:, 1].min()) <= 1.5
    assert abs(min(y1, height) - bright[:, 0].max() - 1) <= 1.5
    assert abs(min(x1, width) - bright[:, 1].max() - 1) <= 1.5


def test_flips_and_quarter_turns_show_all_eight_views() -> None:
    torch.manual_seed(0)
    pixels = tv_tensors.Image(torch.randint(0, 256, (3, 6, 9), dtype=torch.uint8))
    transform = train_transform(AugmentConfig(short_sides=(), flip_vertical=True, quarter_turn=True))
    seen = {(tuple(view.shape), view.numpy().tobytes()) for view in (transform(pixels) for _ in range(200))}
    views = [torch.rot90(side, turns, (1, 2)) for side in (pixels, pixels.flip(2)) for turns in range(4)]
    assert seen == {(tuple(view.shape), view.contiguous().numpy().tobytes()) for view in views}


def test_changes_of_colour_against_torchvision() -> None:
    """A rotation by a third of the circle exchanges the channels; half a saturation is torchvision's to a rounding."""
    pixels = tv_tensors.Image(torch.randint(60, 200, (3, 40, 30), dtype=torch.uint8))
    colour = RandomColor()
    turned = colour.transform(pixels, {"matrix": hue_matrix(1 / 3), "offset": 0.0})
    assert torch.equal(turned, pixels[[2, 0, 1]])
    grey = colour.transform(pixels, {"matrix": saturation_matrix(0.5), "offset": 0.0})
    assert (grey.int() - F.adjust_saturation(pixels, 0.5).int()).abs().max() <= 1
    bright = colour.transform(pixels, {"matrix": 1.2 * torch.eye(3), "offset": 0.0})
    assert (bright.int() - F.adjust_brightness(pixels, 1.2).int()).abs().max() <= 1
    assert bright.max() > 230
    for turn in (-0.05, 0.02, 0.4):  # grey stays grey, and three thirds are a whole
        assert torch.allclose(hue_matrix(turn) @ torch.ones(3), torch.ones(3), atol=1e-6)
        assert torch.allclose(hue_matrix(turn) @ hue_matrix(-turn), torch.eye(3), atol=1e-6)


def test_random_colours_draw_what_torchvisions_do() -> None:
    """The same pictures come out, on average and in spread: three colours under many draws of both."""
    torch.manual_seed(0)
    pixels = tv_tensors.Image(torch.tensor([[[120, 40, 180]], [[90, 160, 110]], [[150, 100, 70]]], dtype=torch.uint8))

    def statistics(transform: v2.Transform) -> tuple[torch.Tensor, torch.Tensor]:
        draws = torch.stack([transform(pixels).float() for _ in range(3000)])
        return draws.mean(0), draws.std(0)

    ours, theirs = statistics(RandomColor()), statistics(v2.RandomPhotometricDistort())
    assert (ours[0] - theirs[0]).abs().max() < 8
    assert (ours[1] / theirs[1]).sub(1).abs().max() < 0.25


def test_crops_of_small_pictures_do_not_raise() -> None:
    image = tv_tensors.Image(torch.zeros(3, 20, 30, dtype=torch.uint8))
    for _ in range(20):
        cropped = RandomSizeCrop(384, 600)(image)
        assert cropped.shape == image.shape


def test_evaluation_only_resizes() -> None:
    image = tv_tensors.Image(torch.randint(0, 256, (3, 30, 50), dtype=torch.uint8))
    result = eval_transform(AugmentConfig(eval_short_side=60, max_side=90))(image)
    assert result.shape == (3, 54, 90)
    assert torch.equal(result, F.resize(image, [54, 90], antialias=True))
    assert torch.equal(eval_transform(AugmentConfig(eval_short_side=0))(image), image)
    assert ResizeShortSide((60,), 1000)(image).shape == (3, 60, 100)


def test_half_of_the_pictures_are_cut_as_in_detr(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resized to 400, 500 or 600 and cut to sides of 384 to 600: DETR's numbers, for its middle short side of 640."""
    torch.manual_seed(0)
    before, cuts, original = [], [], RandomSizeCrop.make_params

    def make_params(crop: RandomSizeCrop, flat_inputs: list[Any]) -> dict[str, Any]:
        params = original(crop, flat_inputs)
        image = next(one for one in flat_inputs if isinstance(one, tv_tensors.Image))
        before.append(min(image.shape[-2:]))
        cuts.append((params["height"], params["width"], params["top"], params["left"], *image.shape[-2:]))
        return params

    monkeypatch.setattr(RandomSizeCrop, "make_params", make_params)
    transform = train_transform(AugmentConfig())
    image = tv_tensors.Image(torch.zeros(3, 48, 64, dtype=torch.uint8))
    for _ in range(120):
        transform(image)
    heights, widths, tops, lefts, _, _ = zip(*cuts, strict=True)
    assert 40 <= len(cuts) <= 80
    assert set(before) == {400, 500, 600}
    assert 384 <= min(heights + widths) < 400
    assert 580 < max(heights + widths) <= 600
    assert min(max(tops), max(lefts)) > 0
    assert all(top + height <= h and left + width <= w for height, width, top, left, h, w in cuts)


def test_each_option_turns_its_transform_on() -> None:
    pixels = tv_tensors.Image(torch.randint(0, 256, (3, 6, 9), dtype=torch.uint8))
    plain = AugmentConfig((), crop=False, flip=False, flip_vertical=False, quarter_turn=False, color=False)

    def views(**options: Any) -> set[bytes]:
        transform = train_transform(replace(plain, **options))
        return {transform(pixels).numpy().tobytes() for _ in range(40)}

    def bits(*pictures: torch.Tensor) -> set[bytes]:
        return {picture.contiguous().numpy().tobytes() for picture in pictures}

    assert views() == bits(pixels)
    assert views(flip=True) == bits(pixels, pixels.flip(2))
    assert views(flip_vertical=True) == bits(pixels, pixels.flip(1))
    assert len(views(color=True)) > 10


def test_the_seed_chooses_draws_and_order(folder: Path) -> None:
    transform = train_transform(AUGMENT)
    sets = [dataset(folder, transform=transform, seed=seed) for seed in (1, 1, 2)]
    draws = [[one[epoch, 0][0].flatten().tolist() for epoch in range(3)] for one in sets]
    assert draws[0] == draws[1] != draws[2]
    orders = [list(EpochSampler(40, 4, seed=seed, epoch=0)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_pictures_are_read_once_into_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(folder, cache=True)
    first = [data[i][0].clone() for i in range(3)]
    monkeypatch.setattr("ddetr_lite.datasets.coco.read_picture", None)  # calling it fails
    assert all(torch.equal(data[i][0], first[i]) for i in range(3))


@pytest.mark.parametrize("place", ["cache", "memory", "disk"])
def test_a_part_of_a_set_finds_its_own_pictures_among_those_that_are_kept(folder: Path, place: str) -> None:
    whole = dataset(folder, cache=place == "cache")
    if place != "cache":
        files = [whole.file_of(i) for i in range(3)]
        whole.pictures = PictureCache(files, lambda size: size, folder / ".cache" if place == "disk" else None)
    of_id = {int(target["image_id"]): image for image, target in (whole[i] for i in range(3))}
    for part in (whole.with_objects(2), whole.first(2), whole.with_objects(2).first(1)):
        for image, target in (part[i] for i in range(len(part))):
            assert torch.equal(image, of_id[int(target["image_id"])])
    assert [image["id"] for image in whole.with_objects(2).images] == [42, 1000], "the second has no object"
