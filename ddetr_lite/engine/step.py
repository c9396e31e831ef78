"""One step of training: the losses of a batch, their gradient, an update; in one process or many, in one piece or several."""

import inspect
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddetr_lite.datasets.loading import Batch
from ddetr_lite.engine.average import update_average
from ddetr_lite.engine.distributed import World
from ddetr_lite.engine.guard import Guard, Losses
from ddetr_lite.engine.recipes import TrainConfig
from ddetr_lite.engine.run import State
from ddetr_lite.models.faster_rcnn import FasterRcnn
from ddetr_lite.models.presets import Model
from ddetr_lite.set_prediction.losses import count


class Step:
    """Call it with the pieces of a batch that are this process's, and the model has learned from the whole batch."""

    def __init__(self, state: State, config: TrainConfig, place: World):
        self.state, self.config, self.place = state, config, place
        self.losses = Losses(state.model)
        self.parameters = list(state.model.parameters())
        self.guard = Guard(place)
        self.shared: nn.Module = self.losses
        self.counted = counted_of(state.model)
        counting = bool(self.counted)
        self.before: list[Tensor] = []
        if place.joined:
            named = inspect.signature(DistributedDataParallel).parameters
            # The second name is that of torch before 2.13.
            flag = "forward_sync_buffers" if "forward_sync_buffers" in named else "broadcast_buffers"
            # Without `device_ids`, by which it would copy all that is on the CPU, pictures and boxes, one after the other, each
            # time synchronising with the GPU: the model takes what it needs there by itself.
            options: dict[str, Any] = {flag: counting, "gradient_as_bucket_view": True}
            self.shared = DistributedDataParallel(self.losses, **options)

    def __call__(self, pieces: Sequence[Batch], rate: float) -> tuple[dict[str, Tensor], Tensor]:
        """Learn with this learning rate. Returns this process's losses, summed over the pieces, and the gradient's length."""
        losses = self.gradient(pieces)
        return losses, self.update(pieces, rate)

    def gradient(self, pieces: Sequence[Batch]) -> dict[str, Tensor]:
        """Leave the gradient of the whole batch's loss in the parameters: the sum over pieces, the mean over processes."""
        place, self.losses.problem = self.place, ""
        torch.manual_seed(seed_of(self.config.seed, self.state.step, place.rank))  # for dropout, and noise of hints
        targets = [piece.targets() for piece in pieces]
        counts = None
        if len(pieces) > 1 or place.joined:
            counts = count([t for own in targets for t in own], place.device)
        # torchvision's losses are means over a batch, ours sums divided by the objects of all pieces.
        share = 1 / len(pieces) if isinstance(self.state.model, FasterRcnn) else 1.0
        for parameter in self.parameters:
            parameter.grad = None
        self.before = [buffer.clone() for buffer in self.counted]
        total: dict[str, Tensor] = {}
        for number, (piece, own) in enumerate(zip(pieces, targets, strict=True)):
            last = number + 1 == len(pieces)
            waits = nullcontext() if last or not place.joined else cast(DistributedDataParallel, self.shared).no_sync()
            with waits:  # processes exchange gradients once, behind the last piece
                with torch.autocast(place.device.type, torch.bfloat16, enabled=use_bf16(self.config, place.device)):
                    losses: dict[str, Tensor] = self.shared(piece.images, own, counts)
                (torch.stack(list(losses.values())).sum() * share).backward()
            for name, value in losses.items():
                total[name] = total.get(name, 0.0) + value.detach() * share
        return total

    def update(self, pieces: Sequence[Batch], rate: float) -> Tensor:
        """Change the parameters by their gradient, of these pieces, and return its length; nothing where that is not finite.

        (The running average goes on towards the weights as they are: to stop it would mean to wait for the GPU.)
        """
        state = self.state
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm or math.inf)
        self.guard.watch(state.step, pictures_of(pieces), self.losses.problem, norm, state.optimizers)
        for buffer, before in zip(self.counted, self.before, strict=True):  # a skipped step counts no pictures either
            buffer.copy_(torch.where(torch.isfinite(norm), buffer, before))
        for optimizer in state.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            optimizer.step()
        if state.average is not None:
            update_average(state.average, state.model, self.config.ema)
        state.step += 1
        return norm


def counted_of(model: nn.Module) -> list[Tensor]:
    """The buffers that change while a model trains: only batch norms that are trained count pictures."""
    return list(model.buffers()) if any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) else []


def pictures_of(pieces: Sequence[Batch]) -> list[int]:
    """The image ids of a batch."""
    return [i for piece in pieces for i in piece.image_ids.tolist()]


def seed_of(*numbers: int) -> int:
    """A seed for random numbers that depend on these numbers alone: so a resumed run needs no generator's state."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def use_bf16(config: TrainConfig, device: torch.device) -> bool:
    """Whether the forward pass runs in bfloat16."""
    if config.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return config.precision == "bf16"


def compile_layers(model: Model) -> None:
    """`torch.compile` for each layer of encoder and decoder, with sizes left open, since every batch has its own.

    Not the whole model: the matching leaves the graph, and a layer is compiled once for all its kind.
    """
    transformer = getattr(model, "transformer", None)
    if not isinstance(transformer, nn.Module):
        raise ValueError(f"compile=True is for DETR and Deformable DETR, not for {type(model).__name__}")
    for part in ("encoder", "decoder"):
        for layer in getattr(transformer, part).layers:
            layer.compile(dynamic=True)
