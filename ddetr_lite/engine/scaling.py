"""What follows when the batch or the length of a run is changed, and nothing is said about the rest."""

import math
from collections.abc import Collection
from dataclasses import replace

from ddetr_lite.engine.recipes import Recipe


def rate_factor(batch: int, usual: int) -> float:
    """By how much the learning rate grows with the batch: its root.

    Malladi et al. 2022: an adaptive optimizer divides by the noise of the gradient, which falls with the root of the batch.
    (For plain SGD it would be the batch itself, Goyal et al. 2017.)
    """
    return math.sqrt(batch / usual)


def follow(chosen: Recipe, base: Recipe, named: Collection[str]) -> tuple[Recipe, list[str]]:
    """The recipe with a learning rate and a schedule that suit its batch and epochs, and the reasons in a sentence each.

    base: the recipe before the user's changes; named: the options that the user gave, which stay as they are.
    """
    train, before, reasons = chosen.train, base.train, []
    if train.batch != before.batch and not {"lr", "muon_lr"} & set(named):
        factor = rate_factor(train.batch, before.batch)
        train = replace(train, lr=_round(train.lr * factor), muon_lr=_round(train.muon_lr * factor))
        reasons.append(
            f"The learning rate follows the batch: {before.lr:g} × √({train.batch}/{before.batch}) = {train.lr:g} "
            "(AdamW's goes with the root of the batch); --lr sets another."
        )
    shortened = train.epochs != before.epochs and train.schedule == "step" and "drop_epoch" not in named
    if shortened and before.epochs > before.drop_epoch and train.epochs > 1:  # within one epoch nothing can drop
        drop = min(max(1, round(train.epochs * before.drop_epoch / before.epochs)), train.epochs - 1)
        train = replace(train, drop_epoch=drop)
        reasons.append(
            f"The learning rate drops to a tenth after epoch {drop}, where the recipe has it after {before.drop_epoch} of "
            f"{before.epochs}; --drop-epoch sets another."
        )
    return replace(chosen, train=train), reasons


def oddities(recipe: Recipe, steps: int) -> list[str]:
    """What can be meant, but seldom is, in a run of so many steps: a sentence each, with the remedy."""
    train, found = recipe.train, []
    if steps <= train.warmup_steps:
        found.append(
            f"warmup_steps={train.warmup_steps}, but the run has only {steps} steps: its learning rate never rises to "
            f"{train.lr:g}; lower --warmup-steps, or raise --epochs."
        )
    if train.schedule == "step" and train.drop_epoch >= train.epochs:
        found.append(
            f"drop_epoch={train.drop_epoch} is not before the end, epochs={train.epochs}: the learning rate never drops; "
            "lower --drop-epoch."
        )
    if train.schedule == "step" and train.drop_epoch == 0:
        found.append(
            f"drop_epoch=0: the learning rate is a tenth of {train.lr:g} from the first step on; --schedule constant keeps it."
        )
    if train.backbone_lr == 0 and not recipe.model.backbone.frozen:
        found.append(
            "backbone_lr=0, but backbone.frozen=False: no weight of the backbone learns, while its batch norms go on counting; "
            "--backbone.frozen keeps those of a trained one as they are."
        )
    if train.evaluate_every > train.epochs:
        found.append(f"evaluate_every={train.evaluate_every} > epochs={train.epochs}: evaluated only at the end.")
    if train.ema and 1 / (1 - train.ema) > steps:
        found.append(
            f"ema={train.ema} averages over about {1 / (1 - train.ema):.0f} steps, the run has {steps}: the average lags "
            "behind; lower --ema."
        )
    return found


def _round(value: float) -> float:
    return float(f"{value:.3g}")
