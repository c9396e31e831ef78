"""The exercises of notebook 01: scores, softmax, masks, the whole attention, permutation."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddetr_lite.course.checks_01_attention import ATTENTION, attend
from ddetr_lite.course.exercises import Case, Exercise, Mistake, normal
from ddetr_lite.layers import attention

Attend = Callable[[Tensor], Tensor]


# --- scaled_scores: all dot products, divided by √D ---------------------------------------------------------


def _scaled_scores(query: Tensor, key: Tensor) -> Tensor:
    return query @ key.T / query.shape[-1] ** 0.5


def _score_cases() -> list[Case]:
    query = torch.tensor([[1.0, 0, 2, 1], [0, 1, 1, 2]])
    key = torch.tensor([[1.0, 1, 0, 2], [0, 2, 1, 0], [3, 0, 1, 1]])
    return [
        Case("two queries, three keys", (query, key)),
        Case("two queries, five keys", (normal(0, 2, 9), normal(1, 5, 9))),
        Case("four queries, three keys", (normal(2, 4, 16), normal(3, 3, 16))),
    ]


SCALED_SCORES = Exercise(
    name="scaled_scores",
    notebook="01",
    task="Fill a table (N_q, N_k) with the dot product of every query with every key, divided by √D.",
    reference=_scaled_scores,
    cases=_score_cases,
    hints=(
        "Two loops: one over the rows of query, one over the rows of key. What are the two sizes of the result?",
        "A dot product is (query[i] * key[j]).sum(). D is query.shape[-1], and √D is D ** 0.5.",
        "Begin with scores = torch.zeros(len(query), len(key)), and fill scores[i, j].",
    ),
    mistakes=(
        Mistake("the scores are not divided by √D", lambda q, k: q @ k.T),
        Mistake("the scores are divided by D, not by √D", lambda q, k: q @ k.T / q.shape[-1]),
        Mistake(
            "the square root is taken of the number of keys, not of the number of channels D (query.shape[-1])",
            lambda q, k: q @ k.T / len(k) ** 0.5,
        ),
        Mistake(
            "the square root is taken of the number of queries, not of the number of channels D (query.shape[-1])",
            lambda q, k: q @ k.T / len(q) ** 0.5,
        ),
        Mistake(
            "the table lies on its side: there should be one row for each query and one column for each key",
            lambda q, k: (_scaled_scores(q, k)).T,
        ),
        Mistake(
            "you computed cosines: a score is not divided by the lengths of the two vectors, only by √D",
            lambda q, k: (q / q.norm(dim=-1, keepdim=True)) @ (k / k.norm(dim=-1, keepdim=True)).T,
        ),
    ),
)

# --- softmax_with_temperature -------------------------------------------------------------------------------


def _softmax_with_temperature(scores: Tensor, temperature: float) -> Tensor:
    return (scores / temperature).softmax(-1)


def _naive_softmax(scores: Tensor, temperature: float) -> Tensor:
    weights = (scores / temperature).exp()
    return weights / weights.sum(-1, keepdim=True)


def _softmax_cases() -> list[Case]:
    return [
        Case("one row of two scores", (torch.tensor([[0.0, 2.0]]), 2.0)),
        Case("two rows of three scores", (normal(4, 2, 3), 0.5)),
        Case("two sentences of three rows", (normal(5, 2, 3, 4), 3.0)),
        Case(
            "large scores, whose exponential is too large for a float",
            (torch.tensor([[1000.0, 999, 990]]), 1.0),
        ),
        Case(
            "a row with its largest score first, one with it last",
            (torch.tensor([[1000.0, 0, 10], [10, 0, 1000]]), 1.0),
        ),
        Case("one row of large scores, one of small ones", (torch.tensor([[1000.0, 999], [0, 1]]), 2.0)),
    ]


SOFTMAX = Exercise(
    name="softmax_with_temperature",
    notebook="01",
    task="Divide the scores by the temperature, then make each row positive with sum one.",
    reference=_softmax_with_temperature,
    cases=_softmax_cases,
    hints=(
        "exp() makes every number positive. A row then needs dividing by its own sum: sum(-1, keepdim=True).",
        "exp(1000) is infinite in float32. Subtracting one number from a whole row changes no weight. "
        "Which number is best?",
        "Subtract the row's largest score, x.amax(-1, keepdim=True): then the largest exponential is exp(0) = 1.",
    ),
    mistakes=(
        Mistake(
            "the columns sum to one: the softmax must run over the last dimension, the keys",
            lambda s, t: (s / t).softmax(-2),
        ),
        Mistake(
            "everything together sums to one, where each row should",
            lambda s, t: (s / t).flatten().softmax(0).reshape(s.shape),
        ),
        Mistake("the scores are multiplied by the temperature, not divided", lambda s, t: (s * t).softmax(-1)),
        Mistake("the temperature is not used", lambda s, t: s.softmax(-1)),
        Mistake(
            "the weights are divided by the temperature after the softmax; it belongs to the scores, before",
            lambda s, t: s.softmax(-1) / t,
        ),
        Mistake(
            "the exponential overflows: ∞/∞ is NaN. Subtract each row's largest score first; no weight changes by that",
            _naive_softmax,
        ),
        Mistake(
            "the largest score of the whole table is subtracted: in a row of small scores every exponential is then 0, and 0/0 "
            "is NaN. Take each row's own largest",
            lambda s, t: _naive_softmax(s - s.amax(), t),
        ),
        Mistake(
            "the row's smallest score is subtracted, or its mean, where its largest should be: what lies far above that still "
            "overflows",
            lambda s, t: _naive_softmax(s - s.amin(-1, keepdim=True), t),
        ),
        Mistake(
            "each row's first score is subtracted, where its largest should be: what lies far above the first still overflows",
            lambda s, t: _naive_softmax(s - s[..., :1], t),
        ),
        Mistake(
            "the largest score is subtracted undivided: subtract it before the division, or take that of scores / temperature",
            lambda s, t: _naive_softmax(s / t - s.amax(-1, keepdim=True), 1.0),
        ),
    ),
)

# --- causal_mask --------------------------------------------------------------------------------------------


CAUSAL_MASK = Exercise(
    name="causal_mask",
    notebook="01",
    task="Return a boolean table (N, N), True where a word may not look: at every later word, not at itself.",
    reference=attention.causal_mask,
    cases=lambda: [Case(f"{n} words", (n,)) for n in (2, 3, 6)],
    part=attention.causal_mask,
    hints=(
        "Write down the table for three words. Row i is the word that looks, column j the one looked at. "
        "Where is j > i?",
        "torch.arange(length) gives positions; compared as a column [:, None] with a row [None, :] it gives a table.",
        "Or begin with torch.ones(length, length, dtype=torch.bool) and look up Tensor.triu; mind its argument.",
    ),
    mistakes=(
        Mistake(
            "the mask says the opposite: here True hides a key, and False leaves it visible",
            lambda n: torch.ones(n, n, dtype=torch.bool).tril(),
        ),
        Mistake(
            "a word cannot see itself: the diagonal must stay False (the first word would see nothing at all)",
            lambda n: torch.ones(n, n, dtype=torch.bool).triu(),
        ),
        Mistake(
            "the past is hidden and the future visible: rows are queries, columns keys",
            lambda n: torch.ones(n, n, dtype=torch.bool).tril(-1),
        ),
        Mistake(
            "these are zeros and ones as numbers: a mask here has dtype torch.bool",
            lambda n: torch.ones(n, n).triu(1),
        ),
        Mistake(
            "this is a mask of zeros and −∞ to be added to the scores; the package's masks are True and False",
            lambda n: torch.full((n, n), -torch.inf).triu(1),
        ),
    ),
)

# --- permutation_gap ----------------------------------------------------------------------------------------


def _permutation_gap(attend: Attend, x: Tensor, order: Tensor) -> Tensor:
    return (attend(x[order]) - attend(x)[order]).abs().max()


def _attend_to_itself(x: Tensor) -> Tensor:
    return attend(x, x, x)


def _add_position(x: Tensor) -> Tensor:
    return x + torch.arange(len(x))[:, None] ** 2


def _take_position_away(x: Tensor) -> Tensor:
    return x - torch.arange(len(x))[:, None] ** 2


def _add_up_the_past(x: Tensor) -> Tensor:
    return x.cumsum(0)


def _gap_cases() -> list[Case]:
    order = torch.tensor([2, 0, 1])
    return [
        Case(
            "a function that adds the squared position",
            (_add_position, torch.tensor([[1.0], [2.0], [4.0]]), order),
        ),
        Case(
            "a function that takes the squared position away",
            (_take_position_away, torch.tensor([[1.0], [2.0], [4.0]]), order),
        ),
        Case("a function that adds up all words so far", (_add_up_the_past, normal(15, 3, 3), order)),
        Case("self-attention", (_attend_to_itself, normal(16, 5, 3), torch.tensor([3, 0, 4, 1, 2]))),
    ]


PERMUTATION_GAP = Exercise(
    name="permutation_gap",
    notebook="01",
    task="Return the largest absolute difference between attend(x[order]) and attend(x)[order].",
    reference=_permutation_gap,
    cases=_gap_cases,
    hints=(
        "Run attend twice: once on the words in their new order, once on the words as they were.",
        "The second result is still in the old order: bring it into the new one with [order] before you subtract.",
    ),
    mistakes=(
        Mistake(
            "the second output is still in the old order: bring it into the new one, attend(x)[order]",
            lambda attend, x, order: (attend(x[order]) - attend(x)).abs().max(),
        ),
        Mistake(
            "the sign is kept: a large negative difference would be missed without abs()",
            lambda attend, x, order: (attend(x[order]) - attend(x)[order]).max(),
        ),
        Mistake(
            "the sign is kept: without abs() a large negative difference is missed, whichever of the two comes first",
            lambda attend, x, order: (attend(x)[order] - attend(x[order])).max(),
        ),
        Mistake(
            "this is the mean difference: one wrong word among many would hardly show, so take the largest",
            lambda attend, x, order: (attend(x[order]) - attend(x)[order]).abs().mean(),
        ),
        Mistake(
            "the second output is put into the opposite order, the one that undoes the permutation",
            lambda attend, x, order: (attend(x[order]) - attend(x)[order.argsort()]).abs().max(),
        ),
        Mistake(
            "both runs got the words in the new order: attend must see the old one once",
            lambda attend, x, order: (attend(x[order]) - attend(x[order])).abs().max(),
        ),
    ),
)

EXERCISES = (SCALED_SCORES, SOFTMAX, CAUSAL_MASK, ATTENTION, PERMUTATION_GAP)
