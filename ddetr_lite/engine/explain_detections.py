"""What a run's detections say about a low AP: scores that never moved, class ids out of order, kinds of error."""

import copy
from collections import Counter

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ddetr_lite.datasets.coco import CocoDetection
from ddetr_lite.engine.errors import best_threshold, find_errors
from ddetr_lite.engine.evaluate import ap_of
from ddetr_lite.engine.explain_evidence import Evidence, Observation, Verdict
from ddetr_lite.set_prediction.boxes import box_iou
from ddetr_lite.set_prediction.postprocess import Detections

NEVER_SURE = 0.1  # a highest score below this: the class head says what it said at the beginning
COVERED = 0.5  # IoU from which a box covers an object
FEWEST = 8  # covered objects below which nothing is said about classes
GAIN = 0.25  # by how much another numbering of classes must be right more often


def pairs(found: dict[int, Detections], dataset: CocoDetection) -> list[tuple[Detections, Tensor, Tensor]]:
    """(detections, true corners, true labels) of every picture that has any detection and object."""
    result = []
    for index, image in enumerate(dataset.images):
        boxes, labels = dataset.truth(index)
        own = found.get(image["id"])
        if own is not None and len(own["scores"]) and len(boxes):
            result.append((own, boxes, labels))
    return result


def check_scores(evidence: Evidence) -> Observation:
    """How sure the model is, and whether it may be: scores against how often they are right."""
    name, found, data = "scores", evidence.found, evidence.judged
    if not found or data is None:
        return Observation(name, "skipped", "there are no detections to look at")
    tops = torch.tensor([float(d["scores"].max()) if len(d["scores"]) else 0.0 for d in found.values()])
    bins = torch.histc(tops, 5, 0, 1).int().tolist()
    judged = find_errors({i: d for i, d in found.items() if len(d["scores"])}, data).judged
    right = []
    for threshold in (0.3, 0.5, 0.7):
        above = [correct for score, correct in judged if score > threshold]
        right.append(f"{sum(above) / len(above):.0%} of {len(above)}" if above else "none")
    covered, objects = _recall(found, data)
    text = (
        f"{evidence.source}, {len(found)} pictures: best score of a picture in fifths of 0..1: {bins}; right above "
        f"0.3, 0.5, 0.7: {', '.join(right)}; {covered} of {objects} objects are covered by some box"
    )
    if float(tops.max()) < NEVER_SURE:
        text += f"; the highest score of all is {float(tops.max()):.3f}: the class head has not moved"
        sure: Verdict = "suspicious" if evidence.young else "cause"
        remedy = "does the class head get a gradient (frozen, loss weight 0)? Else train longer"
        return Observation(name, sure, text, remedy)
    confident = [correct for score, correct in judged if score > 0.5]
    if len(confident) >= FEWEST and sum(confident) < 0.2 * len(confident):
        return Observation(name, "suspicious", f"{text}: sure and wrong", "see classes, boxes and the data")
    return Observation(name, "OK", text)


def _recall(found: dict[int, Detections], data: CocoDetection) -> tuple[int, int]:
    """How many objects some box covers, whatever its class and score, and how many there are."""
    covered = sum(
        int((box_iou(own["boxes"][:, None], boxes).amax(0) >= COVERED).sum()) for own, boxes, _ in pairs(found, data)
    )
    return covered, sum(len(data.objects(i)) for i in range(len(data)))


def confusion(found: dict[int, Detections], data: CocoDetection) -> np.ndarray:
    """(C, C): how often an object of the row's class is called the column's, by the surest box that covers it."""
    counts = np.zeros((len(data.classes), len(data.classes)), dtype=int)
    for own, boxes, labels in pairs(found, data):
        overlap = box_iou(own["boxes"][:, None], boxes) >= COVERED  # (n, T)
        score = torch.where(overlap, own["scores"][:, None], -1.0)
        for t, best in enumerate(score.argmax(0).tolist()):
            if score[best, t] >= 0:
                counts[int(labels[t]), int(own["labels"][best])] += 1
    return counts


def check_classes(evidence: Evidence) -> Observation:
    """Whether the boxes are right and the classes wrong, and whether another numbering would put them right."""
    name, found, data = "classes", evidence.found, evidence.judged
    if not found or data is None:
        return Observation(name, "skipped", "there are no detections to look at")
    counts = confusion(found, data)
    n, size = int(counts.sum()), len(counts)
    if size < 2 or n < FEWEST:
        return Observation(name, "skipped", f"{size} classes, {n} objects covered by a box: too few to compare")
    as_is = float(np.trace(counts)) / n
    ap, agnostic = ap_of(found, data)["AP50"], _agnostic_ap50(found, data)
    text = f"{n} covered objects, {as_is:.0%} called by their name; AP50 {ap:.2f}, ignoring classes {agnostic:.2f}"
    true, said = linear_sum_assignment(-counts)
    best = float(counts[true, said].sum()) / n
    moved = [(int(t), int(s)) for t, s in zip(true, said, strict=True) if t != s and counts[t, s]]
    if best >= COVERED and best >= as_is + GAIN and (best - as_is) * n > 2 * len(moved):
        shift = next((k for k in (1, -1) if _shifted(counts, k) >= 0.7 * best), 0)
        how = f"with labels moved by {-shift:+d}" if shift else "with another order of classes"
        names = ", ".join(f"{data.classes[t]!r} is called {data.classes[s]!r}" for t, s in moved[:3])
        file = data.folder.annotations.name
        remedy = (
            f"class ids are out of order: compare 'categories' of {file} with training's (ids from 0 or 1, 80 or 91)"
        )
        return Observation(name, "cause", f"{text}, {how} {best:.0%}: {names}", remedy)
    share = counts.sum(0).max() / n
    if as_is < COVERED and share > 0.8 and counts.sum(1).max() / n < 0.6:
        always = data.classes[int(counts.sum(0).argmax())]
        verdict: Verdict = "OK" if evidence.young else "suspicious"
        return Observation(
            name, verdict, f"{text}; {share:.0%} are called {always!r}", "train longer; are classes rare?"
        )
    if as_is < COVERED and agnostic > 2 * max(ap, 0.1):
        return Observation(name, "suspicious", f"{text}: boxes fit, classes do not", "train longer; check the labels")
    return Observation(name, "OK", text)


def _shifted(counts: np.ndarray, by: int) -> float:
    """The share that is right when labels are moved by so many places."""
    return float(np.trace(counts, offset=by)) / counts.sum()


def _agnostic_ap50(found: dict[int, Detections], data: CocoDetection) -> float:
    """AP50 when all classes are one; of equal boxes, which speak for several classes, the surest counts."""
    merged = copy.copy(data)
    merged.classes, merged.categories, merged.label_of_category = ["object"], {1: "object"}, {1: 0}
    merged.annotations = [[{**a, "category_id": 1} for a in own] for own in data.annotations]
    single: dict[int, Detections] = {}
    for image_id, own in found.items():
        surest: dict[tuple[float, ...], int] = {}
        for i in own["scores"].argsort(descending=True).tolist():
            surest.setdefault(tuple(own["boxes"][i].tolist()), i)
        keep = list(surest.values())
        labels = torch.zeros(len(keep), dtype=torch.int64)
        single[image_id] = {"boxes": own["boxes"][keep], "scores": own["scores"][keep], "labels": labels}
    return ap_of(single, merged)["AP50"]


def check_kinds(evidence: Evidence) -> Observation:
    """Which kind of error prevails, at the score where F1 is best."""
    name, data = "kinds of error", evidence.judged
    found = {i: d for i, d in evidence.found.items() if len(d["scores"])}
    if not found or data is None:
        return Observation(name, "skipped", "there are no detections to look at")
    errors = find_errors(found, data)
    objects = sum(len(picture.true_labels) for picture in errors.pictures)
    if not objects:
        return Observation(name, "skipped", "no object in these pictures")
    threshold = best_threshold(errors)
    if not threshold:  # not one is right: look at as many as there are objects
        scores = torch.cat([d["scores"] for d in found.values()]).sort(descending=True).values
        threshold = float(scores[min(objects, len(scores)) - 1])
    counts = Counter(find_errors(found, data, threshold).counts)
    listed = ", ".join(f"{kind} {number}" for kind, number in counts.items())
    text = f"{objects} objects, scores from {threshold:.2f}: {listed}"
    if counts["correct"] >= objects / 2:
        return Observation(name, "OK", text)
    remedies = {
        "missed": "objects are not found, or with low scores: see scores, number of steps and one batch",
        "class": "right places, wrong names: see classes",
        "place": "right names, wrong places: see boxes",
        "duplicate": "the same object again and again: see query collapse and number of steps; until then --nms 0.6 in "
        "evaluate and predict",
        "background": "boxes where nothing is: see scores and number of steps",
        "both": "neither name nor place is right: see data and number of steps",
    }
    worst = max(remedies, key=lambda kind: counts[kind])
    if evidence.young:
        return Observation(name, "OK", f"{text}: mostly {worst}, as early in training")
    return Observation(name, "suspicious", f"{text}: mostly {worst}", remedies[worst])
