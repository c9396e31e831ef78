"""What a step of training changes, and how far: parameter groups, optimizers, learning rate."""

import math
from typing import Any

import torch
from torch import nn

from ddetr_lite.engine.muon import Muon
from ddetr_lite.engine.recipes import TrainConfig

# With fewer rows or columns a matrix has too few directions for Muon: class heads, depthwise convolutions.
THINNEST = 16
TABLES = ("query_embed", "level_embed", "class_embed")  # a vector for each query, level or class, each on its own


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters, or Muon for the matrices and AdamW for the rest. Frozen parameters are in none."""
    groups = parameter_groups(model, config)
    adamw = [group for group in groups if group["optimizer"] == "adamw"]
    muon = [group for group in groups if group["optimizer"] == "muon"]
    optimizers: list[torch.optim.Optimizer] = []
    if muon:
        optimizers.append(Muon(muon, weight_decay=config.muon_weight_decay))
    if adamw:
        optimizers.append(torch.optim.AdamW(adamw, weight_decay=config.weight_decay, fused=True))
    return optimizers


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """The paper's groups: the backbone, the parts that say where to look, and the rest; each once for AdamW, once for Muon.

    Each has a "factor" by which `learning_rate` is multiplied.
    """
    factors = {"backbone": config.backbone_lr, "sampling": config.sampling_lr, "rest": 1.0}
    ratios = {"adamw": 1.0, "muon": config.muon_lr / config.lr}
    groups: dict[tuple[str, str], list[nn.Parameter]] = {(o, part): [] for o in ratios for part in factors}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        optimizer = "muon" if config.optimizer == "muon" and is_matrix(name, parameter) else "adamw"
        groups[optimizer, part_of(name)].append(parameter)
    result: list[dict[str, Any]] = []
    for (optimizer, part), parameters in groups.items():
        factor = factors[part] * ratios[optimizer]
        if parameters:
            result.append(
                {"params": parameters, "name": part, "optimizer": optimizer, "factor": factor, "lr": config.lr * factor}
            )
    return result


def part_of(name: str) -> str:
    """The group that a parameter of this name belongs to: "backbone", "sampling" or "rest"."""
    if name.startswith("backbone") and ".fpn." not in name:
        return "backbone"
    return "sampling" if "sampling_offsets" in name or "reference_points" in name else "rest"


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon takes this parameter: it maps vectors to vectors, and is not thin."""
    if parameter.dim() < 2 or any(table in name for table in TABLES):
        return False
    return min(len(parameter), parameter[0].numel()) >= THINNEST


def learning_rate(step: int, config: TrainConfig, steps_per_epoch: int) -> float:
    """The learning rate of step 0, 1, ...: a function of the step alone, so that a resumed run has the same."""
    rate = config.lr * min(1.0, (step + 1) / max(config.warmup_steps, 1))
    done = step / (config.epochs * steps_per_epoch)
    if config.schedule == "cosine":
        return rate * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "linear":
        return rate * (1 - done)
    if config.schedule == "step" and step >= config.drop_epoch * steps_per_epoch:
        return rate * 0.1
    return rate
