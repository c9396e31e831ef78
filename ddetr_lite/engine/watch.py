"""Where the queries of a few fixed objects look, noted at each evaluation, so that one can see attention being learned.

Nothing here draws a random number or leaves a trace in the model: a run that is watched ends with the same bits.
"""

import math
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ddetr_lite.datasets.coco import CocoDetection
from ddetr_lite.layers.attention import record_attention
from ddetr_lite.layers.deformable_attention import record_samples
from ddetr_lite.layers.recording import record
from ddetr_lite.models.deformable_detr import DeformableDetr
from ddetr_lite.models.detr import Detr
from ddetr_lite.models.presets import Model, SetModel
from ddetr_lite.set_prediction.boxes import box_iou, clip_to_picture, cxcywh_to_xyxy, generalized_box_iou

Point = tuple[float, float, float]
"""(x, y) in 0..1 of the picture, and its share of the query's attention."""

Value = TypeVar("Value")

COVERED = 0.5  # IoU from which on a box counts as that of an object
CELLS = 100  # of a dense attention only the heaviest cells are noted


class WatchedObject(NamedTuple):
    """An object of a data set: its picture's position in the set, and its own among the picture's objects (no crowds)."""

    picture: int
    object: int


class Seen(NamedTuple):
    """What the query that finds an object says: box (x0, y0, x1, y1) in 0..1, score, label, and where it looked."""

    box: list[float]
    score: float
    label: int
    points: list[Point]


def choose_objects(dataset: CocoDetection, count: int = 3) -> list[WatchedObject]:
    """The largest object of each of the first `count` pictures, by image id, that have one. A pure function of the set."""
    chosen: list[WatchedObject] = []
    for index in sorted(range(len(dataset)), key=lambda i: dataset.images[i]["id"]):
        areas = [a["bbox"][2] * a["bbox"][3] for a in dataset.objects(index)]
        if len(chosen) < count and areas and max(areas) > 0:
            chosen.append(WatchedObject(index, areas.index(max(areas))))
    return chosen


def watched_line(
    model: Model, dataset: CocoDetection, objects: list[WatchedObject], epoch: int, step: int
) -> dict[str, Any]:
    """A line for `watched.jsonl`: {"epoch", "step", "objects": see `watch`}. Plain numbers only.

    Never raises: a run of hours must not end over a picture of itself. What went wrong stands in the line as "error".
    """
    try:
        return {"epoch": epoch, "step": step, "objects": watch(model, dataset, objects)}
    except Exception as error:
        return {"epoch": epoch, "step": step, "objects": [], "error": f"{type(error).__name__}: {error}"}


@torch.no_grad()
def watch(model: Model, dataset: CocoDetection, objects: list[WatchedObject]) -> list[dict[str, Any]]:
    """For each object: "image_id", "object", "true_box" and the fields of `Seen`; boxes are corners in 0..1 of the picture.

    dataset: with the transform of evaluation. The model's mode is kept. "points" are, of the last decoder layer's
    cross-attention, all sampling points (some may lie outside the picture, where they see nothing) or the `CELLS`
    heaviest cells; there are none for a model without queries. "box" is None where Faster R-CNN finds nothing at all.
    Raises ValueError where the model's boxes are not finite.
    """
    was_training = model.training
    model.eval()
    try:
        return [_watch_one(model, dataset, *which) for which in objects]
    finally:
        model.train(was_training)


def _watch_one(model: Model, dataset: CocoDetection, index: int, which: int) -> dict[str, Any]:
    image, target = dataset[0, index]
    height, width = target["original_size"].tolist()
    boxes, labels = dataset.truth(index)
    corners, label = clip_to_picture(boxes[which], height, width), int(labels[which])
    true_box = corners / corners.new_tensor((width, height, width, height))
    if isinstance(model, Detr | DeformableDetr):
        seen: Seen | None = _ask(model, image, true_box, label)
    else:
        seen = _found(model, image, true_box, label)
    return {
        "image_id": int(dataset.images[index]["id"]),
        "object": which,
        "true_box": _rounded(true_box),
        **(seen._asdict() if seen else {"box": None, "score": 0.0, "label": -1, "points": []}),
    }


def _ask(model: SetModel, image: Tensor, true_box: Tensor, true_label: int) -> Seen:
    """One picture at a time: without padding, a fraction of a feature map is a fraction of the picture."""
    layer = model.transformer.decoder.layers[-1]
    with (
        _uncompiled(),
        record_samples(layer) as samples,
        record_attention(layer) as attention,
        record(model, nn.Conv2d, ("input",), lambda _, given: tuple(given["input"].shape[-2:])) as shapes,
    ):
        outputs = model.outputs(model.batch([image]))
    logits, boxes = outputs.logits[-1, 0].float().cpu(), cxcywh_to_xyxy(outputs.boxes[-1, 0].float().cpu())
    scores = logits.sigmoid() if model.loss.kind == "focal" else logits.softmax(-1)[:, :-1]
    query = _best(boxes, scores[:, true_label], true_box)
    if isinstance(model, DeformableDetr):
        points = _sampling_points(*_of(samples, "cross_attn"), query)
    else:
        points = _heaviest_cells(_of(attention, "multihead_attn")[0, :, query], shapes["input_proj"])
    score, label = scores[query].max(0)
    return Seen(_rounded(boxes[query].clamp(0, 1)), _round(float(score)), int(label), points)


def _uncompiled() -> AbstractContextManager[Any]:
    """What `torch.compile` has made knows nothing of hooks that come later: within this context the code runs as it is."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and to import it takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def _of(recorded: Mapping[str, Value], name: str) -> Value:
    """What a module left; a compiled layer puts something before its name."""
    return next(value for path, value in recorded.items() if path.endswith(name))


def _found(model: Model, image: Tensor, true_box: Tensor, true_label: int) -> Seen | None:
    """The detection of a model without queries that finds the object."""
    device = next(model.parameters()).device
    (found,) = model([image.to(device)])
    boxes, scores, labels = (found[name].cpu() for name in ("boxes", "scores", "labels"))
    if not len(boxes):
        return None
    height, width = image.shape[-2:]
    boxes = boxes / boxes.new_tensor((width, height, width, height))
    best = _best(boxes, scores * (labels == true_label), true_box)
    return Seen(_rounded(boxes[best]), _round(float(scores[best])), int(labels[best]), [])


def _best(boxes: Tensor, scores: Tensor, true_box: Tensor) -> int:
    """Which of the boxes (n, 4) finds an object: of those that cover it (IoU ≥ 0.5) the surest of its class, by scores (n,).

    Where none covers it, as at the start of a run, the nearest, by GIoU: then no box may touch it.
    """
    if not boxes.isfinite().all():
        raise ValueError("the model's boxes are not finite")
    covers = box_iou(boxes, true_box) >= COVERED
    if covers.any():
        return int(scores.masked_fill(~covers, -1.0).argmax())
    return int(generalized_box_iou(boxes, true_box).argmax())


def _sampling_points(locations: Tensor, weights: Tensor, query: int) -> list[Point]:
    """From (1, N_q, M, L, P, 2) and (1, N_q, M, L, P); each head's weights sum to one, all points' shares together too."""
    places = locations[0, query].flatten(0, 2).float().cpu()
    shares = weights[0, query].flatten().float().cpu() / weights.shape[2]
    return [
        (_round(x), _round(y), _round(share))
        for (x, y), share in zip(places.tolist(), shares.tolist(), strict=True)
        if math.isfinite(x + y + share)
    ]


def _heaviest_cells(weights: Tensor, shape: tuple[int, ...]) -> list[Point]:
    """The centres of the cells that a query weighs most, from all heads' weights (M, H·W) on a map of `shape` (H, W)."""
    height, width = shape
    mean = weights.float().mean(0).cpu()
    shares, cells = mean.topk(min(CELLS, len(mean)))
    return [
        (_round((cell % width + 0.5) / width), _round((cell // width + 0.5) / height), _round(share))
        for share, cell in zip(shares.tolist(), cells.tolist(), strict=True)
    ]


def _round(value: float) -> float:
    """Five digits behind the point: a hundredth of a pixel of a large picture."""
    return round(value, 5)


def _rounded(values: Tensor) -> list[float]:
    return [_round(value) for value in values.tolist()]
