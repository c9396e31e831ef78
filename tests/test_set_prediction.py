"""Boxes, matching, losses and postprocessing against torchvision, brute force and loops over the formulas."""

import itertools
import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torchvision.ops as ops
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ddetr_lite.set_prediction.boxes import (
    box_area,
    box_iou,
    clip_to_picture,
    cxcywh_to_xyxy,
    generalized_box_iou,
    xyxy_to_cxcywh,
)
from ddetr_lite.set_prediction.losses import (
    DEFORMABLE_DETR_LOSS,
    DETR_LOSS,
    Outputs,
    SetLoss,
    layer_names,
    set_losses,
    sigmoid_focal_loss,
)
from ddetr_lite.set_prediction.losses import count as count_objects
from ddetr_lite.set_prediction.matching import (
    MatchingCost,
    NotFiniteError,
    Problem,
    assign,
    classification_cost,
    match,
    match_all,
    matching_cost,
    pad_targets,
)
from ddetr_lite.set_prediction.postprocess import postprocess

Kind = Literal["softmax", "focal"]
KINDS: list[Kind] = ["softmax", "focal"]


# ---------------------------------------------------------------- boxes


def random_corners(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    first, second = torch.rand(n, 2, dtype=dtype), torch.rand(n, 2, dtype=dtype)
    return torch.cat((torch.minimum(first, second), torch.maximum(first, second)), dim=-1)


def test_conversions_equal_torchvision() -> None:
    boxes = random_corners(50)
    torch.testing.assert_close(xyxy_to_cxcywh(boxes), ops.box_convert(boxes, "xyxy", "cxcywh"))
    torch.testing.assert_close(cxcywh_to_xyxy(boxes), ops.box_convert(boxes, "cxcywh", "xyxy"))
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes.view(5, 10, 4))), boxes.view(5, 10, 4))
    torch.testing.assert_close(box_area(boxes), ops.box_area(boxes))


def test_overlaps_equal_torchvision() -> None:
    a, b = random_corners(40), random_corners(30)
    torch.testing.assert_close(box_iou(a[:, None], b), ops.box_iou(a, b))
    torch.testing.assert_close(generalized_box_iou(a[:, None], b), ops.generalized_box_iou(a, b))
    assert ((ops.box_iou(a, b) == 0).any(), (ops.box_iou(a, b) > 0.3).any()) == (True, True)
    torch.testing.assert_close(generalized_box_iou(a[:30], b), ops.generalized_box_iou(a[:30], b).diagonal())


def test_giou_by_hand() -> None:
    a, b = torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([1.0, 1.0, 4.0, 3.0])
    # intersection 1, union 4 + 6 − 1 = 9, hull 4 · 3 = 12
    assert float(box_iou(a, b)) == pytest.approx(1 / 9)
    assert float(generalized_box_iou(a, b)) == pytest.approx(1 / 9 - 3 / 12)
    far = torch.tensor([9.0, 0.0, 10.0, 1.0])  # hull 10 · 2, union 5
    assert float(box_iou(a, far)) == 0
    assert float(generalized_box_iou(a, far)) == pytest.approx(-15 / 20)


def test_gradients_equal_torchvision() -> None:
    a, b = random_corners(20).requires_grad_(), random_corners(20)
    expected = torch.autograd.grad(ops.generalized_box_iou_loss(a, b, reduction="sum", eps=0.0), a)[0]
    torch.testing.assert_close(torch.autograd.grad((1 - generalized_box_iou(a, b)).sum(), a)[0], expected)


DEGENERATE = torch.tensor(
    [
        [0.3, 0.3, 0.3, 0.3],  # a point
        [0.3, 0.3, 0.3, 0.3],  # the same point
        [0.7, 0.7, 0.7, 0.7],  # another point
        [0.2, 0.5, 0.8, 0.5],  # a line
        [0.5, 0.2, 0.5, 0.8],  # a line across
        [0.0, 0.0, 1.0, 1.0],
        [0.8, 0.8, 0.2, 0.2],  # corners swapped
        [0.3, 0.3, 0.3 + 1e-7, 0.3 + 1e-7],
    ]
)


def test_degenerate_boxes_give_numbers_in_range() -> None:
    iou, giou = box_iou(DEGENERATE[:, None], DEGENERATE), generalized_box_iou(DEGENERATE[:, None], DEGENERATE)
    assert ((iou >= 0) & (iou <= 1)).all()
    assert giou.isfinite().all()
    proper = [0, 1, 2, 3, 4, 5, 7]
    assert ((giou[proper][:, proper] >= -1) & (giou[proper][:, proper] <= 1)).all()
    assert float(iou[0, 1]) == 0
    assert float(iou[0, 5]) == 0


def test_degenerate_boxes_have_gradients_that_training_survives() -> None:
    """A model says (cx, cy, w, h); its box may shrink to nothing, the true one may have no area."""
    true = xyxy_to_cxcywh(DEGENERATE[[0, 2, 3, 4, 5]])
    sides = ((0.0, 0.0), (0.3, 0.0), (0.0, 0.3), (1e-22, 1e-22), (1e-6, 1e-6), (0.6, 1e-30), (0.6, 1e-15), (1e-8, 2e-8))
    for width, height in sides:
        predicted = true.clone()
        predicted[:, 2:] = torch.tensor((width, height))
        predicted = torch.cat((predicted, predicted + 0.1)).requires_grad_()
        giou = generalized_box_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(true.repeat(2, 1)))
        assert giou.isfinite().all()
        (gradient,) = torch.autograd.grad(giou.sum(), predicted)
        assert gradient.norm().isfinite(), f"{width} × {height}: {gradient}"


corner = st.floats(0, 1, allow_nan=False, width=32)
size = st.floats(2**-10, 1, allow_nan=False, width=32)
box = st.tuples(corner, corner, size, size).map(lambda b: torch.tensor([b[0], b[1], b[0] + b[2], b[1] + b[3]]).double())


@given(a=box, b=box, shift=corner, scale=size)
def test_properties_of_iou_and_giou(a: Tensor, b: Tensor, shift: float, scale: float) -> None:
    iou, giou = float(box_iou(a, b)), float(generalized_box_iou(a, b))
    assert 0 <= iou <= 1 + 1e-9
    assert -1 <= giou <= iou + 1e-9
    assert iou == pytest.approx(float(box_iou(b, a)))
    assert giou == pytest.approx(float(generalized_box_iou(b, a)))
    assert float(generalized_box_iou(a, a)) == pytest.approx(1)
    moved_a, moved_b = a * scale + shift, b * scale + shift
    assert giou == pytest.approx(float(generalized_box_iou(moved_a, moved_b)), abs=1e-6)
    inside = torch.cat(((3 * a[:2] + a[2:]) / 4, (a[:2] + 3 * a[2:]) / 4))
    assert float(generalized_box_iou(a, inside)) == pytest.approx(0.25)


@given(b=box)
def test_conversions_undo_one_another(b: Tensor) -> None:
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(b)), b)


def test_clip_to_picture() -> None:
    boxes = torch.randn(50, 4) * 100
    torch.testing.assert_close(clip_to_picture(boxes, 30, 50), ops.clip_boxes_to_image(boxes, (30, 50)))


# ---------------------------------------------------------------- targets and costs


def random_targets(counts: list[int], classes: int) -> list[dict[str, Tensor]]:
    return [
        {"labels": torch.randint(classes, (n,)), "boxes": xyxy_to_cxcywh(random_corners(n, torch.float32))}
        for n in counts
    ]


def random_predictions(layers: int, batch: int, queries: int, classes: int, kind: Kind) -> tuple[Tensor, Tensor]:
    logits = 2 * torch.randn(layers, batch, queries, classes + (kind == "softmax"))
    boxes = xyxy_to_cxcywh(random_corners(layers * batch * queries, torch.float32)).view(layers, batch, queries, 4)
    return logits, boxes


def giou_by_hand(a: list[float], b: list[float]) -> float:
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = (
        (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2) for cx, cy, w, h in (a, b)
    )
    inter = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - inter
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    return inter / union - (hull - union) / hull


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def cost_by_hand(
    logits: Tensor, boxes: Tensor, target: dict[str, Tensor], kind: Kind, weights: tuple[float, float, float]
) -> np.ndarray:
    """One picture and layer: (N_q, T) from the formulas, pair by pair."""
    cost = np.zeros((len(logits), len(target["labels"])))
    for q in range(cost.shape[0]):
        for t in range(cost.shape[1]):
            label, true, predicted = int(target["labels"][t]), target["boxes"][t].tolist(), boxes[q].tolist()
            if kind == "softmax":
                by_class = -math.exp(logits[q, label]) / sum(math.exp(x) for x in logits[q])
            else:
                p = sigmoid(float(logits[q, label]))
                by_class = 0.25 * (1 - p) ** 2 * -math.log(p) - 0.75 * p**2 * -math.log(1 - p)
            l1 = sum(abs(x - y) for x, y in zip(predicted, true))
            cost[q, t] = weights[0] * by_class + weights[1] * l1 - weights[2] * giou_by_hand(predicted, true)
    return cost


@pytest.mark.parametrize("kind", KINDS)
def test_cost_of_every_pair(kind: Kind) -> None:
    counts = [3, 1, 2]
    targets = random_targets(counts, 4)
    logits, boxes = random_predictions(2, 3, 5, 4, kind)
    labels, target_boxes = pad_targets(targets, torch.device("cpu"))
    assert (labels.shape, target_boxes.shape) == ((3, 3), (3, 3, 4))
    cost = matching_cost(logits, boxes, labels, target_boxes, MatchingCost(1.5, 4.0, 3.0), kind)
    assert cost.shape == (2, 3, 5, 3)
    for k in range(2):
        for b, count in enumerate(counts):
            expected = cost_by_hand(logits[k, b], boxes[k, b], targets[b], kind, (1.5, 4.0, 3.0))
            np.testing.assert_allclose(cost[k, b, :, :count].numpy(), expected, atol=1e-5)
    one_layer = matching_cost(logits[0], boxes[0], labels, target_boxes, MatchingCost(1.5, 4.0, 3.0), kind)
    torch.testing.assert_close(one_layer, cost[0])


def test_costs_stay_finite_and_exact_for_certain_queries() -> None:
    logits = torch.tensor([[-200.0, 200.0]])
    assert classification_cost(logits, "softmax").isfinite().all()
    torch.testing.assert_close(classification_cost(logits, "focal"), torch.tensor([[50.0, -150.0]]))


def test_no_object_is_no_class_to_be_matched_with() -> None:
    logits = torch.randn(2, 5, 4)
    torch.testing.assert_close(
        classification_cost(logits, "softmax"), -(logits.exp() / logits.exp().sum(-1, True))[..., :3]
    )
    assert classification_cost(logits, "focal").shape == (2, 5, 4)


def test_cost_is_float32_whatever_comes_in() -> None:
    targets = random_targets([2], 3)
    logits, boxes = random_predictions(1, 1, 4, 3, "focal")
    labels, target_boxes = pad_targets(targets, torch.device("cpu"))
    cost = matching_cost(logits.bfloat16(), boxes.bfloat16(), labels, target_boxes, MatchingCost(), "focal")
    exact = matching_cost(
        logits.bfloat16().float(), boxes.bfloat16().float(), labels, target_boxes, MatchingCost(), "focal"
    )
    assert cost.dtype == torch.float32
    assert torch.equal(cost, exact)


# ---------------------------------------------------------------- matching


def cheapest_by_brute_force(cost: np.ndarray) -> float:
    queries, objects = cost.shape
    return min(
        sum(cost[q, t] for t, q in enumerate(chosen)) for chosen in itertools.permutations(range(queries), objects)
    )


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 10_000))
def test_assignment_is_the_cheapest(queries: int, objects: int, seed: int) -> None:
    objects = min(objects, queries)
    cost = np.random.default_rng(seed).normal(size=(queries, objects))
    rows, columns = assign(cost)
    assert sorted(columns) == list(range(objects))
    assert len(set(rows)) == objects
    assert cost[rows, columns].sum() == pytest.approx(cheapest_by_brute_force(cost))


@pytest.mark.parametrize("kind", KINDS)
def test_matching_equals_brute_force_in_every_layer(kind: Kind) -> None:
    counts = [3, 0, 1, 4]
    targets = random_targets(counts, 3)
    logits, boxes = random_predictions(3, 4, 5, 3, kind)
    matches = match(logits, boxes, targets, MatchingCost(2, 5, 2), kind)
    assert len(matches.layer) == 3 * sum(counts)
    for k in range(3):
        for b, count in enumerate(counts):
            here = (matches.layer == k) & (matches.picture == b)
            query, target = matches.query[here].tolist(), matches.target[here].tolist()
            assert sorted(target) == list(range(count))
            assert len(set(query)) == count
            cost = cost_by_hand(logits[k, b], boxes[k, b], targets[b], kind, (2, 5, 2))
            assert sum(cost[q, t] for q, t in zip(query, target)) == pytest.approx(
                cheapest_by_brute_force(cost), abs=1e-4
            )


def test_all_layers_at_once_equals_one_at_a_time() -> None:
    targets = random_targets([2, 0, 4], 3)
    logits, boxes = random_predictions(4, 3, 6, 3, "focal")
    together = match(logits, boxes, targets, MatchingCost(), "focal")
    order = list(zip(together.layer.tolist(), together.picture.tolist()))
    assert order == sorted(order)
    for k in range(4):
        alone = match(logits[k : k + 1], boxes[k : k + 1], targets, MatchingCost(), "focal")
        of_layer = together.of_layer(k)
        for name in ("picture", "query", "target"):
            assert torch.equal(getattr(of_layer, name), getattr(alone, name)), name
        assert (of_layer.layer == k).all()


@given(st.integers(0, 10_000), st.sampled_from(KINDS))
def test_of_thousands_of_proposals_only_a_few_are_needed(seed: int, kind: Kind) -> None:
    """The cheapest assignment of the whole table, from the T cheapest queries of each object, also where costs are alike."""
    random = np.random.default_rng(seed)
    counts = random.integers(0, 5, 2).tolist()
    targets = random_targets(counts, 3)
    logits, boxes = random_predictions(2, 2, 150, 3, kind)
    if seed % 2:  # many queries that say the same
        boxes, logits = boxes[:, :, :3].repeat(1, 1, 50, 1), logits[:, :, :3].repeat(1, 1, 50, 1)
    matches = match(logits, boxes, targets, MatchingCost(2, 5, 2), kind)
    labels, places = pad_targets(targets, torch.device("cpu"))
    whole = matching_cost(logits, boxes, labels, places, MatchingCost(2, 5, 2), kind).numpy()
    for k in range(2):
        for b, count in enumerate(counts):
            here = (matches.layer == k) & (matches.picture == b)
            query, target = matches.query[here].numpy(), matches.target[here].numpy()
            assert len(set(query)) == count
            assert sorted(target) == list(range(count))
            rows, columns = assign(whole[k, b, :, :count])
            assert whole[k, b, query, target].sum() == pytest.approx(whole[k, b, rows, columns].sum(), abs=1e-5)


def test_several_problems_are_matched_with_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = random_targets([2, 1], 3)
    problems = [
        Problem(*random_predictions(layers, 2, queries, 3, "focal"), targets) for layers, queries in ((3, 9), (1, 200))
    ]
    alone = [match(*problem, MatchingCost(), "focal") for problem in problems]
    copies: list[Tensor] = []
    original = torch.Tensor.cpu

    def counted(self: Tensor) -> Tensor:
        copies.append(self)
        return original(self)

    monkeypatch.setattr(torch.Tensor, "cpu", counted)
    together = match_all(problems, MatchingCost(), "focal")
    assert len(copies) == 1
    for ours, theirs in zip(together, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_proposal_that_is_not_finite_is_named_however_many_there_are() -> None:
    targets = random_targets([2, 1], 3)
    logits, boxes = random_predictions(1, 2, 300, 3, "focal")
    logits[0, 1, 250] = float("nan")
    with pytest.raises(NotFiniteError, match="picture 1 of the batch in layer 0 is not finite"):
        match(logits, boxes, targets, MatchingCost(), "focal")


def test_each_picture_is_matched_for_itself() -> None:
    targets = random_targets([2, 3], 3)
    logits, boxes = random_predictions(2, 2, 6, 3, "softmax")
    together = match(logits, boxes, targets, MatchingCost(), "softmax")
    for b in range(2):
        alone = match(logits[:, b : b + 1], boxes[:, b : b + 1], targets[b : b + 1], MatchingCost(), "softmax")
        here = together.picture == b
        assert torch.equal(together.query[here], alone.query)
        assert torch.equal(together.target[here], alone.target)


def test_nothing_to_match() -> None:
    logits, boxes = random_predictions(2, 2, 3, 3, "focal")
    matches = match(logits, boxes, random_targets([0, 0], 3), MatchingCost(), "focal")
    assert [len(index) for index in matches] == [0, 0, 0, 0]
    assert matches.query.dtype == torch.int64


def test_as_many_objects_as_queries_and_one_more() -> None:
    logits, boxes = random_predictions(1, 2, 3, 3, "focal")
    matches = match(logits, boxes, random_targets([1, 3], 3), MatchingCost(), "focal")
    assert sorted(matches.query[matches.picture == 1].tolist()) == [0, 1, 2]
    targets = random_targets([1, 4], 3)
    with pytest.raises(ValueError, match=r"picture 1 of the batch has 4 objects, the model only 3 queries"):
        match(logits, boxes, targets, MatchingCost(), "focal")
    targets[1]["image_id"] = torch.tensor(77)
    with pytest.raises(ValueError, match=r"image id 77 has 4 objects"):
        match(logits, boxes, targets, MatchingCost(), "focal")


@pytest.mark.parametrize("kind", ["softmax", "focal"])
def test_a_truth_that_cannot_be_meant_names_the_picture(kind: Literal["softmax", "focal"]) -> None:
    logits, boxes = random_predictions(2, 2, 6, 3, kind)
    targets = random_targets([2, 2], 3)
    targets[1]["labels"] = torch.tensor([0, 3])  # 3 would be "no object" in softmax
    with pytest.raises(ValueError, match=r"picture 1 of the batch: labels \[0, 3\] must lie in 0\.\.2"):
        match(logits, boxes, targets, MatchingCost(), kind)
    targets[1]["labels"] = torch.tensor([-1, 2])
    targets[1]["image_id"] = torch.tensor(8)
    with pytest.raises(ValueError, match=r"picture with image id 8: labels \[-1, 2\]"):
        set_losses(Outputs(logits, boxes), targets, SetLoss(kind=kind))
    targets[1]["labels"] = torch.tensor([0, 2])
    targets[1]["boxes"] = torch.tensor([[0.5, 0.5, 0.2, 0.2], [64.0, 48.0, 20.0, 30.0]])
    with pytest.raises(ValueError, match=r"image id 8: box \[64.0, 48.0, 20.0, 30.0\] is not \(cx, cy, w, h\) in 0..1"):
        match(logits, boxes, targets, MatchingCost(), kind)
    targets[1]["boxes"][1] = torch.tensor([1.2, 0.5, 1.4, 1.0])  # half outside, as without clipping after a crop
    match(logits, boxes, targets, MatchingCost(), kind)


@pytest.mark.parametrize("where", ["logits", "boxes", "target"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_name_the_picture(where: str, bad: float) -> None:
    targets = random_targets([2, 2], 3)
    logits, boxes = random_predictions(3, 2, 4, 3, "focal")
    match(logits, boxes, targets, MatchingCost(), "focal")
    if where == "logits":
        logits[1, 1, 2] = math.nan
    elif where == "boxes":
        boxes[1, 1, 2, 0] = bad
    else:
        targets[1]["boxes"][0, 3] = bad
    layer = 0 if where == "target" else 1
    with pytest.raises(ValueError, match=f"picture 1 of the batch in layer {layer} is not finite"):
        match(logits, boxes, targets, MatchingCost(), "focal")
    targets[1]["image_id"] = torch.tensor(421)
    with pytest.raises(ValueError, match="image id 421"):
        match(logits, boxes, targets, MatchingCost(), "focal")


@pytest.mark.parametrize("kind", KINDS)
def test_one_copy_to_the_cpu_for_all_layers(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = random_targets([2, 0, 3], 3)
    logits, boxes = random_predictions(6, 3, 8, 3, kind)
    outputs = Outputs(logits.requires_grad_(), boxes.requires_grad_())
    copies: list[torch.Size] = []
    inside: list[str] = []

    def counted(name: str, copies_all: bool) -> Any:
        original = getattr(Tensor, name)

        def wrapper(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not inside and (copies_all or args[:1] in ((torch.device("cpu"),), ("cpu",))):
                copies.append(self.shape)
            inside.append(name)
            try:
                return original(self, *args, **kwargs)
            finally:
                inside.pop()

        return wrapper

    for name in (
        "cpu",
        "item",
        "tolist",
        "numpy",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "nonzero",
    ):
        if name != "numpy":  # of what is on the CPU already
            monkeypatch.setattr(Tensor, name, counted(name, True))
    loss = set_losses(outputs, targets, DETR_LOSS if kind == "softmax" else DEFORMABLE_DETR_LOSS)
    assert copies == [torch.Size([2 * 3 + 6 * 3 * 8 * 3 + 6 * 3])]  # possible, costs, finite
    sum(loss.values()).backward()  # type: ignore[union-attr]


# ---------------------------------------------------------------- losses


def test_focal_loss_equals_torchvision() -> None:
    logits = 4 * torch.randn(5, 7, dtype=torch.float64)
    targets = (torch.rand(5, 7) < 0.3).double()
    torch.testing.assert_close(sigmoid_focal_loss(logits, targets), ops.sigmoid_focal_loss(logits, targets, 0.25, 2.0))
    for alpha, gamma in ((0.6, 1.0), (0.1, 3.0)):
        expected = ops.sigmoid_focal_loss(logits, targets, alpha, gamma)
        torch.testing.assert_close(sigmoid_focal_loss(logits, targets, alpha, gamma), expected)


def test_gradient_of_the_focal_loss_is_finite_for_certain_queries() -> None:
    logits = torch.tensor([-120.0, -20.0, 0.0, 20.0, 120.0]).repeat(2, 1).requires_grad_()
    targets = torch.stack((torch.zeros(5), torch.ones(5)))
    sigmoid_focal_loss(logits, targets).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def losses_by_hand(
    logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]], kind: Kind, no_object: float
) -> tuple[float, float, float]:
    """One layer's unweighted losses, query by query; the matching by brute force."""
    number = max(1, sum(len(t["labels"]) for t in targets))
    weights = (1.0, 5.0, 2.0) if kind == "softmax" else (2.0, 5.0, 2.0)
    classification = l1 = giou = weight_sum = 0.0
    for b, target in enumerate(targets):
        cost = cost_by_hand(logits[b], boxes[b], target, kind, weights)
        queries, objects = cost.shape
        chosen = min(
            itertools.permutations(range(queries), objects),
            key=lambda c: sum(cost[q, t] for t, q in enumerate(c)),
        )
        of_query = {q: t for t, q in enumerate(chosen)}
        for q in range(queries):
            row = logits[b, q].tolist()
            t = of_query.get(q)
            label = int(target["labels"][t]) if t is not None else len(row) - 1
            if kind == "softmax":
                weight = 1.0 if t is not None else no_object
                classification -= weight * math.log(math.exp(row[label]) / sum(math.exp(x) for x in row))
                weight_sum += weight
            else:
                for c, x in enumerate(row):
                    p = sigmoid(x)
                    if t is not None and c == label:
                        classification -= 0.25 * (1 - p) ** 2 * math.log(p)
                    else:
                        classification -= 0.75 * p**2 * math.log(1 - p)
            if t is not None:
                true, predicted = target["boxes"][t].tolist(), boxes[b, q].tolist()
                l1 += sum(abs(x - y) for x, y in zip(predicted, true))
                giou += 1 - giou_by_hand(predicted, true)
    return classification / (weight_sum if kind == "softmax" else number), l1 / number, giou / number


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("counts", [[2, 0, 3], [0, 0], [1]])
def test_losses_equal_a_slow_loop(counts: list[int], kind: Kind) -> None:
    layers, queries, classes = 3, 5, 4
    targets = random_targets(counts, classes)
    logits, boxes = random_predictions(layers, len(counts), queries, classes, kind)
    loss = DETR_LOSS if kind == "softmax" else DEFORMABLE_DETR_LOSS
    result = set_losses(Outputs(logits, boxes), targets, loss)
    assert sorted(result) == sorted(f"{n}{k}" for n in ("class", "l1", "giou") for k in ("", "/0", "/1"))
    weights = (1, 5, 2) if kind == "softmax" else (2, 5, 2)
    for k, ending in enumerate(("/0", "/1", "")):
        expected = losses_by_hand(logits[k], boxes[k], targets, kind, 0.1)
        for name, weight, value in zip(("class", "l1", "giou"), weights, expected):
            assert float(result[name + ending]) == pytest.approx(weight * value, rel=1e-4, abs=1e-5), name + ending


def test_a_batch_without_objects_whose_no_object_counts_nothing() -> None:
    """A mean over no weight at all is 0, and has a gradient of 0."""
    targets = random_targets([0, 0], 3)
    logits, boxes = random_predictions(2, 2, 5, 3, "softmax")
    logits.requires_grad_()
    losses = set_losses(Outputs(logits, boxes), targets, replace(DETR_LOSS, no_object=0.0))
    assert losses["class"] == 0
    losses["class"].backward()
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("no_object", [0.1, 0.7])
def test_own_weights_reach_the_losses(no_object: float) -> None:
    targets = random_targets([2, 1], 3)
    logits, boxes = random_predictions(1, 2, 4, 3, "softmax")
    plain = losses_by_hand(logits[0], boxes[0], targets, "softmax", no_object)
    own = SetLoss("softmax", 3.0, 0.5, 7.0, no_object, MatchingCost(1.0))
    result = set_losses(Outputs(logits, boxes), targets, own)
    expected = {"class": 3 * plain[0], "l1": 0.5 * plain[1], "giou": 7 * plain[2]}
    assert {k: float(v) for k, v in result.items()} == pytest.approx(expected, rel=1e-4)


def test_encoder_losses_take_every_object_for_class_0() -> None:
    targets = random_targets([2, 0, 3], 4)
    for t in targets:
        t["labels"] = t["labels"].clamp(min=1)
    logits, boxes = random_predictions(2, 3, 5, 4, "focal")
    proposals, places = random_predictions(1, 3, 6, 4, "focal")
    result = set_losses(Outputs(logits, boxes, proposals[0], places[0]), targets, DEFORMABLE_DETR_LOSS)
    assert sorted(result) == sorted(f"{n}{k}" for n in ("class", "l1", "giou") for k in ("", "/0", "/encoder"))
    objects = [{**t, "labels": torch.zeros_like(t["labels"])} for t in targets]
    expected = losses_by_hand(proposals[0], places[0], objects, "focal", 0.1)
    for name, weight, value in zip(("class", "l1", "giou"), (2, 5, 2), expected):
        assert float(result[f"{name}/encoder"]) == pytest.approx(weight * value, rel=1e-4)
    last = losses_by_hand(logits[1], boxes[1], targets, "focal", 0.1)
    assert float(result["class"]) == pytest.approx(2 * last[0], rel=1e-4)
    assert all(int(t["labels"].min()) >= 1 for t in targets if len(t["labels"])), "the targets stay as they were"


@pytest.mark.parametrize("kind", KINDS)
def test_hinted_queries_learn_the_object_they_were_told_of(kind: Kind) -> None:
    targets = random_targets([2, 0, 3], 4)
    logits, boxes = random_predictions(2, 3, 5, 4, kind)
    groups, most = 2, 3
    hints, places = random_predictions(2, 3, groups * most, 4, kind)
    loss = DETR_LOSS if kind == "softmax" else DEFORMABLE_DETR_LOSS
    result = set_losses(Outputs(logits, boxes, None, None, hints, places), targets, loss)
    weights = (1, 5, 2) if kind == "softmax" else (2, 5, 2)
    for k, ending in enumerate(("/hint/0", "/hint")):
        classification = l1 = giou = weight_sum = 0.0
        for b, target in enumerate(targets):
            for q in range(groups * most):
                t = q % most
                real = t < len(target["labels"])
                row = hints[k, b, q].tolist()
                label = int(target["labels"][t]) if real else len(row) - 1
                if kind == "softmax":
                    weight = 1.0 if real else 0.1
                    classification -= weight * math.log(math.exp(row[label]) / sum(math.exp(x) for x in row))
                    weight_sum += weight
                else:
                    for c, x in enumerate(row):
                        yes = real and c == label
                        p = sigmoid(x) if yes else 1 - sigmoid(x)
                        classification -= (0.25 if yes else 0.75) * (1 - p) ** 2 * math.log(p)
                if real:
                    true, predicted = target["boxes"][t].tolist(), places[k, b, q].tolist()
                    l1 += sum(abs(x - y) for x, y in zip(predicted, true))
                    giou += 1 - giou_by_hand(predicted, true)
        number = 5 * groups
        expected = (classification / (weight_sum if kind == "softmax" else number), l1 / number, giou / number)
        for name, weight, value in zip(("class", "l1", "giou"), weights, expected):
            assert float(result[name + ending]) == pytest.approx(weight * value, rel=1e-4), name + ending


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_losses_reach_what_they_should(kind: Kind) -> None:
    targets = random_targets([2, 0], 3)
    logits, boxes = (t.requires_grad_() for t in random_predictions(2, 2, 4, 3, kind))
    result = set_losses(Outputs(logits, boxes), targets, DETR_LOSS if kind == "softmax" else DEFORMABLE_DETR_LOSS)
    sum(result.values()).backward()  # type: ignore[union-attr]
    assert logits.grad is not None
    assert boxes.grad is not None
    assert (logits.grad != 0).all(), "every query of every picture and layer learns its class"
    moved = (boxes.grad != 0).any(-1).sum(-1)
    assert moved.tolist() == [[2, 0], [2, 0]], "only matched queries learn a box"


@pytest.mark.parametrize("kind", ["softmax", "focal"])
def test_the_backward_pass_asks_for_no_number(kind: Kind) -> None:
    """On a GPU each would synchronise with it."""
    logits, boxes = random_predictions(2, 2, 5, 3, kind)
    targets = random_targets([2, 1], 3)
    total = sum(
        set_losses(Outputs(logits.requires_grad_(), boxes.requires_grad_()), targets, SetLoss(kind=kind)).values()
    )
    assert isinstance(total, Tensor)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        total.backward()
    names = {event.key for event in profile.key_averages()}
    assert any("GatherBackward" in name or "IndexBackward" in name for name in names)
    assert "aten::_local_scalar_dense" not in names


def test_losses_are_computed_in_float32() -> None:
    targets = random_targets([2], 3)
    logits, boxes = (t.bfloat16() for t in random_predictions(1, 1, 4, 3, "focal"))
    half = set_losses(Outputs(logits, boxes), targets, DEFORMABLE_DETR_LOSS)
    exact = set_losses(Outputs(logits.float(), boxes.float()), targets, DEFORMABLE_DETR_LOSS)
    for name, value in half.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, exact[name])


def test_published_weights() -> None:
    assert SetLoss("softmax", 1, 5, 2, 0.1, MatchingCost(1, 5, 2)) == DETR_LOSS
    assert SetLoss("focal", 2, 5, 2, 0.1, MatchingCost(2, 5, 2)) == DEFORMABLE_DETR_LOSS
    assert layer_names(3) == ["/0", "/1", ""]


# ---------------------------------------------------------------- postprocess


def pixels(box: Tensor, height: int, width: int) -> list[float]:
    cx, cy, w, h = box.tolist()
    corners = [(cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height]
    return [min(max(v, 0), limit) for v, limit in zip(corners, (width, height, width, height))]


@pytest.mark.parametrize("top", [4, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_postprocess_equals_a_loop(kind: Kind, top: int) -> None:
    logits, boxes = 2 * torch.randn(2, 6, 4), 1.4 * torch.rand(2, 6, 4)
    sizes = [(30, 50), (100, 40)]
    detections = postprocess(logits, boxes, sizes, kind, top)
    assert len(detections) == 2
    for b, (height, width) in enumerate(sizes):
        found = []
        for q in range(6):
            row = logits[b, q].tolist()
            if kind == "softmax":
                shares = [math.exp(x) / sum(math.exp(y) for y in row) for x in row[:-1]]
                found.append((max(shares), shares.index(max(shares)), q))
            else:
                found += [(sigmoid(x), c, q) for c, x in enumerate(row)]
        found.sort(reverse=True)
        if kind == "focal":
            found = found[:top]
        assert set(detections[b]) == {"boxes", "scores", "labels"}
        assert detections[b]["scores"].tolist() == pytest.approx([s for s, _, _ in found], rel=1e-5)
        assert detections[b]["labels"].tolist() == [c for _, c, _ in found]
        for row_out, (_, _, q) in zip(detections[b]["boxes"], found, strict=True):
            assert row_out.tolist() == pytest.approx(pixels(boxes[b, q], height, width), rel=1e-4, abs=1e-4)


def test_postprocess_of_half_precision_is_float32() -> None:
    (detection,) = postprocess(torch.randn(1, 3, 4).bfloat16(), torch.rand(1, 3, 4).bfloat16(), [(480, 640)], "focal")
    assert detection["boxes"].dtype == detection["scores"].dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_all_terms_are_computed_in_float32(kind: Kind) -> None:
    """Those of the first stage and of hints too, whatever autocast made of the predictions."""
    targets = random_targets([2], 3)
    logits, boxes = (t.bfloat16() for t in random_predictions(2, 1, 4, 3, kind))
    loss = DETR_LOSS if kind == "softmax" else DEFORMABLE_DETR_LOSS
    half = (logits, boxes, logits[0], boxes[0], logits, boxes)
    exact = set_losses(Outputs(*(tensor.float() for tensor in half)), targets, loss)
    for name, value in set_losses(Outputs(*half), targets, loss).items():
        assert value.dtype == torch.float32, name
        assert torch.equal(value, exact[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_losses_of_pieces_make_up_those_of_the_whole(kind: Kind) -> None:
    targets = random_targets([3, 0, 1, 0], 4)
    logits, boxes = random_predictions(2, 4, 6, 4, kind)
    proposals, places = random_predictions(1, 4, 9, 4, kind)
    loss = DETR_LOSS if kind == "softmax" else DEFORMABLE_DETR_LOSS
    whole = count_objects(targets, torch.device("cpu"))
    pieces = []
    for a, b in ((0, 1), (1, 2), (2, 4), (0, 4)):
        part = Outputs(logits[:, a:b], boxes[:, a:b], proposals[0, a:b], places[0, a:b])
        pieces.append(set_losses(part, targets[a:b], loss, whole))
    for name, value in pieces.pop().items():
        assert float(sum(piece[name] for piece in pieces)) == pytest.approx(float(value), rel=1e-5), name


def test_a_picture_without_objects_alone_in_its_batch() -> None:
    targets = random_targets([0], 4)
    logits, boxes = random_predictions(1, 1, 5, 4, "softmax")
    expected = losses_by_hand(logits[0], boxes[0], targets, "softmax", 0.1)
    found = set_losses(Outputs(logits, boxes), targets, DETR_LOSS)
    assert float(found["class"]) == pytest.approx(expected[0], rel=1e-4)


def test_small_things() -> None:
    """The area of swapped corners, the length of a list of detections, and what padding of objects holds."""
    assert box_area(torch.tensor([0.8, 0.8, 0.2, 0.2])) == 0
    (found,) = postprocess(torch.randn(1, 60, 3), torch.rand(1, 60, 4), [(10, 10)], "focal")
    assert len(found["scores"]) == 100
    labels, boxes = pad_targets(random_targets([1, 0], 4), torch.device("cpu"))
    assert labels[1].tolist() == [0]
    assert boxes[1].tolist() == [[0.5, 0.5, 1.0, 1.0]]


def test_losses_say_what_they_need() -> None:
    logits, boxes = random_predictions(1, 2, 4, 3, "focal")
    targets = [{"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}] * 2
    for wrong in (Outputs(logits[0], boxes[0]), Outputs(logits[:, :1], boxes[:, :1])):
        with pytest.raises(ValueError, match=r"for one layer give logits\[None\]"):
            set_losses(wrong, targets, DEFORMABLE_DETR_LOSS)
    with pytest.raises(ValueError, match="kind='Focal' must be 'softmax' or 'focal'"):
        SetLoss(kind="Focal")  # type: ignore[arg-type]
