"""Whether a DETR's queries do different work, and keep it: collapse and stability of the matching.

Letters: K layers, B pictures, N_q queries.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddetr_lite.datasets.coco import CocoDetection
from ddetr_lite.datasets.loading import Batch
from ddetr_lite.engine.explain_evidence import Evidence, Observation, Verdict
from ddetr_lite.models.deformable_detr import DeformableDetrConfig
from ddetr_lite.models.faster_rcnn import FasterRcnn
from ddetr_lite.models.presets import SetModel
from ddetr_lite.set_prediction.boxes import box_iou, cxcywh_to_xyxy
from ddetr_lite.set_prediction.matching import Target, match

COLLAPSED, NARROW = 0.005, 0.02  # standard deviation of box coordinates, as a share of the picture
SAME = 0.9  # IoU from which two boxes are one
UNSTABLE = 0.5  # share of objects that change their query in the last layer
AT_ONCE = 8  # pictures


@dataclass(frozen=True)
class Said:
    """What a model says about B pictures: logits (K, B, N_q, ·), boxes (K, B, N_q, 4) in 0..1; what is true."""

    logits: Tensor
    boxes: Tensor
    targets: list[Target]


@torch.no_grad()
def listen(model: SetModel, dataset: CocoDetection) -> list[Said]:
    """All layers' predictions for every picture of a data set, `AT_ONCE` by `AT_ONCE`."""
    model.eval()
    said = []
    for first in range(0, len(dataset), AT_ONCE):
        batch = Batch.of([dataset[i] for i in range(first, min(first + AT_ONCE, len(dataset)))])
        normed = model.batch(batch.images)
        outputs = model.outputs(normed)
        targets = model.normalise_targets(batch.targets(), normed.sizes)
        said.append(Said(outputs.logits.float().cpu(), outputs.boxes.float().cpu(), targets))
    return said


def check_queries(evidence: Evidence) -> list[Observation]:
    """Collapse, and the stability of the matching."""
    names = ("query collapse", "matching")
    if isinstance(evidence.model, FasterRcnn):
        text = "Faster R-CNN has no queries: its proposals are made anew for each picture"
        return [Observation(name, "skipped", text) for name in names]
    model, pictures = evidence.model, evidence.validation or evidence.training
    if model is None or pictures is None:
        return [Observation(name, "skipped", "needs a checkpoint and pictures") for name in names]
    said = listen(model.to(evidence.device), pictures)
    return [_collapse(evidence, said), _matching(evidence, model, said, pictures)]


def _collapse(evidence: Evidence, said: list[Said]) -> Observation:
    """Whether all queries give the same box, or every picture gets the same boxes."""
    name = "query collapse"
    fewest = min(s.boxes.shape[2] for s in said)  # two stages: small pictures have fewer tokens than queries
    boxes = torch.cat([s.boxes[-1, :, :fewest] for s in said])  # (B, N_q, 4)
    queries = float(boxes.std(1, correction=0).mean())
    pictures = float(boxes.std(0, correction=0).mean()) if len(boxes) > 1 else float("nan")
    distinct = sum(_distinct(own) for own in boxes) / boxes.shape[:2].numel()
    useful, objects = _useful(said)
    count = boxes.shape[1]
    text = (
        f"boxes differ by {queries:.3f} between the {count} queries, by {pictures:.3f} between pictures (of the picture's "
        f"side); {distinct:.0%} are distinct (IoU < {SAME}); {useful} queries fit one of {objects} objects best"
    )
    remedy = "start anew with a lower --lr (a tenth), and with warm-up; such a model does not recover"
    verdict: Verdict = "suspicious" if evidence.young else "cause"
    if count > 1 and queries < COLLAPSED:
        text += ": all queries give the same box"
        text += "" if pictures >= COLLAPSED else ", on every picture"
        return Observation(name, verdict, text, remedy)
    if len(boxes) > 1 and pictures < COLLAPSED:
        text += ": every picture gets the same boxes, the model does not look"
        return Observation(name, verdict, text, remedy)
    if queries < NARROW or pictures < NARROW:
        return Observation(name, "suspicious", f"{text}: they hardly differ", "train longer, or lower --lr")
    return Observation(name, "OK", text)


def _distinct(boxes: Tensor) -> int:
    """How many of (N_q, 4) boxes are left, when each that is the same as an earlier one is dropped."""
    corners = cxcywh_to_xyxy(boxes)
    same = box_iou(corners[:, None], corners) >= SAME
    kept: list[int] = []
    for i in range(len(boxes)):
        if not same[i, kept].any():
            kept.append(i)
    return len(kept)


def _useful(said: list[Said]) -> tuple[int, int]:
    """How many queries have the best box for some object, and how many objects there are."""
    best: set[int] = set()
    objects = 0
    for s in said:
        for boxes, target in zip(s.boxes[-1], s.targets, strict=True):
            if len(target["boxes"]):
                true = cxcywh_to_xyxy(target["boxes"].cpu())
                best |= set(box_iou(cxcywh_to_xyxy(boxes)[:, None], true).argmax(0).tolist())
                objects += len(true)
    return len(best), objects


def _matching(evidence: Evidence, model: SetModel, said: list[Said], pictures: CocoDetection) -> Observation:
    """Objects that change their query from layer to layer, and from best.pt to last.pt (DN-DETR calls it instability)."""
    name = "matching"
    objects = sum(len(t["labels"]) for s in said for t in s.targets)
    if not objects:
        return Observation(name, "skipped", "no object in these pictures")
    try:
        chosen = [_queries_of(s, model) for s in said]
    except ValueError as error:
        return Observation(name, "cause", str(error), "see weights, and number of queries")
    layers = chosen[0].shape[0]
    by_layer = [sum(int((c[k] != c[k + 1]).sum()) for c in chosen) / objects for k in range(layers - 1)]
    text = f"{objects} objects; " + (
        "from layer to layer " + ", ".join(f"{share:.0%}" for share in by_layer) + " change their query"
        if by_layer
        else "one decoder layer"
    )
    config, last = model.config, evidence.last.model if evidence.last else None
    if isinstance(config, DeformableDetrConfig) and config.two_stage:
        text += "; queries of a two-stage model are proposals in order of score, so models are not compared"
    elif evidence.best is not None and last is not None and not isinstance(last, FasterRcnn):
        after = [_queries_of(s, last) for s in listen(last.to(evidence.device), pictures)]
        moved = sum(int((a[-1] != b[-1]).sum()) for a, b in zip(chosen, after, strict=True)) / objects
        text += f"; from best.pt to last.pt {moved:.0%}"
    if by_layer and by_layer[-1] > UNSTABLE and not evidence.young:
        remedy = "usual early in training; later try more steps, or hints (--hints 4, two stages only)"
        return Observation(name, "suspicious", text, remedy)
    return Observation(name, "OK", text)


def _queries_of(said: Said, model: SetModel) -> Tensor:
    """(K, ΣT): the query of each object of the batch in each layer."""
    targets = [{k: v.cpu() for k, v in t.items()} for t in said.targets]
    found = match(said.logits, said.boxes, targets, model.loss.matching, model.loss.kind)
    starts = torch.tensor([0, *[len(t["labels"]) for t in targets]]).cumsum(0)
    result = torch.full((said.logits.shape[0], int(starts[-1])), -1)
    result[found.layer, starts[found.picture] + found.target] = found.query
    return result
