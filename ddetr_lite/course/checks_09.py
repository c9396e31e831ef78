"""The exercises of notebook 09: the inverse of the sigmoid, a box relative to its reference, and the first stage's choice."""

import torch
from torch import Tensor

from ddetr_lite.course.exercises import Case, Exercise, Mistake, normal
from ddetr_lite.layers import deformable_transformer

# The package's own, also while a learner's are plugged in.
_inverse, _refine = deformable_transformer.inverse_sigmoid, deformable_transformer.refine_boxes

# --- inverse_sigmoid ----------------------------------------------------------------------------------------------


def _inverse_sigmoid(x: Tensor, eps: float) -> Tensor:
    return _inverse(x, eps)


INVERSE_SIGMOID = Exercise(
    name="inverse_sigmoid",
    notebook="09",
    task="log(x / (1 − x)), with x first kept in 0..1, and neither x nor 1 − x smaller than eps.",
    reference=_inverse_sigmoid,
    cases=lambda: [
        Case("one half and nine tenths", (torch.tensor([0.5, 0.9]), 1e-5)),
        Case("eight boxes", (normal(150, 8, 4).sigmoid(), 1e-5)),
        Case("zero, one, and a little outside", (torch.tensor([0.0, 1.0, -0.1, 1.2]), 1e-3)),
    ],
    differentiable=True,
    part=deformable_transformer.inverse_sigmoid,
    adapt=lambda function: lambda x, eps=1e-5: function(x, eps),
    hints=(
        "x = x.clamp(0, 1) first; then x.clamp(min=eps), and (1 − x).clamp(min=eps).",
        "torch.log of their quotient.",
    ),
    mistakes=(
        Mistake("nothing is clamped: 0 and 1 give infinity, and numbers outside 0..1 NaN. x.clamp(0, 1), then clamp(min=eps)",
                lambda x, eps: torch.log(x / (1 - x))),
        Mistake("x is kept in eps..1 − eps, as torch.logit does too. The package keeps x and 1 − x each from going below eps: "
                "0 gives log eps, not log(eps / (1 − eps))",
                lambda x, eps: torch.logit(x, eps)),
        Mistake("0 and 1 give infinity: keep x and 1 − x away from 0 with clamp(min=eps)",
                lambda x, eps: torch.log(x.clamp(0, 1) / (1 - x.clamp(0, 1)))),
        Mistake("this is the sigmoid itself; its inverse is asked for", lambda x, eps: x.sigmoid()),
        Mistake("the quotient is upside down: x is above", lambda x, eps: -_inverse(x, eps)),
        Mistake("the logarithm is missing", lambda x, eps: _inverse(x, eps).exp()),
        Mistake("numbers outside 0..1 are not brought back: x.clamp(0, 1) first",
                lambda x, eps: torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))),
        Mistake("eps is added to x and to 1 − x, which changes numbers that were fine; clamp only the small ones",
                lambda x, eps: torch.log((x.clamp(0, 1) + eps) / (1 - x.clamp(0, 1) + eps))),
    ),
    tolerance=1e-6,
)  # fmt: skip

# --- refine_boxes ---------------------------------------------------------------------------------------------------


def _changed(delta: Tensor, reference: Tensor, unsquash: bool = True, squash: bool = True) -> Tensor:
    known = reference.shape[-1]
    base = _inverse(reference) if unsquash else reference
    box = torch.cat((delta[..., :known] + base, delta[..., known:]), dim=-1)
    return box.sigmoid() if squash else box


def _sum_of_shares(delta: Tensor, reference: Tensor) -> Tensor:
    known = reference.shape[-1]
    return torch.cat((delta[..., :known].sigmoid() + reference, delta[..., known:].sigmoid()), dim=-1)


def _centre_only(delta: Tensor, reference: Tensor) -> Tensor:
    return torch.cat((delta[..., :2] + _inverse(reference[..., :2]), delta[..., 2:]), dim=-1).sigmoid()


def _size_is_not_squashed(delta: Tensor, reference: Tensor) -> Tensor:
    known = reference.shape[-1]
    return torch.cat(((delta[..., :known] + _inverse(reference)).sigmoid(), delta[..., known:]), dim=-1)


def _boxes_only(delta: Tensor, reference: Tensor) -> Tensor:
    return (delta + _inverse(reference)).sigmoid()


def _refine_cases() -> list[Case]:
    return [
        Case("one box, a correction that one can do by hand",
             (torch.tensor([[1.0, 0, 0.5, -0.5]]), torch.tensor([[0.5, 0.9, 0.2, 0.4]]))),
        Case("four queries with boxes", (normal(151, 4, 4), normal(152, 4, 4).sigmoid())),
        Case("four queries with points", (normal(153, 4, 4), normal(154, 4, 2).sigmoid())),
        Case("two pictures with three boxes each", (normal(155, 2, 3, 4), normal(156, 2, 3, 4).sigmoid())),
    ]  # fmt: skip


REFINE_BOXES = Exercise(
    name="refine_boxes",
    notebook="09",
    task="σ(Δ + σ⁻¹(reference)); where the reference is a point, only the centre is relative to it.",
    reference=_refine,
    cases=_refine_cases,
    differentiable=True,
    part=deformable_transformer.refine_boxes,
    hints=(
        "from ddetr_lite.layers.deformable_transformer import inverse_sigmoid, inside the function.",
        "reference.shape[-1] is 4 or 2: so many numbers of the box are relative.",
        "torch.cat((delta[..., :known] + inverse_sigmoid(reference), delta[..., known:]), dim=-1).sigmoid()",
    ),
    mistakes=(
        Mistake("the reference is added as it is; it has to go back through the sigmoid first: inverse_sigmoid",
                lambda d, r: _changed(d, r, unsquash=False)),
        Mistake("the result is not in 0..1: the sigmoid at the end is missing",
                lambda d, r: _changed(d, r, squash=False)),
        Mistake("σ(Δ) and the reference are added after the sigmoid, and may leave 0..1: add before it", _sum_of_shares),
        Mistake("only the centre is corrected; a reference *box* has a size too, to which the last two numbers are added",
                _centre_only),
        Mistake("a reference point has two numbers only: add to the first two, and leave the size to the head", _boxes_only),
        Mistake("with a reference point, the size does not go through the sigmoid: all four numbers have to lie in 0..1",
                _size_is_not_squashed),
        Mistake("a point is filled up with zeros *before* inverse_sigmoid, which makes large numbers of them: fill up after it",
                lambda d, r: _changed(d, torch.cat((r, torch.zeros_like(d[..., r.shape[-1] :])), dim=-1))),
        Mistake("the correction is forgotten: this is the reference again",
                lambda d, r: _changed(torch.cat((torch.zeros_like(d[..., : r.shape[-1]]), d[..., r.shape[-1] :]), -1), r)),
    ),
)  # fmt: skip

# --- best_proposals -------------------------------------------------------------------------------------------------


def _best(logits: Tensor, unscaled: Tensor, count: int) -> Tensor:
    return _take(logits[..., 0], unscaled, count).sigmoid()


def _take(scores: Tensor, boxes: Tensor, count: int, largest: bool = True) -> Tensor:
    best = scores.topk(count, dim=1, largest=largest).indices
    return boxes.gather(1, best[..., None].expand(-1, -1, 4))


def _proposal_cases() -> list[Case]:
    return [
        Case("one picture, four tokens, the best two", (normal(157, 1, 4, 2), normal(158, 1, 4, 4), 2)),
        Case("two pictures, nine tokens, the best four", (normal(159, 2, 9, 3), normal(160, 2, 9, 4), 4)),
        Case("all of them, sorted", (normal(161, 1, 5, 2), normal(162, 1, 5, 4), 5)),
    ]


BEST_PROPOSALS = Exercise(
    name="best_proposals",
    notebook="09",
    task="The boxes, after the sigmoid, of the `count` tokens with the largest logit of class 0, the surest first.",
    reference=_best,
    cases=_proposal_cases,
    hints=(
        "logits[..., 0].topk(count, dim=1).indices are the tokens, (B, count).",
        "unscaled.gather(1, best[..., None].expand(-1, -1, 4)) takes their boxes; then .sigmoid().",
    ),
    mistakes=(
        Mistake("the best of all classes is taken; in the first stage class 0 stands for any object",
                lambda x, b, n: _take(x.amax(-1), b, n).sigmoid()),
        Mistake("the boxes are still before the sigmoid", lambda x, b, n: _take(x[..., 0], b, n)),
        Mistake("these are the least sure tokens", lambda x, b, n: _take(x[..., 0], b, n, largest=False).sigmoid()),
        Mistake("the first tokens are taken, whatever their logits", lambda x, b, n: b[:, :n].sigmoid()),
        Mistake("the order of the tokens is kept; the surest should come first",
                lambda x, b, n: b.gather(1, x[..., 0].topk(n, dim=1).indices.sort(dim=1).values[..., None]
                                         .expand(-1, -1, 4)).sigmoid()),
    ),
)  # fmt: skip

EXERCISES = (INVERSE_SIGMOID, REFINE_BOXES, BEST_PROPOSALS)
