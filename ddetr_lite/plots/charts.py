"""Curves, dots, bars, and the lines between matched things."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from torch import Tensor

from ddetr_lite.plots.style import COLOURS, INK, MUTED, PAPER, STYLE, axes_or_new, colours_of


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
    ax, drawn = axes_or_new(ax), []
    with mpl.rc_context(STYLE):
        for i, (name, values) in enumerate(lines.items()):
            aside = name in dashed
            colour = MUTED if aside else COLOURS[i % len(COLOURS)]
            drawn += ax.plot(x, values, "--" if aside else "o-", color=colour, label=name)
        if "x" in log:
            ax.set_xscale("log", base=2)
            ax.set_xticks(list(x), [f"{value:g}" for value in x])
        if "y" in log:
            ax.set_yscale("log")
        ax.minorticks_off()
        ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
        ax.grid(axis="y")
        _name_at_the_end(ax, drawn)
    return ax


def _name_at_the_end(ax: Axes, lines: Sequence[Line2D]) -> None:
    """Each line's name behind its last point, moved up or down where names would lie over one another."""
    ax.get_ylim()  # the limits are otherwise computed when the figure is drawn
    last = [(float(line.get_xdata()[-1]), float(line.get_ydata()[-1])) for line in lines]  # type: ignore[index, arg-type]
    points = [float(ax.transData.transform(end)[1]) * 72 / ax.figure.dpi for end in last]  # heights
    order = sorted(range(len(lines)), key=points.__getitem__)
    room = list(points)
    floor = ax.bbox.y0 * 72 / ax.figure.dpi + 6  # no name below the axis, unless its line ends there
    for _ in range(100):  # neighbours push each other away until all have 10 points
        room[order[0]] = max(room[order[0]], min(floor, points[order[0]]))
        for below, above in pairwise(order):
            missing = max(10 - (room[above] - room[below]), 0)
            room[below] -= missing / 2
            room[above] += missing / 2
    for line, end, at, height in zip(lines, last, points, room, strict=True):
        ax.annotate(
            f" {line.get_label()}",
            end,
            (4, height - at),
            textcoords="offset points",
            color=line.get_color(),
            va="center",
            fontsize=8.5,
        )


def scatter(
    groups: Mapping[str, tuple[Sequence[float] | Tensor, Sequence[float] | Tensor]],
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    equal: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Dots of one colour for every entry of `groups` (name → their x and their y); the names stand beside the data.

    Later groups lie over earlier ones. equal: a unit of y is as long as one of x.
    """
    ax = axes_or_new(ax, height=3.2)
    with mpl.rc_context(STYLE):
        for i, (name, (x, y)) in enumerate(groups.items()):
            ax.plot(x, y, "o", markersize=4, color=COLOURS[i % len(COLOURS)], label=name)
        ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
        if equal:
            ax.set_aspect("equal")
        ax.grid()
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), handletextpad=0.2)
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
        ax.bar_label(
            drawn, [form.format(value).replace("-", "−") for value in numbers], padding=2, fontsize=8, color=INK
        )
        ax.set_xticks(range(len(numbers)), list(labels))
        ax.margins(y=0.15)
        ax.set(title=title, ylabel=ylabel)
        ax.grid(axis="y")
    return ax


def grouped_bars(
    groups: Mapping[str, Mapping[str, float]], title: str = "", line: float | None = None, form: str = "{:.2f}"
) -> Axes:
    """Horizontal bars, for each group (a name) one for each of its entries (name → value), with the value at its end.

    An entry has one colour in all groups. line: a value to compare with, drawn upright through all groups; form: of a value.
    """
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    ax = axes_or_new(None, height=0.6 + 0.2 * sum(len(group) + 1 for group in groups.values()))
    at, middles, known = 0.0, [], {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    with mpl.rc_context(STYLE):
        for group in groups.values():
            places = [at + i for i in range(len(group))]
            drawn = ax.barh(places, list(group.values()), height=0.8, color=[known[name] for name in group])
            ax.bar_label(
                drawn,
                [f"{form.format(value)} {name}" for name, value in group.items()],
                padding=3,
                fontsize=7,
                color=INK,
            )
            middles.append(sum(places) / len(places))
            at += len(group) + 1
        ax.set_yticks(middles, list(groups))
        ax.invert_yaxis()
        ax.margins(x=0.3)
        ax.grid(axis="x")
        ax.set(title=title)
        if line is not None:
            ax.axvline(line, color=MUTED, linestyle="--", linewidth=1)
    return ax


def matching(
    cost: Tensor,
    pairs: Sequence[tuple[int, int]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """A bipartite graph: queries on the left, objects on the right, the matched `pairs` (row, column) as strong lines.

    cost: (N_q, T), written on the matched lines. rows, columns: the names of the two sides.
    """
    ax = axes_or_new(ax, height=0.6 + 0.32 * len(rows))
    left = [i / max(len(rows) - 1, 1) for i in range(len(rows))]
    right = [(j + 0.5) / len(columns) for j in range(len(columns))]
    chosen, colours = set(pairs), colours_of(columns)
    with mpl.rc_context(STYLE):
        for i, y in enumerate(left):
            for j, z in enumerate(right):
                if (i, j) not in chosen:
                    ax.plot([0, 1], [y, z], color=MUTED, alpha=0.25, linewidth=0.8, zorder=1)
        for i, j in pairs:
            ax.plot([0, 1], [left[i], right[j]], color=colours[columns[j]], linewidth=2.5, zorder=2)
            along = 0.15 + 0.5 * (j + 0.5) / len(columns)  # not all at one place: lines cross
            height = left[i] + along * (right[j] - left[i])
            value = f"{float(cost[i, j]):.2f}".removesuffix(".00").replace("-", "−")
            ax.text(along, height, value, fontsize=8, ha="center", va="center", color=INK,
                    bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.0}, zorder=3)  # fmt: skip
        taken = {i for i, _ in pairs}
        for i, (y, name) in enumerate(zip(left, rows, strict=True)):
            ax.plot(0, y, "o", color=INK if i in taken else MUTED, zorder=4)
            ax.text(-0.03, y, name, ha="right", va="center", color=INK if i in taken else MUTED, fontsize=8.5)
        for z, name in zip(right, columns, strict=True):
            ax.plot(1, z, "s", color=colours[name], zorder=4)
            ax.text(1.03, z, name, ha="left", va="center", fontsize=8.5)
        ax.set(title=title, xlim=(-0.45, 1.45), ylim=(1.08, -0.08), xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    return ax


def precision_recall(
    recall: Sequence[float] | Tensor,
    precision: Sequence[float] | Tensor,
    levels: Sequence[float] | Tensor,
    best: Sequence[float] | Tensor,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Recall and precision after each detection as dots, and the `best` precision at each of `levels` or beyond as a line;
    the area below it, AP, is shaded.
    """
    ax = axes_or_new(ax)
    with mpl.rc_context(STYLE):
        ax.fill_between(levels, best, step="pre", color=COLOURS[0], alpha=0.15)
        ax.plot(recall, precision, "o", markersize=3.5, color=COLOURS[1], label="after each detection")
        ax.plot(levels, best, color=COLOURS[0], drawstyle="steps-pre", label="best at this recall or beyond")
        ax.set(title=title, xlabel="recall", ylabel="precision", ylim=(0, 1.05))
        ax.grid(axis="y")
        ax.legend(loc="lower left")
    return ax
