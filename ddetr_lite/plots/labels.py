"""Labels at boxes: where they can be read."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from ddetr_lite.plots.style import INK, PAPER, plain

PAD = 1.2  # points around the words
Corners = Sequence[float]
"""x0, y0, x1, y1."""


class Label(NamedTuple):
    """Words on a ground of one colour, for a box."""

    words: str
    corners: Corners
    colour: str
    at_foot: bool = False
    """At the lower left corner, in the box, instead of above the upper left one."""


def add_labels(ax: Axes, labels: Sequence[Label], fontsize: float = 7.5) -> None:
    """Put labels at their boxes, the first over the others, each where it hides none of those before it.

    ax: of a picture, whose y grows downwards. Where a label finds no place, as in a heap of boxes, or says again what stands
    there, those before it hide it.
    """
    placed = []
    for rank, label in enumerate(labels):
        text = ax.text(
            label.corners[0], label.corners[1], plain(label.words), fontsize=fontsize, color=_words_on(label.colour),
            zorder=4 - rank / len(labels),
            bbox={"facecolor": label.colour, "edgecolor": "none", "pad": PAD},
        )  # fmt: skip
        text.set_in_layout(False)
        placed.append((text, label))
    ax.add_artist(_Placing(ax, placed))


def _words_on(ground: str) -> str:
    """White, or ink where the ground is so light (WCAG's relative luminance) that white would hardly be read."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(ground)]
    return INK if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.3 else PAPER


def _overlap(one: Bbox, other: Bbox, most: bool = False) -> bool:
    """Whether they share more than half a pixel, for those that touch hide nothing; most: more than half of their room."""
    shared = Bbox.intersection(one, other)
    if shared is None:
        return False
    if most:
        return bool(2 * shared.width * shared.height > min(one.width * one.height, other.width * other.height))
    return bool(min(shared.width, shared.height) > 0.5)


class _Placing(Artist):
    """Shows nothing itself: moves labels when they are drawn, since before it is not known how large the picture will be."""

    def __init__(self, ax: Axes, labels: Sequence[tuple[Text, Label]]):
        super().__init__()
        self.within, self.labels = ax, labels
        self.set_in_layout(False)
        self.set_zorder(2.9)  # before the labels themselves are drawn

    def draw(self, renderer: RendererBase) -> None:
        """Moves the labels."""
        taken: list[tuple[Bbox, str]] = []
        for text, label in self.labels:
            first, *others = self._places(text.get_window_extent(renderer), label)
            place = first
            said = any(words == label.words and _overlap(other, first, most=True) for other, words in taken)
            if not said and any(_overlap(other, first) for other, _ in taken):
                free = (other for other in others if not any(_overlap(other, place) for place, _ in taken))
                place = next(free, first)
            taken.append((place, label.words))
            x, y = self.within.transData.inverted().transform((place.x0 + self._pad, place.y0 + self._pad))
            text.set_position((x, y))

    @property
    def _pad(self) -> float:
        """Pixels of the figure between the words and the end of a label."""
        return PAD * self.within.get_figure(root=True).dpi / 72  # type: ignore[union-attr]  # they are in one

    def _places(self, words: Bbox, label: Label) -> list[Bbox]:
        """Where a label of this size may lie, best first, within the picture, in pixels of the figure, counted from below."""
        width, height = words.width + 2 * self._pad, words.height + 2 * self._pad
        corners = (label.corners[:2], label.corners[2:])
        (left, top), (right, bottom) = self.within.transData.transform(corners)
        top = min(top, self.within.bbox.y1 - height)
        head = [(left, top - k * height) for k in range(4)] + [(right - width, top)]  # above, in the box, lower
        foot = [(left, bottom), (left, bottom - height), (right - width, bottom)]
        starts = [*(foot + head if label.at_foot else head + foot), (left, top + height)]
        picture = self.within.bbox
        inside = [
            (max(min(x, picture.x1 - width), picture.x0), max(min(y, picture.y1 - height), picture.y0))
            for x, y in starts
        ]
        return [Bbox.from_bounds(x, y, width, height) for x, y in inside]
