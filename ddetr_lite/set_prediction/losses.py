"""The losses of a set prediction, for all decoder layers at once (DETR section 3.1, Deformable DETR section A.4).

Letters: K layers, B pictures, N_q queries, C classes, S matched pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ddetr_lite.set_prediction.boxes import cxcywh_to_xyxy, generalized_box_iou
from ddetr_lite.set_prediction.matching import Matches, MatchingCost, Problem, Target, match_all


class Outputs(NamedTuple):
    """What a detector says: logits (K, B, N_q, C or C+1) and boxes (K, B, N_q, 4), (cx, cy, w, h) in 0..1.

    encoder_logits (B, N, C) and encoder_boxes (B, N, 4) are the proposals of a two-stage model, else None.
    hint_logits (K, B, G·T, C) and hint_boxes (K, B, G·T, 4): of queries that were told where an object is (training with
    hints), G groups of T, the most objects in a picture; query g·T + t belongs to object t. Else None.
    """

    logits: Tensor
    boxes: Tensor
    encoder_logits: Tensor | None = None
    encoder_boxes: Tensor | None = None
    hint_logits: Tensor | None = None
    hint_boxes: Tensor | None = None


@dataclass(frozen=True)
class SetLoss:
    """Which class loss, and the weight of each term. The defaults are Deformable DETR's; `DETR_LOSS` has DETR's.

    kind: "focal" (a sigmoid for each class) or "softmax" (with a class "no object"); no_object: the weight of that class.
    """

    kind: Literal["softmax", "focal"] = "focal"
    classification: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    no_object: float = 0.1
    matching: MatchingCost = MatchingCost()

    def __post_init__(self) -> None:
        """Raises ValueError for another kind."""
        if self.kind not in ("softmax", "focal"):
            raise ValueError(f"kind={self.kind!r} must be 'softmax' or 'focal'")


DETR_LOSS = SetLoss(kind="softmax", classification=1.0, matching=MatchingCost(classification=1.0))
DEFORMABLE_DETR_LOSS = SetLoss()


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """−α_t (1 − p_t)^γ log p_t, element by element (Lin et al. 2017, equation 5).

    logits, targets: (...), targets 0 or 1. Returns (...): what is easily right weighs little, so that thousands of
    background queries do not drown a few objects.
    """
    p = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p_t = p * targets + (1 - p) * (1 - targets)
    alpha_t = alpha * targets + (1 - alpha) * (1 - targets)
    return alpha_t * (1 - p_t) ** gamma * cross_entropy


def classification_losses(
    logits: Tensor,
    targets: Sequence[Target],
    matches: Matches,
    loss: SetLoss,
    num_boxes: Tensor | float,
) -> Tensor:
    """The class loss of every layer, (K,). A query without an object is told "no object".

    Focal losses are divided by `num_boxes`, the weighted cross-entropy by the sum of its weights.
    """
    labels = _concatenate(targets, "labels", matches)  # (S,)
    place = (matches.layer, matches.picture, matches.query)
    if loss.kind == "focal":
        wanted = torch.zeros_like(logits)
        wanted[(*place, labels)] = 1
        return sigmoid_focal_loss(logits, wanted).sum((1, 2, 3)) / num_boxes
    no_object = logits.shape[-1] - 1
    classes = torch.full(logits.shape[:-1], no_object, dtype=torch.int64, device=logits.device)
    classes[place] = labels
    weight = torch.ones_like(logits[0, 0, 0])
    weight[no_object] = loss.no_object
    # Flat: over more dimensions torch has no deterministic form of it on CUDA.
    per_query = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), weight=weight, reduction="none")
    per_query = per_query.view(classes.shape)  # (K, B, N_q)
    weights = weight[classes].sum((1, 2))
    # All weights are 0 where "no object" counts nothing and there are no objects: the loss is 0 then, not 0/0.
    return per_query.sum((1, 2)) / weights.clamp(min=torch.finfo(per_query.dtype).tiny)


def box_losses(
    boxes: Tensor, targets: Sequence[Target], matches: Matches, num_boxes: Tensor | float
) -> tuple[Tensor, Tensor]:
    """L1 and GIoU losses of every layer, two tensors (K,), summed over matched pairs and divided by `num_boxes`."""
    predicted = boxes[matches.layer, matches.picture, matches.query]  # (S, 4)
    true = _concatenate(targets, "boxes", matches)
    l1 = (predicted - true).abs().sum(-1)
    giou = 1 - generalized_box_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(true))
    layers = boxes.new_zeros(2, len(boxes)).index_add(1, matches.layer, torch.stack((l1, giou)))
    l1, giou = layers / num_boxes
    return l1, giou


class Counts(NamedTuple):
    """Objects and pictures of a step, as the mean over processes: what sums over its parts are divided by."""

    objects: Tensor | float
    pictures: Tensor | float


def count(targets: Sequence[Target], device: torch.device) -> Counts:
    """The counts of a step, from all targets that this process has in it.

    With several processes all of them take part, also those without any object, or the others would wait for ever.
    """
    own = (float(sum(len(t["labels"]) for t in targets)), float(len(targets)))
    if not (dist.is_available() and dist.is_initialized()):
        return Counts(*own)
    total = torch.tensor(own).to(device, non_blocking=True)  # to make it on the GPU would synchronise with it
    dist.all_reduce(total)
    return Counts(*(total / dist.get_world_size()).unbind())


def set_losses(
    outputs: Outputs, targets: Sequence[Target], loss: SetLoss, counts: Counts | None = None
) -> dict[str, Tensor]:
    """All losses, weighted: their sum is what one minimises.

    Keys are "class", "l1" and "giou" for the last decoder layer, "class/0" ... for the earlier ones (the auxiliary
    losses), "class/encoder" ... for the proposals of a two-stage model, all of whose objects bear class 0, and
    "class/hint/0" ... "class/hint" for queries with hints.
    targets: for each picture "labels" (T,) and "boxes" (T, 4), (cx, cy, w, h) in 0..1; "image_id" names it in errors.
    counts: of the whole step, where these pictures are a part of it (`count` of all its targets): then the losses of the
    parts, summed, are those of the whole, as is their mean over processes. (But for the class loss of hints, which are padded
    to the most objects of a picture in each part.) Raises ValueError for outputs without a dimension of layers, another
    number of targets than pictures, and for what `match` raises it for.
    """
    if outputs.logits.dim() != 4 or len(targets) != outputs.logits.shape[1]:
        raise ValueError(
            f"logits must be (layers, pictures, queries, classes), with a target for each picture, got "
            f"{tuple(outputs.logits.shape)} and {len(targets)} targets; for one layer give logits[None] and boxes[None]"
        )
    step = counts
    if counts is None:
        counts = count(targets, outputs.logits.device)
        step = counts if dist.is_available() and dist.is_initialized() else None
    num_boxes = counts.objects.clamp(min=1) if isinstance(counts.objects, Tensor) else max(counts.objects, 1.0)
    problems = [Problem(outputs.logits.float(), outputs.boxes.float(), targets)]  # half precision is too coarse here
    names = [layer_names(len(outputs.logits))]
    if outputs.encoder_logits is not None and outputs.encoder_boxes is not None:
        objects = [{**t, "labels": torch.zeros_like(t["labels"])} for t in targets]
        problems.append(Problem(outputs.encoder_logits[None].float(), outputs.encoder_boxes[None].float(), objects))
        names.append(["/encoder"])
    hinted = None
    if outputs.hint_logits is not None and outputs.hint_boxes is not None:  # before matching, which waits for a GPU
        told = Problem(outputs.hint_logits.float(), outputs.hint_boxes.float(), targets)
        hinted = told, hint_matches(told.logits, targets)
    result: dict[str, Tensor] = {}
    for problem, own, matches in zip(problems, names, match_all(problems, loss.matching, loss.kind), strict=True):
        result |= _losses(problem, matches, loss, num_boxes, own, step)
    if hinted is not None:
        told, pairs = hinted
        groups = told.logits.shape[2] // max(len(t["labels"]) for t in targets)
        endings = [f"/hint{name}" for name in layer_names(len(told.logits))]
        result |= _losses(told, pairs, loss, num_boxes * groups, endings)
    return result


def hint_matches(logits: Tensor, targets: Sequence[Target]) -> Matches:
    """Which object each hinted query was told of, in every layer: nothing is left to match. logits: (K, B, G·T, C)."""
    layers, _, queries, _ = logits.shape
    counts = [len(t["labels"]) for t in targets]
    groups = queries // max(counts)
    target = np.concatenate([np.tile(np.arange(count), groups) for count in counts])
    query = np.concatenate(
        [np.add.outer(np.arange(groups) * max(counts), np.arange(count)).ravel() for count in counts]
    )
    picture = np.repeat(np.arange(len(counts)), np.multiply(counts, groups))
    one = np.stack((np.zeros_like(picture), picture, query, target))  # of one layer
    pairs = np.tile(one, layers)
    pairs[0] = np.repeat(np.arange(layers), one.shape[1])
    return Matches(*torch.from_numpy(pairs).to(logits.device, non_blocking=True))


def layer_names(layers: int) -> list[str]:
    """Endings of the losses' names: "/0", "/1", ..., and none for the last layer."""
    return [f"/{k}" for k in range(layers - 1)] + [""]


def _losses(
    problem: Problem,
    matches: Matches,
    loss: SetLoss,
    num_boxes: Tensor | float,
    names: list[str],
    step: Counts | None = None,
) -> dict[str, Tensor]:
    """step: of all its pictures, where these are a part of it."""
    logits, boxes, targets = problem
    classes = loss.classification * classification_losses(logits, targets, matches, loss, num_boxes)
    if step is not None and loss.kind == "softmax":
        # A weighted mean over the queries of these pictures: of the step's mean they are as large a part as their weights.
        own = Counts(float(sum(len(t["labels"]) for t in targets)), float(len(targets)))
        own_weight, weight = (_weight_sum(counts, logits.shape[2], loss.no_object) for counts in (own, step))
        classes = classes * (own_weight / torch.as_tensor(weight).clamp(min=torch.finfo(classes.dtype).tiny))
    l1, giou = box_losses(boxes, targets, matches, num_boxes)
    result: dict[str, Tensor] = {}
    for k, name in enumerate(names):
        result |= {f"class{name}": classes[k], f"l1{name}": loss.l1 * l1[k], f"giou{name}": loss.giou * giou[k]}
    return result


def _weight_sum(counts: Counts, queries: int, no_object: float) -> Tensor | float:
    """The class weights of all queries in these pictures, summed: 1 for each object, `no_object` for all other queries."""
    return counts.objects + no_object * (queries * counts.pictures - counts.objects)


def _concatenate(targets: Sequence[Target], field: str, matches: Matches) -> Tensor:
    """What is true of each matched pair: (S, ...), from the targets' `field`."""
    device = matches.target.device
    first = [0]
    for t in targets[:-1]:
        first.append(first[-1] + len(t[field]))
    everything = torch.cat([t[field] for t in targets]).to(device, non_blocking=True)
    return everything[torch.tensor(first).to(device, non_blocking=True)[matches.picture] + matches.target]
