"""The generated set: pinned pixels, honest boxes, and a folder that is whole or not there."""

import hashlib
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from ddetr_lite.datasets import shapes
from ddetr_lite.datasets.shapes import (
    ALL_KINDS,
    HARD,
    KINDS,
    MIN_VISIBLE,
    ShapesConfig,
    fingerprint,
    render_picture,
    write_shapes,
)
from ddetr_lite.datasets.shapes_outlines import FULL_COVER, SILHOUETTES, clip_polygon, coverage, place

CONFIG = ShapesConfig()
SMALL = ShapesConfig(size=48, train_images=6, val_images=3, min_size=0.2)
Picture = tuple[NDArray[np.uint8], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return [render_picture(CONFIG, "train", index) for index in range(250)]


@pytest.fixture(scope="module")
def hard_pictures() -> list[Picture]:
    return [render_picture(HARD, "val", index) for index in range(50)]


def digest(pictures: list[Picture]) -> str:
    total = hashlib.sha256()
    for pixels, annotations in pictures:
        total.update(pixels.tobytes())
        total.update(json.dumps(annotations).encode())
    return total.hexdigest()[:16]


def silhouette(annotation: dict[str, Any], size: int, zoom: int = 8) -> NDArray[np.bool_]:
    """The annotation's polygon, drawn by Pillow at `zoom` times the size: (zoom * size, zoom * size)."""
    image = Image.new("1", (size * zoom, size * zoom))
    (flat,) = annotation["segmentation"]
    corners = [(x * zoom - 0.5, y * zoom - 0.5) for x, y in zip(flat[::2], flat[1::2], strict=True)]
    ImageDraw.Draw(image).polygon(corners, fill=1)
    return np.array(image)


def test_pictures_are_pinned() -> None:
    """Published results rest on these bytes: raise `VERSION` rather than change a digest."""
    few = [render_picture(CONFIG, split, index) for split in ("train", "val") for index in range(12)]
    assert digest(few) == "cda0dbd63d35cc69"
    other = ShapesConfig(size=64, max_objects=3, classes=("circle", "square", "triangle"), seed=7)
    assert digest([render_picture(other, "train", index) for index in range(6)]) == "6fbd0b1fe5e417af"
    large = ShapesConfig(size=256, max_objects=12)
    assert digest([render_picture(large, "val", index) for index in range(2)]) == "d3bf12934d5f0c6a"


def test_sets_are_pinned(hard_pictures: list[Picture]) -> None:
    """More silhouettes and other sets leave the default one alone: folders of it are known by this fingerprint."""
    assert KINDS == ("circle", "square", "triangle", "star", "ring", "cross", "heart", "crescent")
    assert fingerprint(CONFIG) == "6c5172faa08de954"
    assert fingerprint(HARD) == "261846aa7ef93665"
    assert digest(hard_pictures[:3]) == "12c04a8a305ac9c4"


def test_a_picture_depends_on_seed_split_and_index_alone(pictures: list[Picture]) -> None:
    shorter = replace(CONFIG, train_images=10, val_images=1)
    assert digest([render_picture(shorter, "train", 3)]) == digest(pictures[3:4])
    assert digest([render_picture(CONFIG, "val", 3)]) != digest(pictures[3:4])
    assert digest([render_picture(replace(CONFIG, seed=1), "train", 3)]) != digest(pictures[3:4])
    assert len({digest([picture]) for picture in pictures}) == len(pictures)


def test_pixels_and_fields(pictures: list[Picture]) -> None:
    seen = []
    for index, (pixels, annotations) in enumerate(pictures):
        assert pixels.shape == (96, 96, 3)
        assert pixels.dtype == np.uint8
        assert 1 <= len(annotations) <= 5
        for annotation in annotations:
            assert annotation["image_id"] == index
            assert annotation["iscrowd"] == 0
            assert 1 <= annotation["category_id"] <= len(KINDS)
            seen.append(annotation["id"])
    assert 0 not in seen
    assert len(set(seen)) == len(seen)


def test_boxes_are_the_silhouettes_and_stay_in_the_picture(pictures: list[Picture]) -> None:
    zoom = 8
    for _, annotations in pictures[:60]:
        for annotation in annotations:
            x, y, width, height = annotation["bbox"]
            assert x >= 0
            assert y >= 0
            assert x + width <= 96 + 1e-6
            assert y + height <= 96 + 1e-6
            ys, xs = np.nonzero(silhouette(annotation, 96, zoom))
            drawn = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / zoom
            # Sharp tips are thinner than a sample near their end.
            np.testing.assert_allclose(drawn, [x, y, x + width, y + height], atol=0.5)


def test_what_is_painted_lies_where_the_polygon_says() -> None:
    """The colours inside the silhouette differ from those outside it, within the same box."""
    config = ShapesConfig(max_objects=1, min_size=0.3)
    differences = []
    for index in range(60):
        pixels, (annotation,) = render_picture(config, "train", index)
        x, y, width, height = annotation["bbox"]
        box = np.zeros((96, 96), dtype=bool)
        box[int(y) : int(np.ceil(y + height)), int(x) : int(np.ceil(x + width))] = True
        mask = silhouette(annotation, 96, 1)
        beside = box & ~mask
        if beside.sum() > 50:
            levels = pixels.astype(np.int64)
            differences.append(np.abs(levels[mask].mean(axis=0) - levels[beside].mean(axis=0)).sum())
    assert len(differences) > 40
    assert np.median(differences) > 100


def test_area_counts_visible_pixels_in_painting_order(pictures: list[Picture]) -> None:
    hidden = 0
    for _, annotations in pictures[:80]:
        owner = np.full((96, 96), -1)
        for order, annotation in enumerate(annotations):
            fine = silhouette(annotation, 96).reshape(96, 8, 96, 8).mean(axis=(1, 3))
            owner[fine >= 0.5] = order
        for order, annotation in enumerate(annotations):
            assert annotation["area"] == pytest.approx((owner == order).sum(), rel=0.1, abs=8)
            assert annotation["visible_fraction"] >= MIN_VISIBLE
            hidden += annotation["visible_fraction"] < 0.9
    assert hidden > 20  # occlusion and the border are really there


def test_classes_are_even_and_sizes_span_the_range(pictures: list[Picture]) -> None:
    everything = [annotation for _, annotations in pictures for annotation in annotations]
    counts = np.bincount([annotation["category_id"] for annotation in everything])[1:]
    expected = len(everything) / len(KINDS)
    assert len(counts) == len(KINDS)
    assert np.abs(counts - expected).max() < 4 * np.sqrt(expected)
    longest = np.array([max(annotation["bbox"][2:]) for annotation in everything]) / 96
    assert longest.min() < 0.13
    assert longest.max() > 0.55
    assert longest.max() <= 0.6 + 1e-3
    assert np.histogram(longest, bins=5, range=(0.1, 0.6))[0].min() > 0.06 * len(longest)


def test_the_hard_form_has_crowds_small_objects_and_all_classes(hard_pictures: list[Picture]) -> None:
    everything = [annotation for _, annotations in hard_pictures for annotation in annotations]
    assert hard_pictures[0][0].shape == (256, 256, 3)
    assert {annotation["category_id"] for annotation in everything} == set(range(1, 17))
    assert len({annotation["id"] for annotation in everything}) == len(everything)
    counts = [len(annotations) for _, annotations in hard_pictures]
    assert max(counts) == 12
    assert 5 < np.mean(counts) < 8
    longest = np.array([max(annotation["bbox"][2:]) for annotation in everything]) / 256
    assert longest.min() < 0.08
    assert 0.45 < longest.max() <= 0.5 + 1e-3
    # Crowds do not press the sizes down: as many objects are in the lower half of the range as in the upper, roughly.
    assert 0.4 < np.mean(longest < 0.28) < 0.65
    for _, annotations in hard_pictures[:4]:
        for annotation in annotations:
            x, y, width, height = annotation["bbox"]
            ys, xs = np.nonzero(silhouette(annotation, 256, 4))
            drawn = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / 4
            np.testing.assert_allclose(drawn, [x, y, x + width, y + height], atol=1.5)


def test_silhouettes_differ_in_any_rotation_and_aspect() -> None:
    """The IoU of any two, centred and of equal area, turned, stretched and mirrored to be as alike as can be."""

    def drawn(points: NDArray[np.float64], side: int) -> NDArray[np.bool_]:
        image = Image.new("1", (side, side))
        ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in points], fill=1)
        return np.array(image)

    def mask(kind: str, aspect: float, degrees: int) -> NDArray[np.bool_]:
        cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        points = (SILHOUETTES[kind] * [aspect, 1.0]) @ np.array([[cosine, sine], [-sine, cosine]]) * 60
        rows, columns = np.nonzero(drawn(points + 120, 240))
        centre = np.array([columns.mean(), rows.mean()]) - 120
        return drawn((points - centre) * (19 / np.sqrt(len(rows))) + 32, 64)

    aspects = (0.78, 1.0, 1.28)
    upright = {kind: [mask(kind, aspect, 0) for aspect in aspects] for kind in ALL_KINDS}
    turned = {kind: [mask(kind, aspect, d) for aspect in aspects for d in range(0, 360, 15)] for kind in ALL_KINDS}
    likeness = {}
    for first, second in itertools.combinations(ALL_KINDS, 2):
        ours = np.array([way for plain in upright[first] for way in (plain, plain[:, ::-1])], dtype=np.float32)
        ours, theirs = ours.reshape(len(ours), -1), np.array(turned[second], dtype=np.float32).reshape(72, -1)
        both = ours @ theirs.T
        likeness[first, second] = float((both / (ours.sum(axis=1)[:, None] + theirs.sum(axis=1) - both)).max())
    assert max(likeness.values()) < 0.88  # circle and square, the most alike
    assert max(value for (_, second), value in likeness.items() if second not in KINDS) < 0.78


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_coverage_equals_the_polygons_area(kind: str) -> None:
    points = place(kind, 1.1, (0.8, 0.6), 40.0) + np.array([3.3, -4.7])
    x, y = points.T
    area = abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))) / 2
    window, counts = coverage(points)
    assert counts.sum() / FULL_COVER == pytest.approx(area, rel=0.01)
    assert counts.max() <= FULL_COVER
    assert counts.shape == (window[3] - window[1], window[2] - window[0])
    assert max(np.ptp(x), np.ptp(y)) == pytest.approx(40)
    inside = clip_polygon(points, 96)
    assert inside.min() == 0
    assert coverage(inside)[1].sum() == counts[-window[1] :].sum()


def test_other_settings() -> None:
    none = ShapesConfig(min_objects=0, max_objects=1)
    assert {len(render_picture(none, "train", index)[1]) for index in range(12)} == {0, 1}
    crowd = ShapesConfig(size=256, min_objects=12, max_objects=12)
    pixels, annotations = render_picture(crowd, "train", 0)
    assert pixels.shape == (256, 256, 3)
    assert len(annotations) == 12
    with pytest.raises(ValueError, match="split is 'test'"):
        render_picture(CONFIG, "test", 0)
    with pytest.raises(ValueError, match="index is -1"):
        render_picture(CONFIG, "train", -1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("size", 16), ("size", 96.0), ("train_images", 0), ("val_images", True), ("min_objects", -1)],
        *[
            ("max_objects", 0),
            ("max_objects", 51),
            ("min_size", 0.01),
            ("min_size", "0.1"),
            ("max_size", 0.05),
        ],
        *[
            ("max_size", 1.0),
            ("max_size", float("nan")),
            ("seed", -1),
            ("classes", ()),
            ("classes", "circle"),
        ],
        *[("classes", ("circle", "circle")), ("classes", ("cirle",))],
    ],
)
def test_a_bad_value_names_its_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"ShapesConfig\.{field}\b.*: .+"):
        replace(CONFIG, **{field: value})  # type: ignore[arg-type]


def test_a_misspelt_class_gets_a_suggestion_and_a_crowd_a_remedy() -> None:
    with pytest.raises(ValueError, match="did you mean 'circle'"):
        ShapesConfig(classes=("cirle",))
    with pytest.raises(ValueError, match=r"did you mean 'hourglass'.*circle.*crescent.*hourglass"):
        ShapesConfig(classes=("hourglas",))
    with pytest.raises(ValueError, match=r"min_objects is 20.*at most 9,"):
        ShapesConfig(min_objects=20, max_objects=20, min_size=0.2)


def test_written_set_is_coco(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_shapes(tmp_path / "sets" / "shapes", SMALL, progress=False)
    assert [p.name for p in folder.parent.iterdir()] == ["shapes"]
    for split, count in (("train", 6), ("val", 3)):
        coco = COCO(str(folder / "annotations" / f"instances_{split}.json"))
        assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(KINDS)
        assert len(coco.getImgIds()) == count
        for image in coco.loadImgs(coco.getImgIds()):
            pixels, annotations = render_picture(SMALL, split, image["id"])
            with Image.open(folder / split / image["file_name"]) as saved:
                np.testing.assert_array_equal(np.array(saved), pixels)
            assert coco.loadAnns(coco.getAnnIds(image["id"])) == annotations
            for annotation in annotations:
                assert coco.annToMask(annotation).any()


def test_same_config_returns_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shapes(tmp_path / "set", SMALL, progress=False)
    monkeypatch.setattr(shapes, "render_picture", None)
    assert write_shapes(tmp_path / "set", SMALL) == tmp_path / "set"


def test_several_processes_write_the_same_files(tmp_path: Path) -> None:
    one, two = (write_shapes(tmp_path / str(n), SMALL, progress=False, processes=n) for n in (1, 2))
    files = [path.relative_to(one) for path in sorted(one.rglob("*")) if path.is_file()]
    assert len(files) == SMALL.train_images + SMALL.val_images + 2
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files)


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    assert (write_shapes(tmp_path, SMALL, progress=False) / "val" / "000002.png").is_file()


def test_nothing_foreign_is_touched(tmp_path: Path) -> None:
    folder = write_shapes(tmp_path / "set", SMALL, progress=False)
    with pytest.raises(FileExistsError, match=r"set holds another set .*another folder"):
        write_shapes(folder, replace(SMALL, seed=1), progress=False)
    (folder / "train" / "000004.png").unlink()
    with pytest.raises(FileExistsError, match=r"lacks 1 pictures of train, 000004\.png first"):
        write_shapes(folder, SMALL, progress=False)
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match=r"other holds other files.*another folder"):
        write_shapes(other, SMALL, progress=False)
    with pytest.raises(NotADirectoryError, match=r"letter\.txt is a file"):
        write_shapes(other / "letter.txt", SMALL, progress=False)
    assert (other / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_run_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def stop_at_four(config: ShapesConfig, split: str, index: int) -> Picture:
        if index == 4:
            raise error
        return render_picture(config, split, index)

    monkeypatch.setattr(shapes, "render_picture", stop_at_four)
    with pytest.raises(error):
        write_shapes(tmp_path / "set", SMALL, progress=False)
    assert list(tmp_path.iterdir()) == []
