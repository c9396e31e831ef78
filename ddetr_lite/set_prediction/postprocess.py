"""From a model's last layer to detections in pixels, in DETR's and in Deformable DETR's way."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from ddetr_lite.set_prediction.boxes import cxcywh_to_xyxy

Detections = dict[str, Tensor]
"""Of one picture: "boxes" (n, 4), corners in pixels; "scores" (n,) in 0..1, highest first; "labels" (n,) in 0..C−1."""


def postprocess(
    logits: Tensor,
    boxes: Tensor,
    sizes: Sequence[tuple[int, int]],
    kind: Literal["softmax", "focal"],
    top: int = 100,
) -> list[Detections]:
    """The best detections of each picture.

    logits: (B, N_q, C or C+1); boxes: (B, N_q, 4), (cx, cy, w, h) in 0..1; sizes: (height, width) in pixels of each.
    softmax: each query's best class that is not "no object"; one detection a query. focal: the `top` best of all pairs
    of query and class, so that a query may speak for two classes. Boxes are clipped to the picture
    and sorted by score, as torchvision's detectors do; the official code leaves them as they are.
    """
    logits = logits.float()
    if kind == "softmax":
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)
        scores, query = scores.sort(dim=-1, descending=True)
        labels = labels.gather(1, query)
    else:
        classes = logits.shape[-1]
        scores, index = logits.sigmoid().flatten(1).topk(min(top, logits.shape[1] * classes), dim=1)
        query, labels = index // classes, index % classes
    chosen = cxcywh_to_xyxy(boxes.float()).gather(1, query[..., None].expand(-1, -1, 4))
    # One copy for all pictures, and one that does not synchronise with the GPU.
    far = torch.tensor([[(w, h, w, h)] for h, w in sizes], dtype=chosen.dtype)  # (B, 1, 4)
    far = far.to(chosen.device, non_blocking=True)
    pixels = torch.minimum((chosen * far).clamp(min=0), far)  # (B, n, 4)
    return [{"boxes": b, "scores": s, "labels": own} for b, s, own in zip(pixels, scores, labels, strict=True)]


def without_repeats(found: Detections, iou: float) -> Detections:
    """The detections of a picture that non-maximum suppression leaves: of two of a class whose IoU is above `iou` the surer.

    A set of predictions learns to do without, and while it has not learned it (few pictures, few epochs) this helps.
    """
    kept = batched_nms(found["boxes"], found["scores"], found["labels"], iou)
    return {name: found[name][kept] for name in ("boxes", "scores", "labels")}
