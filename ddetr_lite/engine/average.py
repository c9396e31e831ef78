"""A running average of the weights: it detects better than the weights of any one step, and costs no training."""

from typing import cast

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ddetr_lite.models.presets import Model


def average_of(model: Model, decay: float) -> AveragedModel | None:
    """The copy of a model in which the average will be; None where `decay` is 0."""
    return AveragedModel(model).requires_grad_(False) if decay else None


@torch.no_grad()
def update_average(average: AveragedModel, model: nn.Module, decay: float) -> None:
    """One step of an exponential moving average, of parameters and of buffers such as the statistics of batch norms.

    Of the first steps it forgets faster, after n updates with the decay (1+n)/(10+n) at most: so the random weights of the
    beginning do not linger. (`AveragedModel.update_parameters` would copy its count to the GPU, and wait for it.)
    """
    count = int(average.n_averaged)
    share = 1 - min(decay, (1 + count) / (10 + count)) if count else 1.0
    copies, weights = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (average.module, model))
    floats = [name for name, value in copies.items() if value.is_floating_point()]
    torch._foreach_lerp_([copies[name] for name in floats], [weights[name] for name in floats], share)
    for name in copies.keys() - floats:  # a count has no average
        copies[name].copy_(weights[name])
    average.n_averaged += 1


def weights_to_use(model: Model, average: AveragedModel | None) -> Model:
    """The model that is evaluated and kept: the average where there is one."""
    return model if average is None else cast(Model, average.module)
