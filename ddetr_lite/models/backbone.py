"""Feature extractors: torchvision's classification networks by name, or a small one trained from scratch.

A backbone turns pixels into feature maps at strides 8, 16 and 32 (C3, C4, C5 in the papers). This is the only file of
`models` that reads weights.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models

from ddetr_lite.models.frozen_norms import freeze_batch_norms, watch_norms
from ddetr_lite.wording import did_you_mean

OWN = {"small": (32, 64, 128, 128), "tiny": (16, 32, 64, 64)}
"""Our own networks for training from scratch: channels of the stages at strides 4, 8, 16 and 32."""


@dataclass(frozen=True)
class BackboneConfig:
    """Which network, and where its weights come from."""

    name: str = "resnet50"
    """A torchvision classification network (resnet50, mobilenet_v2, ...), or "small" or "tiny", our own."""
    weights: str = "none"
    """"imagenet" (downloaded), a URL, a file with torchvision's keys, or "none"."""
    frozen: bool = True
    """Batch norms, stem and first stage keep the values they were loaded with, as in DETR. False: train all of it."""
    dilation: bool = False
    """DC5: the last stage loses its stride, and its convolutions spread out instead. Twice the resolution."""


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut (He et al. 2016, figure 2), with group norm: batches are small here."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(8, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(8, outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.GroupNorm(8, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, H/stride, W/stride)."""
        y = self.norm1(self.conv1(x)).relu()
        return (self.norm2(self.conv2(y)) + self.downsample(x)).relu()


def small_network(widths: Sequence[int] = OWN["small"]) -> nn.Sequential:
    """A residual network with stages at strides 4, 8, 16 and 32, under torchvision's names for them."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = nn.Conv2d(3, widths[0], 5, stride=2, padding=2, bias=False)
    layers["norm1"] = nn.GroupNorm(8, widths[0])
    layers["relu"] = nn.ReLU(inplace=True)
    previous = widths[0]
    for i, (width, count) in enumerate(zip(widths, (1, 2, 2, 1), strict=True), start=1):
        first = ResidualBlock(previous, width, stride=2)
        layers[f"layer{i}"] = nn.Sequential(first, *(ResidualBlock(width, width) for _ in range(count - 1)))
        previous = width
    return nn.Sequential(layers)


class Body(nn.Module):
    """The part of a classification network up to its last feature map; parameters keep torchvision's names."""

    def __init__(self, network: nn.Module):
        super().__init__()
        features = getattr(network, "features", None)
        if isinstance(features, nn.Sequential):  # mobilenet, efficientnet, convnext, vgg, ...
            self.features = features
        else:  # resnet and its kin: everything before the pooling
            for name, child in network.named_children():
                if name in ("avgpool", "fc"):
                    break
                self.add_module(name, child)

    def steps(self) -> list[nn.Module]:
        """The modules that follow one another."""
        return list(self.features) if hasattr(self, "features") else list(self.children())

    def cut(self, count: int) -> None:
        """Keep the first `count` steps: a parameter that nothing reads would never get a gradient."""
        chain = self.features if hasattr(self, "features") else self
        for name, _ in list(chain.named_children())[count:]:
            delattr(chain, name)


class Backbone(nn.Module):
    """Pixels (B, 3, H, W) → one feature map (B, C, ⌈H/s⌉, ⌈W/s⌉) for each of `strides`.

    strides: those wanted of 8, 16, 32. `channels` holds the C of each map. Raises ValueError for a name that torchvision
    does not have, or a network that has no such maps, and for weights that do not fit.
    """

    def __init__(self, config: BackboneConfig, strides: Sequence[int] = (8, 16, 32)):
        super().__init__()
        self.config = config
        self.body = Body(_network(config.name))
        _load_weights(self.body, config)
        # Not in inference mode, whose tensors have no version to watch.
        with torch.inference_mode(False), watch_norms(self.body) as pairs:
            ends = _stage_ends(self.body.steps(), config.name)
        needed = {*strides, *([4] if config.frozen else []), *([strides[-1] // 2] if config.dilation else [])}
        if missing := sorted(needed - ends.keys()):
            raise ValueError(f"backbone {config.name!r} has feature maps at strides {sorted(ends)}, not at {missing}")
        self.taps = [ends[s][0] for s in strides]
        self.channels = [ends[s][1] for s in strides]
        self.strides = list(strides)
        self.body.cut(self.taps[-1] + 1)
        steps = self.body.steps()
        if config.dilation:
            _dilate(steps[ends[strides[-1] // 2][0] + 1 :])
            self.strides[-1] //= 2
            if max(_stage_ends(steps, config.name)) != self.strides[-1]:
                raise ValueError(
                    f"backbone {config.name!r} cannot use dilation: its last stage shrinks by other means than strides"
                )
        self.body.to(memory_format=torch.channels_last)  # the layout in which convolutions are fastest
        if config.frozen:
            freeze_batch_norms(self.body, pairs)
            for step in steps[: ends[4][0] + 1]:
                step.requires_grad_(False)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """The wanted maps, from fine to coarse."""
        maps, x = [], pixels.contiguous(memory_format=torch.channels_last)
        for i, step in enumerate(self.body.steps()):
            x = step(x)
            if i in self.taps:
                maps.append(x)
        return maps


def _network(name: str) -> nn.Module:
    if name in OWN:
        return small_network(OWN[name])
    known = list_models(module=torchvision.models)
    if name not in known:
        hint = did_you_mean(name, known, most=3) or "see torchvision.models.list_models()"
        raise ValueError(
            f"backbone {name!r} is neither 'small' nor 'tiny' nor one of torchvision's classification models: {hint}"
        )
    return get_model(name, weights=None)


def _stage_ends(steps: list[nn.Module], name: str) -> dict[int, tuple[int, int]]:
    """For each stride the index of the last step at that stride and its channels, found by a trial run."""
    size = 128
    x = torch.zeros(1, 3, size, size)
    ends: dict[int, tuple[int, int]] = {}
    training = [step.training for step in steps]
    with torch.no_grad():
        for i, step in enumerate(steps):
            try:
                x = step.eval()(x)
                assert x.dim() == 4
            except Exception as error:  # networks that are no chain fail in many ways
                raise ValueError(
                    f"backbone {name!r} has no chain of feature maps: choose a resnet or a mobilenet"
                ) from error
            ends[size // x.shape[-1]] = (i, x.shape[1])
    for step, mode in zip(steps, training, strict=True):
        step.train(mode)
    return ends


def _dilate(steps: list[nn.Module]) -> None:
    """Take the stride out of the last stage; convolutions behind it look twice as far apart (torchvision's rule)."""
    spread = False
    for step in steps:
        for module in step.modules():
            if not isinstance(module, nn.Conv2d):
                continue
            if module.stride == (2, 2):
                module.stride, spread = (1, 1), True
            elif spread and module.kernel_size != (1, 1):
                module.dilation = tuple(2 * d for d in module.dilation)
                module.padding = tuple(2 * int(p) for p in module.padding)


def _load_weights(body: Body, config: BackboneConfig) -> None:
    if config.weights == "none":
        return
    state, source = _read_weights(config)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        found = ", ".join(map(repr, list(state)[:4])) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"weights {source} hold no state dict (found {found}): save the dict of tensors by itself")
    expected = {k: v for k, v in body.state_dict().items() if not k.endswith("num_batches_tracked")}
    missing = sorted(expected.keys() - state.keys())
    wrong = sorted(k for k in expected.keys() & state.keys() if expected[k].shape != state[k].shape)
    if missing or wrong:
        problem = f"lacks {missing[0]!r}" if missing else f"has another shape at {wrong[0]!r}"
        raise ValueError(
            f"weights {source} do not fit backbone {config.name!r}: the file {problem} "
            f"({len(missing)} tensors missing, {len(wrong)} of another shape)"
        )
    body.load_state_dict({k: state[k] for k in expected}, strict=False)


def _read_weights(config: BackboneConfig) -> tuple[dict[str, Tensor], str]:
    """A state dict and where it came from. Raises ValueError with the remedy when it cannot be had."""
    source = config.weights
    if source == "imagenet":
        if config.name in OWN:
            raise ValueError(
                f"backbone {config.name!r} has no ImageNet weights: set weights='none' and train it from scratch"
            )
        # The first version of each, as in both papers; later ones were trained with stronger recipes.
        source = next(iter(get_model_weights(config.name))).url
    if source.startswith(("http://", "https://", "file://")):
        try:
            return torch.hub.load_state_dict_from_url(
                source, map_location="cpu", check_hash=True, weights_only=True
            ), source
        except Exception as error:  # no network, a wrong hash, a page instead of a file
            raise ValueError(
                f"backbone weights could not be had from {source} ({type(error).__name__}: {error}). Instead, give a file with "
                "torchvision's keys, or 'none' to train from scratch"
            ) from error
    path = Path(source).expanduser()
    if not path.is_file():
        raise ValueError(f"backbone weights: {path} is no file; give 'imagenet', a URL, a file's path or 'none'")
    try:
        return torch.load(path, map_location="cpu", weights_only=True), str(path)
    except Exception as error:
        raise ValueError(f"backbone weights: {path} is no file of tensors ({type(error).__name__})") from error
