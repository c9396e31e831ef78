"""What all detectors here share: pictures of any size in, a dict of losses or a list of detections out.

They are called as torchvision's detectors are. A subclass says how it goes from a padded batch to `Outputs`.
"""

import warnings
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn
from torchvision import tv_tensors

from ddetr_lite.batching import IMAGENET_MEAN, IMAGENET_STD, ImageBatch, RawBatch, batch_images
from ddetr_lite.set_prediction.boxes import xyxy_to_cxcywh
from ddetr_lite.set_prediction.losses import Counts, Outputs, SetLoss, set_losses
from ddetr_lite.set_prediction.matching import Target, label_error, name_of
from ddetr_lite.set_prediction.postprocess import Detections, postprocess


class Detector(nn.Module, ABC):
    """Base class of `Detr` and `DeformableDetr`.

    mean, std: of ImageNet's pictures in 0..1, applied to every input; not part of the state dict.
    """

    mean: Tensor
    std: Tensor
    loss: SetLoss
    classes: int
    backbone: nn.Sequential

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD), persistent=False)

    @abstractmethod
    def outputs(self, batch: ImageBatch, targets: Sequence[Target] | None = None) -> Outputs:
        """Logits and boxes of every decoder layer for a normalised, padded batch.

        targets: given in training, (cx, cy, w, h) in 0..1; only a model that trains with hints looks at them.
        """

    def batch(self, images: Sequence[Tensor] | RawBatch) -> ImageBatch:
        """Normalise and pad: see `batching.batch_images`."""
        return batch_images(images, self.mean, self.std)

    def forward(
        self,
        images: Sequence[Tensor] | RawBatch,
        targets: Sequence[Target] | None = None,
        counts: Counts | None = None,
    ) -> dict[str, Tensor] | list[Detections]:
        """images: (3, H, W) each, uint8 in 0..255 or float in 0..1, of any sizes; or a `RawBatch`.

        In training: `targets` has for each picture "boxes" (T, 4), corners (x0, y0, x1, y1) in pixels, and "labels"
        (T,) in 0..C−1; returns the weighted losses, whose sum is minimised. In evaluation: returns for each picture
        "boxes" in pixels of that picture, "scores" and "labels", best first.
        counts: see `set_losses`.
        """
        batch = self.batch(images)
        if self.training:
            wanted = self.normalise_targets(targets, batch.sizes)
            return set_losses(self.outputs(batch, wanted), wanted, self.loss, counts)
        final = self.outputs(batch)
        return postprocess(final.logits[-1], final.boxes[-1], batch.sizes, self.loss.kind)

    def normalise_targets(self, targets: Sequence[Target] | None, sizes: Sequence[tuple[int, int]]) -> list[Target]:
        """Boxes from corners in pixels to (cx, cy, w, h) in 0..1 of each picture; labels are looked at once.

        Raises ValueError when there are more or fewer targets than pictures, or a label is not in 0..C−1.
        """
        counts = check_counts(targets, len(sizes))
        assert targets is not None
        labels = torch.cat([t["labels"] for t in targets]).long()
        boxes = torch.cat([t["boxes"].reshape(-1, 4) for t in targets]).float()
        if labels.device.type == "cpu":  # to look at them on a GPU would synchronise with it
            check_targets(labels, boxes, self.classes, targets)
        scales = torch.tensor([(w, h, w, h) for h, w in sizes], dtype=boxes.dtype).repeat_interleave(
            torch.tensor(counts), dim=0, output_size=len(boxes)
        )
        normalised = xyxy_to_cxcywh(boxes) / scales.to(boxes.device, non_blocking=True)
        parts = zip(targets, labels.split(counts), normalised.split(counts), strict=True)
        return [{**target, "labels": own, "boxes": places} for target, own, places in parts]


def check_counts(targets: Sequence[Target] | None, pictures: int) -> list[int]:
    """How many objects each target has. Raises ValueError where it is not one target for each picture, and one box for each
    label.
    """
    if targets is None:
        raise ValueError("in training mode targets are needed: model(images, targets); or call model.eval() first")
    if len(targets) != pictures:
        raise ValueError(f"{pictures} pictures but {len(targets)} targets: give one for each")
    for i, target in enumerate(targets):
        if missing := {"boxes", "labels"} - target.keys():
            raise ValueError(f"{name_of(targets, i)}: the target lacks {', '.join(sorted(missing))}")
        for name in ("boxes", "labels"):
            if not isinstance(target[name], Tensor):
                raise ValueError(f"{name_of(targets, i)}: {name!r} is a {type(target[name]).__name__}: give a tensor")
        form = getattr(target["boxes"], "format", None)  # torchvision's boxes say what they are
        if form is not None and form != tv_tensors.BoundingBoxFormat.XYXY:
            raise ValueError(f"{name_of(targets, i)}: boxes are {form.value}: give corners (x0, y0, x1, y1), XYXY")
        if target["boxes"].numel() != 4 * len(target["labels"]):
            boxes = target["boxes"].numel() // 4
            raise ValueError(f"{name_of(targets, i)}: {len(target['labels'])} labels but {boxes} boxes")
    return [len(target["labels"]) for target in targets]


def check_targets(labels: Tensor, boxes: Tensor, classes: int, targets: Sequence[Target]) -> None:
    """Raise ValueError naming the picture when a label is not in 0..C−1, or a box (T, 4) is not made of corners; warn where all
    boxes seem to be shares of the picture.

    labels, boxes: of all pictures, one after another; `targets` says whose they are.
    """
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        raise ValueError(label_error(targets, _picture_of(int(wrong.nonzero()[0]), targets), classes))
    wrong = (boxes[:, 2:] < boxes[:, :2]).any(1)
    if wrong.any():
        place = int(wrong.nonzero()[0])
        picture, box = _picture_of(place, targets), [round(x, 2) for x in boxes[place].tolist()]
        raise ValueError(
            f"{name_of(targets, picture)}: box {box} has x1 < x0 or y1 < y0: corners "
            "(x0, y0, x1, y1) in pixels are expected, not (x, y, width, height)"
        )
    if len(boxes) > 1 and (boxes <= 1).all():
        warnings.warn(
            "all boxes of this batch lie within the first pixel of their pictures: corners (x0, y0, x1, y1) in pixels are "
            "expected, not shares of the picture",
            stacklevel=3,
        )


def _picture_of(place: int, targets: Sequence[Target]) -> int:
    """Whose object stands at this place, when those of all pictures follow one another."""
    ends = list(accumulate(len(target["labels"]) for target in targets))
    return bisect_right(ends, place)


def widened(x: Tensor) -> Tensor:
    """In float32 where it is of half precision, which is too coarse for boxes; as it is in float32 and float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_full_precision(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x), which keeps out of autocast: a box or a point in bfloat16 is off by pixels."""
    if not torch.is_autocast_enabled(x.device.type):
        return layer(x)
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.float())


class MLP(nn.Module):
    """A few linear layers with ReLU between: the box head. Parameters `layers.0.weight`, ..."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int):
        super().__init__()
        widths = [inputs, *[hidden] * (layers - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) → (..., outputs), the last layer as in `in_full_precision`."""
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return in_full_precision(self.layers[-1], x)
