"""The course's figures: one function for each kind of picture, one palette, one width.

`style` has colours, sizes and `show`, which every notebook uses to put a figure on the page with its
description; `charts` draws curves, dots and bars; `attention` draws matrices of weights and attention over a
picture; `block_diagram` draws what follows what. A function draws into the Axes it is given and returns it;
those that arrange several Axes return the Figure. Nothing here touches pyplot's global state: a figure appears
when `show` is called, once.
"""

from ddetr_lite.plots.attention import attention_over_picture, encoding, matrices, matrix, patch_grid, picture, vectors
from ddetr_lite.plots.block_diagram import diagram
from ddetr_lite.plots.charts import bars, curves, grouped_bars, matching, precision_recall, scatter
from ddetr_lite.plots.style import COLOURS, INK, WEIGHTS, WIDTH, figure, panels, show

__all__ = [
    "COLOURS",
    "INK",
    "WEIGHTS",
    "WIDTH",
    "attention_over_picture",
    "bars",
    "curves",
    "diagram",
    "encoding",
    "figure",
    "grouped_bars",
    "matching",
    "matrices",
    "matrix",
    "panels",
    "patch_grid",
    "picture",
    "precision_recall",
    "scatter",
    "show",
    "vectors",
]
