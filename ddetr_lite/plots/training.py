"""The curves of a run, from its log."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from ddetr_lite.engine.log import read_log
from ddetr_lite.engine.run_results import RunResults
from ddetr_lite.plots.style import COLOURS, STYLE, panels, png
from ddetr_lite.writing import write_bytes


def training_curves(runs: Mapping[str, list[dict[str, Any]]]) -> Figure:
    """Loss, AP, and learning rate against the epochs, a line for each run: name → lines of its log."""
    drawn, axes = panels(3, height=2.8)
    with mpl.rc_context(STYLE):
        for i, (name, lines) in enumerate(runs.items()):
            colour = COLOURS[i % len(COLOURS)]
            run = RunResults(Path(), lines)
            at, scored = ([run.epoch_of(line) for line in part] for part in (run.train, run.evaluations))
            axes[0].plot(at, smooth([line["loss"] for line in run.train]), color=colour, label=name)
            axes[1].plot(scored, [line["AP"] for line in run.evaluations], "o-", color=colour, label=name)
            axes[1].plot(scored, [line["AP50"] for line in run.evaluations], "--", color=colour, alpha=0.6)
            axes[2].plot(at, [1000 * line["lr"] for line in run.train], color=colour, label=name)
        axes[0].set(title="Loss (sum of all terms)", xlabel="epoch", ylim=(0, None))
        axes[1].set(title="AP (dashed: AP50)", xlabel="epoch", ylim=(0, 1))
        axes[2].set(title="Learning rate × 1000", xlabel="epoch", ylim=(0, None))
        for ax in axes:
            ax.grid(axis="y")
        if len(runs) > 1:
            axes[0].legend()  # losses fall, so that corner is free
    return drawn


def smooth(values: list[float], share: float = 0.9) -> list[float]:
    """A running mean that forgets; the first values are not pulled to zero."""
    smooth, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = share * mean + (1 - share) * value, share * weight + (1 - share)
        smooth.append(mean / weight)
    return smooth


def save_curves(folder: Path) -> None:
    """Draw a run folder's log into `curves.png` in the same folder."""
    lines = read_log(folder / "log.jsonl")
    write_bytes(folder / "curves.png", png(training_curves({folder.name: lines})))
