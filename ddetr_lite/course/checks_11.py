"""The exercises of notebook 11: labels from category ids, COCO's boxes for the losses, the learning rate of a step, and the
loss of one process's share of a batch.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ddetr_lite.convert.coco_ids import COCO_CATEGORY_IDS
from ddetr_lite.course.exercises import Case, Exercise, Mistake, normal
from ddetr_lite.engine import optimization
from ddetr_lite.engine.recipes import TrainConfig

# --- labels_of ------------------------------------------------------------------------------------------------------


def _place(ids: Tensor, order: Tensor) -> Tensor:
    """Where each id stands in a list of ids."""
    return (ids[:, None] == order).int().argmax(dim=1)


def _labels(ids: Tensor, known: Tensor) -> Tensor:
    return _place(ids, known.sort().values)


def _label_cases() -> list[Case]:
    return [
        Case("three objects, four categories with gaps", (torch.tensor([18, 1, 90]), torch.tensor([1, 3, 18, 90]))),
        Case("categories that begin at 7", (torch.tensor([9, 7]), torch.tensor([7, 9, 12]))),
        Case("a file that lists its categories in no order", (torch.tensor([3, 18, 3, 1]), torch.tensor([18, 90, 1, 3]))),
        Case("COCO's eighty categories", (torch.tensor([90, 13, 27, 1, 44]), torch.tensor(COCO_CATEGORY_IDS))),
        Case("a picture without objects", (torch.zeros(0, dtype=torch.int64), torch.tensor([1, 3, 18]))),
    ]  # fmt: skip


LABELS_OF = Exercise(
    name="labels_of",
    notebook="11",
    task="For each category id its label: its place among all ids of the file, in rising order, counted from 0.",
    reference=_labels,
    cases=_label_cases,
    hints=(
        "Sort the file's ids first: the order in which it lists its categories must not matter.",
        "A dict {id: place} and a loop over the objects will do; so does torch.searchsorted(sorted_ids, ids).",
        "torch.searchsorted(known.sort().values, ids)",
    ),
    mistakes=(
        Mistake("the ids are used as they are: a head with C outputs has no place for them", lambda i, k: i.clone()),
        Mistake("1 is subtracted from the ids, which leaves the gaps: count the ids that exist", lambda i, k: i - 1),
        Mistake("the smallest id is subtracted, which leaves the gaps: count the ids that exist", lambda i, k: i - k.min()),
        Mistake("searchsorted looks into a list that is not sorted: sort the file's ids first",
                lambda i, k: torch.searchsorted(k, i)),
        Mistake("labels begin at 1, by `right=True` or with 0 kept free for a background; here they begin at 0",
                lambda i, k: _labels(i, k) + 1),
        Mistake("labels go by the order in which the file lists its categories; sort the ids first", _place),
        Mistake("only the ids of this picture are numbered: then a label means another class in every picture",
                lambda i, k: i.unique(return_inverse=True)[1]),
    ),
)  # fmt: skip

# --- model_boxes -----------------------------------------------------------------------------------------------------


def _model_boxes(bbox: Tensor, size: tuple[int, int], resized: tuple[int, int]) -> Tensor:
    return _as_centres(bbox) / _scale(bbox, size)


def _as_centres(bbox: Tensor) -> Tensor:
    return torch.cat((bbox[:, :2] + bbox[:, 2:] / 2, bbox[:, 2:]), dim=1)


def _scale(bbox: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    return bbox.new_tensor([width, height, width, height])


def _from_corners(bbox: Tensor) -> Tensor:
    return torch.cat(((bbox[:, :2] + bbox[:, 2:]) / 2, bbox[:, 2:] - bbox[:, :2]), dim=1)


def _corners(bbox: Tensor) -> Tensor:
    return torch.cat((bbox[:, :2], bbox[:, :2] + bbox[:, 2:]), dim=1)


def _box_cases() -> list[Case]:
    several = torch.rand(5, 4, generator=torch.Generator().manual_seed(110)) * torch.tensor([300.0, 200, 200, 150]) + 5
    return [
        Case("one object, on the disk 100 × 200, for the model 400 × 800",
             (torch.tensor([[20.0, 10, 60, 40]]), (100, 200), (400, 800))),
        Case("five objects, on the disk 427 × 640, for the model 800 × 1199", (several, (427, 640), (800, 1199))),
        Case("an upright picture that keeps its size", (several[:2], (640, 480), (640, 480))),
        Case("no objects", (torch.zeros(0, 4), (480, 640), (800, 1066))),
    ]  # fmt: skip


MODEL_BOXES = Exercise(
    name="model_boxes",
    notebook="11",
    task="(cx, cy, w, h) in 0..1 of the resized picture, from COCO's [x, y, width, height] in pixels of the file.",
    reference=_model_boxes,
    cases=_box_cases,
    hints=(
        "The centre is half a width right of the left edge, and half a height below the upper one.",
        "In 0..1 a box does not change when the picture is resized: which size do the pixels of the file belong to?",
        "torch.cat((bbox[:, :2] + bbox[:, 2:] / 2, bbox[:, 2:]), dim=1) / bbox.new_tensor([width, height, width, height])",
    ),
    mistakes=(
        Mistake("x and y are taken for the centre; COCO's are the upper left corner: add half the size",
                lambda b, s, r: b / _scale(b, s)),
        Mistake("the last two numbers are taken for the lower right corner; COCO's are width and height",
                lambda b, s, r: _from_corners(b) / _scale(b, s)),
        Mistake("pixels of the file are divided by the size of the resized picture: the size on the disk belongs to them",
                lambda b, s, r: _as_centres(b) / _scale(b, r)),
        Mistake("height and width are swapped: x and w go with the width",
                lambda b, s, r: _as_centres(b) / _scale(b, s[::-1])),
        Mistake("these are corners; the losses want the centre and the size",
                lambda b, s, r: _corners(b) / _scale(b, s)),
        Mistake("these are pixels of the resized picture; shares of it are asked for",
                lambda b, s, r: _as_centres(b) / _scale(b, s) * _scale(b, r)),
        Mistake("these are still pixels of the file", lambda b, s, r: _as_centres(b)),
    ),
)  # fmt: skip

# --- learning_rate_at -------------------------------------------------------------------------------------------------

_rate = optimization.learning_rate  # the package's own, also while a learner's is plugged in


def _rate_at(step: int, lr: float, warmup: int, schedule: str, drop_step: int, steps: int) -> float:
    """The package's, with steps in place of epochs."""
    config = TrainConfig(epochs=steps, lr=lr, warmup_steps=warmup, schedule=schedule, drop_epoch=drop_step)  # type: ignore[arg-type]
    return _rate(step, config, steps_per_epoch=1)


def _from_zero(step: int, lr: float, warmup: int, schedule: str, drop_step: int, steps: int) -> float:
    return _rate_at(step, lr, 0, schedule, drop_step, steps) * min(1.0, step / max(warmup, 1))


def _divides_by_zero(step: int, lr: float, warmup: int, schedule: str, drop_step: int, steps: int) -> float:
    return _rate_at(step, lr, 0, schedule, drop_step, steps) * min(1.0, (step + 1) / warmup)


def _warm_up_first(step: int, lr: float, warmup: int, schedule: str, drop_step: int, steps: int) -> float:
    if step < warmup:
        return lr * (step + 1) / warmup
    return _rate_at(step - warmup, lr, 0, schedule, drop_step - warmup, steps - warmup)


def _plug_rate(function: Callable[..., float]) -> Callable[[int, TrainConfig, int], float]:
    """The package asks with a recipe, whose times are epochs."""

    def adapted(step: int, config: TrainConfig, steps_per_epoch: int) -> float:
        drop, steps = config.drop_epoch * steps_per_epoch, config.epochs * steps_per_epoch
        return function(step, config.lr, config.warmup_steps, config.schedule, drop, steps)

    return adapted


def _rate_cases() -> list[Case]:
    return [
        Case("step 0 of a warm-up over 10 steps", (0, 0.2, 10, "constant", 80, 100)),
        Case("step 4 of a warm-up over 10 steps, while a line falls", (4, 0.2, 10, "linear", 80, 100)),
        Case("behind the warm-up of a line", (55, 0.2, 10, "linear", 80, 100)),
        Case("the last step before the drop", (79, 0.2, 10, "step", 80, 100)),
        Case("the first step of the drop", (80, 0.2, 10, "step", 80, 100)),
        Case("long after an early drop", (75, 0.2, 10, "step", 30, 100)),
        Case("a quarter of a cosine's way", (25, 0.2, 0, "cosine", 80, 100)),
        Case("no warm-up", (0, 0.5, 0, "linear", 40, 50)),
    ]


LEARNING_RATE = Exercise(
    name="learning_rate_at",
    notebook="11",
    task="lr, times what the warm-up leaves of it, times what the schedule does: the learning rate of step 0, 1, ...",
    reference=_rate_at,
    cases=_rate_cases,
    part=optimization.learning_rate,
    adapt=_plug_rate,
    hints=(
        "Two factors, multiplied: the warm-up, min(1, (step + 1) / warmup), and the schedule, by step / steps.",
        "Without a warm-up its factor is 1: max(warmup, 1) keeps you from dividing by 0.",
        'linear: 1 − step / steps. cosine: 0.5 · (1 + cos(π · step / steps)). step: 0.1 from drop_step on. constant: 1.',
    ),
    mistakes=(
        Mistake("there is no warm-up: multiply by min(1, (step + 1) / warmup)",
                lambda s, lr, w, k, d, n: _rate_at(s, lr, 0, k, d, n)),
        Mistake("the warm-up begins at 0, so that step 0 teaches nothing: (step + 1) / warmup", _from_zero),
        Mistake("without a warm-up it divides by zero: max(warmup, 1)", _divides_by_zero),
        Mistake("the schedule begins behind the warm-up; here it counts from step 0, and both are multiplied", _warm_up_first),
        Mistake("the drop comes one step late: from drop_step on, so step >= drop_step",
                lambda s, lr, w, k, d, n: _rate_at(s, lr, w, k, d + 1, n)),
        Mistake("the rate drops again at every multiple of drop_step; it drops once",
                lambda s, lr, w, k, d, n: _rate_at(s, lr, w, k, d, n) * (0.1 ** max(s // d - 1, 0) if k == "step" else 1)),
        Mistake("after the drop the rate is 0.1; it should be a tenth of what it was",
                lambda s, lr, w, k, d, n: 0.1 if k == "step" and s >= d else _rate_at(s, lr, w, k, d, n)),
        Mistake("the cosine falls from 1 to −1: half of 1 + cos falls to 0",
                lambda s, lr, w, k, d, n: lr * math.cos(math.pi * s / n) if k == "cosine" else _rate_at(s, lr, w, k, d, n)),
        Mistake("the line does not fall: multiply by 1 − step / steps",
                lambda s, lr, w, k, d, n: _rate_at(s, lr, w, "constant" if k == "linear" else k, d, n)),
    ),
    tolerance=1e-6,
)  # fmt: skip

# --- loss_of_share ----------------------------------------------------------------------------------------------------


def _loss_of_share(errors: Tensor, objects: Tensor) -> Tensor:
    return errors.sum() / _mean(objects).clamp(min=1)


def _mean(objects: Tensor) -> Tensor:
    return objects.float().mean()


def _share_cases() -> list[Case]:
    return [
        Case("this process has one object, the others four and nine", (torch.tensor([0.9]), torch.tensor([1, 4, 9]))),
        Case("four processes, six objects here", (normal(111, 6).abs(), torch.tensor([6, 2, 9, 3]))),
        Case("one process alone", (normal(112, 5).abs(), torch.tensor([5]))),
        Case("no object here, three elsewhere", (torch.zeros(0), torch.tensor([0, 3]))),
        Case("no object anywhere", (torch.zeros(0), torch.tensor([0, 0, 0]))),
        Case("four objects here, none in the other process", (normal(113, 4).abs(), torch.tensor([4, 0]))),
        Case("a single object among four processes", (torch.tensor([0.4]), torch.tensor([1, 0, 0, 0]))),
    ]


LOSS_OF_SHARE = Exercise(
    name="loss_of_share",
    notebook="11",
    task="The sum of this process's errors, divided by the mean number of objects of a process, which counts as 1 at least.",
    reference=_loss_of_share,
    cases=_share_cases,
    differentiable=True,
    hints=(
        "Processes average their gradients. So the mean of what they return must be the sum of all errors over all objects.",
        "Sum / (objects of all / processes): then the mean over processes has objects of all below it.",
        "errors.sum() / objects.float().mean().clamp(min=1)",
    ),
    mistakes=(
        Mistake("each process divides by its own objects: an object then weighs more where there are few",
                lambda e, o: e.sum() / max(len(e), 1)),
        Mistake("this is the mean over the process's own objects: where they are few each weighs more; of none it is NaN",
                lambda e, o: e.mean()),
        Mistake("the sum is divided by the objects of all processes; they average afterwards, which divides once more",
                lambda e, o: e.sum() / o.sum().clamp(min=1)),
        Mistake("the number of all objects counts as 1 at least; their mean has to",
                lambda e, o: e.sum() * len(o) / o.sum().clamp(min=1)),
        Mistake("0 / 0 is NaN: without any object divide by 1, clamp(min=1)", lambda e, o: e.sum() / _mean(o)),
        Mistake("a process without objects counts as one; the mean counts as 1 at least, not each process",
                lambda e, o: e.sum() / o.clamp(min=1).float().mean()),
        Mistake("the mean number of objects is cut to a whole number, as by //: objects.float().mean()",
                lambda e, o: e.sum() / (o.sum() // len(o)).clamp(min=1)),
        Mistake("the mean number of objects is rounded to a whole number",
                lambda e, o: e.sum() / _mean(o).round().clamp(min=1)),
        Mistake("the sum is divided by the number of processes; the objects decide", lambda e, o: e.sum() / len(o)),
        Mistake("the sum is not divided at all: a batch with many objects would take longer steps", lambda e, o: e.sum()),
    ),
)  # fmt: skip

EXERCISES = (LABELS_OF, MODEL_BOXES, LEARNING_RATE, LOSS_OF_SHARE)
