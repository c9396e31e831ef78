"""Figures: names that make room for one another, lines where a match is, and colours that go by name."""

import io
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colors as mcolors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from PIL import Image

from ddetr_lite import plots
from ddetr_lite.datasets.shapes import KINDS
from ddetr_lite.engine.errors import PictureErrors
from ddetr_lite.plots import detection
from ddetr_lite.plots.run_pictures import picture_with_errors
from ddetr_lite.plots.style import COLOURS, colours_of, panels, png


def drawn_heights(ax: Axes) -> dict[str, float]:
    """The height of each text in points, after drawing."""
    assert isinstance(ax.figure, Figure)
    ax.figure.canvas.draw()
    return {t.get_text().strip(): float(t.get_window_extent().y0) * 72 / ax.figure.dpi for t in ax.texts}


@pytest.mark.parametrize("ends", [(1.0, 1.0, 1.0, 1.0), (0.0, 0.01, 5.0), (3.0, 1.0, 2.0)])
def test_names_of_curves_do_not_lie_over_one_another(ends: tuple[float, ...]) -> None:
    ax = plots.curves([0, 1, 2], {f"line {i}": [0.0, 4.0, end] for i, end in enumerate(ends)})
    heights = drawn_heights(ax)
    assert sorted(heights) == [f"line {i}" for i in range(len(ends))]
    in_order = sorted(heights.values())
    assert all(above - below > 8.5 for below, above in pairwise(in_order))
    # They stay in the order of the lines' ends.
    names = sorted(heights, key=heights.__getitem__)
    assert [ends[int(name[-1])] for name in names] == sorted(ends)


def test_a_name_stands_beside_its_end_where_there_is_room() -> None:
    ax = plots.curves([0, 1], {"low": [0.0, 0.0], "high": [0.0, 10.0]})
    assert [text.xyann for text in ax.texts] == [(4, 0), (4, 0)]  # type: ignore[attr-defined]


def test_matching_draws_a_strong_line_for_each_pair_and_a_faint_one_for_the_rest() -> None:
    cost = torch.tensor([[1.0, -0.5], [2.0, 3.25], [0.0, 9.0]])
    ax = plots.matching(cost, [(2, 0), (0, 1)], ["a", "b", "c"], ["star", "ring"])
    lines = [line for line in ax.lines if len(line.get_xydata()) == 2]  # type: ignore[arg-type]
    strong = [line for line in lines if line.get_linewidth() > 2]
    assert len(strong) == 2
    assert len(lines) - len(strong) == 4
    assert {line.get_color() for line in strong} == set(colours_of(["star", "ring"]).values())
    texts = [text.get_text() for text in ax.texts]
    assert texts == ["0", "−0.50", "a", "b", "c", "star", "ring"]


def test_precision_recall_shows_every_detection() -> None:
    levels = torch.arange(101) / 100
    ax = plots.precision_recall([0.5, 1.0], [1.0, 0.8], levels, torch.where(levels > 0.5, 0.8, 1.0), "t")
    assert [len(line.get_xydata()) for line in ax.lines] == [2, 101]  # type: ignore[arg-type]


def test_scatter_has_a_colour_for_each_group_and_its_names_beside_the_data() -> None:
    groups = {
        "left": (torch.tensor([0.0, 4.0]), torch.tensor([1.0, 2.0])),
        "taken": (torch.tensor([2]), torch.tensor([3])),
    }
    ax = plots.scatter(groups, "t", "how sure", "IoU", equal=True)
    assert [line.get_xydata().tolist() for line in ax.lines] == [[[0, 1], [4, 2]], [[2, 3]]]  # type: ignore[union-attr]
    assert [line.get_color() for line in ax.lines] == list(plots.COLOURS[:2])
    assert (ax.get_title("left"), ax.get_xlabel(), ax.get_ylabel()) == ("t", "how sure", "IoU")
    assert ax.get_aspect() == 1
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["left", "taken"]
    assert isinstance(ax.figure, Figure)
    ax.figure.canvas.draw()
    assert legend.get_window_extent().x0 > ax.get_window_extent().x1
    assert legend.get_window_extent().x1 < ax.figure.bbox.x1


def test_query_centres_has_a_map_for_each_query_and_a_dot_for_each_box() -> None:
    boxes = torch.rand(6, 5, 4)
    figure = detection.query_centres(boxes)
    maps = [ax for ax in figure.axes if ax.axison]
    assert len(maps) == 5
    for query, ax in enumerate(maps):
        dots = torch.cat([torch.as_tensor(line.get_xydata()) for line in ax.lines])
        torch.testing.assert_close(dots.sort(0).values, boxes[:, query, :2].double().sort(0).values)


def test_the_name_of_a_head_stands_beyond_the_end_of_its_arm() -> None:
    steps = torch.tensor([[2.0, 0], [2, 2], [0, 2], [-2, 2], [-2, 0], [-2, -2], [0, -2], [2, -2]])  # (M, 2)
    ax = detection.offsets(torch.stack((steps / 2, steps), dim=1), reach=5)
    assert isinstance(ax.figure, Figure)
    ax.figure.canvas.draw()
    assert [text.get_text() for text in ax.texts] == [f"head {m}" for m in range(8)]
    for text, (x, y) in zip(ax.texts, steps.tolist()):
        name, end = text.get_window_extent(), ax.transData.transform((x, y))
        assert not any(name.overlaps(line.get_window_extent()) for line in ax.lines)
        assert abs(name.x0 + name.width / 2 - end[0]) < 2 if x == 0 else (name.x0 > end[0]) == (x > 0)
        assert abs(name.y0 + name.height / 2 - end[1]) < 4 if y == 0 else (name.y0 < end[1]) == (y > 0)


def test_boxes_of_a_class_have_one_colour() -> None:
    picture = torch.zeros(3, 8, 8)
    first = detection.boxes(picture, [[0, 0, 4, 4], [1, 1, 5, 5]], ["star", "ring"])
    second = detection.boxes(picture, [[2, 2, 6, 6]], ["star"])
    assert first.patches[0].get_edgecolor() == second.patches[0].get_edgecolor()
    assert first.patches[0].get_edgecolor() != first.patches[1].get_edgecolor()


def test_grouped_bars_keep_a_colour_for_each_name() -> None:
    ax = plots.grouped_bars({"one": {"a": 1.0, "b": 3.0}, "two": {"b": 2.0}}, "title", line=1.0)
    bars = [bar for container in ax.containers for bar in container]
    assert [bar.get_width() for bar in bars] == [1.0, 3.0, 2.0]
    assert bars[1].get_facecolor() == bars[2].get_facecolor() != bars[0].get_facecolor()
    assert [text.get_text() for text in ax.texts] == ["1.00 a", "3.00 b", "2.00 b"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["one", "two"]


def test_diagram_draws_every_block_and_arrow() -> None:
    blocks = {"a": (0.0, 0.0, "first"), "b": (1.0, 0.0, "the second,\nwhich is wider"), "c": (1.0, 1.0, "third")}
    ax = plots.diagram(blocks, [("a", "b", "(B, N, d)"), ("b", "c", "")], data=["a"])
    places = {text.get_text(): text.get_position() for text in ax.texts if text.get_text()}
    assert places.pop("(B, N, d)") == (0, 3)  # points above the middle of the arrow
    assert places == {"first": (0, 0), "the second,\nwhich is wider": (1, 0), "third": (1, 1)}
    arrows = [text for text in ax.texts if isinstance(text, Annotation) and text.arrow_patch is not None]
    assert [(tuple(arrow.xyann), tuple(arrow.xy)) for arrow in arrows] == [((0, 0), (1, 0)), ((1, 0), (1, 1))]
    assert ax.get_ylim() == (1.5, -0.5)  # row 0 is on top
    patches = {text.get_text(): text.get_bbox_patch() for text in ax.texts}
    framed = {name for name, patch in patches.items() if patch and mcolors.to_rgba(patch.get_edgecolor())[3] > 0}
    assert framed == {"the second,\nwhich is wider", "third"}
    first, second, _, _, shape, *_ = drawn_labels(
        ax
    )  # the shape's label stands in the middle of what is seen of the arrow
    assert shape.x0 + shape.x1 == pytest.approx(first.x1 + second.x0, abs=2)


def test_diagram_refuses_an_arrow_to_nowhere() -> None:
    with pytest.raises(ValueError, match=r"\['c'\], but the blocks are \['a', 'b'\]"):
        plots.diagram({"a": (0, 0, "a"), "b": (1, 0, "b")}, [("a", "c", "")])


def drawn_labels(ax: Axes) -> list[Bbox]:
    """Where the words of the labels are, in pixels of the figure, once it is drawn."""
    assert isinstance(ax.figure, Figure)
    png(ax.figure)
    return [text.get_window_extent() for text in ax.texts]


def test_labels_of_boxes_at_one_place_hide_none_of_each_other() -> None:
    picture = torch.zeros(3, 100, 200, dtype=torch.uint8)
    corners = [[20.0, 30, 90, 80], [22.0, 31, 90, 80], [19.0, 29, 88, 79], [150.0, 30, 190, 80], [50.0, 28, 90, 80]]
    ax = detection.boxes(picture, corners, ["cat", "cat", "dog", "owl", "hedgehog"], [0.8, 0.9, 0.7, 0.6, 0.5])
    places = drawn_labels(ax)
    assert not any(a.overlaps(b) for a, b in combinations(places, 2))
    for rank, corner in ((0, (22, 31)), (3, (150, 30))):  # the surest of them, and one that is far from the others
        beside = np.array(places[rank].min) - ax.transData.transform(corner)
        assert (abs(beside) < 4).all()  # just above the box's corner
    heap = detection.boxes(picture, [[20.0, 30, 90, 80]] * 50, ["cat"] * 50)
    within = heap.bbox.padded(1)
    assert all(within.contains(*place.min) and within.contains(*place.max) for place in drawn_labels(heap))


def test_labels_at_the_upper_border_stand_in_the_picture() -> None:
    ax = detection.boxes(torch.zeros(3, 90, 90), [[10, 1, 50, 40]], ["crescent"])
    (place,) = drawn_labels(ax)
    assert ax.bbox.y1 - 5 < place.y1 < ax.bbox.y1


def test_classes_of_one_picture_are_told_apart() -> None:
    alone = {name: colours_of([name])[name] for name in ("dog", "horse", "bear", "cat")}
    assert alone["dog"] == alone["horse"] == alone["bear"] != alone["cat"]  # which is what makes it worth a test
    together = colours_of(alone)
    assert len(set(together.values())) == 4
    assert together["cat"] == alone["cat"]
    assert together["bear"] == alone["bear"]  # the first by name keeps its own
    assert colours_of(reversed(list(alone))) == together
    many = colours_of(map(str, range(20)))
    assert set(many.values()) == set(COLOURS)


def test_each_kind_of_shape_has_one_colour_in_all_pictures() -> None:
    alone = {kind: colours_of([kind])[kind] for kind in KINDS}
    assert len(set(alone.values())) == len(KINDS)
    assert colours_of(KINDS) == alone


def test_boxes_take_colours_by_all_classes_where_there_are_few() -> None:
    classes = ["bear", "dog", "horse"]
    for given, wanted in ((classes, colours_of(classes)), ([], colours_of(["dog"]))):
        ax = detection.boxes(torch.zeros(3, 9, 9), [[1, 1, 5, 5]], ["dog"], classes=given)
        (box,) = (patch for patch in ax.patches if isinstance(patch, Rectangle))
        assert mcolors.to_hex(box.get_edgecolor()) == wanted["dog"].lower()
    assert colours_of(classes)["dog"] != colours_of(["dog"])["dog"]


def test_names_are_not_cut_off_where_the_picture_ends() -> None:
    drawn = detection.drawn_over(
        torch.zeros(3, 90, 90), [[80, 40, 90, 60], [5, 40, 30, 60]], ["crescent", "star"], [0.5, 0.4]
    )
    drawn.canvas.draw()
    assert [drawn.bbox.width, drawn.bbox.height] == pytest.approx([640, 640], abs=0.5)
    ends = [text.get_window_extent() for text in drawn.axes[0].texts]
    assert all(end.x0 >= 0 and end.x1 <= 641 for end in ends)
    assert ends[0].x1 > 630
    assert ends[1].x0 < 60  # the other one stays at its box


def test_names_end_where_the_picture_ends_in_figures_of_several_panels() -> None:
    for ax in panels(3)[1]:
        detection.boxes(torch.zeros(3, 90, 90), [[80, 40, 90, 60], [5, 40, 30, 60]], ["crescent", "star"], ax=ax)
        crescent, star = drawn_labels(ax)
        assert ax.bbox.x1 - 3 < crescent.x1 < ax.bbox.x1
        assert 0 < star.x0 - ax.transData.transform((5, 40))[0] < 3


def test_words_stand_out_from_the_ground_of_their_label() -> None:
    def luminance(colour: Any) -> float:
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in mcolors.to_rgb(colour))
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    for k in range(len(COLOURS)):
        ax = detection.boxes(torch.zeros(3, 9, 9), [[1, 1, 5, 5]], ["cat"], one_colour=k)
        dark, light = sorted((luminance(ax.texts[0].get_color()), luminance(COLOURS[k])))
        assert (light + 0.05) / (dark + 0.05) > 3  # what WCAG asks of large words


def test_a_title_set_outside_of_the_style_becomes_as_the_others() -> None:
    drawn, (one, other) = plots.panels(2)
    one.set(title="set in a notebook")
    plots.bars([1.0], ["a bar"], "set in the style", ax=other)
    plots.style.png(drawn)
    titles = [ax.get_title("left") for ax in (one, other)]
    assert titles == ["set in a notebook", "set in the style"]
    assert one.title.get_text() == ""


def test_titles_of_a_size_of_their_own_stay_and_pictures_have_nothing_around_them() -> None:
    ax = plots.panels(1)[1][0]
    ax.set_title("small", loc="center", fontsize=8, fontweight="normal")
    plots.style.png(ax)
    assert (ax.get_title("center"), ax.get_title("left")) == ("small", "")
    errors = PictureErrors(
        1, torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), [], torch.tensor([[8.0, 8, 40, 40]]),
        torch.tensor([0]), [0],
    )  # fmt: skip
    picture = picture_with_errors(torch.zeros(3, 64, 96, dtype=torch.uint8), errors, ["a class with a long name"], 2.0)
    width, height = (round(side * plots.style.DPI) for side in picture.get_size_inches())
    drawn = Image.open(io.BytesIO(plots.style.png(picture)))
    assert abs(drawn.width - width) <= 1
    assert abs(drawn.height - height) <= 1
    assert drawn.convert("RGB").getpixel((0, 0)) == (0, 0, 0)
