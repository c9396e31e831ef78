"""Outputs equal those of Hugging Face transformers, with the same weights moved over by `convert`.

Every tensor is random: many are zero or one at initialisation, and a mix-up of those would not show.
"""

from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from parity_models import FULL, SMALL, random_model, two_pictures
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

from ddetr_lite.batching import ImageBatch, mask_for
from ddetr_lite.convert import (
    from_hugging_face,
    hugging_face_model,
    read_hugging_face,
    to_hugging_face,
    write_hugging_face,
)
from ddetr_lite.models.backbone import BackboneConfig
from ddetr_lite.models.deformable_detr import DeformableDetrConfig
from ddetr_lite.models.detr import Detr, DetrConfig
from ddetr_lite.models.presets import ModelConfig, SetModel, build
from ddetr_lite.set_prediction.losses import Outputs

transformers: Any = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

TOLERANCE = 1e-5
"""Of the largest value, in float32; rounding adds up over a ResNet, whose frozen norms we fold into its convolutions."""
TOLERANCE_IN_FLOAT64 = 1e-6
"""For DETR. Its encoding of positions is made in float32 all the same. (Deformable DETR does not run in float64 there.)"""


NAMES = tuple("abcdefg")


@cache
def small_pair(kind: str) -> tuple[SetModel, Any]:
    """A small model, and what transformers makes of it."""
    model = random_model(SMALL[kind])
    return model, hugging_face_model(model, NAMES)


@torch.no_grad()
def theirs(model: Any, batch: ImageBatch) -> Outputs:
    """What a model of transformers says at every decoder layer."""
    pixels, valid = batch.pixels, (~batch.mask).long()  # their mask is 1 where a pixel is real
    if isinstance(model, transformers.DetrForObjectDetection):
        # Its `auxiliary_loss` would norm the decoder's states between layers, and so change the model.
        out = model(pixel_values=pixels, pixel_mask=valid, output_hidden_states=True)
        hidden = model.model.decoder.layernorm(torch.stack(out.decoder_hidden_states[1:]))
        logits, boxes = model.class_labels_classifier(hidden), model.bbox_predictor(hidden).sigmoid()
        logits[-1], boxes[-1] = out.logits, out.pred_boxes
        return Outputs(logits, boxes)
    model.config.auxiliary_loss = True
    target = {"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}
    out = model(pixel_values=pixels, pixel_mask=valid, labels=[target] * len(pixels))
    layers = [*out.auxiliary_outputs, {"logits": out.logits, "pred_boxes": out.pred_boxes}]
    logits, boxes = (torch.stack([layer[name] for layer in layers]) for name in ("logits", "pred_boxes"))
    if not model.config.two_stage:
        return Outputs(logits, boxes)
    return Outputs(logits, boxes, out.enc_outputs_class, out.enc_outputs_coord_logits.sigmoid())


def assert_equal_outputs(model: SetModel, hf: Any, batch: ImageBatch) -> None:
    """Within the tolerance, and so far from all alike that a mistake would show."""
    tolerance = TOLERANCE
    if isinstance(model, Detr):
        model, hf, tolerance = deepcopy(model).double(), deepcopy(hf).double(), TOLERANCE_IN_FLOAT64
        batch = batch._replace(pixels=batch.pixels.double())
    found = theirs(hf, batch)
    with torch.no_grad():
        ours = model.outputs(batch)
    if ours.encoder_logits is not None:
        assert_proposals_part(ours.encoder_logits, model.config.queries)
    for name, a, b in zip(Outputs._fields, ours, found, strict=True):
        if a is None or b is None:
            assert a is b
            continue
        difference = (a - b).abs().max().item()
        assert a.shape == b.shape
        assert difference <= tolerance * max(1.0, b[b.isfinite()].abs().max().item()), f"{name}: {difference}"
    for k in range(model.config.decoder_layers):
        assert ours.logits[k].std(dim=1).mean() > 0.05, f"layer {k}: the queries' logits are alike"
        assert ours.boxes[k].std(dim=1).amax() > 0.005, f"layer {k}: the queries' boxes are alike"
        assert (ours.logits[k, 0] - ours.logits[k, 1]).abs().amax() > 0.05, f"layer {k}: pictures are alike"
    assert (ours.boxes[-1] - ours.boxes[0]).abs().amax() > 0.005, "the layers are alike"
    inside = (ours.boxes > 0.01) & (ours.boxes < 0.99)
    assert inside.float().mean() > 0.5, "the boxes are saturated"


def assert_proposals_part(logits: Tensor, queries: int) -> None:
    """The scores of the chosen proposals lie apart: else rounding would decide which query has which box."""
    best = logits[..., 0].sort(dim=1, descending=True).values[:, : queries + 1]
    assert (best[:, :-1] - best[:, 1:]).min() > 1e-4, "near ties among the proposals: take another seed"


def test_padding_is_seen_on_every_level() -> None:
    """Nearest interpolation may round a narrow border away, and with it all that masks do."""
    batch = two_pictures(random_model(SMALL["detr"]))
    for stride in (8, 16, 32, 64):
        mask = mask_for(batch.mask, (-(-96 // stride), -(-128 // stride)))
        assert not mask[0].any()
        assert mask[1, -1].all()
        assert mask[1, :, -1].all()
        assert not mask[1, 0, 0]


@pytest.mark.parametrize("kind", SMALL)
def test_small_models(kind: str) -> None:
    model, hf = small_pair(kind)
    batch = two_pictures(model)
    assert_equal_outputs(model, hf, batch)


@pytest.mark.parametrize("kind", ["detr", "multi_scale"])
def test_the_papers_models(kind: str) -> None:
    """With a ResNet-50 and all layers, as they are on the hub."""
    model = random_model(FULL[kind][0], classes=91)
    batch = two_pictures(model)
    assert_equal_outputs(model, hugging_face_model(model), batch)


@pytest.mark.parametrize("kind", SMALL)
def test_there_and_back_is_exact(kind: str, tmp_path) -> None:
    """By the model in memory, by a file that transformers writes (older names), and by a file of ours."""
    config = SMALL[kind]
    model, hf = small_pair(kind)
    hf.save_pretrained(tmp_path / "theirs")
    write_hugging_face(model, tmp_path / "ours", NAMES)
    for back in (
        from_hugging_face(hf.config.to_dict(), hf.state_dict()),
        read_hugging_face(tmp_path / "theirs"),
        read_hugging_face(tmp_path / "ours"),
    ):
        assert (back.config, back.classes, back.names) == (config, 7, NAMES)
        assert_same_tensors(back.model().state_dict(), model.state_dict())
    # And from their side: what they read from our file is what they had.
    again = type(hf).from_pretrained(tmp_path / "ours")
    assert_same_tensors(again.state_dict(), hf.state_dict())


def assert_same_tensors(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


def test_every_tensor_is_random() -> None:
    for config in SMALL.values():
        for name, value in random_model(config).state_dict().items():
            assert value.std() > 0.01, name
            if name.endswith("running_var"):
                assert value.min() > 0


@pytest.mark.parametrize("kind", FULL)
def test_names_are_those_of_their_models(kind: str) -> None:
    """The paper's models, by name and shape, against models that transformers makes from our config."""
    config, _ = FULL[kind]
    with torch.device("meta"):
        model = build(config, 91, load_backbone=False)
        settings, state = to_hugging_face(model)
        hf_config = getattr(transformers, settings["architectures"][0]).config_class.from_dict(settings)
        hf = getattr(transformers, settings["architectures"][0])(hf_config)
    back = from_hugging_face(hf.config.to_dict(), hf.state_dict())
    assert (back.config, back.classes) == (config, 91)
    theirs_shapes = {k: v.shape for k, v in back.state.items()}
    assert theirs_shapes == {k: v.shape for k, v in model.state_dict().items()}
    assert len(state) == len(hf.state_dict())


class TorchvisionBody(IntermediateLayerGetter):
    """torchvision's ResNet where transformers has timm's: the names are the same, and timm is not needed."""

    def forward(self, x: Tensor) -> Any:
        return list(super().forward(x).values())


def fake_timm(config: Any) -> nn.Module:
    """Stands in for transformers' `load_backbone`: what it makes of timm's network, made of torchvision's."""
    settings = config.backbone_config
    dilate = [False, False, settings.output_stride == 16]
    network = get_model(
        settings.backbone,
        weights=None,
        norm_layer=FrozenBatchNorm2d,
        **({"replace_stride_with_dilation": dilate} if any(dilate) else {}),
    )
    stages = settings.out_indices
    wrapper = nn.Module()
    wrapper._backbone = TorchvisionBody(network, {f"layer{i}": str(i) for i in stages})
    deepest = network.fc.in_features
    wrapper.channels = [deepest // 2 ** (4 - i) for i in stages]  # type: ignore[assignment]
    return wrapper


DC5 = BackboneConfig("resnet50", weights="none", dilation=True)
SIZES: dict[str, Any] = {
    "dim": 64,
    "heads": 4,
    "hidden": 96,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "queries": 12,
}


@pytest.mark.parametrize(
    "config",
    [
        DetrConfig(backbone=DC5, **SIZES),
        DeformableDetrConfig(backbone=DC5, levels=1, **SIZES),
        SMALL["multi_scale"],
    ],
    ids=["detr_dc5", "single_scale_dc5", "multi_scale"],
)
def test_timms_names_and_dilation(config: ModelConfig, monkeypatch) -> None:
    """The hub's models hold timm's names. With dilation (DC5) torchvision decides what is right."""
    kind = "detr" if isinstance(config, DetrConfig) else "deformable_detr"
    monkeypatch.setattr(f"transformers.models.{kind}.modeling_{kind}.load_backbone", fake_timm)
    model = random_model(config)
    hf = hugging_face_model(model, timm=True)
    batch = two_pictures(model)
    assert_equal_outputs(model, hf, batch)
    back = from_hugging_face(hf.config.to_dict(), hf.state_dict())
    assert back.config == config
    assert_same_tensors(back.model().state_dict(), model.state_dict())


def test_class_heads_that_transformers_tied(tmp_path) -> None:
    """With refinement alone, transformers' default makes one of all class heads, and stores it once."""
    model = random_model(SMALL["refine"])
    settings, state = to_hugging_face(model)
    for name in ("weight", "bias"):
        del state[f"class_embed.1.{name}"]
    with pytest.raises(ValueError, match=r"2 missing \('class_embed.1.bias', 'class_embed.1.weight'\)"):
        from_hugging_face(settings, state)
    back = from_hugging_face(settings | {"tie_word_embeddings": True}, state)
    assert torch.equal(back.state["class_embed.1.weight"], model.state_dict()["class_embed.0.weight"])


def test_mistakes_are_told() -> None:
    model = random_model(SMALL["detr"])
    assert isinstance(model, Detr)
    settings, state = to_hugging_face(model)
    name = "model.decoder.layers.0.encoder_attn.k_proj.weight"
    cases: list[tuple[dict[str, Any], dict[str, Tensor], str]] = [
        (settings | {"model_type": "yolos"}, state, "model_type='yolos'"),
        (settings | {"activation_function": "gelu"}, state, "activation_function='gelu'"),
        (settings, {k: v for k, v in state.items() if k != name}, "multihead_attn.in_proj_weight"),
        (settings, state | {"model.other": torch.zeros(1)}, "1 unexpected"),
        (
            settings,
            state | {name.replace("out", "o"): state[name] for name in state if "out_proj" in name},
            "both",
        ),
        (settings, {"mask_head.weight": torch.zeros(1), **state}, "segmentation"),
        ({}, state, "model_type=None"),
    ]
    for config, tensors, message in cases:
        with pytest.raises(ValueError, match=message):
            from_hugging_face(config, tensors)
    with pytest.raises(ValueError, match="3 names for 7 classes"):
        to_hugging_face(model, names=["a", "b", "c"])
    with pytest.raises(ValueError, match="no dilation"):
        to_hugging_face(random_model(DetrConfig(backbone=DC5, **SIZES)), timm=False)
    with pytest.raises(ValueError, match="no twin"):
        to_hugging_face(random_model(DetrConfig(backbone=BackboneConfig("small", weights="none"), **SIZES)))


def test_reading_a_folder_without_weights(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"needs config\.json and model\.safetensors"):
        read_hugging_face(tmp_path)


def test_the_other_model_has_tensors_of_its_own() -> None:
    """To train the one must not change the other."""
    model = random_model(SMALL["multi_scale"])
    ours = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert not ours & {tensor.data_ptr() for tensor in hugging_face_model(model).state_dict().values()}
