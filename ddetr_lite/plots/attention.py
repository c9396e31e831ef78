"""Vectors, matrices of attention weights, and attention over a picture.

Letters: N_q queries, N_k keys, H × W pixels of a picture, h × w patches of it.
"""

from collections.abc import Sequence

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ddetr_lite.plots.style import COLOURS, GLOW, INK, PAPER, SIGNED, STYLE, WEIGHTS, axes_or_new, panels

VALUES_UP_TO = 8  # rows or columns: larger matrices carry no numbers in their cells


def matrix(
    weights: Tensor,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    signed: bool = False,
    limit: float | None = None,
    numbers: bool | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A matrix (N_q, N_k) as a heatmap, row 0 on top, with labels on both axes and the numbers in its cells
    when few.

    Weights run from white (0) to dark blue (`limit`, by default the largest entry); `signed` numbers from
    orange to blue around zero. A boolean matrix is drawn as 0 and 1. numbers: whether the cells carry their
    value.
    """
    table = weights.detach().float().cpu()
    height, width = table.shape
    ax = axes_or_new(ax, height=min(3.4, 0.9 + 0.42 * height))
    top = limit or float(table.abs().max()) or 1.0
    colours: Colormap = SIGNED if signed else WEIGHTS
    small = max(height, width) <= VALUES_UP_TO if numbers is None else numbers
    with mpl.rc_context(STYLE):
        ax.imshow(table, cmap=colours, vmin=-top if signed else 0.0, vmax=top)
        for i in range(height if small else 0):
            for j in range(width):
                value = float(table[i, j])
                text = f"{value:.0f}" if weights.dtype == torch.bool else f"{value:.2f}"
                red, green, blue, _ = colours((value + top) / (2 * top) if signed else value / top)
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
                ax.text(j, i, text, ha="center", va="center", fontsize=8, color=PAPER if dark else INK)
        _label(ax, rows, columns)
        ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
        for spine in ax.spines.values():
            spine.set_visible(True)
    return ax


def _label(ax: Axes, rows: Sequence[str] | None, columns: Sequence[str] | None) -> None:
    if columns is None:
        ax.set_xticks([])
    else:
        slanted = sum(map(len, columns)) > 40
        ax.set_xticks(range(len(columns)), columns, rotation=40 if slanted else 0, ha="right" if slanted else "center")
    ax.set_yticks([] if rows is None else range(len(rows)), rows)
    ax.tick_params(length=0)


def matrices(
    tables: Sequence[Tensor],
    titles: Sequence[str],
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    height: float = 2.9,
    xlabel: str = "",
    ylabel: str = "",
) -> Figure:
    """Several matrices side by side, with one colour scale; the row labels stand at the first one only."""
    drawn, axes = panels(len(tables), height=height)
    top = max(float(table.float().abs().max()) for table in tables)
    for i, (table, title, ax) in enumerate(zip(tables, titles, axes, strict=True)):
        first = i == 0
        matrix(table, rows if first else None, columns, title, xlabel, ylabel if first else "", limit=top, ax=ax)
    return drawn


def vectors(table: Tensor, labels: Sequence[str], title: str = "", ax: Axes | None = None) -> Axes:
    """Vectors (N, d) as rows of colour, one below the other: what goes through the model, seen from above."""
    ax = axes_or_new(ax, height=0.8 + 0.3 * len(table))
    top = float(table.detach().abs().max())
    with mpl.rc_context(STYLE):
        ax.imshow(table.detach().cpu(), cmap=SIGNED, vmin=-top, vmax=top, aspect="auto")
        _label(ax, labels, None)
        for i in range(1, len(table)):
            ax.axhline(i - 0.5, color=PAPER, linewidth=3)
        ax.set(title=title)
        for spine in ax.spines.values():
            spine.set_visible(False)
    return ax


def encoding(table: Tensor, title: str = "", ax: Axes | None = None) -> Axes:
    """An encoding of positions (N, d): one row for each position, one column for each channel, blue above zero."""
    ax = axes_or_new(ax, height=3.2)
    with mpl.rc_context(STYLE):
        ax.imshow(table.detach().cpu(), cmap=SIGNED, vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
        ax.set(title=title, xlabel="channel", ylabel="position")
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        ax.tick_params(length=0)
    return ax


def _pixels(picture: Tensor) -> Tensor:
    """(H, W, 3) for matplotlib, from (3, H, W), uint8 or float in 0..1."""
    return picture.detach().cpu().permute(1, 2, 0)


def picture(image: Tensor, title: str = "", ax: Axes | None = None) -> Axes:
    """A picture (3, H, W), uint8 or float in 0..1, and nothing else."""
    ax = axes_or_new(ax, height=3.2)
    height, width = image.shape[-2:]
    with mpl.rc_context(STYLE):
        ax.imshow(_pixels(image), extent=(0, width, height, 0), interpolation="nearest")
        ax.set(title=title, xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    return ax


def patch_grid(image: Tensor, patch: int, title: str = "", ax: Axes | None = None) -> Axes:
    """A picture (3, H, W) with the borders of its patch × patch squares drawn over it."""
    ax = picture(image, title, ax)
    height, width = image.shape[-2:]
    for x in range(patch, width, patch):
        ax.axvline(x, color=PAPER, linewidth=0.6, alpha=0.7)
    for y in range(patch, height, patch):
        ax.axhline(y, color=PAPER, linewidth=0.6, alpha=0.7)
    return ax


def attention_over_picture(
    picture: Tensor,
    weights: Tensor,
    query: tuple[int, int] | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """The weights (h, w) of one query glow over the picture (3, H, W); the query's own patch (row, column)
    is framed.
    """
    ax = axes_or_new(ax, height=3.2)
    height, width = picture.shape[-2:]
    rows, columns = weights.shape
    glow = weights.detach().float().cpu()
    with mpl.rc_context(STYLE):
        grey = _pixels(picture).float().mean(-1) / (255 if picture.dtype == torch.uint8 else 1)
        ax.imshow(0.15 + 0.6 * grey, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
        ax.imshow(glow / glow.max(), cmap=GLOW, vmin=0, vmax=1, extent=(0, width, height, 0))
        if query is not None:
            y, x = query[0] * height / rows, query[1] * width / columns
            frame = Rectangle((x, y), width / columns, height / rows, fill=False, edgecolor=COLOURS[0], linewidth=2.5)
            ax.add_patch(frame)
        ax.set(title=title, xticks=[], yticks=[])
    return ax
