"""What a data set looks like: sample pictures with their boxes, and its numbers as histograms."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ddetr_lite.datasets.check_annotations import Split
from ddetr_lite.datasets.check_pictures import named_files
from ddetr_lite.datasets.fields import Record, four_numbers, is_crowd, is_id
from ddetr_lite.datasets.pictures import read_picture
from ddetr_lite.datasets.summary import LARGE, SMALL, Summary
from ddetr_lite.plots.charts import bars
from ddetr_lite.plots.detection import boxes
from ddetr_lite.plots.style import COLOURS, INK, MUTED, PAPER, STYLE, figure, plain

COLUMNS = 4
CELL = 3.4  # inches, a picture's width on the sheet
SHOWN = 512  # pixels, the longer side at which a picture is drawn: no more can be seen
CROWDED = 6  # objects with which a picture is half as welcome on the sheet
MOST = 100  # classes that have a bar


def contact_sheet(split: Split, pictures: int = 12, most: int = 48, seed: int = 0) -> Figure:
    """Pictures with their boxes and names, so chosen that every class is seen, and a crowd; the same ones each time.

    Crowds are dashed: training leaves them out. pictures: at least so many, where the split has them; most: and never more,
    even if a class is then left out. Those that cannot be read are passed over.
    """
    names = {c["id"]: str(c.get("name")) for c in split.categories if is_id(c.get("id"))}
    objects: dict[str, list[Record]] = {}
    for annotation in split.annotations:
        known = is_id(annotation.get("category_id")) and annotation["category_id"] in names
        if known and four_numbers(annotation.get("bbox")):
            objects.setdefault(repr(annotation.get("image_id")), []).append(annotation)
    chosen = list(_choose(split, objects, pictures, most, seed))
    chosen.sort(key=lambda cell: cell[1].shape[-2] / cell[1].shape[-1])  # rows of pictures of about one height
    shapes = [pixels.shape[-2] / pixels.shape[-1] for _, pixels, _ in chosen]
    rows = max(1, -(-len(chosen) // COLUMNS))
    heights = [min(1.4, max(shapes[r * COLUMNS : (r + 1) * COLUMNS], default=1)) * CELL + 0.3 for r in range(rows)]
    made = figure(sum(heights) + 0.5, CELL * COLUMNS)
    with mpl.rc_context(STYLE):
        axes = list(np.ravel(made.subplots(rows, COLUMNS, squeeze=False, height_ratios=heights)))
    for ax, (image, pixels, own) in zip(axes, chosen, strict=False):
        _picture(ax, image, pixels, own, names)
    for ax in axes[len(chosen) :]:
        ax.set_axis_off()
    seen = len({a["category_id"] for _, _, own in chosen for a in own if not is_crowd(a)})
    made.suptitle(
        f"{split.name}: {len(chosen)} of {len(split.images)} pictures, {seen} of {len(names)} classes",
        x=0.01,
        ha="left",
        fontsize=14,
        fontweight="bold",
        color=INK,
    )
    return made


def _choose(
    split: Split, objects: dict[str, list[Record]], pictures: int, most: int, seed: int
) -> Iterator[tuple[Record, Tensor, list[Record]]]:
    """(record, pixels, objects): first those that show classes not seen yet, with few objects rather than many, then any."""
    files = list(named_files(split))
    order = np.random.default_rng(seed).permutation(len(files))
    rest: dict[int, tuple[Record, Path, list[Record]]] = {
        int(i): (*files[i], objects.get(repr(files[i][0].get("id")), [])) for i in order
    }
    unseen = _kinds(a for own in objects.values() for a in own)
    given = 0

    def worth(place: int) -> float:
        own = rest[place][2]
        return len(unseen & _kinds(own)) / (CROWDED + len(own))

    while rest and given < most and (unseen or given < pictures):
        # Without a new class to show: pictures with objects before those without, in the order drawn.
        best = max(rest, key=worth) if unseen else max(rest, key=lambda place: bool(rest[place][2]))
        if unseen and worth(best) == 0:  # what is left lies in pictures that cannot be read
            unseen.clear()
            continue
        image, path, own = rest.pop(best)
        try:
            pixels = read_picture(path)
        except Exception:  # whatever a decoder raises: the findings name it
            continue
        unseen -= _kinds(own)
        given += 1
        yield image, pixels, own


def _kinds(annotations: Iterable[Record]) -> set[Any]:
    """What a sheet is to show: each category, and crowds, of whatever category."""
    return {"crowd" if is_crowd(a) else a["category_id"] for a in annotations}


def _picture(ax: Axes, image: Record, pixels: Tensor, own: Sequence[Record], names: dict[Any, str]) -> None:
    """One cell: the picture reduced to what can be seen, its boxes, and the file's name to find it by."""
    height, width = pixels.shape[-2:]
    scale = min(1.0, SHOWN / max(height, width))
    if scale < 1:
        pixels = F.resize(pixels, [max(1, round(height * scale)), max(1, round(width * scale))], antialias=True)
    own = sorted(own, key=lambda a: -a["bbox"][2] * a["bbox"][3])  # small ones on top
    corners = [[scale * v for v in (x, y, x + w, y + h)] for x, y, w, h in (a["bbox"] for a in own)]
    single = [i for i, a in enumerate(own) if not is_crowd(a)]
    labels = [names[own[i]["category_id"]] for i in single]
    boxes(pixels, [corners[i] for i in single], labels, classes=list(names.values()), ax=ax)
    for (x0, y0, x1, y1), annotation in zip(corners, own, strict=True):
        if is_crowd(annotation):
            ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=INK, linestyle="--", linewidth=2))
            ax.text(x0, y0, plain(f"{names[annotation['category_id']]}, crowd"), fontsize=7.5, color=PAPER, va="top",
                    bbox={"facecolor": INK, "edgecolor": "none", "pad": 1.2})  # fmt: skip
    title = f"id {image.get('id')} · {image.get('file_name')}"
    with mpl.rc_context(STYLE):
        ax.set_title(
            plain(title if len(title) <= 44 else f"{title[:20]}…{title[-22:]}"),
            fontsize=8,
            color=MUTED,
            fontweight="normal",
        )
    ax.set_anchor("N")


def histograms(summary: Summary, queries: int | None = None) -> Figure:
    """Objects by class, their sizes, how many are in a picture, and the pictures' sizes."""
    made = figure(7.6, 12)
    with mpl.rc_context(STYLE):
        above, below = np.ravel(made.subfigures(2, 1, squeeze=False, height_ratios=(1.1, 1)))
        classes, (sides, numbers, sizes) = above.subplots(), below.subplots(1, 3)
        _classes(classes, summary)
        _sides(sides, summary)
        _numbers(numbers, summary, queries)
        _sizes(sizes, summary)
    return made


def _classes(ax: Axes, summary: Summary) -> None:
    ranked = sorted(summary.classes.items(), key=lambda item: -item[1])
    title = f"{summary.name}: objects of each class"
    if len(ranked) > MOST:
        ranked, title = ranked[:MOST], f"{title}, the {MOST} most frequent of {len(ranked)}"
    names, counts = [plain(name) for name, _ in ranked], [number for _, number in ranked]
    if len(names) <= 16:
        bars(counts, names, title, "objects", "{:.0f}", ax=ax)
        if max(map(len, names), default=0) * len(names) > 110:
            ax.tick_params(axis="x", labelrotation=30)
        return
    ax.bar(range(len(names)), counts, color=COLOURS[0], width=0.7)
    ax.set_xticks(range(len(names)), names, rotation=90, fontsize=7 if len(names) > 50 else 8.5)
    spread = max(counts) > 50 * max(1, min(counts))
    if spread:
        ax.set_yscale("log")
    ax.margins(x=0.01)
    ax.set(title=title, ylabel="objects (logarithmic)" if spread else "objects")
    ax.grid(axis="y")


def _sides(ax: Axes, summary: Summary) -> None:
    sides = summary.sides[summary.sides > 0]
    if len(sides):
        edges = np.geomspace(max(sides.min() * 0.99, 0.5), sides.max() * 1.01 + 0.5, 41).tolist()
        ax.hist(sides, edges, color=COLOURS[0])
        ax.set_xscale("log")
        ticks = [t for t in (1, 2, 4, 8, 16, 32, 96, 200, 400, 800, 1600) if edges[0] <= t <= edges[-1]]
        ax.set_xticks(ticks, [str(t) for t in ticks])
        ax.minorticks_off()
        for name, at in (("small", SMALL), ("large", LARGE)):
            if edges[0] < at < edges[-1]:
                ax.axvline(at, color=COLOURS[1], linestyle="--", linewidth=1.2)
                place, side = (-3, "right") if name == "small" else (3, "left")
                ax.annotate(
                    name,
                    (at, 1),
                    (place, -2),
                    xycoords=("data", "axes fraction"),
                    textcoords="offset points",
                    ha=side,
                    va="top",
                    fontsize=8,
                    color=COLOURS[1],
                )
    ax.margins(y=0.12)
    ax.set(title="Size of objects", xlabel="√area in pixels", ylabel="objects")
    ax.grid(axis="y")


def _numbers(ax: Axes, summary: Summary, queries: int | None) -> None:
    most = int(summary.per_picture.max(initial=1))
    step = max(1, -(-(most + 1) // 40))
    ax.hist(summary.per_picture, (np.arange(0, most + step + 1, step) - 0.5).tolist(), color=COLOURS[0], rwidth=0.9)
    if queries is not None and most > 0.5 * queries:
        ax.axvline(queries, color=COLOURS[1], linestyle="--", linewidth=1.2, label=f"{queries} queries")
        ax.legend()
    if most <= 12:
        ax.set_xticks(range(most + 1))
    ax.set(title="Objects in a picture", xlabel=f"objects, at most {most}", ylabel="pictures")
    ax.grid(axis="y")


def _sizes(ax: Axes, summary: Summary) -> None:
    if len(summary.sizes):
        pairs, times = np.unique(summary.sizes, axis=0, return_counts=True)
        area = 14 + 240 * times / times.max()
        ax.scatter(pairs[:, 1], pairs[:, 0], area, color=COLOURS[0], alpha=0.35, linewidths=0)
        largest = 1.1 * float(summary.sizes.max())
        ax.plot([0, largest], [0, largest], color=MUTED, linewidth=0.8, linestyle=":")
        ax.set(xlim=(0, largest), ylim=(0, largest), aspect="equal")
    ax.set(title="Size of pictures (dot: how many)", xlabel="width in pixels", ylabel="height in pixels")
    ax.grid()
