"""Curves and bars."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes

from ddetr_lite.plots.style import COLOURS, INK, MUTED, STYLE, axes_or_new


def curves(
    x: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    log: str = "",
    dashed: Sequence[str] = (),
    ax: Axes | None = None,
) -> Axes:
    """One line with markers for every entry of `lines` (name → values at `x`), named at its right end.

    log: "", "x", "y" or "xy", the axes with a logarithmic scale; on a logarithmic x axis every x is a tick.
    dashed: names of the lines drawn dashed and grey, as something to compare with.
    """
    ax = axes_or_new(ax)
    with mpl.rc_context(STYLE):
        for i, (name, values) in enumerate(lines.items()):
            aside = name in dashed
            colour = MUTED if aside else COLOURS[i % len(COLOURS)]
            ax.plot(x, values, "--" if aside else "o-", color=colour, label=name)
            ax.annotate(
                f" {name}",
                (x[-1], values[-1]),
                (4, 0),
                textcoords="offset points",
                color=colour,
                va="center",
                fontsize=8.5,
            )
        if "x" in log:
            ax.set_xscale("log", base=2)
            ax.set_xticks(list(x), [f"{value:g}" for value in x])
        if "y" in log:
            ax.set_yscale("log")
        ax.minorticks_off()
        ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
        ax.grid(axis="y")
    return ax


def bars(
    values: Sequence[float],
    labels: Sequence[str],
    title: str = "",
    ylabel: str = "",
    form: str = "{:.2f}",
    highlight: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """One bar for each value, with the value above it. `highlight`: the index of the bar that stands out."""
    ax = axes_or_new(ax)
    numbers = [float(value) for value in values]
    colours: Any = [COLOURS[1] if i == highlight else COLOURS[0] for i in range(len(numbers))]
    with mpl.rc_context(STYLE):
        drawn = ax.bar(range(len(numbers)), numbers, color=colours, width=0.7)
        ax.bar_label(drawn, [form.format(value) for value in numbers], padding=2, fontsize=8, color=INK)
        ax.set_xticks(range(len(numbers)), list(labels))
        ax.margins(y=0.15)
        ax.set(title=title, ylabel=ylabel)
        ax.grid(axis="y")
    return ax
