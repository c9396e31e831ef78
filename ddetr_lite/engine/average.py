"""A running average of the weights: it detects better than the weights of any one step, and costs no training."""

from typing import Any, cast

import torch
from torch.optim.swa_utils import AveragedModel

from ddetr_lite.models.presets import Model


def average_of(model: Model, decay: float) -> AveragedModel | None:
    """An exponential moving average; None where `decay` is 0.

    Of the first steps it forgets faster, after n updates with the decay (1+n)/(10+n) at most: so the random weights of the
    beginning do not linger. Buffers, such as the statistics of batch norms, are averaged too.
    """
    if not decay:
        return None

    def blend(running: Any, current: Any, _: Any) -> None:
        count = int(average.n_averaged)  # it stays on the CPU: no wait for the GPU
        share = 1 - min(decay, (1 + count) / (10 + count))
        if running[0].is_floating_point():  # all of one dtype
            torch._foreach_lerp_(running, current, share)
        else:
            torch._foreach_copy_(running, current)

    average = AveragedModel(model, multi_avg_fn=blend, use_buffers=True)
    average.requires_grad_(False)
    return average


def weights_to_use(model: Model, average: AveragedModel | None) -> Model:
    """The model that is evaluated and kept: the average where there is one."""
    return model if average is None else cast(Model, average.module)
