"""What all detectors here share: pictures of any size in, a dict of losses or a list of detections out.

They are called as torchvision's detectors are. A subclass says how it goes from a padded batch to `Outputs`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ddetr_lite.batching import ImageBatch, batch_images
from ddetr_lite.set_prediction.boxes import xyxy_to_cxcywh
from ddetr_lite.set_prediction.losses import Outputs, SetLoss, set_losses
from ddetr_lite.set_prediction.matching import Target
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
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]), persistent=False)

    @abstractmethod
    def outputs(self, batch: ImageBatch, targets: Sequence[Target] | None = None) -> Outputs:
        """Logits and boxes of every decoder layer for a normalised, padded batch.

        targets: given in training, (cx, cy, w, h) in 0..1; only a model that trains with hints looks at them.
        """

    def batch(self, images: Sequence[Tensor]) -> ImageBatch:
        """Normalise and pad: see `batching.batch_images`."""
        return batch_images(images, self.mean, self.std)

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        """images: (3, H, W) each, uint8 in 0..255 or float in 0..1, of any sizes.

        In training: `targets` has for each picture "boxes" (T, 4), corners (x0, y0, x1, y1) in pixels, and "labels"
        (T,) in 0..C−1; returns the weighted losses, whose sum is minimised. In evaluation: returns for each picture
        "boxes" in pixels of that picture, "scores" and "labels", best first.
        """
        batch = self.batch(images)
        if self.training:
            if targets is None:
                raise ValueError(
                    "in training mode targets are needed: model(images, targets); or call model.eval() first"
                )
            wanted = self.normalise_targets(targets, batch.sizes)
            return set_losses(self.outputs(batch, wanted), wanted, self.loss)
        final = self.outputs(batch)
        return postprocess(final.logits[-1], final.boxes[-1], batch.sizes, self.loss.kind)

    def normalise_targets(self, targets: Sequence[Target], sizes: Sequence[tuple[int, int]]) -> list[Target]:
        """Boxes from corners in pixels to (cx, cy, w, h) in 0..1 of each picture; labels are looked at once.

        Raises ValueError when there are more or fewer targets than pictures, or a label is not in 0..C−1.
        """
        if len(targets) != len(sizes):
            raise ValueError(f"{len(sizes)} pictures but {len(targets)} targets: give one for each")
        result = []
        for i, (target, (height, width)) in enumerate(zip(targets, sizes, strict=True)):
            labels, boxes = target["labels"].long(), target["boxes"].reshape(-1, 4).float()
            if len(labels) != len(boxes):
                raise ValueError(f"{_name(target, i)}: {len(labels)} labels but {len(boxes)} boxes")
            if labels.device.type == "cpu":  # on a GPU a look would be a wait
                self._check(labels, boxes, target, i)
            scale = boxes.new_tensor((width, height, width, height))
            result.append({**target, "labels": labels, "boxes": xyxy_to_cxcywh(boxes) / scale})
        return result

    def _check(self, labels: Tensor, boxes: Tensor, target: Target, i: int) -> None:
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise ValueError(
                f"{_name(target, i)}: labels {sorted(set(labels.tolist()))} must lie in 0..{self.classes - 1}, since the model "
                f"has {self.classes} classes: map category ids to 0..C−1, or build the model with more classes"
            )
        wrong = (boxes[:, 2:] < boxes[:, :2]).any(1)
        if wrong.any():
            box = [round(x, 2) for x in boxes[wrong][0].tolist()]
            raise ValueError(
                f"{_name(target, i)}: box {box} has x1 < x0 or y1 < y0: corners (x0, y0, x1, y1) in pixels are expected, "
                "not (x, y, width, height)"
            )


def _name(target: Target, index: int) -> str:
    return f"image id {int(target['image_id'])}" if "image_id" in target else f"picture {index} of the batch"


class MLP(nn.Module):
    """A few linear layers with ReLU between: the box head. Parameters `layers.0.weight`, ..."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int):
        super().__init__()
        widths = [inputs, *[hidden] * (layers - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) → (..., outputs)."""
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)
