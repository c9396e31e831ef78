"""The baseline of the papers' tables: torchvision's Faster R-CNN with a feature pyramid (Ren et al. 2015, Lin et al. 2017).

It is called, trained and evaluated as the other detectors here are, with the same backbones, so that a comparison compares
detectors. Its parts and losses are torchvision's.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ddetr_lite.batching import IMAGENET_MEAN, IMAGENET_STD, RawBatch, check_images
from ddetr_lite.models.backbone import Backbone, BackboneConfig
from ddetr_lite.models.detector import check_counts, check_targets
from ddetr_lite.set_prediction.losses import Counts
from ddetr_lite.set_prediction.matching import Target
from ddetr_lite.set_prediction.postprocess import Detections

SCORE_AT_LEAST = 1e-3
"""Of a detection. torchvision's 0.05 would cut off the tail of the precision curve, which the other detectors keep."""


@dataclass(frozen=True)
class FasterRcnnConfig:
    """Faster R-CNN's size. The defaults are torchvision's, which are those of the feature pyramid's paper."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    dim: int = 256
    """Channels of the feature pyramid."""
    hidden: int = 1024
    """Width of the box head's two layers."""
    anchor_strides: float = 8.0
    """The side of an anchor, in strides of its level; the levels have strides 4, 8, 16, 32 and 64."""
    finest: Literal[4, 8] = 4
    """Ablation: with 8 the pyramid has no map at stride 4."""
    proposals: int = 1000
    """Proposals of a picture that the box head looks at; in training it draws from twice as many."""
    sampled: int = 512
    """Proposals of a picture that the box head learns from in a step."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the backbone's maps that are used, rising; one more level is pooled from the last."""
        return tuple(s for s in (4, 8, 16, 32) if s >= self.finest)


class Pyramid(nn.Module):
    """A backbone and the feature pyramid on top: pixels → the backbone's maps, and one more by pooling."""

    def __init__(self, backbone: Backbone, dim: int):
        super().__init__()
        self.body = backbone
        self.fpn = FeaturePyramidNetwork(backbone.channels, dim, LastLevelMaxPool())
        self.out_channels = dim  # torchvision's detectors ask for it

    def forward(self, pixels: Tensor) -> "OrderedDict[str, Tensor]":
        """(B, 3, H, W) → maps (B, dim, ·, ·), from fine to coarse, named "0", "1", ... and "pool"."""
        maps: OrderedDict[str, Tensor] = self.fpn(OrderedDict((str(i), m) for i, m in enumerate(self.body(pixels))))
        return maps


class _NoResize(GeneralizedRCNNTransform):
    """The data set has resized the pictures already, by one rule for all detectors."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target


class FasterRcnn(FasterRCNN):
    """The detector; `classes` is C. Labels are 0..C−1 outside, and 1..C inside, where 0 is background."""

    def __init__(self, config: FasterRcnnConfig, classes: int):
        strides = config.strides
        sides = [config.anchor_strides * stride for stride in (*strides, 2 * strides[-1])]
        super().__init__(
            Pyramid(Backbone(config.backbone, strides), config.dim),
            rpn_anchor_generator=AnchorGenerator(tuple((s,) for s in sides), ((0.5, 1.0, 2.0),) * len(sides)),
            box_roi_pool=MultiScaleRoIAlign([str(i) for i in range(len(strides))], output_size=7, sampling_ratio=2),
            box_head=TwoMLPHead(config.dim * 7**2, config.hidden),
            box_predictor=FastRCNNPredictor(config.hidden, classes + 1),
            rpn_pre_nms_top_n_train=2 * config.proposals,
            rpn_post_nms_top_n_train=2 * config.proposals,
            rpn_pre_nms_top_n_test=config.proposals,
            rpn_post_nms_top_n_test=config.proposals,
            box_score_thresh=SCORE_AT_LEAST,
            box_batch_size_per_image=config.sampled,
        )
        self.transform = _NoResize(0, 0, list(IMAGENET_MEAN), list(IMAGENET_STD))
        self.config, self.classes = config, classes

    def forward(
        self,
        images: Sequence[Tensor] | RawBatch,
        targets: Sequence[Target] | None = None,
        counts: Counts | None = None,
    ) -> dict[str, Tensor] | list[Detections]:
        """As `Detector.forward`; the losses are torchvision's four, means over what it sampled: `counts` is not used."""
        weight = self.roi_heads.box_predictor.cls_score.weight
        device = weight.device
        if isinstance(images, RawBatch):
            images = RawBatch(images.pixels.to(device, non_blocking=True), images.sizes).pictures()
        check_images(images)
        moved = [image.to(device, non_blocking=True) for image in images]
        scaled = [image.to(weight.dtype) / (1 if image.is_floating_point() else 255) for image in moved]
        if self.training:
            check_counts(targets, len(images))
            assert targets is not None
            labels = torch.cat([t["labels"] for t in targets])
            boxes = torch.cat([t["boxes"].reshape(-1, 4) for t in targets])
            if labels.device.type == "cpu":  # to look at them on a GPU would synchronise with it
                check_targets(labels, boxes, self.classes, targets)
            wanted = [
                {name: values.to(device, non_blocking=True) for name, values in _with_area(target).items()}
                for target in targets
            ]
            losses: dict[str, Tensor] = super().forward(scaled, wanted)
            return {name.removeprefix("loss_"): value for name, value in losses.items()}
        found: list[Detections] = super().forward(scaled)
        return [{**f, "labels": f["labels"] - 1} for f in found]


def _with_area(target: Target) -> dict[str, Tensor]:
    """torchvision's form of a target, whose class 0 is background. It refuses flat boxes, from which nothing can be cut out."""
    boxes, labels = target["boxes"].reshape(-1, 4).float(), target["labels"]
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return {"boxes": boxes[kept], "labels": labels[kept].long() + 1}
