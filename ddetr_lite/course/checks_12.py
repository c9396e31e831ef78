"""The exercises of notebook 12: the least time, rows of a framed table, the sum of rows, and its gradient."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ddetr_lite.course.exercises import Case, Exercise, Mistake, normal
from ddetr_lite.kernels import cpu

# --- least_time_backward -------------------------------------------------------------------------------------------


def _least_time(
    value_shape: Sequence[int],
    locations_shape: Sequence[int],
    size: int,
    bandwidth: float,
    arithmetic: float,
    together: Callable[[float, float], float] = max,
    read: bool = True,
    written: bool = True,
    sum_size: int = 4,
    per_sample: int = 12,
    per_corner: int = 8,
    gather: bool = False,
    output: bool = True,
) -> float:
    batch, tokens, heads, channels = value_shape
    queries, levels, points = locations_shape[1], locations_shape[3], locations_shape[4]
    samples = batch * queries * heads * levels * points
    values, outputs = batch * tokens * heads * channels, batch * queries * heads * channels
    moved = 0
    if read:
        moved += (values + outputs * output) * size + samples * per_sample
    if written:
        moved += values * (sum_size or size) + samples * per_sample
    if gather:
        moved += 4 * samples * channels * size
    return together(moved / bandwidth, per_corner * samples * channels / arithmetic)


def _least_time_backward(
    value_shape: Sequence[int], locations_shape: Sequence[int], size: int, bandwidth: float, arithmetic: float
) -> float:
    return _least_time(value_shape, locations_shape, size, bandwidth, arithmetic)


def _add(first: float, second: float) -> float:
    return first + second


LEAST_TIME = Exercise(
    name="least_time_backward",
    notebook="12",
    task="The seconds below which the backward pass cannot be: the longer one of its traffic and its arithmetic.",
    reference=_least_time_backward,
    cases=lambda: [
        Case("9 cells, 3 queries, 5 channels, float32; 100 bytes and 1,000 multiply-adds a second",
             ((1, 9, 1, 5), (1, 3, 1, 1, 1, 2), 4, 100.0, 1000.0)),
        Case("the same with a slow unit for arithmetic", ((1, 9, 1, 5), (1, 3, 1, 1, 1, 2), 4, 100.0, 8.0)),
        Case("two pictures, values of 2 bytes", ((2, 340, 8, 32), (2, 50, 8, 4, 4, 2), 2, 1e6, 1e9)),
        Case("the same, bound by arithmetic", ((2, 340, 8, 32), (2, 50, 8, 4, 4, 2), 2, 1e9, 1e6)),
    ],
    hints=(
        "B, N, M, D = value_shape; samples = B · N_q · M · L · P. Four corners for each, D channels for each corner.",
        "Read: values and the gradient of the output (size bytes a number), locations and weights (3 numbers of 4 bytes a "
        "sample). Written: three gradients.",
        "The gradient of the values is summed in float32, so 4 bytes whatever size is. For each corner and channel two "
        "multiply-adds: one of the dot product, one of the sum. Then max.",
    ),
    mistakes=(
        Mistake("the two times are added; memory and arithmetic work at once, so the longer one is the bound",
                lambda v, l, s, b, a: _least_time(v, l, s, b, a, together=_add)),
        Mistake("the shorter of the two times is returned; both have to pass",
                lambda v, l, s, b, a: _least_time(v, l, s, b, a, together=min)),
        Mistake("only what is read is counted; three gradients are written as well",
                lambda v, l, s, b, a: _least_time(v, l, s, b, a, written=False)),
        Mistake("only what is written is counted; values, locations, weights and the output's gradient are read as well",
                lambda v, l, s, b, a: _least_time(v, l, s, b, a, read=False)),
        Mistake("the gradient of the values is counted with `size` bytes a number; it is summed in float32",
                lambda v, l, s, b, a: _least_time(v, l, s, b, a, sum_size=0)),
        Mistake("a sample has 8 bytes of location, and 4 of weight, too: 12 in all",
                lambda v, l, s, b, a: _least_time(v, l, s, b, a, per_sample=8)),
        Mistake("one multiply-add is counted for each corner and channel, as forward; backward has a dot product and a sum",
                lambda v, l, s, b, a: _least_time(v, l, s, b, a, per_corner=4)),
        Mistake("the output's gradient is not counted; it is read once, `size` bytes a number",
                lambda v, l, s, b, a: _least_time(v, l, s, b, a, output=False)),
        Mistake("a sample is taken for one multiply-add a channel and pass; it has four corners",
                lambda v, l, s, b, a: _least_time(v, l, s, b, a, per_corner=2)),
        Mistake("every corner is counted as read from memory; the bound lets a cache serve what was read before",
                lambda v, l, s, b, a: _least_time(v, l, s, b, a, gather=True)),
    ),
)  # fmt: skip

# --- corner_rows ---------------------------------------------------------------------------------------------------


def _rows(
    x: Tensor,
    y: Tensor,
    height: int,
    width: int,
    frame: int = 1,
    pitch: int = 2,
    rounding: Callable[[Tensor], Tensor] = torch.floor,
    clamped: bool = True,
    order: tuple[int, int, int, int] = (0, 1, 2, 3),
    far: int = 1,
) -> Tensor:
    column, row = rounding(x) + frame, rounding(y) + frame
    if clamped:
        column, row = column.clamp(0, width + far), row.clamp(0, height + far)
    line = width + pitch
    first = (row * line + column).long()
    corners = (first, first + 1, first + line, first + line + 1)
    return torch.stack([corners[i] for i in order], dim=-1)


def _corner_rows(x: Tensor, y: Tensor, height: int, width: int) -> Tensor:
    return _rows(x, y, height, width)


CORNERS = Exercise(
    name="corner_rows",
    notebook="12",
    task="The rows of the four cells around each place, in a table with a frame of one cell: (n, 4).",
    reference=_corner_rows,
    cases=lambda: [
        Case("two places on a map of 2 × 3 cells, both inside", (torch.tensor([0.25, 1.5]), torch.tensor([0.5, 0.0]), 2, 3)),
        Case("half outside", (torch.tensor([-0.5, 2.75, 1.0]), torch.tensor([0.25, 1.5, -0.25]), 2, 3)),
        Case("far outside, on all sides",
             (torch.tensor([-7.5, 9.25, 1.0, 2.0, 40.0]), torch.tensor([1.0, 2.0, -3.5, 8.0, 40.0]), 4, 5)),
        Case("many places on a map of 6 × 9 cells", (4 + 4 * normal(160, 40), 3 + 3 * normal(161, 40), 6, 9)),
    ],
    hints=(
        "With the frame, cell (row, column) of the map is cell (row + 1, column + 1) of a map of (H + 2) × (W + 2).",
        "column = (x.floor() + 1).clamp(0, width + 1), and row likewise: beyond the frame all is zero as well.",
        "first = row · (W + 2) + column; its neighbours are first + 1, first + (W + 2) and first + (W + 2) + 1.",
    ),
    mistakes=(
        Mistake("a line of the map is taken to be W cells long; with its frame it is W + 2",
                lambda x, y, h, w: _rows(x, y, h, w, pitch=0)),
        Mistake("the frame is forgotten: cell (0, 0) of the map is not row 0 of the table but row W + 3",
                lambda x, y, h, w: _rows(x, y, h, w, frame=0)),
        Mistake("places are rounded to the nearest cell; the upper left corner is the cell before, `floor`",
                lambda x, y, h, w: _rows(x, y, h, w, rounding=torch.round)),
        Mistake("`int` and `long` round towards zero, and so −0.5 to 0; it lies behind cell −1, `floor`",
                lambda x, y, h, w: _rows(x, y, h, w, rounding=torch.trunc)),
        Mistake("places far outside are not held at the frame: they become rows of other lines, or of none",
                lambda x, y, h, w: _rows(x, y, h, w, clamped=False)),
        Mistake("places are held inside of the map, so that a place outside reads the cells of its edge",
                lambda x, y, h, w: _rows(x.clamp(0, w - 1), y.clamp(0, h - 1), h, w)),
        Mistake("places beyond the right and lower edge are held at the last cell of the map, which is not zero",
                lambda x, y, h, w: _rows(x, y, h, w, far=0)),
        Mistake("x and y are swapped: x counts columns", lambda x, y, h, w: _rows(y, x, h, w)),
        Mistake("upper right and lower left have changed places",
                lambda x, y, h, w: _rows(x, y, h, w, order=(0, 2, 1, 3))),
    ),
)  # fmt: skip

# --- weighted_rows -------------------------------------------------------------------------------------------------


def _sum_rows(
    table: Tensor, rows: Tensor, shares: Tensor, layout: str = "row", mode: str = "sum", side_by_side: bool = True
) -> Tensor:
    heads = table.shape[1]
    head = torch.arange(heads)[:, None]
    at = {"row": rows * heads + head, "head": head * len(table) + rows, "none": rows}[layout]
    picked = table.flatten(0, 1)[at]  # (N_q, M, 4·L·P, D)
    result = {
        "sum": (shares[..., None] * picked).sum(2),
        "mean": (shares[..., None] * picked).mean(2),
        "plain": picked.sum(2),
        "normed": (shares[..., None] * picked).sum(2) / shares.sum(2)[..., None],
    }[mode]  # (N_q, M, D)
    return result.flatten(1) if side_by_side else result.transpose(1, 2).flatten(1)


def _weighted_rows(table: Tensor, rows: Tensor, shares: Tensor) -> Tensor:
    heads, channels = table.shape[1:]
    bags = (rows * heads + torch.arange(heads)[:, None]).flatten(0, 1)  # (N_q·M, 4·L·P)
    output = F.embedding_bag(bags, table.flatten(0, 1), per_sample_weights=shares.flatten(0, 1), mode="sum")
    return output.view(len(rows), heads * channels)


def _table_case(what: str, seed: int, rows: int, heads: int, channels: int, queries: int, each: int) -> Case:
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randint(rows, (queries, heads, each), generator=generator)
    shares = normal(seed + 1, queries, heads, each).sigmoid()
    return Case(what, (normal(seed + 2, rows, heads, channels), picked, shares))


ROWS = Exercise(
    name="weighted_rows",
    notebook="12",
    task="For each query and head the sum of rows of its own head, each times its share; heads side by side: (N_q, M·D).",
    reference=_weighted_rows,
    cases=lambda: [
        _table_case("2 queries, 2 heads, 3 rows each of a table of 5", 170, 5, 2, 2, 2, 3),
        _table_case("7 queries, 4 heads, 8 rows each of a table of 30", 173, 30, 4, 6, 7, 8),
        _table_case("one head", 176, 9, 1, 4, 3, 4),
    ],
    hints=(
        "table.flatten(0, 1) is (R·M, D): row r of head m has become row r · M + m.",
        "bags = (rows * M + torch.arange(M)[:, None]).flatten(0, 1): a bag for each query and head, (N_q·M, 4·L·P).",
        'F.embedding_bag(bags, flat_table, per_sample_weights=shares.flatten(0, 1), mode="sum") is (N_q·M, D); then view.',
    ),
    differentiable=True,
    mistakes=(
        Mistake("row r is looked up in the flat table; there it is row r · M + m for head m",
                lambda t, r, s: _sum_rows(t, r, s, layout="none")),
        Mistake("row r of head m is sought at m · R + r; the heads of a row lie side by side, so it is at r · M + m",
                lambda t, r, s: _sum_rows(t, r, s, layout="head")),
        Mistake('the mean of the rows is taken, embedding_bag\'s default; ask for mode="sum"',
                lambda t, r, s: _sum_rows(t, r, s, mode="mean")),
        Mistake("the shares are left out: every row counts once", lambda t, r, s: _sum_rows(t, r, s, mode="plain")),
        Mistake("the shares are made to sum to one; near the edge of a map they need not, and here they do not",
                lambda t, r, s: _sum_rows(t, r, s, mode="normed")),
        Mistake("the heads are interleaved; head 0 gives the first D channels",
                lambda t, r, s: _sum_rows(t, r, s, side_by_side=False)),
    ),
)  # fmt: skip

# --- value_gradient ------------------------------------------------------------------------------------------------


def _value_gradient(grad: Tensor, rows: Tensor, shares: Tensor, table_rows: int) -> Tensor:
    each = (shares[..., None] * grad[:, None]).flatten(0, 1)  # (bags·4·L·P, D)
    return grad.new_zeros(table_rows, grad.shape[1]).index_add(0, rows.flatten(), each)


def _last_wins(grad: Tensor, rows: Tensor, shares: Tensor, table_rows: int) -> Tensor:
    result = grad.new_zeros(table_rows, grad.shape[1])
    for row, each in zip(rows.flatten().tolist(), (shares[..., None] * grad[:, None]).flatten(0, 1)):
        result[row] = each
    return result


def _repeated_as_a_block(grad: Tensor, rows: Tensor, shares: Tensor, table_rows: int) -> Tensor:
    each = shares.flatten()[:, None] * grad.repeat(rows.shape[1], 1)
    return grad.new_zeros(table_rows, grad.shape[1]).index_add(0, rows.flatten(), each)


def _gradient_mean(grad: Tensor, rows: Tensor, shares: Tensor, table_rows: int) -> Tensor:
    count = torch.bincount(rows.flatten(), minlength=table_rows).clamp(min=1)
    return _value_gradient(grad, rows, shares, table_rows) / count[:, None]


def _gradient_case(what: str, seed: int, table_rows: int, bags: int, each: int, channels: int) -> Case:
    rows = torch.randint(table_rows, (bags, each), generator=torch.Generator().manual_seed(seed))
    return Case(what, (normal(seed + 1, bags, channels), rows, normal(seed + 2, bags, each).sigmoid(), table_rows))


def _plug_gradient(function: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The package hands over the table, with an axis each for pictures, queries, heads and corners."""

    def adapted(grad_bags: Tensor, table: Tensor, corners: Tensor, shares: Tensor) -> Tensor:
        rows = corners.flatten(0, 2).flatten(1).long()
        each = shares.flatten(0, 2).flatten(1)
        return function(grad_bags, rows, each, table.numel() // table.shape[-1]).view_as(table)

    return adapted


GRADIENT = Exercise(
    name="value_gradient",
    notebook="12",
    task="Every row of the table gets, from each bag that took it, its share of the bag's gradient; rows met twice, the sum.",
    reference=_value_gradient,
    cases=lambda: [
        Case("two bags of two rows, of a table of 4; row 1 is in both",
             (torch.tensor([[1.0, 2.0], [10.0, 20.0]]), torch.tensor([[0, 1], [1, 3]]),
              torch.tensor([[0.75, 0.25], [0.5, 0.5]]), 4)),
        _gradient_case("nine bags of four rows, of a table of 7", 180, 7, 9, 4, 3),
        _gradient_case("more rows than are used", 183, 40, 3, 8, 5),
    ],
    part=cpu._grad_table,
    adapt=_plug_gradient,
    hints=(
        "shares[..., None] * grad[:, None] is (bags, 4·L·P, D): what each bag gives to each of its rows.",
        "torch.zeros(R, D).index_add(0, rows.flatten(), given.flatten(0, 1)) adds each to its row.",
        "`result[rows] += given` is no sum: of several that go to one row, one is kept.",
    ),
    mistakes=(
        Mistake("a row that several bags took keeps one of their gradients, as `result[rows] += ...` does; index_add sums them",
                _last_wins),
        Mistake("the shares are left out", lambda g, r, s, n: _value_gradient(g, r, torch.ones_like(s), n)),
        Mistake("each row gets the mean of what its bags give; the gradient is the sum", _gradient_mean),
        Mistake("the bags' gradients are repeated as a block (`repeat`); each must stand several times in a row "
                "(`repeat_interleave`)", _repeated_as_a_block),
        Mistake("the sum is thrown away: index_add returns a new tensor; index_add_ changes its own",
                lambda g, r, s, n: g.new_zeros(n, g.shape[1])),
        Mistake("only the first row of each bag gets its gradient",
                lambda g, r, s, n: _value_gradient(g, r[:, :1], s[:, :1], n)),
    ),
)  # fmt: skip

EXERCISES = (LEAST_TIME, CORNERS, ROWS, GRADIENT)
