"""Official checkpoints in and out with every key accounted for, COCO's category ids, and dilation (DC5)."""

import pickle
from argparse import Namespace
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parity_models import FULL, SMALL, random_model
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import get_model
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from ddetr_lite.convert import (
    COCO_CATEGORIES,
    COCO_CATEGORY_IDS,
    coco_id_to_label,
    from_hugging_face,
    from_official,
    label_to_coco_id,
    read_official,
    to_coco91,
    to_contiguous,
    to_hugging_face,
    to_official,
    write_official,
)
from ddetr_lite.convert.classes import with_class_names
from ddetr_lite.convert.coco_ids import COCO91_NAMES
from ddetr_lite.convert.files import write_tensors
from ddetr_lite.convert.infer import infer
from ddetr_lite.convert.official import Converted
from ddetr_lite.models.backbone import Backbone, BackboneConfig
from ddetr_lite.models.deformable_detr import DeformableDetrConfig
from ddetr_lite.models.detr import DetrConfig
from ddetr_lite.models.presets import Model, ModelConfig, build
from ddetr_lite.set_prediction.losses import DETR_LOSS

ARGS = Namespace(nheads=4, num_queries=12, dropout=0.1, dilation=False, lr_backbone_names=["backbone.0"])
"""A little of the command line that the authors save."""


def assert_same_tensors(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


@torch.no_grad()
def blank(config: ModelConfig, classes: int = 7) -> Model:
    """A model of zeros, to be filled."""
    model = deepcopy(random_model(config, classes))
    for value in model.state_dict().values():
        value.zero_()
    return model


# The official layout


def test_dropout_comes_along(tmp_path: Path) -> None:
    """From the authors' command line where the file has it, and the papers' where not; from Hugging Face's config.json."""
    model: Any = random_model(replace(SMALL["detr"], dropout=0.3), 7)
    write_official(model, tmp_path / "bare.pth")
    assert read_official(tmp_path / "bare.pth", heads=4).config.dropout == 0.1
    content = torch.load(tmp_path / "bare.pth", weights_only=True)
    torch.save({**content, "args": Namespace(nheads=4, dropout=0.25)}, tmp_path / "told.pth")
    assert read_official(tmp_path / "told.pth").config.dropout == 0.25
    config, state = to_hugging_face(model)
    assert from_hugging_face(config, state).config.dropout == 0.3
    del config["dropout"]
    assert from_hugging_face(config, state).config.dropout == 0.1  # transformers' own default


def test_names_that_say_nothing_are_none() -> None:
    """Hugging Face calls classes without names LABEL_0, LABEL_1, ..."""
    model: Any = random_model(SMALL["detr"], 3)
    config, state = to_hugging_face(model)
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert from_hugging_face(config, state).names is None
    config, state = to_hugging_face(model, ["cat", "LABEL_1", "dog"])
    assert from_hugging_face(config, state).names == ("cat", "LABEL_1", "dog")


@pytest.mark.parametrize("kind", FULL)
def test_key_counts_are_the_official_ones(kind: str) -> None:
    config, count = FULL[kind]
    with torch.device("meta"):
        state = to_official(build(config, 91, load_backbone=False))
    assert len(state) == count
    inferred, classes = infer(state, heads=8, dilation=False, queries=300, dropout=0.1, source="it")
    assert (inferred, classes) == (config, 91)


def test_names_under_which_heads_are_stored_again() -> None:
    names = {kind: set(to_official(random_model(config))) for kind, config in SMALL.items()}
    assert "class_embed.1.weight" in names["multi_scale"]
    assert not any(k.startswith("transformer.decoder.bbox_embed") for k in names["multi_scale"])
    assert "transformer.decoder.bbox_embed.1.layers.2.bias" in names["refine"]
    assert not any(k.startswith("transformer.decoder.class_embed") for k in names["refine"])
    assert "transformer.decoder.class_embed.2.bias" in names["two_stage"]  # the encoder's
    assert {"query_embed.weight", "transformer.reference_points.bias"}.isdisjoint(names["two_stage"])


@pytest.mark.parametrize("kind", SMALL)
def test_there_and_back_is_exact(kind: str) -> None:
    model = random_model(SMALL[kind])
    official = to_official(model)
    assert len({v.data_ptr() for v in official.values()}) == len(official)  # none shared
    back = from_official(official, blank(model.config))
    assert_same_tensors(back.state_dict(), model.state_dict())
    assert_same_tensors(to_official(back), official)


FORMS = [(kind, "checkpoint") for kind in SMALL]
FORMS += [("two_stage", "safetensors"), ("multi_scale", "pth"), ("refine", "before torch 1.6")]


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_files_tell_which_model_they_hold(kind: str, form: str, tmp_path: Path) -> None:
    """Also a whole checkpoint, with optimiser and pickled command line, loads, and runs no code of it."""
    model = random_model(SMALL[kind])
    path = tmp_path / ("model.safetensors" if form == "safetensors" else "model.pth")
    options: dict[str, int] = {"heads": 4, "queries": 12}
    if form in ("pth", "safetensors"):
        write_official(model, path)
    else:
        options = {}  # from the command line in the file
        optimiser = torch.optim.AdamW(model.parameters())
        counters = {"transformer.total_ops": torch.zeros(1), "total_params": torch.zeros(1)}
        content = {
            "model": to_official(model) | counters,
            "optimizer": optimiser.state_dict(),
            "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimiser, 40).state_dict(),
            "epoch": 49,
            "args": ARGS,
        }
        torch.save(content, path, _use_new_zipfile_serialization=form == "checkpoint")
    found = read_official(path, **options)  # type: ignore[arg-type]
    assert (found.config, found.classes, found.names) == (model.config, 7, None)
    loaded = found.model()
    assert_same_tensors(loaded.state_dict(), model.state_dict())
    assert not loaded.training


def test_safetensors_hold_all_official_names(tmp_path: Path) -> None:
    model = random_model(SMALL["two_stage"])
    write_official(model, tmp_path / "model.safetensors")
    assert_same_tensors(load_file(tmp_path / "model.safetensors"), to_official(model))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_a_file_that_cannot_be_written_is_as_it_was(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tensors({"a": torch.ones(2)}, tmp_path / name)
    before = (tmp_path / name).read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("ddetr_lite.convert.files.torch.save", full)
    monkeypatch.setattr("ddetr_lite.convert.files.save", full)
    with pytest.raises(OSError, match="no space left"):
        write_tensors({"a": torch.zeros(2)}, tmp_path / name)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(name, before)]


@pytest.mark.parametrize(
    ("name", "args", "option", "expected"),
    [
        ("r50.pth", None, None, False),
        ("r50_deformable_detr_single_scale_DC5.pth", None, None, True),
        ("r50_dc5.pth", Namespace(dilation=False), None, False),
        ("r50.pth", Namespace(dilation=True), None, True),
        ("r50_dc5.pth", Namespace(dilation=True), False, False),
        ("r50.pth", None, True, True),
    ],
)
def test_dilation_comes_from_elsewhere(
    name: str, args: Namespace | None, option: bool | None, expected: bool, tmp_path: Path
) -> None:
    """No weight tells of it: the argument decides, then the saved command line, then the file's name."""
    with torch.device("meta"):
        model = build(replace(FULL["detr"][0], encoder_layers=1, decoder_layers=1), 91, load_backbone=False)
    state = {k: torch.zeros(()).expand(v.shape) for k, v in to_official(model).items()}
    torch.save({"model": state} | ({"args": args} if args else {}), tmp_path / name)
    found = read_official(tmp_path / name, dilation=option)
    assert found.config.backbone == BackboneConfig("resnet50", weights="none", dilation=expected)
    assert found.names == COCO91_NAMES


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_the_resnet_is_told_by_its_blocks(name: str) -> None:
    backbone = BackboneConfig(name, weights="none")
    sizes: dict[str, Any] = {"encoder_layers": 2, "decoder_layers": 3, "dim": 64, "hidden": 32}
    configs: list[ModelConfig] = [
        DetrConfig(backbone, stride=16, queries=9, **sizes),
        DeformableDetrConfig(backbone, levels=3, points=2, queries=9, **sizes),
        DeformableDetrConfig(backbone, levels=4, stride=16, queries=9, **sizes),
        DeformableDetrConfig(backbone, levels=5, finest=4, queries=9, **sizes),
        DeformableDetrConfig(backbone, levels=3, finest=4, stride=16, queries=9, **sizes),
    ]
    if name != "resnet101":  # its first two stages are those of resnet50
        configs += [DeformableDetrConfig(backbone, levels=1, stride=8, queries=9, **sizes)]
    for config in configs:
        with torch.device("meta"):
            state = to_official(build(config, 5, load_backbone=False))
        assert infer(state, heads=8, dilation=False, queries=0, dropout=0.1, source="it") == (config, 5)


def test_batch_norms_that_are_trained_keep_their_counters() -> None:
    config = replace(SMALL["detr"], backbone=replace(SMALL["detr"].backbone, frozen=False))
    model = random_model(config)
    official = to_official(model)
    assert not any("num_batches_tracked" in k for k in official)
    back = from_official(official, blank(config))
    assert_same_tensors(back.state_dict(), model.state_dict())
    assert_same_tensors(to_official(from_official(official, blank(SMALL["detr"]))), official)


# What does not fit is told


def without(state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    assert key in state
    return {k: v for k, v in state.items() if k != key}


def changed(state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    assert key in state
    return state | {key: state[key] + 1}


NORM = "transformer.encoder.layers.0.norm1.bias"


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("detr", lambda s: without(s, NORM), r"1 missing \('transformer.encoder.layers.0.norm1.bias'\)"),
        ("refine", lambda s: without(s, "transformer.decoder.bbox_embed.1.layers.0.bias"), "1 missing"),
        (
            "multi_scale",
            lambda s: without(s, "class_embed.1.weight"),
            r"1 missing \('class_embed.1.weight'\)",
        ),
        (
            "detr",
            lambda s: s | {"transformer.encoder.norm.bias": s[NORM]},
            r"1 unexpected .*encoder\.norm\.bias",
        ),
        ("detr", lambda s: s | {NORM: torch.zeros(3)}, r"layers.0.norm1.bias' is \(3,\), expected \(64,\)"),
        (
            "multi_scale",
            lambda s: changed(s, "bbox_embed.1.layers.0.bias"),
            "'bbox_embed.1.layers.0.bias' differs",
        ),
        ("two_stage", lambda s: changed(s, "transformer.decoder.class_embed.2.bias"), "1 not equal"),
        ("detr", lambda s: s | {"mask_head.lay1.bias": torch.zeros(3)}, "segmentation"),
        ("detr", lambda s: {"epoch": 3}, "is no checkpoint of a detector"),
        ("detr", lambda s: {}, "is no checkpoint of a detector"),
    ],
)
def test_state_dicts_that_do_not_fit(kind: str, change: Any, message: str) -> None:
    model = random_model(SMALL[kind])
    target = blank(model.config)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(ValueError, match=message) as error:
        from_official(change(to_official(model)), target, source="model.pth")
    assert "model.pth" in str(error.value)
    assert_same_tensors(target.state_dict(), before)


def test_another_model_than_the_files() -> None:
    state = to_official(random_model(SMALL["refine"]))
    heads = {k: v for k, v in state.items() if not k.startswith("transformer.decoder.bbox_embed.")}
    with pytest.raises(ValueError, match=r"does not fit Deformable DETR .*12 unexpected"):
        from_official(state, blank(SMALL["multi_scale"]))
    with pytest.raises(ValueError, match=r"8 not equal.*trained with refinement"):
        from_official(heads, blank(SMALL["multi_scale"]))
    with pytest.raises(ValueError, match="Only the classes differ"):
        from_official(state, blank(SMALL["refine"], 9))
    with pytest.raises(ValueError, match="missing"):
        from_official(state, blank(SMALL["detr"]))
    with pytest.raises(ValueError, match="class loss 'softmax'"):
        to_official(build(replace(SMALL["refine"], loss=DETR_LOSS), 7, load_backbone=False))
    two_stage: Any = SMALL["two_stage"]
    alone = build(replace(two_stage, own_level=True), 7, load_backbone=False)
    with pytest.raises(ValueError, match=r"own_level=True, an ablation"):
        to_official(alone)
    larger = build(replace(two_stage, anchor_size=0.1), 7, load_backbone=False)
    with pytest.raises(ValueError, match=r"anchor_size=0\.1, the official one 0\.05"):
        to_official(larger)
    with pytest.raises(ValueError, match=r"anchor_size=0\.1, the official one 0\.05"):
        from_official(to_official(random_model(SMALL["two_stage"])), larger)


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("code from a checkpoint ran",)


def test_files_that_are_no_checkpoints(tmp_path: Path, capsys) -> None:
    path = tmp_path / "model.pth"
    with pytest.raises(ValueError, match=r"model\.pth is no file"):
        read_official(path)
    torch.save({"model": {"a": torch.zeros(1)}}, path)
    contents = {
        b"": "cut short, or something else .*again$",
        b"no tensors at all": r"torch\.save has not written it, or with a pickle_protocol of its own",
        path.read_bytes()[:-200]: "cut short, or something else .*again$",
        pickle.dumps({"model": Evil()}, 2): r"code of \S+ would have to run",
        pickle.dumps([1], 2): "",
    }
    for content, reason in contents.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"model\.pth cannot be read as tensors: .*{reason}"):
            read_official(path)
    torch.save({"model": {"a": torch.zeros(1)}, "args": Evil()}, path)
    with pytest.raises(ValueError, match=r"code of \S+ would have to run.* state_dict\(\) alone"):
        read_official(path)
    assert "code" not in capsys.readouterr().out
    torch.save([1], path)
    with pytest.raises(ValueError, match="holds a list"):
        read_official(path)
    torch.save({"model": {"a": torch.zeros(1)}}, path)
    with pytest.raises(ValueError, match=r"no ResNet of 18, 34, 50, 101 or 152"):
        read_official(path)
    body = {k: v for k, v in to_official(random_model(SMALL["detr"])).items() if k.startswith("backbone")}
    torch.save(body, path)
    with pytest.raises(ValueError, match="neither DETR nor Deformable DETR"):
        read_official(path)
    torch.save(to_official(random_model(SMALL["single_scale"])), path)
    with pytest.raises(ValueError, match="does not have heads=3"):
        read_official(path, heads=3)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors at all")
    with pytest.raises(ValueError, match="cannot be read as tensors"):
        read_official(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"must end in \.safetensors or \.pth"):
        write_official(random_model(SMALL["detr"]), tmp_path / "model.bin")


# COCO's category ids


def test_cocos_categories_are_those_that_torchvision_lists() -> None:
    assert list(COCO91_NAMES[1:]) == FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:]
    assert COCO91_NAMES[0] == "N/A"
    assert len(COCO_CATEGORY_IDS) == len(COCO_CATEGORIES) == len(set(COCO_CATEGORIES)) == 80
    assert (COCO_CATEGORIES[0], COCO_CATEGORIES[79]) == ("person", "toothbrush")


def test_ids_and_labels() -> None:
    assert [label_to_coco_id(i) for i in range(80)] == list(COCO_CATEGORY_IDS)
    assert [coco_id_to_label(i) for i in COCO_CATEGORY_IDS] == list(range(80))
    assert (coco_id_to_label(1), coco_id_to_label(13), coco_id_to_label(90)) == (0, 11, 79)
    for wrong in (0, 12, 91):
        with pytest.raises(ValueError, match=f"category id {wrong} is none"):
            coco_id_to_label(wrong)
    for wrong in (-1, 80):
        with pytest.raises(ValueError, match=f"label {wrong} is not"):
            label_to_coco_id(wrong)


def logits(model: Model, x: Tensor, head: int = 0) -> Tensor:
    heads = model.class_embed
    layer: Any = heads[head] if isinstance(heads, torch.nn.ModuleList) else heads
    return layer(x)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["detr", "multi_scale", "two_stage"])
def test_cocos_heads_both_ways(kind: str) -> None:
    """The 80 classes' logits are exactly the same, there and back; all other weights stay."""
    config = SMALL[kind]
    large = random_model(config, classes=91)
    small = blank(config, 80)
    small.load_state_dict(to_contiguous(large.state_dict()))
    again = blank(config, 91)
    again.load_state_dict(to_coco91(small.state_dict()))
    x = torch.randn(5, config.dim)
    kept = torch.tensor([*COCO_CATEGORY_IDS, *([91] if isinstance(config, DetrConfig) else [])])
    absent = [i for i in range(91) if i not in COCO_CATEGORY_IDS]
    heads = len(large.class_embed) if isinstance(large.class_embed, torch.nn.ModuleList) else 1
    for head in range(heads):
        expected = logits(large, x, head)
        ours, back = logits(small, x, head), logits(again, x, head)
        if kind == "two_stage" and head == heads - 1:
            # Logit 0 of the encoder's head chooses proposals, whatever class 0 is called.
            for found in (ours, back):
                assert torch.allclose(found[:, 0], expected[:, 0], rtol=0, atol=1e-6)
            continue
        assert torch.allclose(ours, expected[:, kept], rtol=0, atol=1e-6)
        assert torch.allclose(back[:, kept], expected[:, kept], rtol=0, atol=1e-6)
        assert back.softmax(-1)[:, absent].max() < 1e-30
        assert back.sigmoid()[:, absent].max() < 1e-30
    rows = large.state_dict()
    for key, value in small.state_dict().items():
        if "class_embed" not in key:
            assert torch.equal(value, rows[key])
        elif kind != "two_stage":
            assert torch.equal(value, rows[key][kept])
    assert_same_tensors(to_contiguous(again.state_dict()), small.state_dict())
    # The official layout, with its second names, is cut in the same way.
    assert_same_tensors(to_contiguous(to_official(large)), to_official(small))


def test_ninety_one_classes_of_ones_own_are_kept() -> None:
    model = random_model(SMALL["detr"], classes=91)
    for names, expected in (
        (None, list(COCO_CATEGORIES)),
        (list(COCO91_NAMES), list(COCO_CATEGORIES)),
        (["street sign" if name == "N/A" else name for name in COCO91_NAMES], list(COCO_CATEGORIES)),
        ([f"part {i}" for i in range(91)], [f"part {i}" for i in range(91)]),
    ):
        found = Converted(model.config, 91, model.state_dict(), None if names is None else tuple(names))
        kept, said = with_class_names(found)
        assert said == expected
        assert kept.classes == len(expected)
    kept, said = with_class_names(Converted(model.config, 91, model.state_dict()), coco=False)
    assert said == [f"class {i}" for i in range(91)]
    assert kept.classes == 91


def test_heads_of_another_size() -> None:
    state = random_model(SMALL["detr"]).state_dict()
    with pytest.raises(ValueError, match="has 8 logits, expected 91 or 92"):
        to_contiguous(state)
    with pytest.raises(ValueError, match="has 8 logits, expected 80 or 81"):
        to_coco91(state)
    with pytest.raises(ValueError, match="no 'class_embed'"):
        to_contiguous({"a": torch.zeros(1)})


# Dilation (DC5)


@torch.no_grad()
def test_dilation_is_torchvisions() -> None:
    """The last stage keeps stride 16, as with torchvision's `replace_stride_with_dilation`."""
    network = get_model("resnet50", weights=None, replace_stride_with_dilation=[False, False, True]).eval()
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    ours = Backbone(BackboneConfig("resnet50", weights="none", dilation=True)).eval()
    expected = {k: v for k, v in network.state_dict().items() if k in ours.body.state_dict()}
    ours.body.load_state_dict(expected)
    pixels = torch.randn(2, 3, 70, 101)
    x = network.maxpool(network.relu(network.bn1(network.conv1(pixels))))
    for stage, found in zip((None, 0, 1, 2), [None, *ours(pixels)], strict=True):
        x = network.layer1(x) if stage is None else (network.layer2, network.layer3, network.layer4)[stage](x)
        if found is not None:
            assert found.shape == x.shape
            assert (found - x).abs().max() <= 1e-5 * x.abs().max()
    assert ours.strides == [8, 16, 16]
    assert found is not None
    assert found.shape[-2:] == (5, 7)
