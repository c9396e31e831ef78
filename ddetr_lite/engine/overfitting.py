"""The first gate for new data: can the model learn a few pictures by heart?

A model, a loss and annotations that are in order can; where they are not, no number of pictures and epochs will help.
"""

from dataclasses import replace

from ddetr_lite.engine.recipes import Recipe

PASSED = 0.9  # AP50 on the pictures it was trained on


def as_overfitting(chosen: Recipe) -> Recipe:
    """The recipe for `overfit` pictures: all of them in each step, as they are, at a learning rate that stays."""
    few = chosen.data.overfit
    train = replace(
        chosen.train,
        batch=min(chosen.train.batch, few),
        schedule="constant",
        warmup_steps=min(chosen.train.warmup_steps, 10),
        evaluate_every=max(1, chosen.train.epochs // 5),
        ema=0.0,
    )
    return replace(chosen, train=train)


def verdict(metrics: dict[str, float], few: int) -> str:
    """What the last evaluation means, in a sentence."""
    ap50 = metrics["AP50"]
    if ap50 >= PASSED:
        return f"Passed: AP50 {ap50:.2f} on the {few} pictures it was trained on. Model, loss and annotations fit together."
    return (
        f"Not passed: AP50 {ap50:.2f} on the {few} pictures it was trained on, wanted is {PASSED}. Train it longer (--epochs); "
        "where that does not help, `ddetr-lite data check` looks at the data, and `ddetr-lite explain` at the run."
    )
