"""A running average of the weights: it detects better than the weights of any one step, and costs no training."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from ddetr_lite.models.presets import Model


def average_of(model: Model, decay: float) -> AveragedModel | None:
    """An exponential moving average; None where `decay` is 0.

    Of the first steps it forgets faster, after n updates with the decay (1+n)/(10+n) at most: so the random weights of the
    beginning do not linger. Buffers, such as the statistics of batch norms, are averaged too.
    """
    if not decay:
        return None

    def blend(running: Sequence[Tensor], current: Sequence[Tensor], _: Any) -> None:
        count = int(average.n_averaged)  # it stays on the CPU: no wait for the GPU
        share = 1 - min(decay, (1 + count) / (10 + count))
        floats = [(r, c) for r, c in zip(running, current, strict=True) if r.is_floating_point()]
        torch._foreach_lerp_([r for r, _ in floats], [c for _, c in floats], share)
        for r, c in zip(running, current, strict=True):
            if not r.is_floating_point():
                r.copy_(c)

    average = AveragedModel(model, multi_avg_fn=blend, use_buffers=True)
    average.requires_grad_(False)
    return average


def weights_to_use(model: Model, average: AveragedModel | None) -> Model:
    """The model that is evaluated and kept: the average where there is one."""
    return model if average is None else cast(Model, average.module)
