"""The baseline is torchvision's detector: only labels, scaling and sizes are ours."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from ddetr_lite.models.backbone import BackboneConfig
from ddetr_lite.models.faster_rcnn import FasterRcnn, FasterRcnnConfig
from ddetr_lite.models.presets import build, config_from_dict, config_to_dict, model_config

SMALL: Any = model_config("faster-rcnn", "small")


def pictures() -> list[torch.Tensor]:
    return [
        torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8),
        torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8),
    ]


def targets() -> list[dict[str, torch.Tensor]]:
    boxes = torch.tensor([[8.0, 10.0, 40.0, 50.0], [30.0, 20.0, 70.0, 60.0]])
    return [
        {"boxes": boxes, "labels": torch.tensor([0, 2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]


def test_losses_are_torchvisions_four_and_reach_every_parameter() -> None:
    model = build(SMALL, 3).train()
    losses = model(pictures(), targets())
    assert losses.keys() == {"classifier", "box_reg", "objectness", "rpn_box_reg"}
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert not without


def test_it_finds_what_it_was_trained_on() -> None:
    """Labels, boxes and sizes survive the way in and out: two objects of known place and class are learned by heart."""
    torch.manual_seed(0)
    image = torch.full((3, 96, 96), 90, dtype=torch.uint8)
    image[0, 10:50, 8:40] = 250
    image[2, 40:80, 50:90] = 250
    target = {"boxes": torch.tensor([[8.0, 10, 40, 50], [50, 40, 90, 80]]), "labels": torch.tensor([0, 2])}
    model = build(SMALL, 3).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    # Learned to the end, with a rate that falls: halfway, whether a second box is left over depends on the last digits.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (100 - step) / 50))
    for _ in range(100):
        optimizer.zero_grad()
        sum(model([image], [target]).values()).backward()
        optimizer.step()
        schedule.step()
    (found,) = model.eval()([image])
    sure = found["scores"] > 0.5
    order = found["labels"][sure].argsort()
    assert found["labels"][sure][order].tolist() == [0, 2]
    assert torch.allclose(found["boxes"][sure][order], target["boxes"], atol=4)


def test_weak_detections_are_kept() -> None:
    """A new model is sure of nothing: of 40 classes none gets 0.05, where torchvision would find nothing at all."""
    torch.manual_seed(0)
    model = build(SMALL, 40).eval()
    with torch.no_grad():
        found = model(pictures())
    assert all(len(f["scores"]) == 100 and f["scores"].max() < 0.05 for f in found)


def test_pictures_are_not_resized_and_may_be_uint8_or_float() -> None:
    model = build(replace(SMALL, sampled=16), 3).eval()
    seen: list[torch.Size] = []
    model.backbone.register_forward_hook(lambda module, given, out: seen.append(given[0].shape))
    images = pictures()
    first = model(images)
    second = model([image.float() / 255 for image in images])
    assert seen[0] == (2, 3, 96, 96)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a["boxes"], b["boxes"])
        assert a["labels"].numel() == 0 or a["labels"].min() >= 0


def test_without_the_finest_map() -> None:
    """Four maps instead of five, and anchors of the same sides where the strides of a side are halved."""
    torch.manual_seed(0)
    without = replace(SMALL, finest=8, anchor_strides=SMALL.anchor_strides / 2)
    usual, coarse = (cast("Any", build(config, 3)) for config in (SMALL, without))
    sides = [[side for (side,) in model.rpn.anchor_generator.sizes] for model in (usual, coarse)]
    assert sides == [[12, 24, 48, 96, 192], [12, 24, 48, 96]]
    seen: dict[str, torch.Tensor] = {}
    coarse.backbone.register_forward_hook(lambda module, given, maps: seen.update(maps))
    losses = coarse.train()(pictures(), targets())
    assert [tuple(m.shape[-2:]) for m in seen.values()] == [(12, 12), (6, 6), (3, 3), (2, 2)]
    sum(losses.values()).backward()
    assert [n for n, p in coarse.named_parameters() if p.grad is None] == []


def test_sizes_of_the_paper_are_torchvisions() -> None:
    config = FasterRcnnConfig(BackboneConfig("resnet50", weights="none"))
    model = FasterRcnn(config, classes=90)
    sizes = {anchor for level in model.rpn.anchor_generator.sizes for anchor in level}
    assert sizes == {32, 64, 128, 256, 512}
    # torchvision's fasterrcnn_resnet50_fpn has 91 outputs and 41,755,286 parameters, frozen batch norms apart.
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    expected = sum(p.numel() for n, p in theirs.named_parameters() if ".bn" not in n and "downsample.1" not in n)
    found = sum(p.numel() for n, p in model.named_parameters() if ".bn" not in n and "downsample.1" not in n)
    assert found == expected


def test_its_configuration_survives_a_file() -> None:
    assert config_from_dict(config_to_dict(SMALL)) == SMALL


def test_wrong_labels_are_refused() -> None:
    model = build(SMALL, 3).train()
    wrong = [{**t, "labels": t["labels"] + 1} for t in targets()]
    with pytest.raises(ValueError, match=r"labels \[1, 3\] must lie in 0..2"):
        model(pictures(), wrong)


@pytest.mark.parametrize(
    ("images", "given", "message"),
    [
        ([], [], "no pictures"),
        ([torch.zeros(1, 64, 64)], targets()[:1], r"must be \(3, H, W\), got \(1, 64, 64\)"),
        (pictures(), targets()[:1], "2 pictures but 1 targets"),
        (pictures()[:1], targets(), "1 pictures but 2 targets"),
        (pictures(), None, "in training mode targets are needed"),
        (pictures()[:1], [{"boxes": torch.zeros(1, 4), "labels": torch.tensor([0, 1])}], "2 labels but 1 boxes"),
    ],
)
def test_what_does_not_fit_is_said_as_by_the_other_detectors(images: Any, given: Any, message: str) -> None:
    for model in (build(SMALL, 3).train(), build(model_config("detr", "small"), 3).train()):
        with pytest.raises(ValueError, match=message):
            model(images, given)


def test_other_precisions_and_flat_boxes() -> None:
    """Pictures in any precision, as for the other detectors; boxes without area, from which it learns nothing."""
    model = build(SMALL, 3)
    images = [image / 255 for image in pictures()]
    with torch.no_grad():
        plain, wide = (model.eval()([image.to(dtype) for image in images]) for dtype in (torch.float32, torch.float64))
    torch.testing.assert_close(plain[0]["boxes"], wide[0]["boxes"], atol=1e-3, rtol=1e-3)
    flat = {"boxes": torch.tensor([[5.0, 5, 5, 30], [8, 10, 40, 50]]), "labels": torch.tensor([1, 0])}
    without = {name: values[1:] for name, values in flat.items()}
    losses = []
    for target in (flat, without):
        torch.manual_seed(0)
        losses.append(model.train()(pictures()[:1], [target]))
    assert losses[0] == losses[1]


def test_the_numbers_of_the_configuration_and_torchvisions_are_taken() -> None:
    model: Any = build(replace(SMALL, proposals=37, sampled=24), 3)
    for training, proposals in ((True, 74), (False, 37)):
        model.train(training)
        assert model.rpn.pre_nms_top_n() == model.rpn.post_nms_top_n() == proposals
    assert model.roi_heads.fg_bg_sampler.batch_size_per_image == 24
    assert model.roi_heads.score_thresh == 1e-3
    assert model.roi_heads.box_roi_pool.sampling_ratio == 2
    assert model.transform.image_mean == [0.485, 0.456, 0.406]
    assert model.transform.image_std == [0.229, 0.224, 0.225]
    assert model.rpn.anchor_generator.aspect_ratios == ((0.5, 1.0, 2.0),) * 5
