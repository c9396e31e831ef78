"""Detectors and backbones: called like torchvision's, and honest about what they cannot do."""

import functools
import hashlib
import http.server
import math
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
import torchvision
from parity_models import random_statistics
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.models.feature_extraction import create_feature_extractor

from ddetr_lite.batching import ImageBatch, batch_images, flatten_levels, mask_for
from ddetr_lite.layers.attention import record_attention
from ddetr_lite.layers.deformable_attention import (
    MultiScaleDeformableAttention,
    compass_offsets,
    record_samples,
)
from ddetr_lite.layers.positional_encoding import LearnedEncoding2d, sine_encoding_2d
from ddetr_lite.models import presets
from ddetr_lite.models.backbone import Backbone, BackboneConfig
from ddetr_lite.models.deformable_detr import DeformableDetr, DeformableDetrConfig
from ddetr_lite.models.detector import MLP, Detector
from ddetr_lite.models.detr import Detr, DetrConfig
from ddetr_lite.models.hints import add_hints, jitter
from ddetr_lite.models.presets import ROWS, model_config
from ddetr_lite.set_prediction.boxes import cxcywh_to_xyxy
from ddetr_lite.set_prediction.losses import DETR_LOSS
from ddetr_lite.set_prediction.postprocess import postprocess

SMALL = BackboneConfig("small", frozen=False)
DETR = DetrConfig(SMALL, 16, queries=7, dim=32, heads=4, hidden=48, encoder_layers=1, decoder_layers=2, dropout=0.0)
DEFORMABLE = DeformableDetrConfig(
    SMALL, 4, 2, queries=7, dim=64, heads=4, hidden=48, encoder_layers=1, decoder_layers=2, dropout=0.0
)
CONFIGS: dict[str, DetrConfig | DeformableDetrConfig] = {
    "detr": replace(DETR, stride=32),
    "detr learned": replace(DETR, stride=32, position="learned"),
    "deformable": DEFORMABLE,
    "deformable single scale": replace(DEFORMABLE, levels=1),
    "deformable + refinement": replace(DEFORMABLE, refine=True),
    "deformable ++ two-stage": replace(DEFORMABLE, refine=True, two_stage=True),
    "deformable with hints": replace(DEFORMABLE, refine=True, two_stage=True, hints=2),
    "deformable from stride 4": replace(DEFORMABLE, levels=5, finest=4),
    "deformable, each level by itself": replace(DEFORMABLE, own_level=True, scattered=True),
    "deformable softmax": replace(DEFORMABLE, levels=2, loss=DETR_LOSS),
}
CLASSES = 5


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """The models are so small that threads mostly wait for one another: 20 times longer on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(config: DetrConfig | DeformableDetrConfig, classes: int = CLASSES) -> Detector:
    return Detr(config, classes) if isinstance(config, DetrConfig) else DeformableDetr(config, classes)


def randomise(model: nn.Module, std: float = 0.15) -> None:
    """What starts at zero hides mistakes."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.add_(std * torch.randn_like(parameter))


def pictures() -> list[Tensor]:
    return [torch.rand(3, 64, 96), torch.rand(3, 96, 64), torch.rand(3, 50, 41)]


def truths() -> list[dict[str, Tensor]]:
    return [
        {
            "boxes": torch.tensor([[5.0, 5.0, 40.0, 30.0], [50.0, 20.0, 96.0, 64.0]]),
            "labels": torch.tensor([1, 4]),
        },
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
        {"boxes": torch.tensor([[0.0, 0.0, 41.0, 50.0]]), "labels": torch.tensor([0])},
    ]


# ---------------------------------------------------------------- called like torchvision's


@pytest.mark.parametrize("name", list(CONFIGS))
def test_training_gives_losses_and_a_gradient_to_every_parameter(name: str) -> None:
    model = build(CONFIGS[name]).train()
    randomise(model)
    losses = model(pictures(), truths())
    endings = ["", "/0"]
    if "two-stage" in name or "hints" in name:
        endings.append("/encoder")
    if "hints" in name:
        endings += ["/hint", "/hint/0"]
    assert sorted(losses) == sorted(f"{n}{e}" for n in ("class", "l1", "giou") for e in endings)
    assert all(v.shape == () and v.isfinite() for v in losses.values())
    sum(losses.values()).backward()
    silent = set()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        if parameter.grad.abs().max() == 0:
            silent.add(key)
    # DETR's queries start with the content zero: in the first self-attention all have one value, its bias,
    # so that neither where they look nor W^V makes a difference. It is so in the official model too.
    first = "transformer.decoder.layers.0.self_attn.in_proj_weight"
    assert silent <= ({first} if name.startswith("detr") else set())


@pytest.mark.parametrize("name", list(CONFIGS))
def test_fresh_model_trains_without_a_parameter_left_out(name: str) -> None:
    """As it is built, with its zeros: no gradient is missing (DDP would wait for it) or infinite."""
    model = build(CONFIGS[name]).train()
    sum(model(pictures(), truths()).values()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


def test_no_parameter_behind_the_last_feature_map_is_left_out() -> None:
    model = build(DETR).train()  # stride 16: nothing of the backbone's last stage is used
    sum(model(pictures(), truths()).values()).backward()
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("name", list(CONFIGS))
def test_pictures_without_any_object(name: str) -> None:
    model = build(CONFIGS[name]).train()
    losses = model(pictures(), [truths()[1]] * 3)
    assert not any("hint" in key for key in losses)
    assert all(v.item() == 0 for k, v in losses.items() if not k.startswith("class"))
    sum(losses.values()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", list(CONFIGS))
@torch.no_grad()
def test_evaluation_gives_detections_in_pixels_of_each_picture(name: str) -> None:
    model = build(CONFIGS[name]).eval()
    randomise(model)
    images = pictures()
    detections = model(images)
    assert len(detections) == 3
    for detection, image in zip(detections, images):
        assert set(detection) == {"boxes", "scores", "labels"}
        boxes, scores, labels = detection["boxes"], detection["scores"], detection["labels"]
        assert boxes.shape == (len(scores), 4)
        assert len(labels) == len(scores) > 0
        assert (boxes[:, 2:] >= boxes[:, :2]).all()
        assert boxes.min() >= 0
        assert boxes[:, 2].max() <= image.shape[2]
        assert boxes[:, 3].max() <= image.shape[1]
        assert ((scores >= 0) & (scores <= 1)).all()
        assert (scores[:-1] >= scores[1:]).all()
        assert ((labels >= 0) & (labels < CLASSES)).all()
        assert labels.dtype == torch.int64


@torch.no_grad()
def test_evaluation_is_the_postprocessed_last_layer() -> None:
    for name in ("detr", "deformable + refinement"):
        model = build(CONFIGS[name]).eval()
        randomise(model)
        images = pictures()
        outputs = model.outputs(model.batch(images))
        kind = "softmax" if name == "detr" else "focal"
        sizes = [(64, 96), (96, 64), (50, 41)]
        expected = postprocess(outputs.logits[-1], outputs.boxes[-1], sizes, kind)  # type: ignore[arg-type]
        for ours, theirs in zip(model(images), expected, strict=True):
            assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


@torch.no_grad()
def test_bytes_and_floats_agree() -> None:
    model = build(CONFIGS["detr"]).eval()
    bytes_ = [torch.randint(256, p.shape, dtype=torch.uint8) for p in pictures()]
    for a, b in zip(model(bytes_), model([b.float() / 255 for b in bytes_]), strict=True):
        for key in a:
            torch.testing.assert_close(a[key], b[key])


@pytest.mark.parametrize("name", list(CONFIGS))
@torch.no_grad()
def test_pictures_of_a_batch_do_not_see_one_another(name: str) -> None:
    """Padded to the same size, a picture's outputs depend on neither its neighbours nor its place."""
    model = build(CONFIGS[name]).eval()
    randomise(model)
    first, second, third = pictures()
    other = torch.rand_like(second)
    before = model.outputs(model.batch([first, second, third]))
    after = model.outputs(model.batch([third, other, first]))
    for ours, theirs in ((before.logits, after.logits), (before.boxes, after.boxes)):
        torch.testing.assert_close(ours[:, [0, 2]], theirs[:, [2, 0]], atol=1e-4, rtol=1e-4)


class Features(nn.Module):
    """In the backbone's place: these maps, with noise where the picture is padded."""

    def __init__(self, maps: list[Tensor], mask: Tensor, noise: float):
        super().__init__()
        self.maps = [
            torch.where(mask_for(mask, (m.shape[2], m.shape[3]))[:, None], noise * torch.randn_like(m), m) for m in maps
        ]

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return self.maps


@pytest.mark.parametrize("name", list(CONFIGS))
@torch.no_grad()
def test_features_on_padding_have_no_influence(name: str) -> None:
    """From the tokens on. (Convolutions see a few padded pixels, and group norm all, as in the originals.)"""
    config = CONFIGS[name]
    if isinstance(config, DeformableDetrConfig):
        config = replace(config, levels=len(config.strides))  # none that a convolution makes from another
    model: Any = build(config).eval()
    randomise(model)
    if isinstance(model, DeformableDetr):
        model.input_proj = nn.ModuleList(nn.Sequential(next(p.children())) for p in model.input_proj)
    batch = model.batch(pictures())
    maps = model.backbone[0](batch.pixels)
    results = []
    for noise in (0.0, 20.0):
        model.backbone[0] = Features(maps, batch.mask, noise)
        results.append(model.outputs(batch))
    for a, b in zip(results[0], results[1], strict=True):
        if a is not None and b is not None:
            assert a.isfinite().all()
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_targets_become_fractions_of_their_own_picture() -> None:
    model = build(DETR)
    result = model.normalise_targets(truths(), [(64, 96), (96, 64), (50, 41)])
    expected = torch.tensor([[22.5 / 96, 17.5 / 64, 35 / 96, 25 / 64], [73 / 96, 42 / 64, 46 / 96, 44 / 64]])
    torch.testing.assert_close(result[0]["boxes"], expected)
    assert result[1]["boxes"].shape == (0, 4)
    torch.testing.assert_close(result[2]["boxes"], torch.tensor([[0.5, 0.5, 1.0, 1.0]]))


def test_mistaken_calls_say_what_is_wrong() -> None:
    model = build(DETR).train()
    images, targets = pictures(), truths()
    with pytest.raises(ValueError, match=r"in training mode targets are needed.*model.eval\(\)"):
        model(images)
    with pytest.raises(ValueError, match="3 pictures but 2 targets"):
        model(images, targets[:2])
    with pytest.raises(ValueError, match=r"picture 0 of the batch: labels \[1, 5\] must lie in 0..4"):
        model(images, [{**targets[0], "labels": torch.tensor([5, 1])}, *targets[1:]])
    wrong = {**targets[2], "labels": torch.tensor([-1]), "image_id": torch.tensor(99)}
    with pytest.raises(ValueError, match=r"image id 99: labels \[-1\] must lie in 0..4"):
        model(images, [*targets[:2], wrong])
    with pytest.raises(ValueError, match="picture 0 of the batch: 1 labels but 2 boxes"):
        model(images, [{**targets[0], "labels": torch.tensor([1])}, *targets[1:]])
    many = {
        "boxes": torch.tensor([[1.0, 2, 9, 8]]).repeat(8, 1),
        "labels": torch.zeros(8, dtype=torch.int64),
        "image_id": torch.tensor(12),
    }
    with pytest.raises(ValueError, match="image id 12 has 8 objects, the model only 7 queries"):
        model(images, [many, *targets[1:]])
    swapped = {**targets[0], "boxes": targets[0]["boxes"][:, [2, 1, 0, 3]]}
    with pytest.raises(ValueError, match=r"picture 0 of the batch: box \[40.0, 5.0, 5.0, 30.0\] has x1 < x0"):
        model(images, [swapped, *targets[1:]])
    shares = [{**t, "boxes": t["boxes"] / 96} for t in targets]
    with pytest.warns(UserWarning, match="within the first pixel of their pictures: corners .* in pixels are expected"):
        model(images, shares)
    with pytest.raises(ValueError, match=r"picture 2 is torch\.int32"):
        model([*images[:2], images[2].int()])
    with pytest.raises(ValueError, match=r"picture 0 must be \(3, H, W\), got \(3, 0, 5\)"):
        model([torch.rand(3, 0, 5)])
    with pytest.raises(ValueError, match="no pictures"):
        model([])
    with pytest.raises(ValueError, match=r"picture 1 must be \(3, H, W\), got \(1, 8, 8\)"):
        model([images[0], torch.rand(1, 8, 8)])
    with pytest.raises(ValueError, match="two_stage=True needs refine=True"):
        build(replace(DEFORMABLE, two_stage=True))
    with pytest.raises(ValueError, match="hints=2 needs two_stage=True"):
        build(replace(DEFORMABLE, refine=True, hints=2))
    with pytest.raises(ValueError, match=r"anchor_size=0\.3 makes boxes of 1\.2 of the picture"):
        build(replace(DEFORMABLE, refine=True, two_stage=True, levels=3, anchor_size=0.3))
    with pytest.raises(
        ValueError, match="finest=4 and stride=32 are the ends of 4 maps, levels=3 leaves out the first"
    ):
        build(replace(DEFORMABLE, levels=3, finest=4))
    with pytest.raises(ValueError, match="finest=4 and stride=8 are the ends of 2 maps, levels=1 leaves out the first"):
        build(replace(DEFORMABLE, levels=1, stride=8, finest=4))
    with pytest.raises(ValueError, match="dim=36 must be a multiple of 32"):
        build(replace(DEFORMABLE, dim=36))
    with pytest.raises(ValueError, match="dim=34 must be a multiple of 4"):
        build(replace(DETR, dim=34, heads=2))


def test_empty_labels_of_any_dtype_train() -> None:
    """`torch.tensor([])` is float32: what one writes for a picture without objects."""
    model = build(DETR).train()
    empty = {"boxes": torch.tensor([]), "labels": torch.tensor([])}
    sum(model(pictures()[:1], [empty]).values()).backward()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_type_train(dtype: torch.dtype) -> None:
    for name in ("detr", "deformable"):
        model = build(CONFIGS[name]).train()
        images = pictures()
        expected = model(images, truths())
        losses = model(images, [{**t, "labels": t["labels"].to(dtype)} for t in truths()])
        for key, value in expected.items():
            torch.testing.assert_close(losses[key], value)


# ---------------------------------------------------------------- batches


def test_batch_is_normalised_and_padded_right_and_below() -> None:
    mean, std = torch.tensor([0.5, 0.25, 0.0]), torch.tensor([0.5, 2.0, 1.0])
    images = [torch.rand(3, 4, 6), torch.randint(256, (3, 5, 2), dtype=torch.uint8)]
    batch = batch_images(images, mean, std)
    assert batch.pixels.shape == (2, 3, 5, 6)
    assert batch.sizes == [(4, 6), (5, 2)]
    for i, (h, w) in enumerate(batch.sizes):
        for c in range(3):
            for row in range(5):
                for column in range(6):
                    inside = row < h and column < w
                    assert bool(batch.mask[i, row, column]) is not inside
                    value = float(images[i][c, row, column]) / (255 if i else 1) if inside else float(mean[c])
                    expected = (value - float(mean[c])) / float(std[c])
                    assert float(batch.pixels[i, c, row, column]) == pytest.approx(expected, abs=1e-6)


def test_mask_of_a_feature_map_takes_the_nearest_pixel() -> None:
    mask = torch.rand(2, 13, 20) < 0.5
    small = mask_for(mask, (4, 6))
    for row in range(4):
        for column in range(6):
            assert torch.equal(small[:, row, column], mask[:, row * 13 // 4, column * 20 // 6])


def test_tokens_are_levels_one_after_the_other_row_by_row() -> None:
    maps = [torch.randn(2, 3, 2, 4), torch.randn(2, 3, 1, 2)]
    tokens = flatten_levels(maps)
    assert tokens.shape == (2, 10, 3)
    assert torch.equal(tokens[:, 4 * 1 + 3], maps[0][:, :, 1, 3])
    assert torch.equal(tokens[:, 8 + 1], maps[1][:, :, 0, 1])


def test_mlp() -> None:
    mlp = MLP(3, 5, 2, layers=3)
    assert [tuple(p.shape) for p in mlp.parameters()] == [(5, 3), (5,), (5, 5), (5,), (2, 5), (2,)]
    x = torch.randn(4, 3)
    hidden = x
    for i, layer in enumerate(mlp.layers):
        assert isinstance(layer, nn.Linear)
        hidden = hidden @ layer.weight.T + layer.bias
        if i < 2:
            hidden = hidden.clamp(min=0)
    torch.testing.assert_close(mlp(x), hidden)


# ---------------------------------------------------------------- what is inside


def full_size(name: str) -> Detector:
    """The paper's models on R50, without memory behind them."""
    with torch.device("meta"):
        if name == "detr":
            return Detr(DetrConfig(), 91)
        options: dict[str, dict[str, Any]] = {
            "single scale": {"levels": 1},
            "multi-scale": {},
            "refine": {"refine": True},
            "two-stage": {"refine": True, "two_stage": True},
        }
        return DeformableDetr(DeformableDetrConfig(**options[name]), 91)


@pytest.mark.parametrize(
    ("name", "official", "aliases", "millions"),
    [
        ("detr", 458, 0, 41.5),
        # The official file holds one storage under several names: shared heads once for each of six layers
        ("single scale", 549, 5 * 8, 33.9),
        ("multi-scale", 561, 5 * 8, 39.8),
        # and box heads (and class heads in two stages) a second time below the decoder.
        ("refine", 597, 6 * 6, 40.5),
        ("two-stage", 630, 7 * 8, 41.0),
    ],
)
def test_full_size_models_have_the_official_keys(name: str, official: int, aliases: int, millions: float) -> None:
    model = full_size(name)
    keys = set(model.state_dict())
    assert len(keys) == official - aliases
    expected = {
        "backbone.0.body.layer4.2.bn3.running_var",
        "backbone.0.body.bn1.weight",
        "transformer.encoder.layers.5.linear1.weight",
        "class_embed.weight" if name == "detr" else "class_embed.0.weight",
        "bbox_embed.layers.2.bias" if name == "detr" else "bbox_embed.0.layers.2.bias",
        "input_proj.weight" if name == "detr" else "input_proj.0.1.weight",
    }
    expected |= {
        "detr": {"query_embed.weight", "transformer.decoder.layers.0.multihead_attn.in_proj_weight"},
        "two-stage": {
            "transformer.enc_output.weight",
            "transformer.pos_trans_norm.bias",
            "class_embed.6.bias",
        },
    }.get(name, {"query_embed.weight", "transformer.reference_points.weight"})
    if name != "detr":
        expected |= {
            "transformer.level_embed",
            "transformer.decoder.layers.5.cross_attn.sampling_offsets.weight",
            "transformer.encoder.layers.0.self_attn.output_proj.bias",
        }
    assert expected <= keys, expected - keys
    count = sum(p.numel() for p in model.parameters())
    assert abs(count / 1e6 - millions) < 0.5, count


@torch.no_grad()
def test_detr_outputs_by_hand() -> None:
    model = build(CONFIGS["detr"]).eval()
    assert isinstance(model, Detr)
    randomise(model)
    batch = model.batch(pictures())
    outputs = model.outputs(batch)
    features = model.backbone[0](batch.pixels)[0]
    mask = mask_for(batch.mask, (3, 3))
    tokens = model.input_proj(features).flatten(2).transpose(1, 2)
    position = sine_encoding_2d(mask, 32, "detr").flatten(1, 2)
    memory = model.transformer.encoder(tokens, position, mask.flatten(1))
    where = model.query_embed.weight.repeat(3, 1, 1)
    hidden = model.transformer.decoder(torch.zeros_like(where), memory, where, position, mask.flatten(1))
    torch.testing.assert_close(outputs.logits, hidden @ model.class_embed.weight.T + model.class_embed.bias)
    torch.testing.assert_close(outputs.boxes, 1 / (1 + (-model.bbox_embed(hidden)).exp()))
    assert outputs.logits.shape == (2, 3, 7, CLASSES + 1)


@torch.no_grad()
def test_learned_positions_reach_detr() -> None:
    model = build(CONFIGS["detr learned"]).eval()
    assert isinstance(model, Detr)
    before = model.outputs(model.batch(pictures())).logits
    encoding = model.backbone[1]
    assert isinstance(encoding, LearnedEncoding2d)
    encoding.row_embed.weight.normal_()
    assert not torch.allclose(model.outputs(model.batch(pictures())).logits, before)
    assert "backbone.1.col_embed.weight" in model.state_dict()


def levels_of(model: DeformableDetr, batch: ImageBatch) -> tuple[list[tuple[int, int]], Tensor]:
    _, masks, _ = model.levels(batch)
    return [(m.shape[1], m.shape[2]) for m in masks], torch.cat([m.flatten(1) for m in masks], dim=1)


@torch.no_grad()
def test_deformable_levels() -> None:
    model = build(DEFORMABLE).eval()
    assert isinstance(model, DeformableDetr)
    randomise(model)
    batch = model.batch(pictures())
    features, masks, positions = model.levels(batch)
    assert [tuple(f.shape) for f in features] == [(3, 64, n, n) for n in (12, 6, 3, 2)]
    maps = model.backbone[0](batch.pixels)
    for i in range(3):
        torch.testing.assert_close(features[i], model.input_proj[i](maps[i]))
    torch.testing.assert_close(features[3], model.input_proj[3](maps[2]))  # from C5, not from its projection
    for i, mask in enumerate(masks):
        assert torch.equal(mask, mask_for(batch.mask, (mask.shape[1], mask.shape[2])))
        expected = sine_encoding_2d(mask, 64, "deformable") + model.transformer.level_embed[i]
        torch.testing.assert_close(positions[i], expected)


@torch.no_grad()
def test_a_fifth_level_follows_the_fourth() -> None:
    model = build(replace(DEFORMABLE, levels=5)).eval()
    assert isinstance(model, DeformableDetr)
    features, _, _ = model.levels(model.batch(pictures()))
    assert [f.shape[-1] for f in features] == [12, 6, 3, 2, 1]
    torch.testing.assert_close(features[4], model.input_proj[4](features[3]))


@torch.no_grad()
@pytest.mark.parametrize(
    ("levels", "stride", "sides"), [(5, 32, [24, 12, 6, 3, 2]), (4, 32, [24, 12, 6, 3]), (3, 8, [24, 12, 6])]
)
def test_levels_from_stride_4(levels: int, stride: Literal[8, 32], sides: list[int]) -> None:
    model: Any = build(replace(DEFORMABLE, levels=levels, stride=stride, finest=4)).eval()
    batch = model.batch(pictures())
    features, masks, _ = model.levels(batch)
    assert [f.shape[-1] for f in features] == [m.shape[-1] for m in masks] == sides
    finest = model.backbone[0].body.steps()[: model.backbone[0].taps[0] + 1]
    torch.testing.assert_close(features[0], model.input_proj[0](nn.Sequential(*finest)(batch.pixels)))


@pytest.mark.parametrize("refine", [False, True])
def test_deformable_outputs_by_hand(refine: bool) -> None:
    model = build(replace(DEFORMABLE, refine=refine)).eval()
    assert isinstance(model, DeformableDetr)
    randomise(model)
    batch = model.batch(pictures())
    outputs = model.outputs(batch)
    assert outputs.encoder_logits is None
    assert len(model.class_embed) == len(model.bbox_embed) == (2 if refine else 1)
    features, masks, positions = model.levels(batch)
    shapes, mask = levels_of(model, batch)
    ratios = torch.stack(
        [torch.stack(((~m[:, 0]).float().mean(-1), (~m[:, :, 0]).float().mean(-1)), dim=-1) for m in masks],
        dim=1,
    )
    position = torch.cat([p.flatten(1, 2) for p in positions], dim=1)
    memory = model.transformer.encoder(flatten_levels(features), position, shapes, ratios, mask)
    where, content = (
        model.query_embed.weight[:, :64].repeat(3, 1, 1),
        model.query_embed.weight[:, 64:].repeat(3, 1, 1),
    )
    reference = model.transformer.reference_points(where).sigmoid()
    x, logits, boxes = content, [], []
    for k, layer in enumerate(model.transformer.decoder.layers):
        scale = ratios if reference.shape[-1] == 2 else torch.cat((ratios, ratios), dim=-1)
        x = layer(x, where, reference[:, :, None] * scale[:, None], memory, shapes, mask)
        head = k if refine else 0
        logits.append(model.class_embed[head](x))
        delta = model.bbox_embed[head](x)
        anchor = torch.special.logit(reference)
        delta = torch.cat((delta[..., : anchor.shape[-1]] + anchor, delta[..., anchor.shape[-1] :]), dim=-1)
        boxes.append(delta.sigmoid())
        if refine:
            reference = boxes[-1].detach()
    torch.testing.assert_close(outputs.logits, torch.stack(logits), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs.boxes, torch.stack(boxes), atol=1e-4, rtol=1e-4)


def test_a_layers_box_does_not_teach_the_layer_before() -> None:
    model = build(CONFIGS["deformable ++ two-stage"]).eval()
    assert isinstance(model, DeformableDetr)
    randomise(model)
    outputs = model.outputs(model.batch(pictures()))
    own = list(model.bbox_embed[1].parameters())
    earlier = [
        *model.bbox_embed[0].parameters(),
        *model.bbox_embed[2].parameters(),
        *model.class_embed.parameters(),
    ]
    earlier += [*model.transformer.enc_output.parameters(), *model.transformer.enc_output_norm.parameters()]
    gradients = torch.autograd.grad(outputs.boxes[1].sum(), [*own, *earlier], allow_unused=True)
    assert all(g is not None for g in gradients[: len(own)])
    assert all(g is None or g.abs().max() == 0 for g in gradients[len(own) :])


@pytest.mark.parametrize("finest", [0.05, 0.2])
def test_anchors_cell_by_cell(finest: float) -> None:
    shapes, real = [(4, 6), (2, 3)], [[(4, 6), (2, 3)], [(3, 4), (2, 2)]]
    ratios = [[(real_w / w, real_h / h) for (h, w), (real_h, real_w) in zip(shapes, real[b])] for b in range(2)]
    anchors = DeformableDetr.anchors(shapes, torch.tensor(ratios), finest)
    for b in range(2):
        token = 0
        for level, (h, w) in enumerate(shapes):
            for row in range(h):
                for column in range(w):
                    real_h, real_w = real[b][level]
                    size = (finest, 2 * finest)[level]
                    expected = ((column + 0.5) / real_w, (row + 0.5) / real_h, size, size)
                    assert anchors[b, token].tolist() == pytest.approx(expected)
                    token += 1


@torch.no_grad()
def test_proposals_and_the_queries_made_from_them() -> None:
    model = build(replace(DEFORMABLE, refine=True, two_stage=True)).eval()
    assert isinstance(model, DeformableDetr)
    randomise(model)
    shapes = [(6, 100), (2, 2)]  # so wide that the outer columns are within 1 % of the border
    mask = torch.zeros(2, 604, dtype=torch.bool)
    mask[1, :600].view(6, 100)[:, 80:] = True
    memory = torch.randn(2, 604, 64)
    ratios = torch.tensor([[(1.0, 1.0), (1.0, 1.0)], [(0.8, 1.0), (1.0, 1.0)]])
    logits, unscaled = model.proposals(memory, mask, shapes, ratios)
    anchors = model.anchors(shapes, ratios, model.config.anchor_size)
    transformer = model.transformer
    for b in range(2):
        for n in range(604):
            valid = not mask[b, n] and all(0.01 < float(a) < 0.99 for a in anchors[b, n])
            token = transformer.enc_output_norm(transformer.enc_output(memory[b, n] if valid else torch.zeros(64)))
            if n % 7 == 0 or not valid:
                torch.testing.assert_close(logits[b, n], model.class_embed[2](token), atol=1e-5, rtol=1e-5)
            if valid:
                expected = model.bbox_embed[2](token) + (anchors[b, n] / (1 - anchors[b, n])).log()
                torch.testing.assert_close(unscaled[b, n], expected, atol=1e-4, rtol=1e-4)
            else:
                assert (unscaled[b, n] == math.inf).all()
    assert (unscaled[0, ::100] == math.inf).sum() == 7 * 4 - 4  # the first column of six rows; the last level is valid
    reference = model.best_proposals(logits, unscaled.requires_grad_())
    assert not reference.requires_grad
    content, position = model.queries_from(reference)
    for b in range(2):
        best = sorted(range(604), key=lambda n: -float(logits[b, n, 0]))[:7]
        torch.testing.assert_close(reference[b], unscaled[b, best].sigmoid())
        for q in range(7):
            encoding = []
            for value in reference[b, q].tolist():
                for i in range(16):
                    angle = value * 2 * math.pi / 10000 ** (2 * i / 32)
                    encoding += [math.sin(angle), math.cos(angle)]
            both = transformer.pos_trans_norm(transformer.pos_trans(torch.tensor(encoding)))
            torch.testing.assert_close(torch.cat((position[b, q], content[b, q])), both, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_two_stage_outputs_by_hand() -> None:
    model = build(CONFIGS["deformable ++ two-stage"]).eval()
    assert isinstance(model, DeformableDetr)
    randomise(model)
    batch = model.batch(pictures())
    outputs = model.outputs(batch)
    features, masks, positions = model.levels(batch)
    shapes, mask = levels_of(model, batch)
    ratios = torch.stack(
        [torch.stack(((~m[:, 0]).float().mean(-1), (~m[:, :, 0]).float().mean(-1)), dim=-1) for m in masks],
        dim=1,
    )
    position = torch.cat([p.flatten(1, 2) for p in positions], dim=1)
    memory = model.transformer.encoder(flatten_levels(features), position, shapes, ratios, mask)
    logits, unscaled = model.proposals(memory, mask, shapes, ratios)
    assert outputs.encoder_logits is not None
    assert outputs.encoder_boxes is not None
    torch.testing.assert_close(outputs.encoder_logits, logits)
    torch.testing.assert_close(outputs.encoder_boxes, unscaled.sigmoid())
    reference = model.best_proposals(logits, unscaled)
    x, where = model.queries_from(reference)
    for k, layer in enumerate(model.transformer.decoder.layers):
        x = layer(x, where, reference[:, :, None] * ratios.repeat(1, 1, 2)[:, None], memory, shapes, mask)
        near_ends = reference.clamp(1e-5, 1 - 1e-5)
        reference = (model.bbox_embed[k](x) + (near_ends / (1 - near_ends)).log()).sigmoid()
        torch.testing.assert_close(outputs.boxes[k], reference, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(outputs.logits[k], model.class_embed[k](x), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_hinted_queries_are_seen_by_no_other_group() -> None:
    model = build(CONFIGS["deformable with hints"]).eval()
    randomise(model)
    batch = model.batch(pictures())
    targets = model.normalise_targets(truths(), batch.sizes)
    alone, hinted = model.outputs(batch), model.outputs(batch, targets)
    assert alone.hint_logits is None
    for ours, theirs in zip(hinted[:4], alone[:4], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert hinted.hint_logits is not None
    assert hinted.hint_boxes is not None
    assert hinted.hint_logits.shape == (2, 3, 2 * 2, CLASSES)
    assert hinted.hint_boxes.shape == (2, 3, 2 * 2, 4)
    assert not torch.allclose(hinted.hint_boxes[:, :, :2], hinted.hint_boxes[:, :, 2:]), "each group has its own noise"


def test_hints_stand_near_their_objects() -> None:
    boxes = torch.rand(200, 4) * 0.4 + 0.3
    moved = jitter(boxes)
    corners, moved_corners = cxcywh_to_xyxy(boxes).clamp(0, 1), cxcywh_to_xyxy(moved)
    reach = 0.4 * torch.cat((boxes[:, 2:], boxes[:, 2:]), dim=-1) / 2
    assert ((moved_corners - corners).abs() <= reach + 1e-6).all()
    assert ((moved_corners - corners).abs() > 0.8 * reach).any(0).all()
    assert moved_corners.min() >= -1e-6
    assert moved_corners.max() <= 1 + 1e-6
    assert (jitter(torch.tensor([[0.5, 0.5, 0.0, 0.0]])) >= 1e-3).all()


def test_hints_are_appended_in_groups_that_do_not_see_one_another() -> None:
    reference = torch.rand(2, 3, 4)
    targets = [
        {"labels": torch.tensor([1, 2]), "boxes": torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.7, 0.1, 0.3]])},
        {"labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.4, 0.3, 0.3]])},
    ]
    joined, mask = add_hints(reference, targets, groups=2)
    assert joined.shape == (2, 3 + 2 * 2, 4)
    assert torch.equal(joined[:, :3], reference)
    for b, target in enumerate(targets):
        for group in range(2):
            for t, box in enumerate(target["boxes"]):
                assert torchvision.ops.box_iou(
                    cxcywh_to_xyxy(joined[b, None, 3 + 2 * group + t]), cxcywh_to_xyxy(box[None])
                ) > 0.3  # fmt: skip
    assert mask is not None
    group_of = [0, 0, 0, 1, 1, 2, 2]
    assert mask.tolist() == [[a != b for b in group_of] for a in group_of]
    nothing = [{"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}] * 2
    assert add_hints(reference, nothing, groups=2) == (reference, None)


@torch.no_grad()
def test_fresh_deformable_model_says_no_with_99_percent_and_boxes_at_their_references() -> None:
    for name in ("deformable", "deformable + refinement", "deformable ++ two-stage"):
        model = build(CONFIGS[name]).eval()
        assert isinstance(model, DeformableDetr)
        for head in model.class_embed:
            assert isinstance(head, nn.Linear)
            torch.testing.assert_close(head.bias.sigmoid(), torch.full((CLASSES,), 0.01))
        boxes = model.outputs(model.batch(pictures())).boxes
        torch.testing.assert_close(boxes[1], boxes[0], atol=1e-5, rtol=0)
        if name == "deformable ++ two-stage":
            finest = [b for b in boxes[0].flatten(0, 1).tolist() if b[2] < 0.9]
            assert all(min(abs(b[2] - 0.05 * 2**k) for k in range(4)) < 1e-4 for b in finest)
        else:
            torch.testing.assert_close(boxes[..., 2:], torch.full_like(boxes[..., 2:], 1 / (1 + math.exp(2))))
            points = model.transformer.reference_points(model.query_embed.weight[:, :64]).sigmoid()
            torch.testing.assert_close(boxes[0, 0, :, :2], points, atol=1e-5, rtol=0)


def test_fresh_deformable_model_looks_around_itself() -> None:
    model = build(replace(DEFORMABLE, dim=256, levels=3))
    assert isinstance(model, DeformableDetr)
    attentions = [m for m in model.modules() if isinstance(m, MultiScaleDeformableAttention)]
    assert len(attentions) == 3
    for attention in attentions:
        for layer in (attention.sampling_offsets, attention.attention_weights):
            assert layer.weight.abs().max() == 0
        assert attention.attention_weights.bias.abs().max() == 0
        assert torch.equal(attention.sampling_offsets.bias, compass_offsets(4, 3, 2).flatten())
    assert model.transformer.reference_points.bias.abs().max() == 0
    assert abs(float(model.transformer.level_embed.detach().std()) - 1) < 0.1
    assert abs(float(model.transformer.level_embed.detach().mean())) < 0.1


@pytest.mark.parametrize("name", ["detr", "deformable", "deformable + refinement"])
def test_boxes_teach_the_queries(name: str) -> None:
    model: Any = build(CONFIGS[name]).eval()
    randomise(model)
    boxes = model.outputs(model.batch(pictures())).boxes
    wanted = [model.query_embed.weight, *model.transformer.encoder.layers[0].parameters()]
    for layer in range(2):
        for gradient in torch.autograd.grad(boxes[layer].square().sum(), wanted, retain_graph=True):
            assert gradient.abs().max() > 0


def test_pixels_are_normalised_as_for_imagenet() -> None:
    image = torch.rand(3, 8, 9)
    expected = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.transforms(crop_size=9, resize_size=8)
    assert (expected.mean, expected.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    normalised = torchvision.transforms.functional.normalize(image, expected.mean, expected.std)
    torch.testing.assert_close(build(DETR).batch([image]).pixels[0], normalised)


@torch.no_grad()
def test_what_models_look_at_can_be_recorded() -> None:
    model = build(CONFIGS["deformable"]).eval()
    with record_attention(model) as attention, record_samples(model) as samples:
        model(pictures())
    assert list(attention) == [f"transformer.decoder.layers.{k}.self_attn" for k in range(2)]
    assert list(samples) == ["transformer.encoder.layers.0.self_attn"] + [
        f"transformer.decoder.layers.{k}.cross_attn" for k in range(2)
    ]
    locations, weights = samples["transformer.decoder.layers.1.cross_attn"]
    assert locations.shape == (3, 7, 4, 4, 2, 2)
    assert weights.shape == (3, 7, 4, 4, 2)


@pytest.mark.parametrize("name", ["detr", "deformable", "deformable ++ two-stage"])
def test_bfloat16_training_step(name: str) -> None:
    model = build(CONFIGS[name]).train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(pictures(), truths())
    assert all(v.dtype == torch.float32 for v in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["detr", "deformable", "deformable + refinement", "deformable ++ two-stage"])
@torch.no_grad()
def test_boxes_and_references_are_not_rounded_to_bfloat16(name: str) -> None:
    model = build(CONFIGS[name]).eval()
    randomise(model)
    references, changes = [], []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        references.append(args[2])

    for head in (module for module in model.modules() if isinstance(module, MLP)):
        head.register_forward_hook(lambda head, args, output: changes.append(output))
    if isinstance(model, DeformableDetr):
        model.transformer.decoder.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model.outputs(model.batch(pictures()))
    assert outputs.boxes.dtype == torch.float32
    assert all(r.dtype == torch.float32 for r in references)
    if isinstance(model, DeformableDetr) and not model.config.two_stage:
        positions = model.query_embed.weight[:, : model.config.dim]
        torch.testing.assert_close(references[0][0], model.transformer.reference_points(positions).sigmoid())
    assert changes
    assert all((change != change.bfloat16()).any() for change in changes)  # nor were the changes before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["detr", "deformable", "deformable ++ two-stage"])
@torch.no_grad()
def test_a_whole_model_in_another_precision(name: str, dtype: torch.dtype) -> None:
    model, images = build(CONFIGS[name]).eval(), pictures()
    expected = model.outputs(model.batch(images))
    found = model.to(dtype).outputs(model.batch(images))
    tolerance = {torch.float16: 0.02, torch.bfloat16: 0.15, torch.float64: 1e-4}[dtype]
    # Sorted: rounded scores may rank the proposals of the first stage in another order.
    logits, wanted = (x.logits[-1].sort(dim=1).values for x in (found, expected))
    assert logits.dtype == dtype
    assert torch.allclose(logits.to(torch.float32), wanted, atol=tolerance, rtol=0)


def test_random_values_that_are_kept_are_warned_of() -> None:
    config = DetrConfig(BackboneConfig("resnet18"), dim=32, heads=2, hidden=32, encoder_layers=1, decoder_layers=1)
    with pytest.warns(UserWarning, match="batch norms of resnet18 would stay random"):
        presets.build(config, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        presets.build(config, 2, load_backbone=False)
        presets.build(replace(config, backbone=replace(config.backbone, frozen=False)), 2)


@pytest.mark.parametrize("size", presets.SIZES)
@pytest.mark.parametrize("row", ROWS)
def test_dilated_rows_are_dilated_at_every_size(row: str, size: Any) -> None:
    assert model_config(row, size).backbone.dilation == row.endswith("-dc5")


def test_input_projections_begin_as_in_the_papers_code() -> None:
    """Xavier's uniform distribution, ±√(6 / (inputs + outputs)), no bias, and 32 groups of channels are normed."""
    torch.manual_seed(0)
    model = DeformableDetr(DEFORMABLE, 2)
    assert len(model.input_proj) == 4
    for projection in model.input_proj:
        convolution, norm = cast(nn.Sequential, projection)
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.GroupNorm)
        outputs, inputs, height, width = convolution.weight.shape
        limit = math.sqrt(6 / ((inputs + outputs) * height * width))
        assert float(convolution.weight.detach().abs().max()) == pytest.approx(limit, rel=0.02)
        assert float(convolution.weight.detach().std()) == pytest.approx(limit / math.sqrt(3), rel=0.05)
        assert convolution.bias is not None
        assert not convolution.bias.any()
        assert (norm.num_groups, norm.num_channels) == (32, outputs)


def test_the_own_networks_norm_eight_groups() -> None:
    norms = [m for m in Backbone(SMALL).modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) > 10
    assert {norm.num_groups for norm in norms} == {8}


class Raw(nn.Module):
    """What `docs/library.md` exports: pixels without padding → logits and boxes."""

    def __init__(self, model: Detector):
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.zeros_like(pixels[:, 0], dtype=torch.bool)
        outputs = self.model.outputs(ImageBatch(pixels, mask, []))
        return outputs.logits, outputs.boxes


OPEN = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)  # pictures, height and width
EXAMPLE = torch.zeros(2, 3, 160, 192)  # no size of anything is 1, which torch would take for fixed


def assert_same_on_other_sizes(raw: Raw, exported: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
    for pictures, height, width in ((2, 160, 192), (1, 96, 80), (3, 75, 110)):
        pixels = torch.randn(pictures, 3, height, width)
        torch.testing.assert_close(exported(pixels), raw(pixels), atol=1e-4, rtol=1e-4)


# Two stages: `docs/library.md` exports the shipped detector, which has them, and its test runs it.
@pytest.mark.parametrize("name", ["detr", "deformable"])
def test_what_is_exported_gives_the_same_on_pictures_of_other_sizes(name: str) -> None:
    """`torch.export` takes only operations that every device knows."""
    raw = Raw(build(CONFIGS[name]).eval())
    exported = torch.export.export(raw, (EXAMPLE,), dynamic_shapes=(OPEN,)).module()
    assert_same_on_other_sizes(raw, exported)


@pytest.mark.parametrize("name", ["detr", "deformable", "deformable ++ two-stage"])
def test_onnx_gives_the_same_on_pictures_of_other_sizes(name: str) -> None:
    """Runs where onnxscript and onnxruntime are installed; this environment has neither."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    raw = Raw(build(CONFIGS[name]).eval())
    program = torch.onnx.export(raw, (EXAMPLE,), dynamo=True, dynamic_shapes=(OPEN,), verbose=False)
    assert program is not None
    session = runtime.InferenceSession(program.model_proto.SerializeToString())

    def run(pixels: Tensor) -> tuple[Tensor, ...]:
        given = {session.get_inputs()[0].name: pixels.numpy()}
        return tuple(torch.from_numpy(output) for output in session.run(None, given))

    assert_same_on_other_sizes(raw, run)


def test_pictures_and_targets_that_are_no_tensors() -> None:
    model = build(CONFIGS["detr"])
    together = torch.rand(2, 3, 64, 96)
    losses = model(together, [{"boxes": 8 * torch.ones(1, 4), "labels": torch.zeros(1)}] * 2)  # a batch is a list, too
    assert all(loss.isfinite() for loss in losses.values())
    with pytest.raises(ValueError, match=r"picture 0 is a ndarray: give a tensor \(3, H, W\)"):
        model([np.zeros((64, 96, 3), np.uint8)], truths()[:1])
    with pytest.raises(ValueError, match="no pictures"):
        model(torch.rand(0, 3, 64, 96))
    with pytest.raises(ValueError, match=r"picture 0 is floating point with values up to 255: give 0\.\.1"):
        model([255 * torch.ones(3, 64, 96)], truths()[:1])
    with pytest.raises(ValueError, match="picture 0 of the batch: the target lacks labels"):
        model(together[:1], [{"boxes": torch.ones(1, 4)}])
    other = tv_tensors.BoundingBoxes([[1, 2, 3, 4]], format="XYWH", canvas_size=(64, 96))
    with pytest.raises(ValueError, match="picture 0 of the batch: boxes are XYWH: give corners"):
        model(together[:1], [{"boxes": other, "labels": torch.tensor([0])}])
    with pytest.raises(ValueError, match="picture 0 of the batch: 'boxes' is a list: give a tensor"):
        model(together[:1], [{"boxes": [[1, 2, 3, 4]], "labels": torch.tensor([0])}])


@pytest.mark.parametrize("name", ["detr", "deformable + refinement"])
def test_overfits_one_picture(name: str) -> None:
    image = 0.2 * torch.rand(3, 64, 64)
    image[0, 8:40, 4:28] += 0.8
    image[2, 30:60, 34:62] += 0.8
    target = {
        "boxes": torch.tensor([[4.0, 8.0, 28.0, 40.0], [34.0, 30.0, 62.0, 60.0]]),
        "labels": torch.tensor([2, 0]),
    }
    config = replace(CONFIGS[name], dim=64, queries=5)
    model = build(config, 3).train()
    steps = 90
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        loss = sum(model([image], [target]).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        (found,) = model([image])
    sure = found["scores"] > 0.5
    order = found["labels"][sure].argsort(descending=True)
    assert found["labels"][sure][order].tolist() == [2, 0]
    overlap = torchvision.ops.box_iou(found["boxes"][sure][order], target["boxes"]).diagonal()
    assert overlap.min() > 0.8, overlap


# ---------------------------------------------------------------- backbones


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("resnet18", ["layer2", "layer3", "layer4"]),
        ("mobilenet_v2", ["features.6", "features.13", "features.18"]),
    ],
)
def test_feature_maps_are_torchvisions(name: str, nodes: list[str], tmp_path: Path) -> None:
    network = torchvision.models.get_model(name, weights=None).eval()
    torch.save(random_statistics(network), tmp_path / "weights.pth")
    backbone = Backbone(BackboneConfig(name, str(tmp_path / "weights.pth"))).eval()
    pixels = torch.randn(2, 3, 64, 96)
    expected = list(create_feature_extractor(network, nodes)(pixels).values())
    maps = backbone(pixels)
    assert backbone.channels == [m.shape[1] for m in maps]
    assert backbone.strides == [8, 16, 32]
    for ours, theirs, stride in zip(maps, expected, (8, 16, 32), strict=True):
        assert ours.shape[2:] == (64 // stride, 96 // stride)
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    deepest = Backbone(BackboneConfig(name, str(tmp_path / "weights.pth")), strides=(32,)).eval()
    (alone,) = deepest(pixels)
    torch.testing.assert_close(alone, maps[-1])


def test_small_backbone() -> None:
    backbone = Backbone(SMALL)
    maps = backbone(torch.randn(1, 3, 70, 33))
    assert [tuple(m.shape) for m in maps] == [(1, 64, 9, 5), (1, 128, 5, 3), (1, 128, 3, 2)]
    assert backbone.channels == [64, 128, 128]
    assert all(p.requires_grad for p in backbone.parameters())


@torch.no_grad()
@pytest.mark.parametrize("row", [row for row in ROWS if row != "faster-rcnn"])
def test_models_run_in_float64(row: str) -> None:
    config: Any = model_config(row, "small")
    model: Any = build(config, 3).eval()
    images = [torch.rand(3, 96, 128)]
    plain = model.outputs(model.batch(images))
    model.double()
    wide = model.outputs(model.batch([image.double() for image in images]))
    assert {wide.logits.dtype, wide.boxes.dtype} == {torch.float64}
    torch.testing.assert_close(wide.boxes.float(), plain.boxes, atol=1e-4, rtol=1e-3)


def test_dilation_is_torchvisions(tmp_path: Path) -> None:
    network = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=[False, False, True]).eval()
    torch.save(random_statistics(network), tmp_path / "weights.pth")
    backbone = Backbone(BackboneConfig("resnet50", str(tmp_path / "weights.pth"), dilation=True)).eval()
    pixels = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        maps = backbone.double()(pixels)
        expected = create_feature_extractor(network.double(), ["layer4"])(pixels)["layer4"]
    assert backbone.strides == [8, 16, 16]
    assert expected.shape == (1, 2048, 4, 6)
    torch.testing.assert_close(maps[2], expected)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    ours = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    for a, b in zip(ours, convolutions, strict=True):
        assert (a.stride, a.dilation, a.padding) == (b.stride, b.dilation, b.padding)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "small"])
@torch.no_grad()
def test_dilation_keeps_stride_16(name: str) -> None:
    maps = Backbone(BackboneConfig(name, dilation=True))(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape[2:]) for m in maps] == [(8, 12), (4, 6), (4, 6)]


@pytest.mark.parametrize("name", ["vgg11", "densenet121", "convnext_tiny"])
def test_dilation_works_or_says_that_it_cannot(name: str) -> None:
    with torch.device("meta"):
        try:
            backbone = Backbone(BackboneConfig(name, dilation=True), strides=(32,)).eval()
        except ValueError as error:
            said = str(error)
        else:
            said = "dilated" if backbone(torch.zeros(1, 3, 64, 96))[0].shape[2:] == (4, 6) else "a wrong size"
    assert "dilat" in said, said


def test_frozen_parts_do_not_change_in_a_step(tmp_path: Path) -> None:
    torch.save(random_statistics(torchvision.models.resnet18(weights=None)), tmp_path / "weights.pth")
    backbone = Backbone(BackboneConfig("resnet18", str(tmp_path / "weights.pth"))).train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=0.1, weight_decay=0.1)
    sum(m.square().mean() for m in backbone(torch.randn(2, 3, 64, 64))).backward()
    optimizer.step()
    changed = {k for k, v in backbone.state_dict().items() if not torch.equal(v, before[k])}
    expected = {
        k for k in before if k.startswith(("body.layer2", "body.layer3", "body.layer4"))
        and k.endswith(("conv1.weight", "conv2.weight", "downsample.0.weight"))
    }  # fmt: skip
    assert changed == expected
    assert len(expected) == 3 * 5


def test_unfrozen_backbone_trains_all_of_it() -> None:
    backbone = Backbone(BackboneConfig("resnet18", frozen=False)).train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=0.1)
    sum(m.square().mean() for m in backbone(torch.randn(2, 3, 64, 64))).backward()
    optimizer.step()
    unchanged = [k for k, v in backbone.state_dict().items() if torch.equal(v, before[k])]
    assert unchanged == []


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(ValueError, match=r"backbone 'resnet-50' is neither .*did you mean .*resnet50"):
        Backbone(BackboneConfig("resnet-50"))
    with pytest.raises(ValueError, match="list_models"):
        Backbone(BackboneConfig("qqqqqq"))


@pytest.mark.parametrize("name", ["squeezenet1_0", "vit_b_16", "mnasnet0_5"])
def test_networks_without_a_chain_of_maps_are_refused(name: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=f"backbone '{name}' has"):
        Backbone(BackboneConfig(name))


def small_state() -> dict[str, Tensor]:
    return {k.removeprefix("body."): torch.randn_like(v) for k, v in Backbone(SMALL).state_dict().items()}


def test_weights_from_a_file(tmp_path: Path) -> None:
    state, file = small_state(), tmp_path / "weights.pth"
    torch.save({**state, "fc.weight": torch.zeros(3)}, file)  # a classifier's head is left aside
    backbone = Backbone(replace(SMALL, weights=str(file)))
    assert all(torch.equal(v, state[k.removeprefix("body.")]) for k, v in backbone.state_dict().items())


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    state, file = small_state(), tmp_path / "weights.pth"
    config = replace(SMALL, weights=str(file))
    with pytest.raises(ValueError, match=r"weights.pth is no file; give 'imagenet', a URL"):
        Backbone(config)
    torch.save({k: v for k, v in state.items() if not k.startswith("layer2.0.conv")}, file)
    with pytest.raises(
        ValueError, match=r"do not fit backbone 'small': the file lacks 'layer2.0.conv1.weight' \(2 tensors"
    ):
        Backbone(config)
    torch.save({**state, "conv1.weight": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match=r"has another shape at 'conv1.weight' \(0 tensors missing, 1 of another"):
        Backbone(config)
    file.write_text("no tensors here")
    with pytest.raises(ValueError, match="is no file of tensors"):
        Backbone(config)
    with pytest.raises(ValueError, match="'small' has no ImageNet weights"):
        Backbone(replace(SMALL, weights="imagenet"))


@pytest.mark.parametrize(
    "content",
    [[torch.zeros(2)], torch.zeros(2), {"model": {}}, {"epoch": 3}],
    ids=["list", "tensor", "nested", "number"],
)
def test_weight_file_that_holds_something_else(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights.*weights\.pth"):
        Backbone(replace(SMALL, weights=str(tmp_path / "weights.pth")))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and the address under which it is served; torch's cache is empty."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()
        thread.join()


def test_weights_by_download(server: tuple[Path, str]) -> None:
    folder, address = server
    state, file = small_state(), folder / "plain.pth"
    torch.save(state, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    file.rename(folder / f"small-{digest[:8]}.pth")
    backbone = Backbone(replace(SMALL, weights=f"{address}/small-{digest[:8]}.pth"))
    assert all(torch.equal(v, state[k.removeprefix("body.")]) for k, v in backbone.state_dict().items())
    (folder / f"small-{digest[:8]}.pth").unlink()
    Backbone(replace(SMALL, weights=f"{address}/small-{digest[:8]}.pth"))  # from the cache


def test_downloads_that_fail(server: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = server
    torch.save(small_state(), folder / "small-0123abcd.pth")
    with pytest.raises(ValueError, match=r"small-0123abcd.pth.*invalid hash value"):
        Backbone(replace(SMALL, weights=f"{address}/small-0123abcd.pth"))
    assert not list((tmp_path / "cache").rglob("*.pth")), "a broken file must not stay in the cache"
    with pytest.raises(ValueError, match=r"could not be had from .*404.*'none' to train from scratch"):
        Backbone(replace(SMALL, weights=f"{address}/absent.pth"))
    with pytest.raises(ValueError, match=r"could not be had from http://127.0.0.1:9/"):
        Backbone(replace(SMALL, weights="http://127.0.0.1:9/weights.pth"))


def test_download_that_is_no_weight_file(server: tuple[Path, str]) -> None:
    folder, address = server
    page = b"<html>not a weight file</html>"
    name = f"page-{hashlib.sha256(page).hexdigest()[:8]}.pth"
    (folder / name).write_bytes(page)
    with pytest.raises(ValueError, match=name):
        Backbone(replace(SMALL, weights=f"{address}/{name}"))


def test_imagenet_means_the_weights_of_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(url: str, **_: Any) -> dict[str, Tensor]:
        asked.append(url)
        return torchvision.models.resnet50(weights=None).state_dict()

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    Backbone(BackboneConfig("resnet50", "imagenet"))
    assert asked == [torchvision.models.ResNet50_Weights.IMAGENET1K_V1.url]


@pytest.mark.parametrize("name", ["detr", "deformable", "deformable ++ two-stage"])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_dropout_of_the_configuration_reaches_every_layer(name: str, share: float) -> None:
    model = build(replace(CONFIGS[name], dropout=share))
    layers = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    attentions = {module.dropout for module in model.modules() if hasattr(module, "in_proj_weight")}
    assert layers | attentions == {share}


def test_fewer_tokens_than_queries_with_hints() -> None:
    model = build(replace(DEFORMABLE, refine=True, two_stage=True, hints=2, queries=500)).eval()
    batch = model.batch([torch.rand(3, 64, 64)])
    target = {"boxes": torch.tensor([[5.0, 5, 40, 30]]), "labels": torch.tensor([1])}
    found = model.outputs(batch, model.normalise_targets([target], batch.sizes))
    assert found.encoder_logits is not None
    assert found.hint_logits is not None
    assert found.logits.shape[2] == found.encoder_logits.shape[1] < 500
    assert found.hint_logits.shape[2] == 2


@pytest.mark.parametrize("row", ["detr", "deformable-detr", "faster-rcnn"])
def test_a_detector_needs_a_class(row: str) -> None:
    with pytest.raises(ValueError, match="classes=0: a detector needs at least one class"):
        presets.build(model_config(row, "small"), 0)


def test_scattered_offsets_go_both_ways() -> None:
    attention = MultiScaleDeformableAttention(32, heads=8, levels=2, points=3)
    attention.scatter_offsets()
    offsets = attention.sampling_offsets.bias.detach()
    assert offsets.min() < -2
    assert offsets.max() > 2
