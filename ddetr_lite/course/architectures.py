"""The architectures of the course as block diagrams."""

from matplotlib.axes import Axes

from ddetr_lite.plots import diagram

Blocks = dict[str, tuple[float, float, str]]
Parts = tuple[Blocks, list[tuple[str, str, str]], set[str]]  # blocks, arrows, and which blocks are data

_TRANSFORMER: Parts = (
    {
        "tokens": (0, 0, "tokens"),
        "encode": (1.4, 0, "self-attention,\nadd, norm"),
        "think": (2.65, 0, "feed-forward,\nadd, norm"),
        "memory": (4.0, 0, "memory"),
        "written": (0, 1, "written so far"),
        "among": (1.85, 1, "self-attention\n(causal), add, norm"),
        "over": (4.0, 1, "cross-attention,\nadd, norm"),
        "decide": (5.3, 1, "feed-forward,\nadd, norm"),
        "next": (7.05, 1, "after each word,\nthe next"),
    },
    [
        ("tokens", "encode", "(B, N, d)"),
        ("encode", "think", ""),
        ("think", "memory", "(B, N, d)"),
        ("written", "among", "(B, N_q, d)"),
        ("among", "over", "queries"),
        ("memory", "over", "keys, values"),
        ("over", "decide", ""),
        ("decide", "next", "(B, N_q, d)"),
    ],
    {"tokens", "memory", "written", "next"},
)
_HEADS: Blocks = {
    "class": (5.85, 1.6, "class head"),
    "box": (5.85, 2.4, "box head"),
    "logits": (7.2, 1.6, "logits\n(K, B, N_q, C+1)"),
    "boxes": (7.2, 2.4, "boxes\n(K, B, N_q, 4)"),
}
_ANSWERS = [
    ("decoder", "class", ""),
    ("decoder", "box", ""),
    ("class", "logits", ""),
    ("box", "boxes", ""),
]
_DETR: Parts = (
    {
        "pixels": (0, 0, "pixels"),
        "backbone": (1.45, 0, "backbone"),
        "project": (2.95, 0, "1 × 1\nconvolution"),
        "encoder": (4.5, 0, "encoder"),
        "sines": (2.95, 1, "sines of\nthe cells"),
        "queries": (1.45, 2, "object queries"),
        "decoder": (4.5, 2, "decoder"),
        **_HEADS,
    },
    [
        ("pixels", "backbone", "(B, 3, H, W)"),
        ("backbone", "project", "a map"),
        ("project", "encoder", "(B, N, d)"),
        ("encoder", "decoder", "memory\n(B, N, d)"),
        ("sines", "encoder", ""),
        ("sines", "decoder", ""),
        ("queries", "decoder", "(B, N_q, d)"),
        *_ANSWERS,
    ],
    {"pixels", "sines", "queries", "logits", "boxes"},
)
_DEFORMABLE_DETR: Parts = (
    {
        "pixels": (0, 0, "pixels"),
        "backbone": (1.45, 0, "backbone"),
        "project": (2.95, 0, "1 × 1 conv.\non each of\nL maps"),
        "encoder": (4.5, 0, "encoder,\ndeformable"),
        "sines": (2.95, 0.85, "sines of the cells\n+ level embedding"),
        "queries": (1.45, 2, "object queries"),
        "reference": (2.5, 1.4, "reference points\n(B, N_q, 2)"),
        "decoder": (4.5, 2, "decoder,\ndeformable"),
        **_HEADS,
        "logits": (7.2, 1.6, "logits\n(K, B, N_q, C)"),
    },
    [
        ("pixels", "backbone", "(B, 3, H, W)"),
        ("backbone", "project", "L maps"),
        ("project", "encoder", "(B, N, d)"),
        ("encoder", "decoder", "memory\n(B, N, d)"),
        ("sines", "encoder", ""),
        ("queries", "decoder", "(B, N_q, d)"),
        ("queries", "reference", ""),
        ("reference", "decoder", ""),
        *_ANSWERS,
    ],
    {"pixels", "sines", "queries", "reference", "logits", "boxes"},
)
_ALL: dict[str, Parts] = {"transformer": _TRANSFORMER, "detr": _DETR, "deformable-detr": _DEFORMABLE_DETR}


def architecture(name: str) -> Axes:
    """The block diagram of "transformer" (one layer of encoder and decoder each), "detr" or "deformable-detr".

    Shapes stand on the arrows, in the letters of the glossary. Raises ValueError for another name.
    """
    if name not in _ALL:
        raise ValueError(f"there is no diagram {name!r}, only {', '.join(_ALL)}")
    return diagram(*_ALL[name])
