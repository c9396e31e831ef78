"""The exercises of notebook 04: layer norm, the layer's two residual steps, positions, and writing word by word."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddetr_lite.course.exercises import Case, Exercise, Mistake, normal
from ddetr_lite.layers import transformer

Step = Callable[[Tensor], Tensor]


# --- layer_norm -----------------------------------------------------------------------------------------------


def _norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    dim: int = -1,
    centre: bool = True,
    root: float = 0.5,
    unbiased: bool = False,
) -> Tensor:
    middle = x - x.mean(dim, keepdim=True) if centre else x
    spread = middle.square().sum(dim, keepdim=True) / (x.shape[dim] - unbiased)
    return middle / (spread + 1e-5) ** root * weight + bias


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _norm(x, weight, bias)


def _norm_cases() -> list[Case]:
    return [
        Case(
            "two words of four channels", (torch.tensor([[1.0, 2, 3, 6], [0, 0, 4, 4]]), torch.ones(4), torch.zeros(4))
        ),
        Case("three words of six channels", (4 * normal(50, 3, 6) + 2, normal(51, 6), normal(52, 6))),
        Case("two sentences of four words", (normal(53, 2, 4, 8) - 5, normal(54, 8), normal(55, 8))),
        Case("channels that differ little", (torch.tensor([[1.0, 1.01, 1.02, 1.05]]), torch.ones(4), torch.zeros(4))),
        Case("channels that are all equal", (torch.full((2, 4), 3.0), torch.ones(4), torch.zeros(4))),
    ]


LAYER_NORM = Exercise(
    name="layer_norm",
    notebook="04",
    task="Take from each word's channels their mean, divide by √(variance + 1e-5), multiply by weight and add bias.",
    reference=_layer_norm,
    cases=_norm_cases,
    differentiable=True,
    tolerance=1e-4,
    hints=(
        "x.mean(dim=-1, keepdim=True) is the mean of each word, and keeps a dimension to stretch along.",
        "The variance is the mean of the squared differences from the mean; torch's x.var() divides by d − 1 unless told "
        "otherwise.",
        "(x − mean) / (variance + 1e-5) ** 0.5 * weight + bias",
    ),
    mistakes=(
        Mistake(
            "mean and spread are taken over the words; each word is normed by itself, over its channels (dim=-1)",
            lambda x, w, b: _norm(x, w, b, dim=-2),
        ),
        Mistake(
            "the variance divides by d − 1; here it is the plain mean of the squares, var(..., unbiased=False)",
            lambda x, w, b: _norm(x, w, b, unbiased=True),
        ),
        Mistake("you divide by the variance, not by its root", lambda x, w, b: _norm(x, w, b, root=1.0)),
        Mistake(
            "the mean is not taken away (that is RMSNorm, a relative of it)",
            lambda x, w, b: _norm(x, w, b, centre=False),
        ),
        Mistake(
            "one mean and one spread are taken of the whole tensor; each word is normed by itself: dim=-1, keepdim=True",
            lambda x, w, b: (x - x.mean()) / (x.var(unbiased=False) + 1e-5) ** 0.5 * w + b,
        ),
        Mistake(
            "the squares are taken of x, not of its difference from the mean: that is no variance",
            lambda x, w, b: (x - x.mean(-1, keepdim=True)) / (x.square().mean(-1, keepdim=True) + 1e-5) ** 0.5 * w + b,
        ),
        Mistake(
            "bias is added before weight is multiplied: first times weight, then plus bias",
            lambda x, w, b: (_norm(x, torch.ones_like(w), torch.zeros_like(b)) + b) * w,
        ),
        Mistake("weight and bias are not used", lambda x, w, b: _norm(x, torch.ones_like(w), torch.zeros_like(b))),
        Mistake(
            "the variance is mean(x²) − mean(x)², right on paper: where channels differ little, two nearly equal numbers are "
            "subtracted, and few digits are left. Take the mean of the squared differences",
            lambda x, w, b: (
                (x - (mean := x.mean(-1, keepdim=True)))
                / (x.square().mean(-1, keepdim=True) - mean.square() + 1e-5) ** 0.5
                * w
                + b
            ),
        ),
        Mistake(
            "1e-5 is added to the root; it belongs under it, to the variance",
            lambda x, w, b: (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True, unbiased=False) + 1e-5) * w + b,
        ),
        Mistake(
            "without 1e-5 under the root a word whose channels are all equal gives 0/0",
            lambda x, w, b: (x - x.mean(-1, keepdim=True)) / x.var(-1, keepdim=True, unbiased=False) ** 0.5 * w + b,
        ),
    ),
)

# --- encoder_layer: two steps, each with its residual and its norm --------------------------------------------


def _encoder_layer(x: Tensor, attend: Step, think: Step, norm1: Step, norm2: Step) -> Tensor:
    x = norm1(x + attend(x))
    return norm2(x + think(x))


def _mix(x: Tensor) -> Tensor:
    return x.cumsum(0) / 2


def _square(x: Tensor) -> Tensor:
    return x.square() / 4


def _halve(x: Tensor) -> Tensor:
    return x / 2 - 1


def _centre(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def _layer_cases() -> list[Case]:
    return [
        Case("two words of two channels, steps that one can do by hand",
             (torch.tensor([[2.0, 4], [6, 0]]), _mix, _square, _halve, _centre)),
        Case("four words of three channels", (normal(60, 4, 3), _mix, _square, _centre, _halve)),
        Case("three words of five channels", (3 * normal(61, 3, 5), _square, _mix, _halve, _halve)),
    ]  # fmt: skip


ENCODER_LAYER = Exercise(
    name="encoder_layer",
    notebook="04",
    task="Attend, add what came in, norm1; think, add what came in, norm2.",
    reference=_encoder_layer,
    cases=_layer_cases,
    hints=(
        "Two lines of the same form: x = norm(x + step(x)).",
        "In the second line x is already the result of the first.",
    ),
    mistakes=(
        Mistake(
            "the norms come before the steps: that is the later *pre-norm* form; here the sum is normed",
            lambda x, a, t, n, m: (y := x + a(n(x))) + t(m(y)),
        ),
        Mistake("the residuals are missing: add what came in", lambda x, a, t, n, m: m(t(n(a(x))))),
        Mistake(
            "the second sum adds the layer's input; it should add what came out of the first step",
            lambda x, a, t, n, m: m(x + t(n(x + a(x)))),
        ),
        Mistake(
            "the norm is taken of the step alone, before the sum",
            lambda x, a, t, n, m: (y := x + n(a(x))) + m(t(y)),
        ),
        Mistake("the layer thinks before it attends", lambda x, a, t, n, m: m((y := n(x + t(x))) + a(y))),
        Mistake("both sums use the same norm", lambda x, a, t, n, m: n((y := n(x + a(x))) + t(y))),
        Mistake("norm1 and norm2 have changed places", lambda x, a, t, n, m: n((y := m(x + a(x))) + t(y))),
        Mistake("norm1 is missing: both sums are normed", lambda x, a, t, n, m: m((y := x + a(x)) + t(y))),
    ),
)

# --- with_position --------------------------------------------------------------------------------------------

WITH_POSITION = Exercise(
    name="with_position",
    notebook="04",
    task="Return x with the position added, or x itself where position is None.",
    reference=transformer.with_position,
    cases=lambda: [
        Case("two words with positions", (normal(62, 2, 4), normal(63, 2, 4))),
        Case("no position", (normal(64, 2, 4), None)),
        Case("two sentences, one table of positions", (normal(65, 2, 3, 4), normal(66, 3, 4))),
    ],
    part=transformer.with_position,
    hints=("`if position is None` first. Then a sum, into a new tensor.",),
    mistakes=(
        Mistake("the position is put beside x; it is added", lambda x, p: x if p is None else torch.cat((x, p), -1)),
        Mistake("the position is multiplied; it is added", lambda x, p: x if p is None else x * p),
        Mistake(
            "where there is no position you return None: return x as it is", lambda x, p: None if p is None else x + p
        ),
        Mistake(
            "where there is no position, position is None, and x + None is an error: ask first", lambda x, p: x + p
        ),
    ),
)

# --- greedy: word by word -------------------------------------------------------------------------------------


def _greedy(scores_of: Step, begin: int, end: int, longest: int) -> Tensor:
    return _write(scores_of, begin, end, longest)


def _write(
    scores_of: Step, begin: int, end: int, longest: int, keep_end: bool = False, only_last: bool = False
) -> Tensor:
    words = [begin]
    while len(words) <= longest:
        best = int(scores_of(torch.tensor(words[-1:] if only_last else words)).argmax())
        if best != end or keep_end:
            words.append(best)
        if best == end:
            break
    return torch.tensor(words[1:], dtype=torch.long)  # also where there is no word


def _counts(words: Tensor) -> Tensor:
    """Scores (6,): after 0 comes 3, then one less each time, down to 1."""
    scores = torch.zeros(6)
    scores[3 if len(words) == 1 else int(words[-1]) - 1] = 2.0
    return scores


def _sums(words: Tensor) -> Tensor:
    """The next word is the sum of all so far, modulo 7, plus one: it depends on all words."""
    return torch.nn.functional.one_hot((words.sum() * 3 + len(words)) % 7, 7).float() - 0.5


PATIENCE = 50
"""Words after which a loop that does not count them is stopped."""


def _never_ends(words: Tensor) -> Tensor:
    if len(words) > PATIENCE:
        raise RuntimeError(f"the model was asked for more than {PATIENCE} words: stop after `longest`")
    return torch.tensor([0.1, 0.0, 0.9, 0.3])


GREEDY = Exercise(
    name="greedy",
    notebook="04",
    task="Begin with `begin`, append the best next word again and again, stop at `end` or after `longest` words; return "
    "the words between.",
    reference=_greedy,
    cases=lambda: [
        Case("a model that counts 3, 2, 1 and ends with 0", (_counts, 5, 0, 10)),
        Case("a model that never ends", (_never_ends, 1, 3, 4)),
        Case("a model that looks at all words so far", (_sums, 1, 6, 5)),
        Case("a model that ends at once", (_never_ends, 1, 2, 4)),
    ],
    hints=(
        "Keep a list: words = [begin]. The model wants a tensor: torch.tensor(words).",
        "scores.argmax() is the best next word; int(...) makes a number of it.",
        "Stop *before* you append the end. Return torch.tensor(words[1:], dtype=torch.long): neither begin nor end, and "
        "whole numbers also where there is no word.",
    ),
    mistakes=(
        Mistake(
            "the end is among the words: stop before it is appended",
            lambda f, b, e, n: _write(f, b, e, n, keep_end=True),
        ),
        Mistake(
            "the word to begin with is among the words: leave it out at the end",
            lambda f, b, e, n: torch.cat((torch.tensor([b]), _greedy(f, b, e, n))),
        ),
        Mistake(
            "the word to begin with and the end are both among the words: asked for are those between",
            lambda f, b, e, n: torch.cat((torch.tensor([b]), _write(f, b, e, n, keep_end=True))),
        ),
        Mistake(
            "one word too few: `longest` counts the words without the one to begin with",
            lambda f, b, e, n: _greedy(f, b, e, n - 1),
        ),
        Mistake(
            "the model is shown the last word only: it needs all words so far",
            lambda f, b, e, n: _write(f, b, e, n, only_last=True),
        ),
        Mistake(
            "the end does not end it: stop when the best word is `end`",
            lambda f, b, e, n: _write(f, b, -1, n),
        ),
        Mistake(
            "it never stops where the model does not say `end`: count to `longest`",
            lambda f, b, e, n: _write(f, b, e, 10 * PATIENCE),
        ),
        Mistake(
            "one word too many: `longest` counts the words without the one to begin with",
            lambda f, b, e, n: _greedy(f, b, e, n + 1),
        ),
    ),
)


EXERCISES = (LAYER_NORM, ENCODER_LAYER, WITH_POSITION, GREEDY)
