"""Block diagrams: what follows what, and in which shape."""

from collections.abc import Collection, Mapping, Sequence

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from ddetr_lite.plots.style import INK, MUTED, PAPER, STYLE, axes_or_new

_FILL = "#E4EDF7"
_INCH_A_ROW = 0.8


def diagram(
    blocks: Mapping[str, tuple[float, float, str]],
    arrows: Sequence[tuple[str, str, str]],
    data: Collection[str] = (),
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Blocks on a grid, and arrows between them.

    blocks: name → (column, row, text), row 0 on top. arrows: (from, to, label), by name; the label, often a shape, stands
    above the middle of a level arrow, and beside any other. data: names of blocks that are given or handed out, and not
    computed; they have no frame. Raises ValueError for an arrow from or to a block that is not there.
    """
    if unknown := {end for arrow in arrows for end in arrow[:2]} - set(blocks):
        raise ValueError(f"arrows name {sorted(unknown)}, but the blocks are {sorted(blocks)}")
    columns, rows = [column for column, _, _ in blocks.values()], [row for _, row, _ in blocks.values()]
    ax = axes_or_new(ax, height=_INCH_A_ROW * (max(rows) - min(rows) + 1))
    with mpl.rc_context(STYLE):
        written: dict[str, Text] = {}
        for name, (column, row, text) in blocks.items():
            given = name in data
            frame = {"boxstyle": "round,pad=0.45", "facecolor": PAPER if given else _FILL,
                     "edgecolor": "none" if given else MUTED}  # fmt: skip
            written[name] = ax.text(
                column, row, text, ha="center", va="center", fontsize=8, color=INK, bbox=frame, zorder=3
            )
        for begin, end, label in arrows:
            (x0, y0, _), (x1, y1, _) = blocks[begin], blocks[end]
            line = {"arrowstyle": "-|>", "color": MUTED, "shrinkA": 2, "shrinkB": 2,
                    "patchA": written[begin].get_bbox_patch(), "patchB": written[end].get_bbox_patch()}  # fmt: skip
            ax.annotate("", (x1, y1), (x0, y0), arrowprops=line)
            level = y0 == y1
            above = ax.annotate(
                label, ((x0 + x1) / 2, (y0 + y1) / 2), (0, 3) if level else (4, 0), textcoords="offset points",
                ha="center" if level else "left", va="bottom" if level else "center", fontsize=7, color=INK,
            )  # fmt: skip
            if level:
                ax.add_artist(_Centring(ax, above, (written[begin], written[end])))
        ax.set(xlim=(min(columns) - 0.5, max(columns) + 0.5), ylim=(max(rows) + 0.5, min(rows) - 0.5), title=title)
        ax.axis("off")
    return ax


class _Centring(Artist):
    """Shows nothing itself: moves the label of a level arrow to the middle of what is seen of it, once that is known."""

    def __init__(self, ax: Axes, label: Annotation, ends: Sequence[Text]):
        super().__init__()
        self.within, self.label, self.ends = ax, label, ends
        self.set_in_layout(False)
        self.set_zorder(label.get_zorder() - 0.1)

    def draw(self, renderer: RendererBase) -> None:
        """Moves the label."""
        left, right = sorted((_frame(end, renderer) for end in self.ends), key=lambda frame: frame.x0)
        middle = ((left.x1 + right.x0) / 2, left.y0)
        self.label.xy = (float(self.within.transData.inverted().transform(middle)[0]), self.label.xy[1])


def _frame(text: Text, renderer: RendererBase) -> Bbox:
    """Of a block, in pixels of the figure."""
    text.update_bbox_position_size(renderer)
    patch = text.get_bbox_patch()
    return text.get_window_extent(renderer) if patch is None else patch.get_window_extent(renderer)
