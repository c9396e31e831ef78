"""What the tests of conversion and of parity share: small configs of every kind, and weights of which none is
special.
"""

from functools import cache

import torch
from torch import Tensor, nn

from ddetr_lite.batching import ImageBatch
from ddetr_lite.models.backbone import BackboneConfig
from ddetr_lite.models.deformable_detr import DeformableDetrConfig
from ddetr_lite.models.detr import DetrConfig
from ddetr_lite.models.presets import SetModel, SetModelConfig, build

SMALL_BACKBONE = BackboneConfig("resnet18", weights="none")
_SIZES = {
    "backbone": SMALL_BACKBONE,
    "dim": 64,
    "heads": 4,
    "hidden": 96,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "queries": 12,
}

SMALL: dict[str, SetModelConfig] = {
    "detr": DetrConfig(**_SIZES),  # type: ignore[arg-type]
    "detr_learned_positions": DetrConfig(**_SIZES, position="learned"),  # type: ignore[arg-type]
    "single_scale": DeformableDetrConfig(**_SIZES, levels=1),  # type: ignore[arg-type]
    "multi_scale": DeformableDetrConfig(**_SIZES),  # type: ignore[arg-type]
    "from_stride_4": DeformableDetrConfig(**_SIZES, levels=5, finest=4),  # type: ignore[arg-type]
    "refine": DeformableDetrConfig(**_SIZES, refine=True),  # type: ignore[arg-type]
    "two_stage": DeformableDetrConfig(**_SIZES, refine=True, two_stage=True),  # type: ignore[arg-type]
}
"""One of each kind. Widths differ from one another, so that a tensor in the wrong place has the wrong
shape.
"""

FULL: dict[str, tuple[SetModelConfig, int]] = {
    "detr": (DetrConfig(), 458),
    "multi_scale": (DeformableDetrConfig(), 561),
    "refine": (DeformableDetrConfig(refine=True), 597),
    "two_stage": (DeformableDetrConfig(refine=True, two_stage=True), 630),
    "single_scale": (DeformableDetrConfig(levels=1), 549),
}
"""The paper's models with a ResNet-50, and how many tensors their official checkpoints have."""


@cache
def random_model(config: SetModelConfig, classes: int = 7, seed: int = 0) -> SetModel:
    """A model in evaluation mode with every tensor random; made once, so do not change it."""
    model = build(config, classes, load_backbone=False)
    randomise(model, seed)
    return model.eval()


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Give every tensor of the state dict random values, scaled so that signals neither die nor explode.

    At initialisation many are zero or one (sampling offsets, the last box layer, norms): a mix-up would not
    show.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("running_var"):
            noise = noise.abs() + 0.5
        elif "sampling_offsets.bias" in name:
            noise = 2 * noise  # in pixels, as training leaves them
        elif name.endswith(".weight") and value.dim() == 1:
            noise = 1 + 0.2 * noise  # norms
        elif value.dim() == 1:
            noise = 0.3 * noise
        elif not name.endswith(("query_embed.weight", "row_embed.weight", "col_embed.weight", "level_embed")):
            noise = _gain(name) * noise / value[0].numel() ** 0.5
        value.copy_(noise)


def _gain(name: str) -> float:
    """Queries should part (or all outputs look alike), and rounding should not grow from layer to layer."""
    if "multihead_attn.in_proj" in name:
        return 3.0
    if "self_attn.out_proj" in name or "self_attn.output_proj" in name or "linear2" in name:
        return 0.3
    return 1.5 if "class_embed" in name else 1.2 if "conv" in name else 1.0


def two_pictures(
    model: SetModel, sizes: tuple[tuple[int, int], ...] = ((96, 128), (44, 62)), seed: int = 0
) -> ImageBatch:
    """A padded batch of two noise pictures of different sizes, smooth enough to survive a backbone."""
    generator = torch.Generator().manual_seed(seed)
    coarse = [torch.rand(1, 3, 6, 6, generator=generator) for _ in sizes]
    images = [nn.functional.interpolate(c, size=s, mode="bilinear")[0] for c, s in zip(coarse, sizes, strict=True)]
    return model.batch(images)


def random_statistics(network: nn.Module) -> dict[str, Tensor]:
    """A state dict of values that are nowhere 0 or 1."""
    state = network.state_dict()
    for key, value in state.items():
        if value.is_floating_point() and value.dim() == 1:
            value.uniform_(0.5, 1.5)
        elif key.endswith("num_batches_tracked"):
            value.fill_(1)
    return state
