"""Hugging Face transformers' DETR and Deformable DETR: the official layout renamed, and a `config.json`.

State dicts are renamed without importing transformers; only `hugging_face_model` needs it. A ResNet is stored
either as timm names it, which is as torchvision does, or as transformers' own `ResNetBackbone` does; that one
needs no timm, but knows no dilation.

Inference is the same on both sides. Training is not: transformers starts Deformable DETR's heads in another
way, weighs classes differently, and has no loss on the proposals of two stages. Losses are not carried over.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ddetr_lite.convert.files import read_tensors, write_tensors
from ddetr_lite.convert.hugging_face_names import to_hub_names, to_official_names, uses_timm, with_all_names
from ddetr_lite.convert.infer import RESNETS, infer
from ddetr_lite.convert.official import Converted, converted, to_official, unwrap
from ddetr_lite.models.detr import Detr, DetrConfig
from ddetr_lite.models.presets import SetModel
from ddetr_lite.writing import write_json


def to_hugging_face(
    model: SetModel, names: Sequence[str] | None = None, timm: bool | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The model as transformers has it: what goes into `config.json`, and a state dict under the hub's names.

    names: of the classes; timm: name the backbone as timm does. By default so only with dilation, which
    transformers' own ResNet does not have. No two tensors share storage with one another. Raises ValueError
    for a backbone that is no ResNet, for what the chosen backbone cannot do, for a wrong number of names, and
    as `to_official` does.
    """
    config, backbone = model.config, model.config.backbone
    if backbone.name not in RESNETS:
        raise ValueError(
            f"backbone {backbone.name!r} has no twin in transformers: one of {', '.join(RESNETS)} is needed"
        )
    timm = backbone.dilation if timm is None else timm
    if names is not None and len(names) != model.classes:
        raise ValueError(f"{len(names)} names for {model.classes} classes: give one for each")
    names = [f"LABEL_{i}" for i in range(model.classes)] if names is None else names
    result: dict[str, Any] = {
        "d_model": config.dim,
        "num_queries": config.queries,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "encoder_attention_heads": config.heads,
        "decoder_attention_heads": config.heads,
        "encoder_ffn_dim": config.hidden,
        "decoder_ffn_dim": config.hidden,
        "dropout": config.dropout,
        "activation_function": "relu",
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        **_backbone_settings(model, timm),
    }
    if isinstance(config, DetrConfig):
        result |= {"model_type": "detr", "architectures": ["DetrForObjectDetection"]}
        result["position_embedding_type"] = config.position
    else:
        result |= {
            "model_type": "deformable_detr",
            "architectures": ["DeformableDetrForObjectDetection"],
            "position_embedding_type": "sine",
            "num_feature_levels": config.levels,
            "encoder_n_points": config.points,
            "decoder_n_points": config.points,
            "with_box_refine": config.refine,
            "two_stage": config.two_stage,
            "two_stage_num_proposals": config.queries,
            # Else transformers would make one of the class heads that refinement keeps apart.
            "tie_word_embeddings": not config.refine,
        }
    return result, to_hub_names(to_official(model), isinstance(model, Detr), timm)


def from_hugging_face(
    config: Mapping[str, Any], state: Mapping[str, Tensor], source: str = "the Hugging Face model"
) -> Converted:
    """A model of transformers as one of ours.

    config: what `config.json` holds, or `model.config.to_dict()`; state: what `model.safetensors` holds, or
    `model.state_dict()`. Of tensors with several names one name is enough, as in files, but all that are
    there must be equal. Raises ValueError for another kind of model, another activation, or keys that are
    missing or left over.
    """
    kind = config.get("model_type")
    if kind not in ("detr", "deformable_detr"):
        raise ValueError(f"{source} has model_type={kind!r}: only 'detr' and 'deformable_detr' can be converted")
    heads, activation = config["encoder_attention_heads"], config.get("activation_function", "relu")
    if activation != "relu" or config["decoder_attention_heads"] != heads:
        raise ValueError(
            f"{source} has activation_function={activation!r}, {heads} heads in the encoder and "
            f"{config['decoder_attention_heads']} in the decoder: needed are 'relu', and as many in both"
        )
    timm = uses_timm(state)
    state = to_official_names(unwrap(state, source), kind == "detr")
    refine = bool(config.get("with_box_refine", False))
    backbone = config.get("backbone_config") or {}
    dilation = timm and (bool(config.get("dilation")) or backbone.get("output_stride") == 16)
    if kind == "deformable_detr":
        two_stage, tied = bool(config.get("two_stage", False)), bool(config.get("tie_word_embeddings", True))
        state = with_all_names(state, config["decoder_layers"], refine, two_stage, tied)
    ours, classes = infer(
        state,
        heads=heads,
        dilation=dilation,
        queries=config.get("two_stage_num_proposals", 300),
        dropout=float(config.get("dropout", 0.1)),
        refine=refine,
        source=source,
    )
    labels = {int(i): name for i, name in (config.get("id2label") or {}).items()}
    known = sorted(labels) == list(range(classes)) and any(name != f"LABEL_{i}" for i, name in labels.items())
    names = tuple(labels[i] for i in range(classes)) if known else None
    return converted(state, ours, classes, names, source)


def hugging_face_model(model: SetModel, names: Sequence[str] | None = None, timm: bool | None = None) -> Any:
    """`DetrForObjectDetection` or `DeformableDetrForObjectDetection` with the model's weights, evaluating.

    Arguments and errors as in `to_hugging_face`. Needs transformers, and timm where its names are asked for.
    Pictures go in normalised as ours are, with `pixel_mask` 1 where a pixel is real.
    """
    import transformers

    config, state = to_hugging_face(model, names, timm)
    state = {name: tensor.clone() for name, tensor in state.items()}  # transformers keeps the tensors that it is given
    kind = getattr(transformers, config["architectures"][0])
    hf_config = kind.config_class.from_dict(config)
    result, report = kind.from_pretrained(None, config=hf_config, state_dict=state, output_loading_info=True)
    problems = {what: sorted(keys)[:3] for what, keys in report.items() if keys}
    if problems:
        raise ValueError(f"transformers {transformers.__version__} did not take every tensor: {problems}")
    return result.eval()


def read_hugging_face(directory: str | Path) -> Converted:
    """Read a folder as on the hub: `config.json` and `model.safetensors` (or `pytorch_model.bin`)."""
    directory = Path(directory)
    settings = directory / "config.json"
    weights = next((f for n in ("model.safetensors", "pytorch_model.bin") if (f := directory / n).is_file()), None)
    if not settings.is_file() or weights is None:
        raise ValueError(f"{directory} needs config.json and model.safetensors: give a folder downloaded from the hub")
    return from_hugging_face(json.loads(settings.read_text(encoding="utf-8")), read_tensors(weights), str(weights))


def write_hugging_face(
    model: SetModel, directory: str | Path, names: Sequence[str] | None = None, timm: bool | None = None
) -> None:
    """Write a folder that transformers' `from_pretrained` reads. Arguments as in `to_hugging_face`."""
    config, state = to_hugging_face(model, names, timm)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(state, directory / "model.safetensors", metadata={"format": "pt"})
    write_json(directory / "config.json", config, indent=2)


def _backbone_settings(model: SetModel, timm: bool) -> dict[str, Any]:
    config, backbone = model.config, model.config.backbone
    strides = config.strides
    if timm:
        if strides not in ((32,), (8, 16, 32)):
            raise ValueError(f"transformers takes timm's maps at strides 32, or 8 to 32, not {strides}: use timm=False")
        return {
            "use_timm_backbone": True,
            "backbone": backbone.name,
            "use_pretrained_backbone": False,
            "dilation": backbone.dilation,
        }
    if backbone.dilation:
        raise ValueError("transformers' own ResNet knows no dilation (DC5): use timm=True")
    depths, bottleneck = RESNETS[backbone.name]
    stages = [{4: 1, 8: 2, 16: 3, 32: 4}[s] for s in strides]
    return {
        "use_timm_backbone": False,
        "backbone": None,
        "backbone_config": {
            "model_type": "resnet",
            "embedding_size": 64,
            "hidden_sizes": [64 * 2**i * (4 if bottleneck else 1) for i in range(stages[-1])],
            "depths": list(depths[: stages[-1]]),
            "layer_type": "bottleneck" if bottleneck else "basic",
            "out_features": [f"stage{i}" for i in stages],
        },
    }
