"""Training with hints: extra queries that start near an object's box and have to say what it is and where exactly.

One-to-one matching gives a picture with three objects three queries to learn from, and early on these change from step to
step. A hinted query knows its object, so there is nothing to match: DN-DETR's idea (Li et al. 2022), boxes only. Hinted
queries are never seen by the others, cost nothing after training, and add no parameters.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddetr_lite.set_prediction.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from ddetr_lite.set_prediction.matching import Target, pad_targets


def jitter(boxes: Tensor, amount: float = 0.4) -> Tensor:
    """Boxes (..., 4), (cx, cy, w, h) in 0..1, whose corners move by up to `amount` times half their width and height."""
    corners = cxcywh_to_xyxy(boxes)
    reach = torch.cat((boxes[..., 2:], boxes[..., 2:]), dim=-1) / 2 * amount
    moved = corners + (2 * torch.rand_like(corners) - 1) * reach
    return xyxy_to_cxcywh(moved.clamp(0, 1)).clamp(min=1e-3)


def add_hints(reference: Tensor, targets: Sequence[Target], groups: int) -> tuple[Tensor, Tensor | None]:
    """Append G groups of hinted boxes to the queries' references, and say who may see whom.

    reference: (B, N_q, 4); targets: "boxes" (T, 4), (cx, cy, w, h) in 0..1. Returns references (B, N_q + G·T, 4), T being
    the most objects in a picture (places of pictures with fewer hold a box that is no object), and the mask
    (N_q + G·T, N_q + G·T), True between different groups; the mask is None where there is no object at all.
    """
    _, boxes = pad_targets(targets, reference.device)
    most = boxes.shape[1]
    if most == 0:
        return reference, None
    hinted = jitter(boxes.repeat(1, groups, 1).to(reference.dtype))  # (B, G·T, 4)
    group = torch.arange(1, groups + 1, device=reference.device).repeat_interleave(most)
    group = torch.cat((group.new_zeros(reference.shape[1]), group))
    return torch.cat((reference, hinted), dim=1), group[:, None] != group
