"""The exercises of notebook 13: attention that knows a box's size, noised labels, the mask of denoising, noise of two sizes."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddetr_lite.course.exercises import Case, Exercise, Mistake, normal
from ddetr_lite.set_prediction.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh

# --- modulated_scores ----------------------------------------------------------------------------------------------


def _scores(
    query: Tensor,
    key: Tensor,
    factors: Tensor,
    x_first: bool = False,
    channels: float = 1.0,
) -> Tensor:
    """factors: (N_q, 2), of the products of x and of y."""
    half = query.shape[-1] // 2
    first, second = (q @ k.T for q, k in zip(query.split(half, -1), key.split(half, -1), strict=True))  # (N_q, N) each
    across, down = (first, second) if x_first else (second, first)
    total = across * factors[:, :1] + down * factors[:, 1:]
    return total / (query.shape[-1] * channels) ** 0.5


def _modulated_scores(query: Tensor, key: Tensor, size: Tensor, wanted: Tensor) -> Tensor:
    return _scores(query, key, wanted / size)


def _one_factor(query: Tensor, key: Tensor, size: Tensor, wanted: Tensor) -> Tensor:
    return _scores(query, key, (wanted / size).prod(-1, keepdim=True).expand(-1, 2))


def _modulated_case(what: str, seed: int, queries: int, tokens: int, dim: int) -> Case:
    sizes = [0.1 + 0.8 * normal(seed + i, queries, 2).sigmoid() for i in (2, 3)]
    return Case(what, (normal(seed, queries, dim), normal(seed + 1, tokens, dim), *sizes))


MODULATED = Exercise(
    name="modulated_scores",
    notebook="13",
    task="(y · y × h_ref / h  +  x · x × w_ref / w) / √d, for codes whose first half is y and whose second is x.",
    reference=_modulated_scores,
    cases=lambda: [
        Case("one query, two tokens, four channels",
             (torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.5, 1.0, 2.0, 0.0]]),
              torch.tensor([[0.8, 0.2]]), torch.tensor([[0.4, 0.5]]))),
        _modulated_case("three queries, five tokens", 210, 3, 5, 8),
        _modulated_case("seven queries, twelve tokens", 220, 7, 12, 32),
    ],
    differentiable=True,
    hints=(
        "y, x = query.chunk(2, dim=-1), and the same of the keys; y @ key_y.T is (N_q, N).",
        "w, h = size.unbind(-1) are (N_q,) each; as w[:, None] they stand beside a row of scores.",
        "(y @ key_y.T * (h_ref / h)[:, None] + x @ key_x.T * (w_ref / w)[:, None]) / query.shape[-1] ** 0.5",
    ),
    mistakes=(
        Mistake("width and height have changed places: the first half of a code is y, which goes with the height",
                lambda q, k, s, w: _scores(q, k, w / s, x_first=True)),
        Mistake("the ratio is upside down, so that a wide box looks narrowly: w_ref / w, the box's own size is below",
                lambda q, k, s, w: _scores(q, k, s / w)),
        Mistake("the scores are not divided by √d", lambda q, k, s, w: _scores(q, k, w / s) * q.shape[-1] ** 0.5),
        Mistake("the scores are divided by √(d/2); a code has d channels, both halves together",
                lambda q, k, s, w: _scores(q, k, w / s, channels=0.5)),
        Mistake("both halves have one factor, that of the area; a wide box and a tall one then look alike", _one_factor),
        Mistake("the sizes are not used: this is the plain position score",
                lambda q, k, s, w: _scores(q, k, torch.ones_like(s))),
        Mistake("only the box's own size is used; the size that the query asks for, `wanted`, stands above it",
                lambda q, k, s, w: _scores(q, k, 1 / s)),
        Mistake("the softmax is taken already; scores are asked for",
                lambda q, k, s, w: _scores(q, k, w / s).softmax(-1)),
    ),
)  # fmt: skip

# --- noised_labels -------------------------------------------------------------------------------------------------


def _noised_labels(labels: Tensor, chance: Tensor, step: Tensor, share: float, classes: int) -> Tensor:
    return torch.where(chance < share, (labels + step) % classes, labels)


LABELS = Exercise(
    name="noised_labels",
    notebook="13",
    task="Where chance < share the class that is `step` places farther round the C classes; elsewhere the label as it is.",
    reference=_noised_labels,
    cases=lambda: [
        Case("four labels of five classes, two of them change",
             (torch.tensor([1, 4, 2, 3]), torch.tensor([0.05, 0.1, 0.9, 0.6]), torch.tensor([2, 3, 1, 4]), 0.2, 5)),
        Case("eight classes, half of forty labels",
             (torch.arange(40) % 8, normal(230, 40).sigmoid(), torch.arange(40) % 7 + 1, 0.5, 8)),
        Case("nothing changes", (torch.tensor([1, 2]), torch.tensor([0.3, 0.0]), torch.tensor([1, 1]), 0.0, 3)),
    ],
    hints=(
        "chance < share is (T,), True where a label changes; torch.where chooses between two tensors.",
        "The new class is (labels + step) % classes: after the last class comes class 0.",
    ),
    mistakes=(
        Mistake("the wrong ones change: a label changes where its chance lies *below* the share",
                lambda y, c, s, a, n: torch.where(c < a, y, (y + s) % n)),
        Mistake("there are classes beyond the last: (labels + step) % classes, with the brackets",
                lambda y, c, s, a, n: torch.where(c < a, y + s, y)),
        Mistake("one class too many is counted; the classes are 0..C−1, so the remainder is that of C",
                lambda y, c, s, a, n: torch.where(c < a, (y + s) % (n + 1), y)),
        Mistake("the step itself is taken as the new class, and may be the true one again",
                lambda y, c, s, a, n: torch.where(c < a, s, y)),
        Mistake("every label changes, whatever its chance", lambda y, c, s, a, n: (y + s) % n),
        Mistake("labels that do not change are set to 0; they stay as they are",
                lambda y, c, s, a, n: (y + s) % n * (c < a)),
        Mistake("a chance that equals the share counts, too (`<=`); with `<` a share of 0 changes nothing",
                lambda y, c, s, a, n: torch.where(c <= a, (y + s) % n, y)),
    ),
)  # fmt: skip

# --- denoising_mask ------------------------------------------------------------------------------------------------


def _mask(
    queries: int, group: Tensor, both: bool = False, groups_meet: bool = False, ordinary_first: bool = True
) -> Tensor:
    """group: (hints,), from 1 on."""
    ordinary = torch.zeros(queries, dtype=group.dtype)
    of = torch.cat((ordinary, group) if ordinary_first else (group, ordinary))
    hidden = (of[None] > 0) & (of[:, None] == 0)  # from ordinary queries
    if not groups_meet:
        hidden |= (of[None] != of[:, None]) & (of[:, None] > 0) & (of[None] > 0)
    if both:
        hidden |= (of[None] == 0) & (of[:, None] > 0)
    return hidden


def _in_turn(groups: int, per_group: int) -> Tensor:
    return torch.arange(1, groups + 1).repeat_interleave(per_group)


def _denoising_mask(queries: int, groups: int, per_group: int) -> Tensor:
    return _mask(queries, _in_turn(groups, per_group))


MASK = Exercise(
    name="denoising_mask",
    notebook="13",
    task="(N_q + G·T, N_q + G·T), True where a row must not see a column: hints for queries, and for hints of other groups.",
    reference=_denoising_mask,
    cases=lambda: [
        Case("two queries, two groups of three hints", (2, 2, 3)),
        Case("five queries, three groups of two hints", (5, 3, 2)),
        Case("four queries, one group", (4, 1, 3)),
        Case("no query, two groups of one hint", (0, 2, 1)),
    ],
    hints=(
        "Give each a number: 0 for ordinary queries, 1 to G for hints: torch.arange(1, G + 1).repeat_interleave(T).",
        "group[:, None] belongs to the rows, those that look; group[None] to the columns.",
        "(group[None] > 0) & (group[:, None] != group[None]): a hint is hidden from all that are not of its group.",
    ),
    mistakes=(
        Mistake("the mask is inverted: True hides, as everywhere in this package", lambda n, g, t: ~_denoising_mask(n, g, t)),
        Mistake("rows and columns have changed places, so that queries see the hints, and with them the truth; rows look",
                lambda n, g, t: _denoising_mask(n, g, t).T),
        Mistake("groups of hints see one another; together their boxes nearly tell the true one",
                lambda n, g, t: _mask(n, _in_turn(g, t), groups_meet=True)),
        Mistake("ordinary queries are hidden from the hints, as the package's add_hints does; here, as in DN-DETR, they may "
                "be seen, for they know nothing of the truth",
                lambda n, g, t: _mask(n, _in_turn(g, t), both=True)),
        Mistake("the members of a group are every G-th hint (`repeat`); a group's hints follow one another "
                "(`repeat_interleave`)",
                lambda n, g, t: _mask(n, torch.arange(1, g + 1).repeat(t))),
        Mistake("each hint sees only itself; the hints of one group see each other, as the objects of a picture should",
                lambda n, g, t: _mask(n, torch.arange(1, g * t + 1))),
        Mistake("the hints stand before the queries; they are appended behind them",
                lambda n, g, t: _mask(n, _in_turn(g, t), ordinary_first=False)),
        Mistake("queries see the hints: only the groups are kept apart",
                lambda n, g, t: _mask(n, _in_turn(g, t)) & (torch.arange(n + g * t) >= n)[:, None]),
    ),
)  # fmt: skip

# --- contrastive_boxes ---------------------------------------------------------------------------------------------


def _noise(
    boxes: Tensor,
    sign: Tensor,
    part: Tensor,
    amount: float,
    farther: float = 1.0,
    reach: Callable[[Tensor], Tensor] = lambda size: size.repeat(1, 2) / 2,
    inside: bool = True,
    forth: bool = True,
    back: bool = True,
) -> Tensor:
    """sign, part: (2, T, 4); reach: from widths and heights (T, 2) to how far each of the four numbers may move, (T, 4)."""
    parts = torch.stack((part[0], part[1] + farther))
    corners = (cxcywh_to_xyxy(boxes) if forth else boxes) + sign * parts * reach(boxes[:, 2:]) * amount
    corners = corners.clamp(0, 1) if inside else corners
    return xyxy_to_cxcywh(corners) if back else corners


def _contrastive_boxes(boxes: Tensor, sign: Tensor, part: Tensor, amount: float) -> Tensor:
    return _noise(boxes, sign, part, amount)


def _noise_case(what: str, seed: int, count: int, amount: float) -> Case:
    boxes = torch.cat((normal(seed, count, 2).sigmoid(), 0.05 + 0.5 * normal(seed + 1, count, 2).sigmoid()), dim=-1)
    return Case(what, (boxes, normal(seed + 2, 2, count, 4).sign(), normal(seed + 3, 2, count, 4).sigmoid(), amount))


CONTRASTIVE = Exercise(
    name="contrastive_boxes",
    notebook="13",
    task="Boxes whose corners move by up to `amount` half sizes, and boxes whose corners move by one to two times that.",
    reference=_contrastive_boxes,
    cases=lambda: [
        Case("one box, every corner moves by half of what it may",
             (torch.tensor([[0.5, 0.4, 0.4, 0.2]]), torch.tensor([[[1.0, -1, 1, 1]], [[-1, 1, 1, -1]]]),
              torch.full((2, 1, 4), 0.5), 0.4)),
        _noise_case("five boxes, some at the picture's edge", 240, 5, 0.4),
        _noise_case("twelve boxes, less noise", 250, 12, 0.25),
    ],
    hints=(
        "Noise goes on corners: cxcywh_to_xyxy first, xyxy_to_cxcywh at the end, both in ddetr_lite.set_prediction.boxes.",
        "A corner's reach is (w/2, h/2, w/2, h/2) · amount: boxes[:, 2:].repeat(1, 2) / 2 * amount, (T, 4).",
        "part[1] + 1 lies in 1..2: the negative ones. torch.stack((part[0], part[1] + 1)) is (2, T, 4).",
    ),
    mistakes=(
        Mistake("negative boxes move no farther than positive ones: their part lies in 1..2, part[1] + 1",
                lambda b, s, p, a: _noise(b, s, p, a, farther=0.0)),
        Mistake("the *positive* boxes move farther; of the two rows of `part` the second gets the 1",
                lambda b, s, p, a: _noise(b, s, torch.stack((p[0] + 1, p[1] - 1)), a)),
        Mistake("the noise is a share of the picture, not of the box: small objects are lost",
                lambda b, s, p, a: _noise(b, s, p, a, reach=lambda size: torch.ones_like(size.repeat(1, 2)))),
        Mistake("the reach is the whole width and height; `amount` is a share of half of them",
                lambda b, s, p, a: _noise(b, s, p, a, reach=lambda size: size.repeat(1, 2))),
        Mistake("the noise is added to centre and size; it is meant for the corners: cxcywh_to_xyxy first",
                lambda b, s, p, a: _noise(b, s, p, a, forth=False, back=False)),
        Mistake("the reaches stand as (w, w, h, h); corners are (x0, y0, x1, y1), so (w, h, w, h): `repeat`",
                lambda b, s, p, a: _noise(b, s, p, a, reach=lambda size: size.repeat_interleave(2, dim=1) / 2)),
        Mistake("corners may leave the picture: clamp them to 0..1 before you go back to centre and size",
                lambda b, s, p, a: _noise(b, s, p, a, inside=False)),
        Mistake("these are corners; centre and size are asked for: xyxy_to_cxcywh at the end",
                lambda b, s, p, a: _noise(b, s, p, a, back=False)),
        Mistake("the signs are left out, so that all corners move to the right and down",
                lambda b, s, p, a: _noise(b, torch.ones_like(s), p, a)),
        Mistake("the negative boxes stand first; positive ones are row 0",
                lambda b, s, p, a: _noise(b, s, p, a).flip(0)),
        Mistake("both rows of noise have the 1 added; the part of positive boxes is `part[0]` as it is, in 0..1",
                lambda b, s, p, a: _noise(b, s, torch.stack((p[0] + 1, p[1])), a)),
    ),
)  # fmt: skip

EXERCISES = (MODULATED, LABELS, MASK, CONTRASTIVE)
