"""Pictures with boxes, and where a query looks.

Letters: H × W pixels of a picture, M heads, L levels, P points.
"""

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.patheffects as effects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ddetr_lite.plots.labels import Label, add_labels
from ddetr_lite.plots.style import COLOURS, DPI, INK, PAPER, STYLE, axes_or_new, colours_of, panels

LARGE = 0.2  # area of a box, as a share of the picture's


def boxes(
    picture: Tensor,
    corners: Tensor | Sequence[Sequence[float]],
    labels: Sequence[str] | None = None,
    scores: Sequence[float] | None = None,
    title: str = "",
    one_colour: int | None = None,
    classes: Sequence[str] = (),
    ax: Axes | None = None,
) -> Axes:
    """A picture (3, H, W) with boxes, corners (n, 4) in pixels, each with its label and score.

    The colour goes by label, or is the palette's `one_colour` for all. classes: all that there may be; where the palette has
    a colour for each, they are told apart in every picture, and else only within each.
    """
    ax = axes_or_new(ax, height=3.6)
    height, width = picture.shape[-2:]
    with mpl.rc_context(STYLE):
        ax.imshow(
            picture.detach().cpu().permute(1, 2, 0).numpy(), extent=(0, width, height, 0), interpolation="antialiased"
        )
        colours = colours_of(classes if 0 < len(classes) <= len(COLOURS) else labels or ())
        labelled: list[Label] = []
        for i, (x0, y0, x1, y1) in enumerate(corners.tolist() if isinstance(corners, Tensor) else corners):
            colour = colours[labels[i]] if labels and one_colour is None else COLOURS[(one_colour or 0) % len(COLOURS)]
            outline = [effects.Stroke(linewidth=3.6, foreground=PAPER), effects.Normal()]
            ax.add_patch(
                Rectangle(
                    (x0, y0),
                    x1 - x0,
                    y1 - y0,
                    fill=False,
                    edgecolor=colour,
                    linewidth=2,
                    path_effects=outline,
                )
            )
            words = [] if labels is None else [labels[i]]
            words += [] if scores is None else [f"{scores[i]:.2f}"]
            if words:
                labelled.append(Label(" ".join(words), (x0, y0, x1, y1), colour))
        surest = range(len(labelled)) if scores is None else sorted(range(len(labelled)), key=lambda i: -scores[i])
        add_labels(ax, [labelled[i] for i in surest])
        ax.set(title=title, xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    return ax


def drawn_over(
    picture: Tensor,
    corners: Sequence[Sequence[float]],
    labels: Sequence[str],
    scores: Sequence[float],
    classes: Sequence[str] = (),
) -> Figure:
    """A picture (3, H, W) with boxes as in `boxes`, and nothing around it.

    As large as the picture, but its longer side at least 640 and at most 1280 pixels: labels stay readable.
    """
    height, width = picture.shape[-2:]
    longer = max(height, width)
    scale = min(max(longer, 640), 1280) / longer
    # A tenth more, since matplotlib cuts off what is no whole pixel.
    across, down = ((round(side * scale) + 0.1) / DPI for side in (width, height))
    made = Figure(figsize=(across, down), dpi=DPI)
    FigureCanvasAgg(made)
    ax = made.add_axes((0, 0, 1, 1))
    boxes(picture, corners, labels, scores, classes=classes, ax=ax)
    ax.axis("off")
    return made


def sampling_points(
    picture: Tensor,
    locations: Tensor,
    weights: Tensor,
    reference: Tensor | None = None,
    box: Tensor | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Where one query looks, as in figure 6 of the Deformable DETR paper.

    picture: (3, H, W); locations: (M, L, P, 2), (x, y) in 0..1 of the picture; weights: (M, L, P): larger and stronger dots
    weigh more, and each level has its own colour. reference: (2,) or (4,), in 0..1, drawn as a cross; box: corners in
    pixels.
    """
    ax = axes_or_new(ax, height=3.8)
    height, width = picture.shape[-2:]
    levels = locations.shape[1]
    with mpl.rc_context(STYLE):
        pixels = picture.detach().cpu().permute(1, 2, 0).float().numpy() / (1 if picture.is_floating_point() else 255)
        ax.imshow(0.35 + 0.65 * pixels, extent=(0, width, height, 0), interpolation="antialiased")
        strongest = float(weights.max())
        for level in range(levels):
            x, y = (locations[:, level].reshape(-1, 2) * locations.new_tensor((width, height))).T.numpy()
            share = (weights[:, level].flatten() / strongest).numpy()
            ax.scatter(
                x, y, s=16 + 84 * share, alpha=(0.6 + 0.4 * share).tolist(),
                color=COLOURS[level % len(COLOURS)],
                edgecolors=PAPER, linewidths=0.5, zorder=3,
            )  # fmt: skip
            ax.scatter([], [], s=30, color=COLOURS[level % len(COLOURS)], label=f"level {level + 1}")  # for the legend
        if box is not None:
            x0, y0, x1, y1 = box.tolist()
            ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=INK, linewidth=1.8, zorder=2))
        if reference is not None:
            cx, cy = reference[:2].tolist()
            ax.plot(cx * width, cy * height, "+", color=INK, markersize=13, markeredgewidth=2.4, zorder=4)
        ax.set(title=title, xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
        ax.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, 0.0),
            ncol=levels,
            handletextpad=0.1,
            columnspacing=0.8,
            borderaxespad=0.2,
        )
    return ax


def query_centres(boxes: Tensor, shown: Tensor | None = None) -> Figure:
    """Where the boxes of each query lie, as in figure 7 of the DETR paper: a map for each, a dot for each box.

    boxes: (B, N_q, 4), (cx, cy, w, h) in 0..1; those with an area of more than `LARGE` are orange. shown: (B, N_q),
    boolean, which of them to draw; all by default.
    """
    queries = boxes.shape[1]
    drawn, axes = panels(-(-queries // 2), 2, height=3.4)
    with mpl.rc_context(STYLE):
        for query, ax in enumerate(axes):
            if query >= queries:
                ax.set_axis_off()
                continue
            chosen = boxes[:, query] if shown is None else boxes[shown[:, query], query]
            cx, cy, w, h = chosen.detach().unbind(-1)
            for which, colour in ((w * h <= LARGE, COLOURS[0]), (w * h > LARGE, COLOURS[1])):
                ax.plot(cx[which], cy[which], ".", markersize=3, color=colour)
            ax.set_title(f"query {query}", fontsize=9)
            ax.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal")
            ax.spines[:].set_visible(True)
    return drawn


def offsets(
    steps: Tensor, weights: Tensor | None = None, reach: float = 5.0, title: str = "", ax: Axes | None = None
) -> Axes:
    """Sampling offsets around the reference point (the cross), in cells.

    steps: (M, P, 2), (x, y). Without weights each head is an arm with its number at the end; with weights (M, P) the
    points are dots whose area is the weight.
    """
    ax = axes_or_new(ax, height=3.2)
    with mpl.rc_context(STYLE):
        ax.plot(0, 0, "+", color=INK, markersize=10, markeredgewidth=1.6, zorder=3)
        for m, arm in enumerate(steps.detach().cpu()):
            if weights is None:
                ax.plot(*arm.T, "o-", color=COLOURS[m % len(COLOURS)])
                x, y = arm[-1].sign().where(arm[-1].abs() > 0.1, 0).tolist()  # the name stands beyond the end
                ax.annotate(
                    f"head {m}", arm[-1].tolist(), (6 * x, -6 * y), textcoords="offset points", fontsize=8,
                    ha=("center", "left", "right")[int(x)], va=("center", "top", "bottom")[int(y)],
                )  # fmt: skip
            else:
                x, y = arm.T
                areas = (5 + 300 * weights[m].detach().cpu()).tolist()
                ax.scatter(x, y, s=areas, color=COLOURS[0], alpha=0.6, linewidths=0)
        ax.set_title(title, fontsize=9)
        ax.set(xlim=(-reach, reach), ylim=(reach, -reach), aspect="equal")
        ax.locator_params(nbins=5, integer=True)
    return ax
