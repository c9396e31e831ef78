"""What is wrong with a detector's detections: the kinds of error of TIDE (Bolya et al. 2020, section 2.2).

Every detection is of one kind. With IoU thresholds foreground = 0.5 and background = 0.1, a detection is

    correct     the best unmatched object of its class has IoU ≥ 0.5; detections choose in the order of their scores
    place       it overlaps an object of its class, 0.1 ≤ IoU < 0.5: right class, wrong place
    class       it covers an object of another class, IoU ≥ 0.5: right place, wrong class
    duplicate   it covers an object of its class, IoU ≥ 0.5, which a surer detection has already
    background  it overlaps no object, IoU ≤ 0.1
    both        what is left: it overlaps an object of another class, 0.1 < IoU < 0.5: wrong class and wrong place
    ignored     it lies in a crowd of its class, or is of a class that the data set does not have: COCO judges neither

Where several hold, the first counts (crowds come right after "correct"), as in the authors' code. An object is missed when
no detection is correct for it, and none of kind "place" or "class" would be once that were put right.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.ops import box_convert

from ddetr_lite.datasets.coco import CocoDetection
from ddetr_lite.datasets.fields import is_crowd
from ddetr_lite.set_prediction.boxes import box_iou
from ddetr_lite.set_prediction.postprocess import Detections

ERRORS = ("class", "place", "both", "duplicate", "background")
"""The kinds of wrong detections."""
KINDS = ("correct", *ERRORS, "missed")
"""What is counted: the kinds of judged detections, and missed objects."""

FOREGROUND, BACKGROUND = 0.5, 0.1  # IoU, as above


@dataclass(frozen=True)
class PictureErrors:
    """The detections of one picture, highest score first, and its objects (crowds left out)."""

    image_id: int
    boxes: Tensor
    """(n, 4), corners in pixels of the original picture."""
    scores: Tensor
    labels: Tensor
    kinds: list[str]
    """One for each detection: "correct", one of `ERRORS`, or "ignored"."""
    true_boxes: Tensor
    """(T, 4), corners in pixels."""
    true_labels: Tensor
    missed: list[int]
    """Which of the T objects no detection found."""

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of each of `KINDS`."""
        return {kind: self.kinds.count(kind) for kind in KINDS} | {"missed": len(self.missed)}

    @property
    def badness(self) -> float:
        """A number to sort pictures by: the wrong detections' scores, since being sure and wrong is worse, and 1 for each
        missed object.
        """
        wrong = (score for score, kind in zip(self.scores.tolist(), self.kinds, strict=True) if kind in ERRORS)
        return sum(wrong) + len(self.missed)


@dataclass(frozen=True)
class SetErrors:
    """The errors of a whole data set, in its order of pictures."""

    pictures: list[PictureErrors]
    threshold: float
    """Detections that score less were left out."""

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of each of `KINDS` in all pictures."""
        counts = [picture.counts for picture in self.pictures]
        return {kind: sum(c[kind] for c in counts) for kind in KINDS}

    @property
    def judged(self) -> list[tuple[float, bool]]:
        """(score, whether it is correct) of each detection that COCO judges."""
        return [
            (score, kind == "correct")
            for picture in self.pictures
            for score, kind in zip(picture.scores.tolist(), picture.kinds, strict=True)
            if kind != "ignored"
        ]

    def worst(self, count: int) -> list[PictureErrors]:
        """The pictures with the highest badness, worst first; those without any error are not among them."""
        bad = [picture for picture in self.pictures if picture.badness > 0]
        return sorted(bad, key=lambda picture: -picture.badness)[:count]


def find_errors(
    detections: Mapping[int, Detections],
    dataset: CocoDetection,
    threshold: float = 0.0,
) -> SetErrors:
    """The kind of every detection, {image id: boxes in pixels, scores, labels} as `engine.evaluate.detect` yields them.

    threshold: detections that score less are left out before anything else. A picture that `detections` does not name has
    none. Raises ValueError for an image id that the data set does not have.
    """
    check_pictures(detections, dataset)
    none = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    pictures = [
        _of_picture(detections.get(image["id"], none), dataset, index, threshold)
        for index, image in enumerate(dataset.images)
    ]
    return SetErrors(pictures, threshold)


def check_pictures(detections: Mapping[int, Detections], dataset: CocoDetection) -> None:
    """Raise ValueError for an image id that the data set does not have."""
    unknown = set(detections) - {image["id"] for image in dataset.images}
    if unknown:
        raise ValueError(
            f"{dataset.folder.annotations} has no image id {min(unknown)}: these detections are of other data"
        )


def best_threshold(errors: SetErrors) -> float:
    """The score at which F1, the harmonic mean of precision and recall at IoU 0.5, is highest; 0 without a correct one.

    errors: of all detections (threshold 0). Since surer detections choose first, leaving out those that score less changes
    nothing for the others, so one look gives F1 at every threshold.
    """
    objects = sum(len(picture.true_labels) for picture in errors.pictures)
    judged = errors.judged
    if not any(correct for _, correct in judged):
        return 0.0
    scores, correct = (np.array(column) for column in zip(*sorted(judged, reverse=True), strict=True))
    f1 = 2 * correct.cumsum() / (np.arange(1, len(correct) + 1) + objects)  # 2·TP / (detections + objects)
    f1[:-1][scores[1:] == scores[:-1]] = -1  # a threshold cannot tell equal scores apart
    return float(scores[f1.argmax()])


def threshold_of(detections: Mapping[int, Detections], dataset: CocoDetection, most: int = 500) -> float | None:
    """`best_threshold` of a detector on the first `most` pictures of a data set; None where nothing is correct.

    most: so many tell it well enough, and each takes some milliseconds.
    """
    part = dataset.first(most)
    ids = {image["id"] for image in part.images}
    return best_threshold(find_errors({i: found for i, found in detections.items() if i in ids}, part)) or None


def detections_from_results(results: list[dict[str, Any]], dataset: CocoDetection) -> dict[int, Detections]:
    """COCO's results ("image_id", "category_id", "bbox" [x, y, width, height], "score") as {image id: detections}.

    Raises ValueError for a category id that the data set does not have.
    """
    grouped: dict[int, list[tuple[list[float], float, int]]] = {}
    for result in results:
        label = dataset.label_of_category.get(result["category_id"])
        if label is None:
            raise ValueError(f"{dataset.folder.annotations} has no category id {result['category_id']}")
        x, y, width, height = result["bbox"]
        found = ([x, y, x + width, y + height], result["score"], label)
        grouped.setdefault(result["image_id"], []).append(found)
    return {
        image_id: {"boxes": torch.tensor(boxes), "scores": torch.tensor(scores), "labels": torch.tensor(labels)}
        for image_id, (boxes, scores, labels) in ((i, zip(*found, strict=True)) for i, found in grouped.items())
    }


def _of_picture(found: Detections, dataset: CocoDetection, index: int, threshold: float) -> PictureErrors:
    keep = found["scores"] >= threshold
    order = found["scores"][keep].sort(descending=True, stable=True).indices
    boxes, scores, labels = (found[name][keep][order].cpu() for name in ("boxes", "scores", "labels"))
    true_boxes, true_labels = dataset.truth(index)
    ignored = _ignored(boxes, labels, dataset, index)

    iou = box_iou(boxes.double()[:, None], true_boxes.double()).numpy()  # (n, T)
    same = (labels[:, None] == true_labels).numpy()
    in_class, in_other = (np.where(fits, iou, 0.0) for fits in (same, ~same))
    owner = _match(in_class)
    taken = set(owner.values())
    kinds: list[str] = []
    nearly: set[int] = set()  # objects that a detection would find if its class or its place were put right
    for i in range(len(boxes)):
        if i in owner:
            kinds.append("correct")
        elif ignored[i]:
            kinds.append("ignored")
        elif not len(true_labels):
            kinds.append("background")
        elif BACKGROUND <= in_class[i].max() < FOREGROUND:
            kinds.append("place")
            nearly.add(int(in_class[i].argmax()))
        elif in_other[i].max() >= FOREGROUND:
            kinds.append("class")
            nearly.add(int(in_other[i].argmax()))
        elif in_class[i].max() >= FOREGROUND:
            kinds.append("duplicate")
        else:
            kinds.append("background" if iou[i].max() <= BACKGROUND else "both")
    missed = [t for t in range(len(true_labels)) if t not in taken and t not in nearly]
    image_id = int(dataset.images[index]["id"])
    return PictureErrors(image_id, boxes, scores, labels, kinds, true_boxes, true_labels, missed)


def _match(in_class: np.ndarray) -> dict[int, int]:
    """Detection → object: the surest detection chooses first, and takes the best object that is left."""
    left, owner = in_class.copy(), {}
    for i in np.flatnonzero((in_class >= FOREGROUND).any(1)):
        best = int(left[i].argmax())
        if left[i, best] >= FOREGROUND:
            owner[int(i)] = best
            left[:, best] = 0
    return owner


def _ignored(boxes: Tensor, labels: Tensor, dataset: CocoDetection, index: int) -> list[bool]:
    """Which detections are not judged. In a crowd counts how much of the *detection* lies in it, as pycocotools does it."""
    known = torch.tensor(sorted(dataset.label_of_category.values()))
    ignored = ~torch.isin(labels, known)
    crowds = [a for a in dataset.annotations[index] if is_crowd(a)]
    if crowds and len(boxes):
        found = box_convert(boxes, "xyxy", "xywh").double().numpy()
        regions = np.array([a["bbox"] for a in crowds], dtype=np.float64)
        inside = torch.from_numpy(coco_mask.iou(found, regions, [1] * len(crowds)))  # (n, crowds)
        of_crowd = torch.tensor([dataset.label_of_category[a["category_id"]] for a in crowds])
        ignored |= ((inside >= FOREGROUND) & (labels[:, None] == of_crowd)).any(1)
    return list(ignored.tolist())
