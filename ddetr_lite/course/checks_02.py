"""The exercises of notebook 02: splitting and merging heads, joining masks, the whole multi-head attention."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ddetr_lite.course.checks_01_attention import attend
from ddetr_lite.course.exercises import Case, Exercise, Mistake, normal
from ddetr_lite.layers import attention

# The package's own, also while a learner's are plugged in.
_split, _merge = attention.split_heads, attention.merge_heads


# --- split_heads: (B, N, M·D) → (B, M, N, D) ----------------------------------------------------------------


def _split_cases() -> list[Case]:
    return [
        Case("one sentence of two words, two heads of two channels", (torch.arange(8.0).reshape(1, 2, 4), 2)),
        Case("two sentences of five words, three heads of four channels", (normal(0, 2, 5, 12), 3)),
        Case("three sentences of four words, four heads of four channels", (normal(1, 3, 4, 16), 4)),
    ]


SPLIT_HEADS = Exercise(
    name="split_heads",
    notebook="02",
    task="Turn (B, N, M·D) into (B, M, N, D): head 0 gets the first D channels, head 1 the next D, and so on.",
    reference=_split,
    cases=_split_cases,
    differentiable=True,
    part=attention.split_heads,
    hints=(
        "Two steps: first cut the last dimension into (heads, D), then bring the heads to the front.",
        "x.reshape(B, N, heads, D) cuts each row of channels into pieces that lie side by side. D is x.shape[-1] // heads.",
        "Then .transpose(1, 2) exchanges words and heads.",
    ),
    mistakes=(
        Mistake(
            "words and heads are mixed: a reshape straight to (B, M, N, D) reads on across words. "
            "Cut the channels first, (B, N, M, D), then transpose",
            lambda x, m: x.reshape(x.shape[0], m, x.shape[1], -1),
        ),
        Mistake(
            "the heads still stand behind the words, (B, N, M, D): exchange dimensions 1 and 2",
            lambda x, m: x.unflatten(-1, (m, -1)),
        ),
        Mistake(
            "each head got every M-th channel; it should get D channels that lie side by side",
            lambda x, m: x.unflatten(-1, (-1, m)).permute(0, 3, 1, 2),
        ),
        Mistake(
            "the batch is lost: x has three dimensions, (B, N, M·D), and words of all sentences have become one row",
            lambda x, m: x.reshape(-1, m, x.shape[-1] // m).transpose(0, 1),
        ),
        Mistake(
            "the heads are folded into the batch, (B·M, N, D): keep them as a dimension of their own",
            lambda x, m: _split(x, m).flatten(0, 1),
        ),
        Mistake(
            "the last two dimensions are the wrong way round: (B, M, N, D), with the channels last",
            lambda x, m: _split(x, m).transpose(-2, -1),
        ),
    ),
)

# --- merge_heads: the way back ------------------------------------------------------------------------------


def _merge_cases() -> list[Case]:
    return [
        Case("one sentence of three words, two heads of two channels", (torch.arange(12.0).reshape(1, 2, 3, 2),)),
        Case("two sentences of five words, three heads of four channels", (normal(2, 2, 3, 5, 4),)),
        Case("three sentences of four words, four heads of four channels", (normal(3, 3, 4, 4, 4),)),
    ]


MERGE_HEADS = Exercise(
    name="merge_heads",
    notebook="02",
    task="Turn (B, M, N, D) into (B, N, M·D): the heads' results for a word side by side. It undoes split_heads.",
    reference=_merge,
    cases=_merge_cases,
    differentiable=True,
    part=attention.merge_heads,
    hints=(
        "The two steps of split_heads, backwards: first the heads behind the words, then the last two dimensions into one.",
        ".transpose(1, 2) gives (B, N, M, D).",
        "After a transpose the numbers no longer lie in order: .reshape copies them where it must, .view refuses.",
    ),
    mistakes=(
        Mistake(
            "words and heads are mixed: bring the heads behind the words before the last two dimensions become one",
            lambda x: x.reshape(x.shape[0], x.shape[2], -1),
        ),
        Mistake(
            ".view cannot join dimensions whose numbers do not lie one behind the other, as after a transpose: use .reshape",
            lambda x: x.transpose(1, 2).view(x.shape[0], x.shape[2], -1),
        ),
        Mistake(
            "the channels of the heads alternate; each head's D channels should stay side by side",
            lambda x: x.permute(0, 2, 3, 1).flatten(2),
        ),
        Mistake("this is the mean over the heads: each head's result is kept, next to the others", lambda x: x.mean(1)),
        Mistake("this is the sum over the heads: each head's result is kept, next to the others", lambda x: x.sum(1)),
        Mistake(
            "the heads have become further words, (B, M·N, D), where they should become further channels, (B, N, M·D)",
            lambda x: x.flatten(1, 2),
        ),
    ),
)

# --- combine_masks: padding, or a pattern, or both ----------------------------------------------------------


def _mask_cases() -> list[Case]:
    padding = torch.tensor([[False, False, True], [False, False, False]])
    causal = torch.ones(3, 3, dtype=torch.bool).triu(1)
    longer = torch.arange(5) >= torch.tensor([[5], [2], [3]])
    return [
        Case("padding alone", (padding, None)),
        Case("a causal mask alone", (None, causal)),
        Case("both", (padding, causal)),
        Case("neither", (None, None)),
        Case("three sentences, both", (longer, torch.ones(5, 5, dtype=torch.bool).triu(1))),
    ]


def _both(padding: Tensor | None, mask: Tensor | None, place: Callable[[Tensor], Tensor]) -> Tensor | None:
    """As it should be, except for what `place` makes of the padding."""
    if padding is None:
        return mask
    return place(padding) if mask is None else place(padding) | mask


COMBINE_MASKS = Exercise(
    name="combine_masks",
    notebook="02",
    task="From padding (B, N_k) and a pattern (N_q, N_k), either of which may be None, one mask that stretches to "
    "(B, M, N_q, N_k) and is no larger than it must be.",
    reference=attention.combine_masks,
    cases=_mask_cases,
    part=attention.combine_masks,
    hints=(
        "Begin with the two easy cases: what is the result when there is no padding? When there is no pattern?",
        "Padding is about keys, whatever the head and whatever the query: padding[:, None, None, :] is (B, 1, 1, N_k).",
        "Hidden by one or hidden by the other is hidden: `|` between booleans.",
    ),
    mistakes=(
        Mistake(
            "the padding has shape (B, N_k), which stretches along the wrong dimensions: give it (B, 1, 1, N_k)",
            lambda p, m: _both(p, m, lambda p: p),
        ),
        Mistake(
            "the padding hides queries; it is keys that must not be seen: padding[:, None, None, :], not [:, None, :, None]",
            lambda p, m: _both(p, m, lambda p: p[:, None, :, None]),
        ),
        Mistake(
            "one dimension is missing for the heads: (B, 1, 1, N_k), where you have (B, 1, N_k)",
            lambda p, m: _both(p, m, lambda p: p[:, None, :]),
        ),
        Mistake(
            "a pattern alone is given back as it is, (N_q, N_k), which stretches by itself",
            lambda p, m: m[None, None] if p is None and m is not None else _both(p, m, lambda p: p[:, None, None, :]),
        ),
        Mistake(
            "a key is hidden only where both masks hide it: `&` should be `|`",
            lambda p, m: m if p is None else p[:, None, None, :] if m is None else p[:, None, None, :] & m,
        ),
        Mistake(
            "the padding is inverted: it is True on padding already, and True hides",
            lambda p, m: _both(p, m, lambda p: ~p[:, None, None, :]),
        ),
        Mistake(
            "where there is padding the other mask is forgotten",
            lambda p, m: m if p is None else p[:, None, None, :],
        ),
        Mistake(
            "where there is another mask the padding is forgotten",
            lambda p, m: m if m is not None else None if p is None else p[:, None, None, :],
        ),
    ),
)

# --- multi_head_attention: all of it ------------------------------------------------------------------------


def _multi_head(
    x: Tensor, W_Q: Tensor, W_K: Tensor, W_V: Tensor, W_O: Tensor, heads: int, root: float | None = None
) -> Tensor:
    return _heads(x, W_Q, W_K, W_V, heads, root).transpose(0, 1).flatten(1) @ W_O


def _heads(
    x: Tensor, W_Q: Tensor, W_K: Tensor, W_V: Tensor, heads: int, root: float | None = None, interleaved: bool = False
) -> Tensor:
    """Every head's result, (M, N, D)."""

    def split(y: Tensor) -> Tensor:
        if interleaved:
            return y.unflatten(-1, (-1, heads)).permute(2, 0, 1)
        return y.unflatten(-1, (heads, -1)).transpose(0, 1)

    q, k, v = split(x @ W_Q), split(x @ W_K), split(x @ W_V)
    factor = 1.0 if root is None else q.shape[-1] ** 0.5 / root
    return attend(q * factor, k, v)


def _join(results: Iterable[Tensor], W_O: Tensor) -> Tensor:
    """The heads' results, (N, D) each, side by side, times W_O."""
    return torch.cat(list(results), -1) @ W_O


def _slices(d: int, heads: int) -> list[slice]:
    return [slice(h * d // heads, (h + 1) * d // heads) for h in range(heads)]


def _multi_head_cases() -> list[Case]:
    def case(what: str, seed: int, words: int, d: int, heads: int) -> Case:
        matrices = [normal(seed + i, d, d) / d**0.5 for i in range(4)]
        return Case(what, (2 * normal(seed + 4, words, d), *matrices, heads))

    return [
        case("two words, d = 6, two heads", 10, 2, 6, 2),
        case("five words, d = 12, three heads", 20, 5, 12, 3),
        case("four words, d = 16, four heads", 30, 4, 16, 4),
    ]


MULTI_HEAD_ATTENTION = Exercise(
    name="multi_head_attention",
    notebook="02",
    task="Project, split into heads, attend in each, put the results side by side, and join them by W_O.",
    reference=_multi_head,
    cases=_multi_head_cases,
    differentiable=True,
    hints=(
        "A loop is fine: head h owns the columns h·D to (h + 1)·D of x @ W_Q, x @ W_K and x @ W_V.",
        "In each head: softmax(q kᵀ / √D) v, with the D of one head. package.scaled_dot_product_attention does it.",
        "torch.cat(results, dim=-1) puts the heads side by side, (N, d); then comes @ W_O.",
    ),
    mistakes=(
        Mistake(
            "the scores are divided by √d, the width of all heads together: a head's vectors have D = d / M channels",
            lambda x, q, k, v, o, m: _multi_head(x, q, k, v, o, m, root=x.shape[-1] ** 0.5),
        ),
        Mistake(
            "the scores are not divided by √D",
            lambda x, q, k, v, o, m: _multi_head(x, q, k, v, o, m, root=1.0),
        ),
        Mistake(
            "the scores are divided by D, not by √D",
            lambda x, q, k, v, o, m: _multi_head(x, q, k, v, o, m, root=x.shape[-1] / m),
        ),
        Mistake(
            "the matrices are transposed: x @ W_Q, as in the text; `nn.Linear` is the one that keeps them lying",
            lambda x, q, k, v, o, m: _multi_head(x, q.T, k.T, v.T, o.T, m),
        ),
        Mistake(
            "W_O is missing: the heads lie side by side, and nothing joins them",
            lambda x, q, k, v, o, m: _heads(x, q, k, v, m).transpose(0, 1).flatten(1),
        ),
        Mistake(
            "there is only one head: the whole of d = M·D channels is compared at once",
            lambda x, q, k, v, o, m: _multi_head(x, q, k, v, o, 1),
        ),
        Mistake(
            "words and heads are mixed: a reshape straight to (M, N, D) reads on across words",
            lambda x, q, k, v, o, m: _join(attend(*((x @ w).reshape(m, len(x), -1) for w in (q, k, v))), o),
        ),
        Mistake(
            "the results are put together in the wrong order: for each word head 0's D channels, then head 1's, and so on",
            lambda x, q, k, v, o, m: _heads(x, q, k, v, m).permute(1, 2, 0).flatten(1) @ o,
        ),
        Mistake(
            "the results are merged without bringing the words to the front: (M, N, D) read straight into (N, M·D)",
            lambda x, q, k, v, o, m: _heads(x, q, k, v, m).reshape(len(x), -1) @ o,
        ),
        Mistake(
            "the softmax runs over the queries (dim 0): rows should sum to one, so it runs over the last dimension",
            lambda x, q, k, v, o, m: _join(
                (
                    (a @ b.T / a.shape[-1] ** 0.5).softmax(0) @ c
                    for a, b, c in zip(*((x @ w).chunk(m, -1) for w in (q, k, v)), strict=True)
                ),
                o,
            ),
        ),
        Mistake(
            "head h takes the columns h to h + D; its columns begin at h·D",
            lambda x, q, k, v, o, m: _join(
                (attend(*((x @ w)[:, h : h + x.shape[-1] // m] for w in (q, k, v))) for h in range(m)), o
            ),
        ),
        Mistake(
            "each head sees only its own slice of x: every head gets whole words, and only the columns of the matrices are "
            "shared out",
            lambda x, q, k, v, o, m: _join(
                (attend(*(x[:, own] @ w[own, own] for w in (q, k, v))) for own in _slices(x.shape[-1], m)),
                o,
            ),
        ),
        Mistake(
            "each head got every M-th channel; it should get D channels that lie side by side",
            lambda x, q, k, v, o, m: _heads(x, q, k, v, m, interleaved=True).transpose(0, 1).flatten(1) @ o,
        ),
    ),
)

EXERCISES = (SPLIT_HEADS, MERGE_HEADS, COMBINE_MASKS, MULTI_HEAD_ATTENTION)
