"""`ddetr-lite bench step`: a whole training step of Deformable DETR against Hugging Face's, in one run; and against the
authors', where they have been checked out.

All have the same weights, pictures, losses (ours, all layers), matching, optimizer and precision, and the same parameters
are trained. What differs is the model's code.
"""

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ddetr_lite.benchmarks.machine import heading, peak_bytes, seconds, write_result
from ddetr_lite.benchmarks.official import official_model, official_outputs
from ddetr_lite.convert.hugging_face import hugging_face_model
from ddetr_lite.engine.distributed import pick_device
from ddetr_lite.layers.deformable_attention import MultiScaleDeformableAttention
from ddetr_lite.models.backbone import BackboneConfig
from ddetr_lite.models.deformable_detr import DeformableDetr, DeformableDetrConfig
from ddetr_lite.set_prediction.losses import Outputs, set_losses

Step = Callable[[], Tensor]


@dataclass(frozen=True)
class StepOptions:
    """Time a training step of Deformable DETR against Hugging Face's model, both under this package's losses."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    backbone: str = "resnet18"
    size: int = 256
    """Side of the square pictures, pixels."""
    batch: int = 2
    objects: int = 7
    """Objects in a picture."""
    dim: int = 256
    layers: int = 3
    """Of the encoder, and of the decoder."""
    queries: int = 100
    refine: bool = False
    bf16: bool = False
    """Under autocast to bfloat16, both."""
    repeats: int = 11
    seed: int = 0
    official: Path | None = None
    """A checkout of the authors' repository (on a GPU with its operation built): measured as well."""
    out: Path | None = None
    """A name without an ending: NAME.json is written."""


def pair(options: StepOptions, device: torch.device) -> tuple[DeformableDetr, Any]:
    """Our model and Hugging Face's with the same weights, both training, with the same parameters trained."""
    torch.manual_seed(options.seed)
    config = DeformableDetrConfig(
        BackboneConfig(options.backbone, weights="none"),
        dim=options.dim,
        encoder_layers=options.layers,
        decoder_layers=options.layers,
        queries=options.queries,
        refine=options.refine,
        dropout=0.0,
    )
    ours = DeformableDetr(config, classes=91)
    for layer in ours.modules():  # at zero, every query would look at the compass, and nothing would flow through
        if isinstance(layer, MultiScaleDeformableAttention):
            nn.init.normal_(layer.sampling_offsets.weight, std=0.02)
            nn.init.normal_(layer.attention_weights.weight, std=0.02)
    theirs = hugging_face_model(ours)
    match_frozen(theirs, [parameter for parameter in ours.parameters() if not parameter.requires_grad])
    return ours.to(device).train(), theirs.to(device).train()


def match_frozen(theirs: nn.Module, frozen: list[Tensor]) -> None:
    """Train in the other model what is trained in ours: a frozen tensor is known there by its numbers."""
    for parameter in theirs.parameters():
        parameter.requires_grad_(not any(parameter.shape == f.shape and torch.equal(parameter, f) for f in frozen))


def steps(options: StepOptions, device: torch.device) -> tuple[dict[str, Step], dict[str, Step]]:
    """Name → a function that makes one training step and returns the loss; and the same without the optimizer."""
    ours, theirs = pair(options, device)
    generator = torch.Generator().manual_seed(options.seed)
    images = [torch.rand(3, options.size, options.size, generator=generator) for _ in range(options.batch)]
    corners = torch.rand(options.batch, options.objects, 2, generator=generator) * options.size * 0.6
    sides = (0.1 + 0.3 * torch.rand(options.batch, options.objects, 2, generator=generator)) * options.size
    labels = torch.randint(91, (options.batch, options.objects), generator=generator)
    boxes = torch.cat((corners, corners + sides), dim=-1)
    targets = [{"labels": own.to(device), "boxes": box.to(device)} for own, box in zip(labels, boxes)]
    images = [image.to(device) for image in images]

    def our_loss() -> Tensor:
        return torch.stack(list(ours(images, targets).values())).sum()

    def their_losses(logits: Tensor, wanted: Any, *rest: Any) -> tuple[Tensor, dict[str, Tensor], None]:
        *_, all_logits, all_boxes = rest
        found = set_losses(Outputs(all_logits, all_boxes.float()), wanted, ours.loss)
        return torch.stack(list(found.values())).sum(), found, None

    theirs.loss_function = their_losses

    def their_loss() -> Tensor:
        batch = ours.batch(images)
        wanted = ours.normalise_targets(targets, batch.sizes)
        loss: Tensor = theirs(pixel_values=batch.pixels, pixel_mask=(~batch.mask).long(), labels=wanted).loss
        return loss

    losses: dict[str, Step] = {"ddetr_lite": our_loss, "hugging-face": their_loss}
    models: list[nn.Module] = [ours, theirs]
    if options.official is not None:
        official = official_model(options.official, ours, device).to(device).train()
        match_frozen(official, [parameter for parameter in ours.parameters() if not parameter.requires_grad])

        def authors_loss() -> Tensor:
            batch = ours.batch(images)
            wanted = ours.normalise_targets(targets, batch.sizes)
            found = set_losses(official_outputs(official, batch.pixels, batch.mask), wanted, ours.loss)
            return torch.stack(list(found.values())).sum()

        losses["official"] = authors_loss
        models.append(official)
    return {name: _with_optimizer(losses[name], m, options) for name, m in zip(losses, models, strict=True)}, losses


def _with_optimizer(loss_of: Step, model: nn.Module, options: StepOptions) -> Step:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6)
    kind = trained[0].device.type

    def step() -> Tensor:
        with torch.autocast(kind, torch.bfloat16) if options.bf16 else nullcontext():
            loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 0.1)
        optimizer.step()
        return loss.detach()

    return step


def run(options: StepOptions, command: str) -> dict[str, Any]:
    """Measure in turns, print, write NAME.json where a name was given, and return what stands there.

    Raises ValueError when the losses differ: then it would not be the same work.
    """
    device = pick_device(options.device)
    make, losses = steps(options, device)
    # In TF32 convolutions with other weights, folded or not, would differ by their rounding.
    rounded, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        check = {name: loss().item() for name, loss in losses.items()}
    finally:
        torch.backends.cudnn.allow_tf32 = rounded
    gap = max(abs(loss / check["ddetr_lite"] - 1) for loss in check.values())
    if not gap < 1e-3:
        raise ValueError(f"the models do not do the same: losses {check}")
    milliseconds: dict[str, list[float]] = {name: [] for name in make}
    for repeat in range(options.repeats + 2):
        for name, step in make.items():
            taken = seconds(step, device)
            if repeat >= 2:  # the first are for caches and plans
                milliseconds[name].append(taken * 1e3)
    medians = {name: statistics.median(each) for name, each in milliseconds.items()}
    result: dict[str, Any] = {
        **heading(command, device),
        "loss": check,
        "median ms": medians,
        **{
            f"times as fast as {peer}": medians[peer] / medians["ddetr_lite"]
            for peer in medians
            if peer != "ddetr_lite"
        },
    }
    if device.type == "cuda":
        # Beyond what stays: weights, gradients and the optimizers' states of both models.
        result["peak bytes"] = {name: peak_bytes(step) for name, step in make.items()}
    for name, median in medians.items():
        memory = f", peak {result['peak bytes'][name] / 1e6:.0f} MB" if "peak bytes" in result else ""
        print(f"{name:14}{median:9.1f} ms a step, {median / medians['ddetr_lite']:.2f} × that of ddetr_lite{memory}")
    if options.out is not None:
        print(f"{write_result(result, options.out)} is written.")
    return result
