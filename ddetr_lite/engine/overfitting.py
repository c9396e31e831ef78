"""The first gate for new data: can the model learn a few pictures by heart?

A model, a loss and annotations that are in order can; where they are not, no number of pictures and epochs will help.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from ddetr_lite.engine.recipes import Recipe

PASSED = 0.9  # AP50 on the pictures it was trained on


def as_overfitting(chosen: Recipe, named: Collection[str] = ()) -> Recipe:
    """The recipe for `overfit` pictures: as many of them in a step as it takes, at a learning rate that stays.

    named: options that the user gave, which stay as they are.
    """
    train = chosen.train
    suited: dict[str, Any] = {
        "batch": min(train.batch, chosen.data.overfit),
        "schedule": "constant",
        "warmup_steps": min(train.warmup_steps, 10),
        "evaluate_every": max(1, train.epochs // 5),
        "ema": 0.0,
    }
    return replace(chosen, train=replace(train, **{k: v for k, v in suited.items() if k not in named}))


def passed(metrics: dict[str, float]) -> bool:
    """Whether these metrics, of the pictures that it was trained on, are those of a model that can learn them."""
    return metrics["AP50"] >= PASSED


def verdict(metrics: dict[str, float], few: int) -> str:
    """What an evaluation means, in a sentence."""
    ap50 = metrics["AP50"]
    if passed(metrics):
        return f"Passed: AP50 {ap50:.2f} on the {few} pictures it was trained on. Model, loss and annotations fit together."
    return (
        f"Not passed: AP50 {ap50:.2f} on the {few} pictures it was trained on, wanted is {PASSED}. Train it longer (--epochs); "
        "where that does not help, `ddetr-lite data check` looks at the data, and `ddetr-lite explain` at the run."
    )
