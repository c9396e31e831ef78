"""Whether boxes would fit if they were read in another form: the classic mistakes, tried one by one on the truth."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddetr_lite.datasets.coco import CocoDetection
from ddetr_lite.datasets.fields import size_of
from ddetr_lite.engine.explain_evidence import Evidence, Observation
from ddetr_lite.set_prediction.boxes import box_iou, clip_to_picture, cxcywh_to_xyxy, xyxy_to_cxcywh
from ddetr_lite.set_prediction.postprocess import Detections

FITS, GAIN, TIMES = 0.45, 0.12, 1.4  # mean best IoU of a hypothesis; by how much it must be better than as it is
GOOD = 0.5  # mean best IoU of boxes that have been learned
SIZES = (1.25, 1.5, 2.0)  # factors by which padded batches may scale boxes


@dataclass(frozen=True)
class Reading:
    """A way to read boxes (n, 4) of a picture of (height, width)."""

    name: str
    read: Callable[[Tensor, tuple[float, float]], Tensor]
    remedy: str


def _as_it_is(boxes: Tensor, _: tuple[float, float]) -> Tensor:
    return boxes


def _second_corner(boxes: Tensor, _: tuple[float, float]) -> Tensor:
    """Corners whose second was added to the first, as if it had been a size."""
    return torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), dim=1)


def _as_centres(boxes: Tensor, _: tuple[float, float]) -> Tensor:
    """(x, y, w, h) whose x, y are the centre, read as the upper left."""
    size = boxes[:, 2:] - boxes[:, :2]
    return cxcywh_to_xyxy(torch.cat((boxes[:, :2], size), dim=1))


def _swap(boxes: Tensor, size: tuple[float, float]) -> Tensor:
    height, width = size
    return boxes[:, [1, 0, 3, 2]] * boxes.new_tensor((width / height, height / width)).repeat(2)


def _to_pixels(boxes: Tensor, size: tuple[float, float]) -> Tensor:
    return boxes * boxes.new_tensor((size[1], size[0])).repeat(2)


def _mirror(boxes: Tensor, size: tuple[float, float]) -> Tensor:
    return torch.stack((size[1] - boxes[:, 2], boxes[:, 1], size[1] - boxes[:, 0], boxes[:, 3]), dim=1)


def _scaled(factor: float) -> Callable[[Tensor, tuple[float, float]], Tensor]:
    return lambda boxes, _: boxes * factor


_TARGETS = "the model was taught another form: losses want (cx, cy, w, h) in 0..1, made from corners in pixels"
_TRUTH = "the validation file's boxes are not COCO's [x, y, width, height] in pixels: export them again"
OF_PREDICTIONS = (
    Reading("predictions had (x0, y0, x1, y1) read as (x, y, w, h)", _second_corner, _TARGETS),
    Reading("predictions are corners read as (cx, cy, w, h)", lambda b, _: xyxy_to_cxcywh(b), _TARGETS),
    Reading("predictions are (cx, cy, w, h) read as corners", lambda b, _: cxcywh_to_xyxy(b), _TARGETS),
    Reading("predictions had (cx, cy, w, h) read as (x, y, w, h)", _as_centres, _TARGETS),
    Reading("x and y of predictions are swapped", _swap, "(x, y) and (width, height), but (height, width) of tensors"),
    Reading("predictions are left in 0..1", _to_pixels, "multiply boxes by the picture's width and height"),
    Reading("predictions are mirrored", _mirror, "a flip must turn boxes as well as pixels: look at some targets"),
    *(
        Reading(
            f"predictions are {factor if up else 1 / factor:.2g} × as large as the picture's",
            _scaled(1 / factor if up else factor),
            "boxes are shares of the picture without its padding: multiply by its own size, not the batch's",
        )
        for factor in SIZES
        for up in (True, False)
    ),
)
OF_TRUTH = (
    Reading("the truth's boxes are (x0, y0, x1, y1) read as (x, y, w, h)", _second_corner, _TRUTH),
    Reading("the truth's boxes are (cx, cy, w, h) read as (x, y, w, h)", _as_centres, _TRUTH),
    Reading("x and y of the truth are swapped", _swap, _TRUTH),
    Reading("the truth's boxes are left in 0..1", _to_pixels, _TRUTH),
)


def mean_best_iou(
    found: dict[int, Detections], data: CocoDetection, predicted: Reading | None = None, true: Reading | None = None
) -> tuple[float, int]:
    """Over all objects, the IoU of the box that fits best; of how many. Boxes are read in the ways given, and clipped."""
    values: list[Tensor] = []
    for index, image in enumerate(data.images):
        own, size = found.get(image["id"]), size_of(image)
        boxes, _ = data.truth(index)
        if own is None or not len(own["scores"]) or size is None or not len(boxes):
            continue
        read = (predicted.read if predicted else _as_it_is)(own["boxes"], size)
        wanted = (true.read if true else _as_it_is)(boxes, size)
        read, wanted = clip_to_picture(read, *size), clip_to_picture(wanted, *size)
        values.append(box_iou(read[:, None], wanted).amax(0))
    everything = torch.cat(values) if values else torch.zeros(0)
    return float(everything.mean()) if len(everything) else 0.0, len(everything)


def check_boxes(evidence: Evidence) -> Observation:
    """How well the best boxes fit, as they are and read in other forms."""
    name, found, data = "boxes", evidence.found, evidence.judged
    if not found or data is None:
        return Observation(name, "skipped", "there are no detections to look at")
    as_is, objects = mean_best_iou(found, data)
    if not objects:
        return Observation(name, "skipped", "no object in these pictures, or they do not say their size")
    text = f"the best box for each of {objects} objects has IoU {as_is:.2f} in the mean"
    tried = [(mean_best_iou(found, data, predicted=r)[0], r) for r in OF_PREDICTIONS]
    tried += [(mean_best_iou(found, data, true=r)[0], r) for r in OF_TRUTH]
    best, reading = max(tried, key=lambda pair: pair[0])
    better = best >= as_is + GAIN and best >= TIMES * as_is
    if better and best >= FITS:
        return Observation(name, "cause", f"{text}, but {best:.2f} if {reading.name}", reading.remedy)
    if as_is >= GOOD:
        return Observation(name, "OK", text)
    if better:
        text += (
            f"; another reading fits better ({best:.2f} if {reading.name}), but too badly to conclude anything from it"
        )
    else:
        text += f"; no other reading fits clearly better (the next, {best:.2f}, if {reading.name})"
    remedy = "draw a few targets, as the model gets them; else train longer"
    return Observation(name, "OK" if evidence.young else "suspicious", text, "" if evidence.young else remedy)
