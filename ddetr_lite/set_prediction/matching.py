"""The bipartite matching between queries and objects (Carion et al. 2020, equation 1).

Every object gets exactly one query, no query two objects, and the sum of the costs is the least possible. All decoder
layers are matched in one go: their costs leave the GPU in one copy.
Letters: K layers, B pictures, N_q queries, C classes, T the most objects in a picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ddetr_lite.set_prediction.boxes import cxcywh_to_xyxy, generalized_box_iou

Target = dict[str, Tensor]
"""What is true of one picture: "labels" (T,) in 0..C−1 and "boxes" (T, 4) as (cx, cy, w, h) in 0..1."""


@dataclass(frozen=True)
class MatchingCost:
    """Weights of the three costs. DETR: 1, 5, 2; Deformable DETR: 2, 5, 2."""

    classification: float = 2.0
    l1: float = 5.0
    giou: float = 2.0


FAR = 2.0
"""No box in shares of its picture has a coordinate above this, however far a crop has left it outside; boxes in pixels do."""


class NotFiniteError(ValueError):
    """A model's output, or the truth, holds NaN or infinity: there is nothing to match, and nothing to learn from."""


class Matches(NamedTuple):
    """Four index tensors of one length, a matched pair at each position: which layer, picture, query and object.

    `target` counts within the picture. Pairs are sorted by layer, then by picture.
    """

    layer: Tensor
    picture: Tensor
    query: Tensor
    target: Tensor

    def of_layer(self, layer: int) -> "Matches":
        """The pairs of one layer."""
        return Matches(*(index[self.layer == layer] for index in self))


def pad_targets(targets: Sequence[Target], device: torch.device) -> tuple[Tensor, Tensor]:
    """All labels as (B, T) and boxes as (B, T, 4), filled up with class 0 and a box that covers the picture."""
    most = max((len(t["labels"]) for t in targets), default=0)
    labels = torch.zeros(len(targets), most, dtype=torch.int64)
    boxes = torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(len(targets), most, 1)
    if not targets or targets[0]["labels"].device != labels.device:
        labels, boxes = labels.to(device), boxes.to(device)
    for i, target in enumerate(targets):
        labels[i, : len(target["labels"])] = target["labels"]
        boxes[i, : len(target["boxes"])] = target["boxes"]
    return labels.to(device, non_blocking=True), boxes.to(device, non_blocking=True)


def classification_cost(logits: Tensor, kind: Literal["softmax", "focal"]) -> Tensor:
    """What it costs to give a query a class: (..., N_q, C) from logits of that shape (+1 for "no object" in softmax).

    softmax: −p(class), DETR's. focal: the focal loss of saying yes less that of saying no, Deformable DETR's
    (α = 0.25, γ = 2). Neither is a probability; only differences between queries matter.
    """
    if kind == "softmax":
        return -logits.softmax(-1)[..., :-1]
    p = logits.sigmoid()
    yes = 0.25 * (1 - p) ** 2 * F.softplus(-logits)  # softplus(−x) = −log p, without rounding to log 0
    no = 0.75 * p**2 * F.softplus(logits)
    return yes - no


def matching_cost(
    logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    target_boxes: Tensor,
    weights: MatchingCost,
    kind: Literal["softmax", "focal"],
) -> Tensor:
    """The cost of every pair of query and object: (..., N_q, T), in float32 whatever the input's precision.

    logits: (..., N_q, C or C+1); boxes: (..., N_q, 4), (cx, cy, w, h) in 0..1; labels: (B, T); target_boxes: (B, T, 4),
    where the dimensions before are (B,) or (K, B).
    """
    boxes, target_boxes = boxes.float(), target_boxes.float()
    by_class = classification_cost(logits.float(), kind)
    index = labels[:, None].expand(*by_class.shape[:-1], labels.shape[-1])
    cost_class = by_class.gather(-1, index)  # (..., N_q, T)
    cost_l1 = (boxes[..., :, None, :] - target_boxes[:, None]).abs().sum(-1)
    corners, target_corners = cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes)
    cost_giou = -generalized_box_iou(corners[..., :, None, :], target_corners[:, None])
    return weights.classification * cost_class + weights.l1 * cost_l1 + weights.giou * cost_giou


def assign(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest one-to-one assignment: rows and columns of the chosen pairs of a cost matrix (N_q, T).

    scipy's `linear_sum_assignment`: a modified Jonker–Volgenant algorithm, usually called the Hungarian one.
    """
    return linear_sum_assignment(cost)


class Problem(NamedTuple):
    """What is to be matched: logits (K, B, N_q, C or C+1) and boxes (K, B, N_q, 4) with what is true of B pictures."""

    logits: Tensor
    boxes: Tensor
    targets: Sequence[Target]


def match(
    logits: Tensor,
    boxes: Tensor,
    targets: Sequence[Target],
    weights: MatchingCost,
    kind: Literal["softmax", "focal"],
) -> Matches:
    """Match every layer's predictions with the truth.

    logits: (K, B, N_q, C or C+1); boxes: (K, B, N_q, 4). Raises ValueError when a picture has more objects than there
    are queries, a label that is not in 0..C−1, or boxes in pixels, NotFiniteError when a cost is not finite; all name the
    picture.
    """
    return match_all([Problem(logits, boxes, targets)], weights, kind)[0]


@torch.no_grad()
def match_all(problems: Sequence[Problem], weights: MatchingCost, kind: Literal["softmax", "focal"]) -> list[Matches]:
    """`match` for several problems, such as the decoder's layers and the proposals of a first stage.

    All their costs leave the GPU in one copy, and there is one wait for it.
    """
    tables = [_table(problem, weights, kind) for problem in problems]
    # Float32 holds whole numbers below 2²⁴, so truth values and indices can travel among the costs.
    parts = [part for table in tables for part in table if part is not None]
    numbers = torch.cat([part.flatten().float() for part in parts]).cpu().numpy()
    pieces = iter(np.split(numbers, np.cumsum([part.numel() for part in parts])[:-1]))
    found = []
    for problem, table in zip(problems, tables, strict=True):
        host = _Table(*(None if part is None else next(pieces).reshape(part.shape) for part in table))
        found.append(_assign_all(problem.targets, host))
        _check_truth(problem, host.possible, kind)
    device = problems[0].logits.device
    everything = torch.from_numpy(np.concatenate(found, axis=1)).to(device, non_blocking=True)
    return [Matches(*indices) for indices in everything.split([f.shape[1] for f in found], dim=1)]


# --- of many queries, those that can be chosen ---------------------------------------------------------------------


class _Table(NamedTuple):
    """What matching needs of a problem: tensors where the model runs, arrays on the host.

    possible (2, B): whether a picture's labels, and its boxes, can be meant; finite (K, B): whether all of its costs are;
    cost (K, B, n, T); query (K, B, n, T): whose the costs are, where only the n cheapest of each object are kept.
    """

    possible: Any
    finite: Any
    cost: Any
    query: Any = None


def _table(problem: Problem, weights: MatchingCost, kind: Literal["softmax", "focal"]) -> _Table:
    """The costs of all pairs, or of those that can be chosen.

    With T objects, one of the cheapest assignments gives each object one of its own T cheapest queries: were it another, one
    of these T would be free, and no dearer. So of thousands of proposals a few per object have to leave the GPU.
    """
    logits, boxes, targets = problem
    labels, target_boxes = pad_targets(targets, logits.device)
    queries, most = logits.shape[2], labels.shape[1]
    if most > queries:
        counts = [len(t["labels"]) for t in targets]
        raise ValueError(
            f"{name_of(targets, int(np.argmax(counts)))} has {most} objects, the model only {queries} queries or "
            "proposals for it: raise the number of queries, or enlarge the pictures"
        )
    known = labels.clamp(0, _classes(logits, kind) - 1)  # on a GPU another label would end the whole process
    possible = torch.stack(((known == labels).all(-1), ~(target_boxes > FAR).flatten(1).any(-1)))
    cost = matching_cost(logits, boxes, known, target_boxes, weights, kind)
    finite = torch.isfinite(cost).flatten(2).all(-1)
    if most == 0 or queries <= MANY * most**2:
        return _Table(possible, finite, cost)
    best = cost.topk(most, dim=-2, largest=False)
    return _Table(possible, finite, best.values, best.indices)


MANY = 4  # times T²: with fewer queries the whole table is smaller than what choosing from it costs


def _classes(logits: Tensor, kind: Literal["softmax", "focal"]) -> int:
    return logits.shape[-1] - (kind == "softmax")  # whose last is "no object"


def _check_truth(problem: Problem, possible: np.ndarray, kind: Literal["softmax", "focal"]) -> None:
    """Raise ValueError naming the first picture whose labels or boxes cannot be meant."""
    for b, target in enumerate(problem.targets):
        if not possible[0, b]:
            raise ValueError(label_error(problem.targets, b, _classes(problem.logits, kind)))
        if not possible[1, b]:
            far = next(box for box in target["boxes"].tolist() if max(box) > FAR)
            raise ValueError(
                f"{name_of(problem.targets, b)}: box {[round(x, 2) for x in far]} is not (cx, cy, w, h) in 0..1: divide pixels "
                "by the picture's width and height"
            )


def _assign_all(targets: Sequence[Target], table: _Table) -> np.ndarray:
    """Four rows of indices as in `Matches`."""
    columns: list[list[np.ndarray]] = [[], [], [], []]
    for k, b in np.ndindex(table.finite.shape):
        count = len(targets[b]["labels"])
        if count and not table.finite[k, b]:
            raise NotFiniteError(
                f"matching cost of {name_of(targets, b)} in layer {k} is not finite: the model's output or the "
                "picture's boxes hold NaN or infinity (too high a learning rate, or a broken annotation)"
            )
        if table.query is None:
            query, target = assign(table.cost[k, b, :, :count])
        else:
            names, places = np.unique(table.query[k, b, :count, :count], return_inverse=True)
            few = np.full((len(names), count), np.inf)
            few[places.reshape(count, count), np.arange(count)] = table.cost[k, b, :count, :count]
            place, target = assign(few)
            query = names[place]
        for column, values in zip(
            columns, (np.full_like(query, k), np.full_like(query, b), query, target), strict=True
        ):
            column.append(values)
    return np.stack([np.concatenate(c) for c in columns]).astype(np.int64)


def name_of(targets: Sequence[Target], index: int) -> str:
    """How errors name a picture: by its id where the target has one, else by its place."""
    image_id = targets[index].get("image_id")
    return f"picture {index} of the batch" if image_id is None else f"picture with image id {int(image_id)}"


def label_error(targets: Sequence[Target], index: int, classes: int) -> str:
    """What to say of a picture with a label that is not in 0..C−1."""
    return (
        f"{name_of(targets, index)}: labels {sorted(set(targets[index]['labels'].tolist()))} must lie in 0..{classes - 1}, "
        f"since the model has {classes} classes: map category ids to 0..C−1, or build the model with more classes"
    )
