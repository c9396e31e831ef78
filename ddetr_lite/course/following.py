"""The query that the whole course follows: the one that finds the ring of `picture()`."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddetr_lite.course.scene import picture
from ddetr_lite.course.shipped import detector
from ddetr_lite.layers.deformable_attention import record_samples
from ddetr_lite.models.deformable_detr import DeformableDetr

OBJECT = 2  # of the picture's objects: the ring, whose centre shows nothing of it


@dataclass(frozen=True)
class FollowedQuery:
    """One query on its way through the K layers of the decoder.

    index: its place among the N_q queries. label, score: the class it is surest of, after the last layer.
    boxes: (K + 1, 4), (cx, cy, w, h) in 0..1 of the picture: the one it starts from, and one after each layer; the
    centre of box k is the reference point of layer k. locations: (K, M, L, P, 2), (x, y) in 0..1, where it looks in
    each layer; weights: (K, M, L, P), how much. level_shapes: the (H, W) of the L feature maps.
    """

    index: int
    label: str
    score: float
    boxes: Tensor
    locations: Tensor
    weights: Tensor
    level_shapes: list[tuple[int, int]]


@torch.no_grad()
def followed_query() -> FollowedQuery:
    """Of the shipped detector's queries, the one that is surest to see the ring in the course's picture.

    Runs the detector, on whatever parts are plugged in. Errors as in `checkpoint`.
    """
    loaded, scene = detector(), picture()
    model = loaded.model
    assert isinstance(model, DeformableDetr), "data/checkpoints/shapes.pt is a Deformable DETR"
    starts: list[Tensor] = []

    def keep_references(_module: Any, _arguments: Any, result: tuple[Tensor, list[Tensor]]) -> None:
        starts.extend(result[1])

    batch = model.batch([scene.pixels])
    handle = model.transformer.decoder.register_forward_hook(keep_references)
    try:
        with record_samples(model) as samples:
            outputs = model.outputs(batch)
    finally:
        handle.remove()
    label = loaded.classes.index(scene.names[OBJECT])
    index = int(outputs.logits[-1, 0, :, label].argmax())
    scores = outputs.logits[-1, 0, index].sigmoid()  # (C,)
    layers = [samples[f"transformer.decoder.layers.{k}.cross_attn"] for k in range(len(starts))]
    return FollowedQuery(
        index,
        loaded.classes[int(scores.argmax())],
        float(scores.max()),
        torch.stack([*(start[0, index] for start in starts), outputs.boxes[-1, 0, index]]),
        torch.stack([locations[0, index] for locations, _ in layers]),
        torch.stack([weights[0, index] for _, weights in layers]),
        [(f.shape[-2], f.shape[-1]) for f in model.levels(batch)[0]],
    )
