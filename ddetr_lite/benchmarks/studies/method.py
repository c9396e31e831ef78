"""What the studies share: the words of their method, and how models are brought to one size."""

import textwrap
from dataclasses import replace
from typing import Any

from ddetr_lite.models.presets import ModelConfig


def text(*items: str) -> str:
    """Paragraphs and list items as Markdown with lines that can be read."""
    return (
        "\n".join(
            textwrap.fill(item, 120, subsequent_indent="  " * item.startswith("- "), break_on_hyphens=False)
            for item in items
        )
        + "\n"
    )


SEARCH = (
    "- **Learning rates**: the same search for each model that is named in the table of the search: the rates of AdamW "
    "and Muon, both times 1/2, 1 and 2, in runs of {epochs} epochs with seed 0; where the best of them is at an edge, the "
    "next one is tried too. The multiple with the best AP is used for all lengths{shared}."
)
END = (
    "- **Budget**: each length of schedule is a run of its own, which ends with a learning rate of zero; what counts is "
    "AP after the last step, not the best in between. Seeds change weights, order and augmentation."
)
COST = (
    "- **Cost**: multiply-adds of finding the objects of one validation picture; what a training step of one batch keeps "
    "for its backward pass; speeds from all rows in turns on the same idle machine."
)
EQUAL = (
    "- **Equal in all**: backbone (from random weights), data, augmentation (flips, quarter turns, colours), batches, "
    "Muon for matrices and AdamW for the rest, weight decay, gradient clipping, warm-up, a learning rate that falls in a "
    "line to zero, the order of the pictures."
)


def sized(model: ModelConfig, **sizes: Any) -> ModelConfig:
    """The model with those of the sizes that its kind knows."""
    return replace(model, **{name: value for name, value in sizes.items() if hasattr(model, name)})
