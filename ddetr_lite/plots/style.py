"""Colours, sizes, and how a figure gets onto the page."""

import io
import textwrap
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

INK = "#22304A"  # text and axes
MUTED = "#7C8798"  # what stands behind: grids, notes
PAPER = "#FFFFFF"
# Told apart in greyscale and by colour-blind readers as well: neighbours differ in lightness.
COLOURS = ("#2563A8", "#E8833A", "#3F9C86", "#B23A6B", "#8A6FC0", "#C9A227", "#7A4E2D", "#4F9FD0")
_SALT = 734  # with it each of the eight kinds of shapes has a colour of its own

# Weights run from nothing to one: white to deep blue. Signed numbers: orange below zero, blue above.
WEIGHTS = LinearSegmentedColormap.from_list("weights", ["#FFFFFF", "#D3E3F4", "#7FB0DD", "#2563A8", "#12305A"])
SIGNED = LinearSegmentedColormap.from_list("signed", ["#A94A0C", "#F0A56B", "#FFFFFF", "#7FB0DD", "#12305A"])
# Over a picture: transparent where the weight is nothing, so that the picture shows through.
GLOW = LinearSegmentedColormap.from_list("glow", [(1, 0.96, 0.3, 0.0), (1, 0.8, 0.1, 0.75), (1, 0.25, 0.05, 0.95)])

WIDTH = 7.6  # inches, of every figure before it is cut: JupyterLab shows it without scrolling
HEIGHT = 3.0
DPI = 110

STYLE: Any = {  # (Any: the stubs of matplotlib list every key as a literal)
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same on every machine
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=COLOURS),
    "grid.color": "#E3E7EE",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 2.0,
    "lines.markersize": 5,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "image.interpolation": "nearest",
}


def plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics, whatever dollars stand in it."""
    return text.replace("$", r"\$")


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """A colour for each class that is seen together with the others: no two have the same one, as far as colours reach.

    A class has the same colour in every picture, since its name decides, but where another one of the picture has it already:
    of the course's eight kinds of shapes none has.
    """
    distinct, taken = sorted(set(names)), dict[str, str]()
    for name in distinct:
        first = blake2b(f"{_SALT} {name}".encode(), digest_size=1).digest()[0]
        ways = [COLOURS[(first + k) % len(COLOURS)] for k in range(len(COLOURS))]
        taken[name] = next((colour for colour in ways if colour not in taken.values()), ways[0])
    return taken


def figure(height: float = HEIGHT, width: float = WIDTH) -> Figure:
    """An empty figure in the course's style, sizes in inches. `show`, not pyplot, displays it."""
    with mpl.rc_context(STYLE):
        made = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(made)
    return made


def panels(columns: int, rows: int = 1, height: float = HEIGHT, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure with `rows` × `columns` Axes, listed row by row. `options` go to `Figure.subplots`."""
    made = figure(height)
    with mpl.rc_context(STYLE):
        axes = made.subplots(rows, columns, squeeze=False, **options)
    return made, list(np.ravel(axes))


def axes_or_new(ax: Axes | None, height: float = HEIGHT) -> Axes:
    """`ax`, or the only Axes of a new figure."""
    return panels(1, height=height)[1][0] if ax is None else ax


def png(drawn: Figure | Axes) -> bytes:
    """The figure (of these Axes) as PNG. Where it is laid out by itself it is cut to what is drawn, so that a small picture
    stays as small as it is, and no title touches the edge.

    No version and no date is written into it, so that equal figures are equal files.
    """
    target = drawn if isinstance(drawn, Figure) else drawn.figure
    assert isinstance(target, Figure), "an Axes of a SubFigure: give its Figure"
    _put_titles_left(target)
    laid_out = isinstance(target.get_layout_engine(), ConstrainedLayoutEngine)
    cut: Any = {"bbox_inches": "tight", "pad_inches": 0.06} if laid_out else {}
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        target.savefig(buffer, format="png", dpi=DPI, facecolor=PAPER, metadata={"Software": None}, **cut)
    return buffer.getvalue()


def _put_titles_left(drawn: Figure) -> None:
    """A title that was set outside of the style, as in a notebook's cell, becomes as the others are.

    It is told by matplotlib's own size and weight; what has a size of its own stays as it is.
    """
    for ax in drawn.axes:
        title = ax.title.get_text()
        if title and (ax.title.get_fontsize(), ax.title.get_fontweight()) == (12.0, "normal"):
            with mpl.rc_context(STYLE):
                ax.set_title("", loc="center")
                ax.set_title(title, loc="left", color=INK)


def show(drawn: Figure | Axes, alt: str) -> None:
    """Put a figure on a notebook's page, with `alt`: one or two sentences that say what there is to see.

    The description is the picture's alternative text (in the output's metadata and as its plain text), and it
    stands below the picture as a caption, since JupyterLab gives the alternative text of an output to no
    reader. Raises ValueError when it says too little.
    """
    from IPython.display import display  # the package itself works without IPython

    if len(alt.split()) < 5:
        raise ValueError(f"alt={alt!r} says too little: describe in a sentence what the figure shows")
    description = " ".join(alt.split())
    display(
        {"image/png": png(drawn), "text/plain": f"[figure: {description}]"},
        metadata={"image/png": {"alt": description}},
        raw=True,
    )
    caption = "\n".join(textwrap.wrap(description, 110))
    display({"text/markdown": f"*{description}*", "text/plain": caption}, raw=True)
