"""The exercises of notebook 05: IoU, GIoU, the cost of a pair, the class loss, and average precision."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ddetr_lite.course.exercises import Case, Exercise, Mistake, normal
from ddetr_lite.set_prediction import boxes as package_boxes
from ddetr_lite.set_prediction import losses, matching

# The package's own, also while a learner's is plugged in.
_package_giou = package_boxes.generalized_box_iou

# --- box_iou and generalized_box_iou ---------------------------------------------------------------------------


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)


def _overlap(a: Tensor, b: Tensor, clamp: bool = True, pixel: int = 0) -> Tensor:
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2]) + pixel
    return (sides.clamp(min=0) if clamp else sides).prod(-1)


def _union(a: Tensor, b: Tensor, clamp: bool = True) -> Tensor:
    return _area(a) + _area(b) - _overlap(a, b, clamp)


def _iou(a: Tensor, b: Tensor, clamp: bool = True) -> Tensor:
    return _overlap(a, b, clamp) / _union(a, b, clamp).clamp(min=1e-9)


def _iou_of_corner_and_size(a: Tensor, b: Tensor) -> Tensor:
    a, b = (torch.cat((x[..., :2], x[..., :2] + x[..., 2:]), -1) for x in (a, b))
    return _iou(a, b)


def _iou_with_a_pixel_more(a: Tensor, b: Tensor) -> Tensor:
    overlap = _overlap(a, b, pixel=1)
    areas = [(x[..., 2:] - x[..., :2] + 1).prod(-1) for x in (a, b)]
    return overlap / (areas[0] + areas[1] - overlap)


def _pairs_of_boxes() -> list[Case]:
    several = torch.tensor([[0.0, 0, 4, 2], [1, 1, 3, 4], [6, 5, 9, 9]])
    # No edge in common, since gradients are compared here: at a tie of two edges there is more than one right answer.
    others = torch.tensor([[2.0, 0.8, 5.5, 3], [1.5, 0.5, 3.5, 4.5], [0.5, 7, 5, 8], [5, 4, 10, 8.5]])
    alike = torch.tensor([[2.0, 1, 6, 3], [1, 1, 3, 4], [0, 7, 5, 8], [5, 4, 10, 9]])
    return [
        Case("two boxes that share a corner region", (torch.tensor([0.0, 0, 4, 2]), torch.tensor([2.0, 1, 5, 5]))),
        Case("three boxes, each with each of four", (several[:, None], others)),
        Case("the same with boxes that share edges", (several[:, None], alike)),
        Case("boxes apart in x and in y", (torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[5.0, 6, 8, 9]]))),
        Case("boxes in 0..1, as the package has them", (several[:, None] / 16, others / 16)),
        Case(
            "two small boxes in 0..1",
            (torch.tensor([[0.5, 0.5, 0.51, 0.51]]), torch.tensor([[0.505, 0.501, 0.515, 0.52]])),
        ),
    ]


def _without_area() -> Case:
    point = torch.tensor([[3.0, 3, 3, 3]])
    return Case("a box without area, with itself", (point, point))


def _iou_cases() -> list[Case]:
    return [*_pairs_of_boxes(), _without_area()]


BOX_IOU = Exercise(
    name="box_iou",
    notebook="05",
    task="The shared area of two boxes, divided by the area that at least one of them covers.",
    reference=package_boxes.box_iou,
    cases=_iou_cases,
    differentiable=True,
    part=package_boxes.box_iou,
    hints=(
        "The shared part begins at the larger of the two left edges and ends at the smaller of the two right ones: "
        "torch.maximum(a[..., :2], b[..., :2]) does it for x and y at once.",
        "Where boxes are apart, an end minus its begin is negative: .clamp(min=0) before you multiply the two sides.",
        "What both share is in both areas: union = area a + area b − shared. union.clamp(min=1e-9) keeps 0/0 away.",
    ),
    mistakes=(
        Mistake(
            "sides below zero are multiplied: boxes apart in x and in y then share an area. Clamp the sides at 0 first",
            lambda a, b: _iou(a, b, clamp=False),
        ),
        Mistake(
            "the product is clamped, not the sides: that of two negative sides is positive. Clamp first, then multiply",
            lambda a, b: (
                (shared := _overlap(a, b, clamp=False).clamp(min=0)) / (_area(a) + _area(b) - shared).clamp(min=1e-9)
            ),
        ),
        Mistake(
            "the shared part is counted twice: subtract it once from the sum of the areas",
            lambda a, b: _overlap(a, b) / (_area(a) + _area(b)).clamp(min=1e-9),
        ),
        Mistake(
            "you divide by the area of the first box; IoU divides by the union",
            lambda a, b: _overlap(a, b) / _area(a).clamp(min=1e-9),
        ),
        Mistake(
            "the last two numbers are taken for width and height; here they are the lower right corner",
            _iou_of_corner_and_size,
        ),
        Mistake(
            "a pixel is added to each side, as old evaluation code did; corners here are positions, not pixels",
            _iou_with_a_pixel_more,
        ),
        Mistake(
            "two boxes without area give 0/0: clamp the union at something tiny",
            lambda a, b: _overlap(a, b) / _union(a, b),
        ),
        Mistake(
            "the union is held at 1 or above: boxes in 0..1 are all smaller than that. Something tiny is enough, 1e-9",
            lambda a, b: _overlap(a, b) / _union(a, b).clamp(min=1),
        ),
        Mistake(
            "something is added to the union, or it is held at something that small boxes in 0..1 do not reach: 1e-9 is enough",
            lambda a, b: _overlap(a, b) / _union(a, b).clamp(min=1e-3),
        ),
        Mistake(
            "[:, 0] counts dimensions from the front; write [..., 0], so that boxes of any arrangement fit",
            lambda a, b: _iou(torch.stack([a[:, i] for i in range(4)], 1), torch.stack([b[:, i] for i in range(4)], 1)),
        ),
    ),
)


def _hull(a: Tensor, b: Tensor) -> Tensor:
    return (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)


def _giou(a: Tensor, b: Tensor, sign: float = -1.0, clamp: bool = True) -> Tensor:
    return _iou(a, b, clamp) + sign * (_hull(a, b) - _union(a, b, clamp)) / _hull(a, b).clamp(min=1e-9)


def _giou_cases() -> list[Case]:
    inside = (torch.tensor([[0.0, 0, 8, 8]]), torch.tensor([[2.0, 3, 4, 6]]))
    return [
        *_pairs_of_boxes(),
        Case("one box inside the other", inside),
        _without_area(),
    ]


GIOU = Exercise(
    name="generalized_box_iou",
    notebook="05",
    task="IoU, less the share of the smallest enclosing box that neither of the two fills.",
    reference=package_boxes.generalized_box_iou,
    cases=_giou_cases,
    differentiable=True,
    part=package_boxes.generalized_box_iou,
    hints=(
        "The enclosing box begins at the smaller of the left edges and ends at the larger of the right ones: minimum and "
        "maximum change places.",
        "Empty share: (hull − union) / hull, where all three are areas.",
        "GIoU = shared / union − (hull − union) / hull. It lies between −1 and 1.",
    ),
    mistakes=(
        Mistake("the enclosing box is missing: this is plain IoU", _iou),
        Mistake("the empty share is added; it is a punishment, so subtract it", lambda a, b: _giou(a, b, sign=1.0)),
        Mistake(
            "the empty part is divided by the union; divide it by the area of the enclosing box",
            lambda a, b: (
                _iou(a, b) - (_hull(a, b) - (u := _union(a, b))) / u
            ),
        ),
        Mistake(
            "the empty part is hull minus the shared area; it should be hull minus the union",
            lambda a, b: _iou(a, b) - (_hull(a, b) - _overlap(a, b)) / _hull(a, b),
        ),
        Mistake(
            "sides below zero are multiplied in the shared area: clamp them at 0 first",
            lambda a, b: _giou(a, b, clamp=False),
        ),
        Mistake(
            "1 − GIoU is the loss; here GIoU itself is asked for",
            lambda a, b: 1 - _giou(a, b),
        ),
        Mistake(
            "two boxes without area give 0/0: clamp union and hull at something tiny before you divide by them",
            lambda a, b: _overlap(a, b) / (u := _union(a, b)) - (_hull(a, b) - u) / _hull(a, b),
        ),
        Mistake(
            "union and hull are held at 1 or above: boxes in 0..1 are all smaller than that. Something tiny is enough, 1e-9",
            lambda a, b: (
                _overlap(a, b) / (u := _union(a, b).clamp(min=1))
                - ((h := _hull(a, b).clamp(min=1)) - u) / h
            ),
        ),
    ),
)  # fmt: skip

# --- matching_cost: every query with every object --------------------------------------------------------------


def _cost(
    probabilities: Tensor,
    boxes: Tensor,
    labels: Tensor,
    target_boxes: Tensor,
    weights: tuple[float, float, float] = (1.0, 5.0, 2.0),
    power: int = 1,
    corners: bool = True,
) -> Tensor:
    distance = (boxes[:, None] - target_boxes).abs() ** power
    to_corners = package_boxes.cxcywh_to_xyxy if corners else torch.Tensor.clone
    overlap = _package_giou(to_corners(boxes)[:, None], to_corners(target_boxes))
    return -weights[0] * probabilities[:, labels] + weights[1] * distance.sum(-1) - weights[2] * overlap


def _boxes(seed: int, count: int) -> Tensor:
    """Boxes (cx, cy, w, h) inside the picture."""
    return torch.cat(
        (0.3 + 0.4 * normal(seed, count, 2).sigmoid(), 0.1 + 0.3 * normal(seed + 1, count, 2).sigmoid()), 1
    )


def _cost_cases() -> list[Case]:
    two = torch.tensor([[0.3, 0.6, 0.1], [0.2, 0.1, 0.7]])
    # cx < w and cy < h, so that the four numbers are a box as corners too: the GIoU without conversion is another number,
    # where other boxes would give 0.
    large = torch.tensor([[0.2, 0.2, 0.4, 0.4], [0.5, 0.4, 0.7, 0.6]])
    others = torch.tensor([[0.25, 0.2, 0.5, 0.4], [0.4, 0.45, 0.6, 0.7], [0.1, 0.15, 0.2, 0.3]])
    there = torch.tensor([[0.2, 0.5, 0.2, 0.4], [0.7, 0.4, 0.4, 0.2]])
    truth = torch.tensor([[0.25, 0.55, 0.3, 0.4], [0.65, 0.45, 0.2, 0.3], [0.2, 0.3, 0.1, 0.1]])
    none = torch.tensor([], dtype=torch.int64)
    return [
        Case("two queries, three objects, two classes", (two, large, torch.tensor([1, 0, 1]), others)),
        Case("the same with smaller boxes", (two, there, torch.tensor([1, 0, 1]), truth)),
        Case("six queries, two objects, four classes",
             (normal(70, 6, 5).softmax(-1), _boxes(71, 6), torch.tensor([3, 0]), _boxes(73, 2))),
        Case("a picture without objects", (normal(75, 3, 5).softmax(-1), _boxes(76, 3), none, torch.zeros(0, 4))),
    ]  # fmt: skip


def _plug_cost(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The learner's cost of one picture, for every layer and picture; only DETR's softmax is asked of it."""
    original = matching.matching_cost

    def adapted(
        logits: Tensor,
        boxes: Tensor,
        labels: Tensor,
        target_boxes: Tensor,
        weights: matching.MatchingCost,
        kind: Literal["softmax", "focal"],
    ) -> Tensor:
        if kind != "softmax" or weights != matching.MatchingCost(1.0, 5.0, 2.0):
            return original(logits, boxes, labels, target_boxes, weights, kind)
        flat_logits, flat_boxes = logits.float().flatten(0, -3), boxes.float().flatten(0, -3)
        pictures = len(labels)
        costs = [
            function(
                flat_logits[i].softmax(-1), flat_boxes[i], labels[i % pictures], target_boxes[i % pictures].float()
            )
            for i in range(len(flat_logits))
        ]
        return torch.stack(costs).view(*logits.shape[:-1], labels.shape[-1])

    return adapted


MATCHING_COST = Exercise(
    name="matching_cost",
    notebook="05",
    task="−p of the object's class, plus 5 times the L1 distance, minus 2 times the GIoU, for each query and each object.",
    reference=_cost,
    cases=_cost_cases,
    part=matching.matching_cost,
    adapt=_plug_cost,
    hints=(
        "probabilities[:, labels] picks for each query (row) the probability of each object's class (column): (N_q, T).",
        "boxes[:, None] is (N_q, 1, 4); the difference with target_boxes (T, 4) is (N_q, T, 4). Sum over the last dimension.",
        "generalized_box_iou wants corners: cxcywh_to_xyxy for both, then the same [:, None].",
    ),
    mistakes=(
        Mistake("the class costs nothing: −p is missing", lambda p, b, y, t: _cost(p, b, y, t, (0.0, 5.0, 2.0))),
        Mistake("the L1 distance costs nothing", lambda p, b, y, t: _cost(p, b, y, t, (1.0, 0.0, 2.0))),
        Mistake("the overlap costs nothing: −2 GIoU is missing", lambda p, b, y, t: _cost(p, b, y, t, (1.0, 5.0, 0.0))),
        Mistake(
            "a large overlap makes a pair dearer; it should be cheaper: subtract the GIoU",
            lambda p, b, y, t: _cost(p, b, y, t, (1.0, 5.0, -2.0)),
        ),
        Mistake(
            "a probable class makes a pair dearer; it should be cheaper: subtract the probability",
            lambda p, b, y, t: _cost(p, b, y, t, (-1.0, 5.0, 2.0)),
        ),
        Mistake("the three costs are not weighted: 1, 5 and 2", lambda p, b, y, t: _cost(p, b, y, t, (1.0, 1.0, 1.0))),
        Mistake(
            "the GIoU is taken of (cx, cy, w, h); it wants corners",
            lambda p, b, y, t: _cost(p, b, y, t, corners=False),
        ),
        Mistake("the distance is squared: L1 takes absolute values", lambda p, b, y, t: _cost(p, b, y, t, power=2)),
        Mistake(
            "L1 is the sum over the four numbers of a box, not their mean",
            lambda p, b, y, t: _cost(p, b, y, t, (1.0, 1.25, 2.0)),
        ),
        Mistake(
            "the distance is taken of the corners; DETR takes it of (cx, cy, w, h)",
            lambda p, b, y, t: (
                _cost(p, b, y, t, (1.0, 0.0, 2.0))
                + 5 * (package_boxes.cxcywh_to_xyxy(b)[:, None] - package_boxes.cxcywh_to_xyxy(t)).abs().sum(-1)
            ),
        ),
        Mistake("rows and columns are swapped: queries are rows, (N_q, T)", lambda p, b, y, t: _cost(p, b, y, t).T),
        Mistake(
            "the class costs −log p; DETR takes p itself, so that it is of the size of the other two",
            lambda p, b, y, t: _cost(p.log(), b, y, t),
        ),
        Mistake(
            "the class costs 1 − p. The match is the same; DETR leaves the constant out",
            lambda p, b, y, t: 1 + _cost(p, b, y, t),
        ),
        Mistake(
            "the overlap costs 2 · (1 − GIoU). The match is the same; DETR leaves the constant out",
            lambda p, b, y, t: 2 + _cost(p, b, y, t),
        ),
    ),
)

# --- class_loss: cross-entropy with "no object" ----------------------------------------------------------------


def _classes_of(logits: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """What each query should say: the last class, "no object", but for those with an object."""
    classes = torch.full((len(logits),), logits.shape[-1] - 1)
    classes[queries] = labels
    return classes


def _class_loss(logits: Tensor, labels: Tensor, queries: Tensor, no_object: float) -> Tensor:
    return _weighted(logits, _classes_of(logits, labels, queries), no_object)


def _weighted(
    logits: Tensor, classes: Tensor, weight: float, of_objects: float = 1.0, per_query: bool = False
) -> Tensor:
    surprise = -logits.log_softmax(-1)[torch.arange(len(logits)), classes]
    weights = torch.where(classes == logits.shape[-1] - 1, weight, of_objects)
    return (surprise * weights).sum() / (len(logits) if per_query else weights.sum())


def _of_classes(change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """The loss for classes that `change` makes from the logits, labels and queries."""
    return lambda logits, labels, queries, weight: _weighted(logits, change(logits, labels, queries), weight)


def _background_is_class_0(logits: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    classes = torch.zeros(len(logits), dtype=torch.int64)
    classes[queries] = labels
    return classes


def _first_queries(logits: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    classes = torch.full((len(logits),), logits.shape[-1] - 1)
    classes[: len(labels)] = labels
    return classes


def _class_cases() -> list[Case]:
    three = torch.tensor([[2.0, 0, 1], [0, 1, 3], [1, 2, 0], [0, 0, 2]])
    return [
        Case("four queries, two objects, two classes", (three, torch.tensor([1, 0]), torch.tensor([2, 3]), 0.1)),
        Case("ten queries, three objects, five classes",
             (2 * normal(80, 10, 6), torch.tensor([4, 4, 1]), torch.tensor([7, 2, 5]), 0.1)),
        Case("another weight", (2 * normal(81, 5, 4), torch.tensor([2]), torch.tensor([4]), 0.4)),
        Case("no object at all",
             (normal(82, 3, 4), torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64), 0.1)),
    ]  # fmt: skip


def _plug_class_loss(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The learner's loss, layer by layer, on the queries of all pictures in one row; focal loss is not asked of it."""
    original = losses.classification_losses

    def adapted(
        logits: Tensor, targets: Any, matches: matching.Matches, loss: losses.SetLoss, num_boxes: Tensor | float
    ) -> Tensor:
        if loss.kind != "softmax":
            return original(logits, targets, matches, loss, num_boxes)
        result = []
        for k, layer in enumerate(logits):  # (B, N_q, C+1)
            own = matches.of_layer(k)
            pairs = zip(own.picture.tolist(), own.target.tolist(), strict=True)
            labels = [int(targets[picture]["labels"][target]) for picture, target in pairs]
            queries = own.picture * layer.shape[1] + own.query
            told = torch.tensor(labels, dtype=torch.int64, device=logits.device)
            result.append(function(layer.flatten(0, 1), told, queries, loss.no_object))
        return torch.stack(result)

    return adapted


CLASS_LOSS = Exercise(
    name="class_loss",
    notebook="05",
    task="Cross-entropy of every query, with \"no object\" for those without one; a weighted mean, where \"no object\" has "
    "the weight given.",
    reference=_class_loss,
    cases=_class_cases,
    differentiable=True,
    part=losses.classification_losses,
    adapt=_plug_class_loss,
    hints=(
        'First what each query should say: torch.full((N_q,), C), since "no object" is the last class; then '
        "classes[queries] = labels.",
        "logits.log_softmax(-1)[torch.arange(N_q), classes] is log p of the right class of each query.",
        "A weighted mean divides by the sum of the weights: (weights * surprise).sum() / weights.sum().",
    ),
    mistakes=(
        Mistake(
            "queries without an object are told class 0, a real class; they should be told the last one, \"no object\"",
            _of_classes(_background_is_class_0),
        ),
        Mistake(
            "the match is ignored: the objects are given to the first queries", _of_classes(_first_queries)
        ),
        Mistake(
            "every query weighs the same: \"no object\" should weigh less",
            lambda x, y, q, w: _weighted(x, _classes_of(x, y, q), 1.0),
        ),
        Mistake(
            "the weight is on the objects; it belongs to \"no object\"",
            lambda x, y, q, w: _weighted(x, _classes_of(x, y, q), 1.0, of_objects=w),
        ),
        Mistake(
            "the weighted sum is divided by the number of queries; a weighted mean divides by the sum of the weights",
            lambda x, y, q, w: _weighted(x, _classes_of(x, y, q), w, per_query=True),
        ),
        Mistake(
            "the softmax is taken before the cross-entropy, which takes it itself: give it the logits",
            lambda x, y, q, w: _weighted(x.softmax(-1), _classes_of(x, y, q), w),
        ),
        Mistake(
            "the weighted sum is divided by the number of objects; a weighted mean divides by the sum of the weights",
            lambda x, y, q, w: _weighted(x, _classes_of(x, y, q), w, per_query=True) * len(x) / len(y),
        ),
        Mistake(
            "only queries with an object are counted; the others would never learn to be silent",
            lambda x, y, q, w: -x.log_softmax(-1)[q, y].mean(),
        ),
        Mistake(
            "it is a sum; the weighted mean divides by the sum of the weights",
            lambda x, y, q, w: _weighted(x, _classes_of(x, y, q), w, per_query=True) * len(x),
        ),
    ),
)  # fmt: skip

# --- average_precision ------------------------------------------------------------------------------------------


def _precision(
    scores: Tensor,
    right: Tensor,
    objects: int,
    descending: bool = True,
    ordered: bool = True,
    envelope: bool = True,
    of_detections: bool = False,
    of_right: bool = False,
    reached_only: bool = False,
    beyond_only: bool = False,
) -> Tensor:
    order = scores.argsort(descending=descending) if ordered else torch.arange(len(scores))
    found = right[order].float().cumsum(0)
    precision = found / torch.arange(1, len(found) + 1)
    recall = found / (len(found) if of_detections else found[-1] if of_right else objects)
    values = []
    for level in torch.arange(101) / 100:
        above = precision[recall > level if beyond_only else recall >= level]
        if len(above):
            values.append(above.max() if envelope else above[0])
        elif not reached_only:
            values.append(torch.tensor(0.0))
    return torch.stack(values).mean()


def _at_right_ones(scores: Tensor, right: Tensor, envelope: bool = False) -> Tensor:
    """The precision at each right detection, the surest first; or the best from there on."""
    hits = right[scores.argsort(descending=True)]
    precision = hits.float().cumsum(0) / torch.arange(1, len(hits) + 1)
    if envelope:
        precision = precision.flip(0).cummax(0).values.flip(0)
    return precision[hits]


def _average_precision(scores: Tensor, right: Tensor, objects: int) -> Tensor:
    return _precision(scores, right, objects)


def _precision_cases() -> list[Case]:
    yes, no = True, False
    return [
        Case("five detections of three objects",
             (torch.tensor([0.9, 0.3, 0.8, 0.6, 0.5]), torch.tensor([yes, yes, no, no, no]), 3)),
        Case("eight detections of seven objects",
             (torch.tensor([0.2, 0.9, 0.4, 0.85, 0.6, 0.1, 0.7, 0.3]), torch.tensor([yes, no, yes, yes, no, no, yes, yes]), 7)),
        Case("all found, nothing else said", (torch.tensor([0.5, 0.9, 0.7]), torch.tensor([yes, yes, yes]), 3)),
    ]  # fmt: skip


AVERAGE_PRECISION = Exercise(
    name="average_precision",
    notebook="05",
    task="At each recall 0, 0.01, ..., 1 the best precision that is reached there or beyond (0 where none is); their mean.",
    reference=_average_precision,
    cases=_precision_cases,
    hints=(
        "scores.argsort(descending=True) puts the surest first; right[order].cumsum(0) counts what was found so far.",
        "precision = found / torch.arange(1, n + 1); recall = found / objects.",
        "For each level in torch.arange(101) / 100: precision[recall >= level].max(), or 0 where nothing is left.",
    ),
    mistakes=(
        Mistake(
            "the detections are not sorted: the surest should come first",
            lambda s, r, n: _precision(s, r, n, ordered=False),
        ),
        Mistake(
            "they are sorted with the least sure first: descending=True",
            lambda s, r, n: _precision(s, r, n, descending=False),
        ),
        Mistake(
            "recall is counted against the detections; it is the share of the *objects* that were found",
            lambda s, r, n: _precision(s, r, n, of_detections=True),
        ),
        Mistake(
            "recall is counted against the right detections; objects that nobody found count as well",
            lambda s, r, n: _precision(s, r, n, of_right=True),
        ),
        Mistake(
            "at each recall the first precision is taken; the best one at this recall *or beyond* is asked for",
            lambda s, r, n: _precision(s, r, n, envelope=False),
        ),
        Mistake(
            "the precisions at the right detections are added, one step for each object; asked for is the best precision "
            "at this recall or beyond, for each of the 101 recalls",
            lambda s, r, n: _at_right_ones(s, r).sum() / n,
        ),
        Mistake(
            "this is the mean of the precision at the right detections; asked for is the best precision at this recall or "
            "beyond, for each of the 101 recalls",
            lambda s, r, n: _at_right_ones(s, r).mean(),
        ),
        Mistake(
            "there is one step for each object; the mean goes over the 101 recalls 0, 0.01, ..., 1",
            lambda s, r, n: _at_right_ones(s, r, envelope=True).sum() / n,
        ),
        Mistake(
            "a detection counts only for recalls below its own; it counts at its own recall, too: >=",
            lambda s, r, n: _precision(s, r, n, beyond_only=True),
        ),
        Mistake(
            "recalls that are never reached are left out of the mean; they count as 0",
            lambda s, r, n: _precision(s, r, n, reached_only=True),
        ),
        Mistake(
            "this is the precision of all detections together; it is asked for at each recall",
            lambda s, r, n: r.float().mean(),
        ),
    ),
)  # fmt: skip

EXERCISES = (BOX_IOU, GIOU, MATCHING_COST, CLASS_LOSS, AVERAGE_PRECISION)
