"""A study in pictures: AP against the length of the schedule, as in figure 3 of Deformable DETR, and a bar for each row."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddetr_lite.benchmarks.cost import seconds_per_picture
from ddetr_lite.benchmarks.studies.plan import Row, Study
from ddetr_lite.benchmarks.studies.results import Outcome, spread
from ddetr_lite.plots.style import COLOURS, INK, MUTED, STYLE, panels

FORMS = ("o-", "s--")  # of the first rows, and where colours begin again
CHARACTERS = 105
"""So wide is a figure, in letters of its legend."""
LINE = 6
"""So wide is the line before a name there."""
PANELS = {"AP": "AP", "AP_small": "AP of small objects"}


def study_figure(study: Study, found: Sequence[Outcome], costs: Mapping[str, Any] | None = None) -> Figure:
    """AP at the end of each schedule against its epochs; AP of small objects; and AP against the time of training.

    A thick line joins the ends of schedules (mean over seeds, bars from the lowest to the highest), thin ones show each
    run on its way. The third panel is drawn where costs are known; its unit is the time of the baseline's epoch.
    """
    timed = costs is not None and all(row.name in costs for row in study.rows)
    drawn, axes = panels(3 if timed else 2, height=3.2)
    with mpl.rc_context(STYLE):
        for i, row in enumerate(study.rows):
            colour, form = COLOURS[i % len(COLOURS)], FORMS[i // len(COLOURS) % len(FORMS)]
            for ax, metric in zip(axes, PANELS, strict=False):
                _row(ax, row, found, metric, colour, form, 1.0)
            if timed:
                assert costs is not None
                _row(axes[2], row, found, "AP", colour, form, _times(costs, row.name, study.baseline))
        for ax, title in zip(axes, PANELS.values(), strict=False):
            ax.set(title=title, xlabel="epochs")
        if timed:
            base = study.row(study.baseline).label
            space = " " if len(base) < 16 else "\n"  # a third of the figure is narrow
            axes[2].set(title="AP against time", xlabel=f"time, in epochs of{space}{base}")
        ticks = sorted({epochs for row in study.rows for epochs in row.epochs})
        for ax in axes:
            ax.set_xscale("log", base=2)
            ax.set_xticks(ticks, [str(tick) for tick in ticks])
            ax.minorticks_off()
            ax.set_ylim(0, None)
            ax.grid(axis="y")
        axes[0].plot([], [], color=MUTED, linewidth=0.8, label="a run on its way")
        handles, labels = axes[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower center", ncols=_columns(labels), frameon=False)
    return drawn


def _columns(labels: Sequence[str]) -> int:
    """The most columns of a legend, up to four, with which it is no wider than the figure."""
    for count in range(min(len(labels), 4), 1, -1):
        columns = [column for column in np.array_split(np.array(labels), count) if len(column)]
        if sum(len(max(column, key=len)) + LINE for column in columns) <= CHARACTERS:
            return count
    return 1


def _times(costs: Mapping[str, Any], row: str, baseline: str) -> float:
    """How many times as long as the baseline's an epoch of a row takes."""
    return seconds_per_picture(costs[row]) / seconds_per_picture(costs[baseline])


def _row(ax: Axes, row: Row, found: Sequence[Outcome], metric: str, colour: str, form: str, scale: float) -> None:
    """One row's lines in one panel; `scale` stretches the epochs."""
    for outcome in found:
        if outcome.run.row.name == row.name:
            way = [line for line in outcome.results.evaluations if line[metric] >= 0]
            ax.plot(
                [scale * outcome.results.epoch_of(line) for line in way], [line[metric] for line in way],
                color=colour, alpha=0.25, linewidth=0.8,
            )  # fmt: skip
    ends = [(epochs, s) for epochs in row.epochs if (s := spread(found, row, epochs, metric)) is not None]
    if not ends:  # no name in the legend for what is still to be run
        return
    means = [s.mean for _, s in ends]
    below = [s.mean - min(s.values) for _, s in ends]
    above = [max(s.values) - s.mean for _, s in ends]
    ax.errorbar(
        [scale * epochs for epochs, _ in ends],
        means,
        yerr=[below, above],
        fmt=form,
        color=colour,
        capsize=3,
        label=row.label,
    )


def rows_figure(study: Study, found: Sequence[Outcome]) -> Figure:
    """A lying bar for each row and length of schedule: AP here, AP of small objects here, and the paper's AP in percent.

    Bars show the mean over seeds, a line on them goes from the lowest to the highest. The third panel is drawn where a row has
    a value of the paper.
    """
    shown = [(row, epochs) for row in study.rows for epochs in row.epochs if spread(found, row, epochs, "AP")]
    paper = [row.paper_after(epochs).get("AP", 0) for row, epochs in shown]
    drawn, axes = panels(3 if any(paper) else 2, height=0.8 + 0.28 * len(shown), sharey=True)
    with mpl.rc_context(STYLE):
        for ax, (metric, title) in zip(axes, PANELS.items(), strict=False):
            ax.set_title(title)
            for i, (row, epochs) in enumerate(shown):
                if known := spread(found, row, epochs, metric):
                    ax.barh(i, known.mean, color=COLOURS[0])
                    ax.plot([min(known.values), max(known.values)], [i, i], color=INK, linewidth=2)
        if any(paper):
            axes[2].barh(range(len(shown)), paper, color=COLOURS[1])
            axes[2].set_title("the authors' AP, %")
        axes[0].set_yticks(range(len(shown)), [f"{row.label}, {epochs}" for row, epochs in shown], fontsize=7)
        axes[0].invert_yaxis()
        # At the height of the titles, over the names.
        axes[0].text(-0.05, 1.02, "row, epochs", transform=axes[0].transAxes, ha="right", fontsize=7, color=MUTED)
    return drawn
