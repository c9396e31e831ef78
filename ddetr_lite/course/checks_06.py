"""The exercises of notebook 06: from map to tokens, padding on the map, DETR's own order of steps, and detections."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ddetr_lite import batching
from ddetr_lite.course.exercises import Case, Exercise, Mistake, normal, padding
from ddetr_lite.set_prediction import boxes as package_boxes
from ddetr_lite.set_prediction import postprocess as package_postprocess

# The package's own, also while a learner's are plugged in.
_to_corners, _clip = package_boxes.cxcywh_to_xyxy, package_boxes.clip_to_picture
_original = package_postprocess.postprocess

Step = Callable[..., Tensor]

# --- flatten_map: (B, d, H, W) → (B, N, d) ----------------------------------------------------------------------


def _flatten(feature: Tensor) -> Tensor:
    return feature.flatten(2).transpose(1, 2)


def _map_cases() -> list[Case]:
    return [
        Case("one map of 2 × 3 cells, two channels", (torch.arange(12.0).reshape(1, 2, 2, 3),)),
        Case("two maps of 4 × 5 cells, six channels", (normal(90, 2, 6, 4, 5),)),
        Case("three maps of 3 × 3 cells, nine channels", (normal(91, 3, 9, 3, 3),)),
    ]


def _plug_flatten(function: Callable[[Tensor], Tensor]) -> Callable[[Sequence[Tensor]], Tensor]:
    """The package flattens a list of maps, and puts one behind the other."""
    return lambda maps: torch.cat([function(m) for m in maps], dim=1)


FLATTEN_MAP = Exercise(
    name="flatten_map",
    notebook="06",
    task="Turn a feature map (B, d, H, W) into tokens (B, H·W, d), row by row.",
    reference=_flatten,
    cases=_map_cases,
    differentiable=True,
    part=batching.flatten_levels,
    adapt=_plug_flatten,
    hints=(
        "feature.flatten(2) joins everything from dimension 2 on: (B, d, H·W), row by row.",
        "The channels have to go last: transpose(1, 2).",
    ),
    mistakes=(
        Mistake(
            "the numbers are only cut anew (reshape or view); a token then holds neighbouring cells of one channel. "
            "Move the channels to the end: transpose",
            lambda f: f.reshape(f.shape[0], -1, f.shape[1]),
        ),
        Mistake(
            "the cells come column by column; they should come row by row",
            lambda f: f.transpose(2, 3).flatten(2).transpose(1, 2),
        ),
        Mistake("the channels are not last: (B, H·W, d) is wanted", lambda f: f.flatten(2)),
        Mistake(
            "tokens come first and pictures second, as in the official code; here pictures come first",
            lambda f: f.flatten(2).permute(2, 0, 1),
        ),
    ),
)

# --- mask_for: padding, seen by the cells of a map --------------------------------------------------------------


def _mask_for(mask: Tensor, shape: tuple[int, int]) -> Tensor:
    rows = torch.arange(shape[0]) * mask.shape[1] // shape[0]
    columns = torch.arange(shape[1]) * mask.shape[2] // shape[1]
    return mask[:, rows][:, :, columns]


def _pooled(mask: Tensor, shape: tuple[int, int]) -> Tensor:
    return F.adaptive_max_pool2d(mask[:, None].float(), shape)[:, 0].bool()


def _blended(mask: Tensor, shape: tuple[int, int]) -> Tensor:
    return F.interpolate(mask[:, None].float(), size=shape, mode="bilinear")[:, 0] > 0


def _mask_cases() -> list[Case]:
    return [
        Case("a picture of 4 × 6 pixels in a frame of 8 × 8, seen by 2 × 4 cells", (padding(8, 8, (4, 6)), (2, 4))),
        Case("two pictures in a frame of 32 × 48", (padding(32, 48, (32, 21), (19, 48)), (4, 6))),
        Case("a low picture in a frame of 32 × 48", (padding(32, 48, (11, 48)), (4, 6))),
        Case("a map whose sides do not divide the frame", (padding(10, 15, (7, 15), (10, 8)), (3, 4))),
        Case("another, of 3 × 4 cells in a frame of 11 × 15", (padding(11, 15, (7, 15), (11, 10)), (3, 4))),
    ]


MASK_FOR = Exercise(
    name="mask_for",
    notebook="06",
    task="For each cell of a map, whether it lies on padding: the mask at the cell's first pixel, row i·H//h, column j·W//w.",
    reference=_mask_for,
    cases=_mask_cases,
    part=batching.mask_for,
    hints=(
        "torch.arange(h) * H // h gives the row of pixels that each row of cells looks at.",
        "mask[:, rows][:, :, columns] picks rows, then columns. It stays boolean.",
    ),
    mistakes=(
        Mistake(
            "the mask is inverted: True means padding here (Hugging Face's pixel_mask is 1 where the picture is)",
            lambda m, s: ~_mask_for(m, s),
        ),
        Mistake("height and width are swapped: the shape is (h, w)", lambda m, s: _mask_for(m, (s[1], s[0]))),
        Mistake(
            "a cell counts as padding if any of its pixels is; here its first pixel decides",
            _pooled,
        ),
        Mistake(
            "the division comes first: i · (H // h) loses the fraction at each cell, i · H // h once",
            lambda m, s: m[:, torch.arange(s[0]) * (m.shape[1] // s[0])][
                :, :, torch.arange(s[1]) * (m.shape[2] // s[1])
            ],
        ),
        Mistake("the mask is blended between cells; take the nearest pixel", _blended),
        Mistake(
            "rows and columns are spread from the first to the last pixel; a cell looks at its first one, row i · H // h",
            lambda m, s: m[:, torch.linspace(0, m.shape[1] - 1, s[0]).long()][
                :, :, torch.linspace(0, m.shape[2] - 1, s[1]).long()
            ],
        ),
        Mistake(
            "i · H / h is rounded to the nearest row; it should be cut, i · H // h",
            lambda m, s: m[:, (torch.arange(s[0]) * m.shape[1] / s[0]).round().long()][
                :, :, (torch.arange(s[1]) * m.shape[2] / s[1]).round().long()
            ],
        ),
        Mistake("the result holds numbers; a mask is boolean", lambda m, s: _mask_for(m, s).float()),
    ),
)

# --- detr_head: the order of steps ------------------------------------------------------------------------------


def _head(
    tokens: Tensor, position: Tensor, queries: Tensor, encode: Step, decode: Step, class_head: Step, box_head: Step
) -> Tensor:
    memory = encode(tokens, position)
    hidden = decode(torch.zeros_like(queries), memory, queries, position)
    return torch.cat((class_head(hidden), box_head(hidden).sigmoid()), dim=-1)


def _encode(x: Tensor, position: Tensor) -> Tensor:
    return x + ((x + position).cumsum(0) / 2).tanh()


def _decode(x: Tensor, memory: Tensor, query_position: Tensor, position: Tensor) -> Tensor:
    weights = ((x + query_position) @ (memory + position).T).softmax(-1)
    return x + weights @ memory + query_position.square().mean(-1, keepdim=True)


def _three(x: Tensor) -> Tensor:
    return torch.stack((x.sum(-1), x[..., 0] * 2, -x[..., 1]), dim=-1)


def _four(x: Tensor) -> Tensor:
    return torch.stack((x[..., 0], x[..., 1] - 1, x.mean(-1), x[..., -1] * 2), dim=-1)


def _head_cases() -> list[Case]:
    steps = (_encode, _decode, _three, _four)
    return [
        Case("three tokens, two queries", (normal(92, 3, 2), normal(93, 3, 2), normal(94, 2, 2), *steps)),
        Case("six tokens, four queries", (normal(95, 6, 4), normal(96, 6, 4), normal(97, 4, 4), *steps)),
        Case("more queries than tokens", (normal(98, 2, 4), normal(99, 2, 4), normal(100, 5, 4), *steps)),
    ]


def _both(logits: Tensor, boxes: Tensor) -> Tensor:
    return torch.cat((logits, boxes), dim=-1)


def _answers(hidden: Tensor, class_head: Step, box_head: Step) -> Tensor:
    return _both(class_head(hidden), box_head(hidden).sigmoid())


DETR_HEAD = Exercise(
    name="detr_head",
    notebook="06",
    task="Encode the tokens; decode, with zeros as content and the queries as position; logits and sigmoid boxes side by side.",
    reference=_head,
    cases=_head_cases,
    hints=(
        "memory = encode(tokens, position). The decoder's content starts as torch.zeros_like(queries).",
        "hidden = decode(content, memory, queries, position): both sides have a position.",
        "torch.cat((class_head(hidden), box_head(hidden).sigmoid()), dim=-1): only the boxes go through the sigmoid.",
    ),
    mistakes=(
        Mistake(
            "the content starts with the queries; in DETR it starts at zero, and the queries are its position",
            lambda t, p, q, e, d, c, b: _answers(d(q, e(t, p), q, p), c, b),
        ),
        Mistake(
            "the queries are given as content, and their position is zero: it is the other way round",
            lambda t, p, q, e, d, c, b: _answers(d(q, e(t, p), torch.zeros_like(q), p), c, b),
        ),
        Mistake(
            "the decoder looks at the tokens; it should look at the encoder's memory",
            lambda t, p, q, e, d, c, b: _answers(d(torch.zeros_like(q), t, q, p), c, b),
        ),
        Mistake(
            "the position is added to the tokens before the encoder; encode adds it where it belongs, to queries and keys",
            lambda t, p, q, e, d, c, b: _answers(d(torch.zeros_like(q), e(t + p, p), q, p), c, b),
        ),
        Mistake(
            "the decoder is not told where the memory's cells are: give it their position",
            lambda t, p, q, e, d, c, b: _answers(d(torch.zeros_like(q), e(t, p), q, torch.zeros_like(p)), c, b),
        ),
        Mistake(
            "the boxes do not go through the sigmoid: they have to lie in 0..1",
            lambda t, p, q, e, d, c, b: _both(c(h := d(torch.zeros_like(q), e(t, p), q, p)), b(h)),
        ),
        Mistake(
            "the logits go through the sigmoid; DETR's loss takes a softmax of the logits themselves",
            lambda t, p, q, e, d, c, b: _head(t, p, q, e, d, lambda h: c(h).sigmoid(), b),
        ),
        Mistake(
            "the logits go through the softmax; DETR's loss takes it of the logits itself",
            lambda t, p, q, e, d, c, b: _head(t, p, q, e, d, lambda h: c(h).softmax(-1), b),
        ),
    ),
)

# --- detections: what the user gets -----------------------------------------------------------------------------


def _detections(logits: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    return _rows(logits.softmax(-1)[:, :-1], _to_corners(boxes), (width, height, width, height))


def _rows(probabilities: Tensor, corners: Tensor, scale: tuple[int, int, int, int]) -> Tensor:
    scores, labels = probabilities.max(-1)
    return torch.cat((corners * corners.new_tensor(scale), scores[:, None], labels[:, None]), dim=1)


def _detection_cases() -> list[Case]:
    logits = torch.tensor([[0.0, 2, 1], [1.5, 0, 3]])
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.2], [0.25, 0.5, 0.1, 0.3]])
    return [
        Case("two queries, two classes, 100 × 200 pixels", (logits, boxes, 100, 200)),
        Case("six queries, four classes, 60 × 40 pixels", (3 * normal(101, 6, 5), normal(102, 6, 4).sigmoid(), 60, 40)),
        Case("a square picture", (2 * normal(103, 3, 4), normal(104, 3, 4).sigmoid(), 96, 96)),
    ]


def _plug_detections(function: Step) -> Callable[..., list[dict[str, Tensor]]]:
    """The learner's rows, sorted and clipped as the package's are; focal loss is not asked of it."""

    def adapted(
        logits: Tensor,
        boxes: Tensor,
        sizes: Sequence[tuple[int, int]],
        kind: Literal["softmax", "focal"],
        top: int = 100,
    ) -> list[dict[str, Tensor]]:
        if kind != "softmax":
            return _original(logits, boxes, sizes, kind, top)
        result: list[dict[str, Any]] = []
        for own_logits, own_boxes, (height, width) in zip(logits.float(), boxes.float(), sizes, strict=True):
            rows = function(own_logits, own_boxes, height, width)
            rows = rows[rows[:, 4].argsort(descending=True)]
            corners = _clip(rows[:, :4], height, width)
            result.append({"boxes": corners, "scores": rows[:, 4], "labels": rows[:, 5].long()})
        return result

    return adapted


DETECTIONS = Exercise(
    name="detections",
    notebook="06",
    task='For each query x0, y0, x1, y1 in pixels, the probability of its best class ("no object" left out), and that class.',
    reference=_detections,
    cases=_detection_cases,
    part=_original,
    adapt=_plug_detections,
    hints=(
        'logits.softmax(-1)[:, :-1] are the probabilities without "no object"; .max(-1) gives the best and which it is.',
        "x goes with the width, y with the height: corners * torch.tensor([width, height, width, height]).",
        "torch.cat((corners, scores[:, None], labels[:, None]), dim=1) makes (N_q, 6).",
    ),
    mistakes=(
        Mistake(
            '"no object" is among the classes: a silent query would count as a sure detection. Leave the last column out',
            lambda x, b, h, w: _rows(x.softmax(-1), _to_corners(b), (w, h, w, h)),
        ),
        Mistake(
            'the softmax is taken without "no object": then every query is sure of something. First softmax, then drop it',
            lambda x, b, h, w: _rows(x[:, :-1].softmax(-1), _to_corners(b), (w, h, w, h)),
        ),
        Mistake(
            "the softmax runs over the queries (dim 0); it belongs to each query's own classes, the last dimension",
            lambda x, b, h, w: _rows(x.softmax(0)[:, :-1], _to_corners(b), (w, h, w, h)),
        ),
        Mistake(
            "scores come from a sigmoid; DETR was trained with a softmax",
            lambda x, b, h, w: _rows(x.sigmoid()[:, :-1], _to_corners(b), (w, h, w, h)),
        ),
        Mistake(
            "height and width are swapped: x goes with the width",
            lambda x, b, h, w: _rows(x.softmax(-1)[:, :-1], _to_corners(b), (h, w, h, w)),
        ),
        Mistake(
            "the boxes are still (cx, cy, w, h); corners are asked for",
            lambda x, b, h, w: _rows(x.softmax(-1)[:, :-1], b, (w, h, w, h)),
        ),
        Mistake(
            "the boxes are still in 0..1; pixels are asked for",
            lambda x, b, h, w: _rows(x.softmax(-1)[:, :-1], _to_corners(b), (1, 1, 1, 1)),
        ),
    ),
)


EXERCISES = (FLATTEN_MAP, MASK_FOR, DETR_HEAD, DETECTIONS)
