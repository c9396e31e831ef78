"""Pictures of a run, for its report: where queries look as training goes on, and what is wrong with detections."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.patheffects as effects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ddetr_lite.engine.errors import KINDS, PictureErrors
from ddetr_lite.plots.labels import Label, add_labels
from ddetr_lite.plots.style import COLOURS, INK, MUTED, PAPER, STYLE, axes_or_new, figure, panels
from ddetr_lite.set_prediction.boxes import box_area

TRUE = COLOURS[2]  # green: what is really there
KIND_COLOURS = {
    "correct": COLOURS[0],
    "class": COLOURS[1],
    "place": COLOURS[5],
    "both": COLOURS[3],
    "duplicate": COLOURS[4],
    "background": "#C62828",
    "missed": TRUE,
    "ignored": MUTED,
}
KIND_MEANINGS = {
    "correct": "the right class in the right place",
    "class": "in the right place, but of a wrong class",
    "place": "of the right class, but the box is off (IoU 0.1 to 0.5)",
    "both": "wrong class and the box is off",
    "duplicate": "an object that a surer detection has already",
    "background": "no object is there",
    "missed": "an object that nothing found, nor would any mistake of place or class if put right",
    "ignored": "in a crowd of its class, where nothing is judged",
}
LABELS = 6
OUTLINE = [effects.Stroke(linewidth=3, foreground=PAPER, alpha=0.8), effects.Normal()]


def watched_row(picture: Tensor, seen: Sequence[tuple[str, dict[str, Any]]]) -> Figure:
    """One object at several evaluations, side by side: [(title, entry of `watched.jsonl`), ...].

    Dots are the points that the object's query looked at, larger and stronger where it weighs more; the dashed box is the
    true one, the other one predicted. picture: (3, H, W), uint8.
    """
    height, width = picture.shape[-2:]
    columns = max(len(seen), 4)  # few panels do not become huge
    drawn, axes = panels(columns, height=7.6 / columns * height / width + 0.35)
    with mpl.rc_context(STYLE):
        for ax in axes[len(seen) :]:
            ax.set_axis_off()
        for (title, entry), ax in zip(seen, axes, strict=False):
            _show(ax, picture, dim=0.45)
            points = entry.get("points") or []
            strongest = max((weight for _, _, weight in points), default=0.0) or 1.0
            for x, y, weight in sorted(points, key=lambda point: point[2]):
                share = weight / strongest
                ax.plot(
                    x * width, y * height, "o", markersize=1.5 + 4.5 * share**0.5, alpha=0.25 + 0.75 * share,
                    color=COLOURS[1], markeredgecolor=INK, markeredgewidth=0.4, zorder=3,
                )  # fmt: skip
            scale = (width, height, width, height)
            _frame(ax, [v * s for v, s in zip(entry["true_box"], scale, strict=True)], TRUE, dashed=True)
            if entry.get("box"):
                _frame(ax, [v * s for v, s in zip(entry["box"], scale, strict=True)], COLOURS[0])
            ax.set_title(title, fontsize=8, fontweight="normal", loc="center")
    return drawn


def error_counts(counts: dict[str, int]) -> Figure:
    """A horizontal bar for each kind of error, with its number."""
    kinds = [kind for kind in KINDS if kind in counts]
    ax = axes_or_new(None, height=2.3)
    with mpl.rc_context(STYLE):
        bars = ax.barh(
            kinds, [counts[kind] for kind in kinds], color=[KIND_COLOURS[kind] for kind in kinds], height=0.7
        )
        ax.bar_label(bars, padding=4, fontsize=8.5, color=INK)
        ax.invert_yaxis()
        ax.grid(axis="x")
        ax.margins(x=0.1)
        ax.set_xlabel("detections, and missed objects")
    assert isinstance(ax.figure, Figure)
    return ax.figure


def picture_with_errors(picture: Tensor, errors: PictureErrors, classes: Sequence[str], width: float = 3.4) -> Figure:
    """`draw_errors` in a figure of its own, edge to edge."""
    across, down = picture.shape[2], picture.shape[1]
    made = figure(height=width * min(max(down / across, 0.4), 1.6), width=width)
    made.set_layout_engine("none")
    draw_errors(picture, errors, classes, made.add_axes((0.0, 0.0, 1.0, 1.0)))
    return made


def draw_errors(picture: Tensor, errors: PictureErrors, classes: Sequence[str], ax: Axes) -> None:
    """A picture (3, H, W), uint8: true boxes dashed and green, detections in the colour of their kind.

    Wrong detections and missed objects bear their classes: the surest and the largest `LABELS`, for more would hide the
    picture. Correct detections are thin and bear none.
    """
    with mpl.rc_context(STYLE):
        _show(ax, picture)
        ax.set_axis_off()
        for i, box in enumerate(errors.true_boxes.tolist()):
            _frame(ax, box, TRUE, dashed=True, linewidth=2.2 if i in errors.missed else 1.4)
        wrong = [i for i, kind in enumerate(errors.kinds) if kind not in ("correct", "ignored")]
        right = [i for i in range(len(errors.kinds)) if i not in wrong]
        for i in [*right, *reversed(wrong)]:  # the surest wrong one lies on top
            _frame(ax, errors.boxes[i].tolist(), KIND_COLOURS[errors.kinds[i]], linewidth=1.8 if i in wrong else 1.2)
        labels = []
        for i in wrong[:LABELS]:
            words = f"{classes[int(errors.labels[i])]} {float(errors.scores[i]):.2f}"
            labels.append(Label(words, errors.boxes[i].tolist(), KIND_COLOURS[errors.kinds[i]]))
        areas = box_area(errors.true_boxes)
        for i in sorted(errors.missed, key=lambda i: -float(areas[i]))[:LABELS]:
            words = f"missed {classes[int(errors.true_labels[i])]}"
            labels.append(Label(words, errors.true_boxes[i].tolist(), TRUE, at_foot=True))
        add_labels(ax, labels, fontsize=8)


def _show(ax: Axes, picture: Tensor, dim: float = 0.0) -> None:
    """The pixels; dim: how far they are drawn towards white, so that what lies on them is seen."""
    height, width = picture.shape[-2:]
    pixels = dim + (1 - dim) * picture.permute(1, 2, 0).float().numpy() / 255
    ax.imshow(pixels, extent=(0, width, height, 0), interpolation="antialiased", aspect="equal")
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])


def _frame(ax: Axes, box: Sequence[float], colour: str, dashed: bool = False, linewidth: float = 1.8) -> None:
    x0, y0, x1, y1 = box
    ax.add_patch(
        Rectangle(
            (x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=linewidth,
            linestyle=(0, (4, 2)) if dashed else "-", path_effects=OUTLINE, zorder=2.5 if dashed else 2,
        )
    )  # fmt: skip
