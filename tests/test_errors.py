"""The kinds of error: one hand-made case of each, pycocotools as a second opinion, and what holds for any detections."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from ddetr_lite.datasets.coco import CocoDetection, CocoFolder
from ddetr_lite.engine.errors import (
    ERRORS,
    KINDS,
    SetErrors,
    best_threshold,
    detections_from_results,
    find_errors,
)

Found = tuple[float, float, float, float, float, int]
"""x0, y0, x1, y1, score, label."""

STAR, RING = 0, 1
BOX = (10, 10, 50, 50)


def dataset(folder: Path, annotations: list[dict[str, Any]], pictures: int = 1) -> CocoDetection:
    """Pictures of 100 × 100 with ids 1, 2, ..., of which no pixel exists."""
    content = {
        "images": [{"id": i + 1, "file_name": f"{i}.png", "height": 100, "width": 100} for i in range(pictures)],
        "categories": [{"id": 5, "name": "star"}, {"id": 9, "name": "ring"}],
        "annotations": [{"id": i + 1, "image_id": 1, "iscrowd": 0, **a} for i, a in enumerate(annotations)],
    }
    (folder / "val.json").write_text(json.dumps(content), encoding="utf-8")
    return CocoDetection(CocoFolder(folder / "val.json", folder))


def an_object(x0: float, y0: float, x1: float, y1: float, label: int = STAR, **more: Any) -> dict[str, Any]:
    return {"category_id": (5, 9)[label], "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), **more}


def detections(*found: Found) -> dict[str, Tensor]:
    table = torch.tensor(found, dtype=torch.float32).reshape(-1, 6)
    return {"boxes": table[:, :4], "scores": table[:, 4], "labels": table[:, 5].long()}


@pytest.mark.parametrize(
    ("found", "kinds", "missed"),
    [
        # IoU with BOX: (10, 10, 50, 30) half of it, 0.5; (10, 10, 50, 29) less; (46, 10, 86, 50) 4/76, below 0.1.
        ([(*BOX, 0.9, STAR)], ["correct"], 0),
        ([(10, 10, 50, 30, 0.9, STAR)], ["correct"], 0),
        ([(10, 10, 50, 29, 0.9, STAR)], ["place"], 0),
        ([(*BOX, 0.9, RING)], ["class"], 0),
        ([(10, 10, 50, 29, 0.9, RING)], ["both"], 1),
        ([(46, 10, 86, 50, 0.9, STAR)], ["background"], 1),
        ([(70, 70, 90, 90, 0.9, RING)], ["background"], 1),
        ([(*BOX, 0.9, STAR), (11, 10, 50, 50, 0.8, STAR)], ["correct", "duplicate"], 0),
        # The surer one has the object, although the other fits better; and the order given does not matter.
        ([(*BOX, 0.8, STAR), (11, 10, 50, 50, 0.9, STAR)], ["correct", "duplicate"], 0),
        # A wrong class takes nothing away from the right one.
        ([(*BOX, 0.9, RING), (*BOX, 0.8, STAR)], ["class", "correct"], 0),
        ([], [], 1),
    ],
)
def test_each_kind(tmp_path: Path, found: list[Found], kinds: list[str], missed: int) -> None:
    (picture,) = find_errors({1: detections(*found)}, dataset(tmp_path, [an_object(*BOX)])).pictures
    assert picture.kinds == kinds
    assert len(picture.missed) == missed
    assert picture.scores.tolist() == sorted(picture.scores.tolist(), reverse=True)
    assert picture.counts == {kind: [*kinds, *["missed"] * missed].count(kind) for kind in KINDS}


def test_of_two_definitions_the_authors_first_one_counts(tmp_path: Path) -> None:
    """On a star that another detection has, and just as much on a ring: "class" comes before "duplicate"."""
    data = dataset(tmp_path, [an_object(*BOX), an_object(*BOX, label=RING)])
    (picture,) = find_errors({1: detections((*BOX, 0.9, STAR), (*BOX, 0.8, STAR))}, data).pictures
    assert picture.kinds == ["correct", "class"]
    assert picture.missed == []  # the ring would be found, were the second one's class put right


def test_the_best_object_is_taken_and_the_next_one_is_left(tmp_path: Path) -> None:
    data = dataset(tmp_path, [an_object(10, 10, 50, 44), an_object(*BOX)])
    (picture,) = find_errors({1: detections((*BOX, 0.9, STAR), (*BOX, 0.8, STAR))}, data).pictures
    assert picture.kinds == ["correct", "correct"]
    (picture,) = find_errors({1: detections((*BOX, 0.9, STAR))}, data).pictures
    assert picture.missed == [0]


def test_crowds_and_foreign_classes_are_not_judged(tmp_path: Path) -> None:
    data = dataset(tmp_path, [an_object(*BOX), an_object(50, 50, 100, 100, iscrowd=1)])
    inside, half_out, other = (60, 60, 70, 70), (42, 60, 52, 70), (60, 80, 70, 90)
    found = [(*inside, 0.9, STAR), (*inside, 0.8, STAR), (*half_out, 0.7, STAR), (*other, 0.6, RING), (*BOX, 0.5, 7)]
    (picture,) = find_errors({1: detections(*found)}, data).pictures
    assert picture.kinds == ["ignored", "ignored", "background", "background", "ignored"]
    assert len(picture.true_boxes) == 1  # a crowd is no object that could be missed


def test_threshold_totals_and_the_worst_pictures(tmp_path: Path) -> None:
    data = dataset(tmp_path, [an_object(*BOX), an_object(*BOX, label=RING, image_id=2)], pictures=3)
    found = {1: detections((*BOX, 0.9, RING), (*BOX, 0.3, STAR)), 3: detections((*BOX, 0.5, STAR))}
    errors = find_errors(found, data)
    assert [p.image_id for p in errors.pictures] == [1, 2, 3]
    assert errors.counts == dict.fromkeys(KINDS, 0) | {"correct": 1, "class": 1, "background": 1, "missed": 1}
    assert [p.badness for p in errors.pictures] == pytest.approx([0.9, 1.0, 0.5])
    assert [p.image_id for p in errors.worst(2)] == [2, 1]
    surer = find_errors(found, data, threshold=0.5)  # 0.5 itself stays
    assert surer.counts == dict.fromkeys(KINDS, 0) | {"class": 1, "background": 1, "missed": 1}
    assert [p.image_id for p in find_errors({1: detections((*BOX, 0.9, STAR))}, data).worst(9)] == [2]


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    data = dataset(tmp_path, [an_object(*BOX)])
    with pytest.raises(ValueError, match=r"val\.json has no image id 7"):
        find_errors({7: detections((*BOX, 0.9, STAR))}, data)
    with pytest.raises(ValueError, match="no category id 3"):
        detections_from_results([{"image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1], "score": 0.5}], data)


def random_case(folder: Path, seed: int, pictures: int = 12) -> tuple[CocoDetection, dict[int, dict[str, Tensor]]]:
    """Objects, some of them crowds, and detections that are moved objects, some of another class."""
    random = np.random.default_rng(seed)
    annotations, found = [], {}
    for image_id in range(1, pictures + 1):
        corners = random.uniform(0, 60, (random.integers(0, 6), 2))
        boxes = np.concatenate((corners, corners + random.uniform(10, 40, corners.shape)), axis=1)
        labels = random.integers(0, 2, len(boxes))
        for (x0, y0, x1, y1), label in zip(boxes.tolist(), labels.tolist()):
            crowd = int(random.random() < 0.2)
            annotations.append(an_object(x0, y0, x1, y1, label, image_id=image_id, iscrowd=crowd))
        moved = np.repeat(boxes, 3, axis=0) + random.normal(0, 4, (3 * len(boxes), 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        kept = np.where(random.random(3 * len(boxes)) < 0.8, labels.repeat(3), 1 - labels.repeat(3))
        table = [(*box, score, label) for box, score, label in zip(moved, random.random(len(moved)), kept)]
        found[image_id] = detections(*table)
    return dataset(folder, annotations, pictures), found


def results_of(found: dict[int, dict[str, Tensor]]) -> list[dict[str, Any]]:
    return [
        {"image_id": i, "category_id": (5, 9)[label], "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score}
        for i, d in found.items()
        for (x0, y0, x1, y1), score, label in zip(d["boxes"].tolist(), d["scores"].tolist(), d["labels"].tolist())
    ]


def test_correct_and_ignored_are_what_pycocotools_says(tmp_path: Path) -> None:
    data, found = random_case(tmp_path, seed=3, pictures=40)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(data.folder.annotations))
        evaluation = COCOeval(truth, truth.loadRes(results_of(found)), "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
    theirs: dict[int, list[tuple[Any, str]]] = {i: [] for i in found}
    for entry in filter(None, evaluation.evalImgs):
        matched, ignored = entry["dtMatches"][0] > 0, entry["dtIgnore"][0]  # at IoU 0.5
        for score, is_matched, is_ignored in zip(entry["dtScores"], matched, ignored):
            kind = "ignored" if is_ignored else "correct" if is_matched else "wrong"
            theirs[entry["image_id"]].append((score, kind))
    counted = dict.fromkeys(("correct", "ignored", "wrong"), 0)
    for picture in find_errors(detections_from_results(results_of(found), data), data).pictures:
        ours = [(s, "wrong" if k in ERRORS else k) for s, k in zip(picture.scores.tolist(), picture.kinds)]
        assert ours == sorted(theirs[picture.image_id], reverse=True)
        for _, kind in ours:
            counted[kind] += 1
    assert min(counted.values()) > 5  # no kind is missing from the comparison


@given(seed=st.integers(0, 10**6))
def test_every_detection_has_one_kind_and_truth_has_no_error(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data, found = random_case(tmp_path_factory.mktemp("data"), seed, pictures=3)
    errors = find_errors(found, data)
    for picture in errors.pictures:
        assert len(picture.kinds) == len(found[picture.image_id]["scores"])
        assert set(picture.kinds) <= {"correct", "ignored", *ERRORS}
        assert picture.kinds.count("correct") + len(picture.missed) <= len(picture.true_boxes)
    perfect = {
        p.image_id: {"boxes": p.true_boxes, "scores": torch.ones(len(p.true_boxes)), "labels": p.true_labels}
        for p in errors.pictures
    }
    without = find_errors(perfect, data)
    assert {kind for kind, count in without.counts.items() if count} <= {"correct"}
    assert without.worst(10) == []


def f1(errors: SetErrors) -> float:
    counts = errors.counts
    found = sum(counts[kind] for kind in ("correct", *ERRORS))
    objects = sum(len(picture.true_labels) for picture in errors.pictures)
    return 2 * counts["correct"] / max(found + objects, 1)


def test_the_best_threshold_has_the_highest_f1(tmp_path: Path) -> None:
    data, found = random_case(tmp_path, seed=1)
    for d in found.values():  # equal scores, which no threshold tells apart
        d["scores"] = d["scores"].mul(20).round().div(20)
    best = best_threshold(find_errors(found, data))
    every = {s: f1(find_errors(found, data, s)) for d in found.values() for s in d["scores"].tolist()}
    assert every[best] == max(every.values()) > min(every.values())
    assert best_threshold(find_errors({}, data)) == 0.0


def test_a_threshold_cannot_take_the_best_of_equal_scores(tmp_path: Path) -> None:
    """At 0.5 the second object is found, with five errors of the same score: taking them all is worse than taking none."""
    data = dataset(tmp_path, [an_object(*BOX), an_object(60, 60, 90, 90)])
    wrong = [(0.0, float(y), 5.0, y + 5.0, 0.5, STAR) for y in range(50, 100, 10)]
    found = detections((*BOX, 0.75, STAR), (60, 60, 90, 90, 0.5, STAR), *wrong)
    assert best_threshold(find_errors({1: found}, data)) == 0.75
