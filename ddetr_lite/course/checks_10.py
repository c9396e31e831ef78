"""The exercises of notebook 10: COCO's greedy match, AP over thresholds, kinds of mistakes, and epochs for a score."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ddetr_lite.benchmarks.studies import results
from ddetr_lite.course.exercises import Case, Exercise, Mistake

# --- match_detections ---------------------------------------------------------------------------------------------


def _match(
    scores: Tensor,
    overlap: Tensor,
    threshold: float,
    order: str = "surest first",
    several: bool = False,
    strict: bool = False,
    first: bool = False,
    gives_up: bool = False,
) -> Tensor:
    ranks = scores.argsort(descending=order != "least sure first").tolist()
    owner = [-1] * len(scores)
    for i in range(len(scores)) if order == "as given" else ranks:
        row = overlap[i].tolist()
        if gives_up:
            row = [value if value == max(row) else -1.0 for value in row]
        fits = [t for t, value in enumerate(row) if (value > threshold if strict else value >= threshold)]
        free = [t for t in fits if several or t not in owner]
        if free:
            owner[i] = free[0] if first else max(free, key=row.__getitem__)
    return torch.tensor(owner, dtype=torch.int64)


def _match_detections(scores: Tensor, overlap: Tensor, threshold: float) -> Tensor:
    return _match(scores, overlap, threshold)


def _of_some_objects(scores: Tensor, overlap: Tensor, threshold: float) -> Tensor:
    if len(scores):
        overlap[0].argmax()  # of nothing: an error
    return _match(scores, overlap, threshold)


def _in_order_of_scores(scores: Tensor, overlap: Tensor, threshold: float) -> Tensor:
    return _match(scores, overlap, threshold)[scores.argsort(descending=True)]


def _best_in_all(scores: Tensor, overlap: Tensor, threshold: float) -> Tensor:
    owner = torch.full((len(scores),), -1)
    for i, t in zip(*linear_sum_assignment(overlap, maximize=True), strict=True):
        if overlap[i, t] >= threshold:
            owner[i] = int(t)
    return owner


def _objects_choose(scores: Tensor, overlap: Tensor, threshold: float) -> Tensor:
    owner = torch.full((len(scores),), -1)
    for t in range(overlap.shape[1]):
        i = int(overlap[:, t].argmax())
        if overlap[i, t] >= threshold:
            owner[i] = t
    return owner


def _match_cases() -> list[Case]:
    wanted = torch.tensor([[0.9, 0.1], [0.7, 0.6], [0.65, 0.2]])
    many = torch.tensor([
        [0.62, 0.81, 0.0], [0.58, 0.55, 0.1], [0.0, 0.3, 0.77], [0.9, 0.64, 0.0], [0.1, 0.72, 0.52], [0.0, 0.0, 0.2]
    ])  # fmt: skip
    sure = torch.tensor([0.95, 0.3, 0.45, 0.8, 0.7, 0.99])
    return [
        Case("three detections, two objects; all like object 0 best", (torch.tensor([0.6, 0.9, 0.8]), wanted, 0.5)),
        Case("an IoU of just 0.5", (torch.tensor([0.9, 0.8]), torch.tensor([[0.5, 0.0], [0.25, 0.75]]), 0.5)),
        Case("the second's favourite is taken",
             (torch.tensor([0.9, 0.7]), torch.tensor([[0.8, 0.55], [0.75, 0.6]]), 0.5)),
        Case("the first fits object 1 better than object 0",
             (torch.tensor([0.9, 0.7]), torch.tensor([[0.55, 0.9], [0.2, 0.8]]), 0.5)),
        Case("six detections, three objects", (sure, many, 0.5)),
        Case("the same, at a threshold of 0.75", (sure, many, 0.75)),
        Case("no object of the class", (torch.tensor([0.4, 0.6]), torch.zeros(2, 0), 0.5)),
        Case("no detection of the class", (torch.zeros(0), torch.zeros(0, 2), 0.5)),
    ]  # fmt: skip


MATCH_DETECTIONS = Exercise(
    name="match_detections",
    notebook="10",
    task="The surest detection chooses first, and takes the free object with the largest IoU, if that is at least the "
    "threshold; −1 for those that get none.",
    reference=_match_detections,
    cases=_match_cases,
    hints=(
        "scores.argsort(descending=True).tolist() is the order in which they choose; the answer keeps the order given.",
        "Begin with owner = [-1] * len(scores), and go through the detections in that order.",
        "free = [t for t in range(T) if t not in owner and overlap[i, t] >= threshold]; the best of them is "
        "max(free, key=lambda t: overlap[i, t]).",
    ),
    mistakes=(
        Mistake("the detections choose in the order given; the surest should choose first",
                lambda s, x, t: _match(s, x, t, order="as given")),
        Mistake("the least sure detection chooses first: descending=True",
                lambda s, x, t: _match(s, x, t, order="least sure first")),
        Mistake("an object is given to several detections; the second one is a duplicate, and gets −1",
                lambda s, x, t: _match(s, x, t, several=True)),
        Mistake("the first object that fits is taken; the one with the largest IoU should be",
                lambda s, x, t: _match(s, x, t, first=True)),
        Mistake("an IoU equal to the threshold is refused; at least the threshold is enough",
                lambda s, x, t: _match(s, x, t, strict=True)),
        Mistake("a detection whose favourite is taken gives up; it may take another free object that fits",
                lambda s, x, t: _match(s, x, t, gives_up=True)),
        Mistake("the answer stands in the order of the scores; it should stand in the order given", _in_order_of_scores),
        Mistake("this is the match with the largest sum of IoUs, as in 05; here the surest simply chooses first",
                _best_in_all),
        Mistake("the objects choose their detections; it is the other way round", _objects_choose),
        Mistake("the threshold is forgotten", lambda s, x, t: _match(s, x, 0.0)),
        Mistake("a picture without objects was not thought of: argmax of no numbers is an error. There every answer is −1",
                _of_some_objects),
    ),
)  # fmt: skip

# --- ap_over_thresholds -------------------------------------------------------------------------------------------


def _levels(found: Tensor, objects: int) -> tuple[Tensor, Tensor]:
    """Precision and recall after each detection."""
    return found / torch.arange(1, len(found) + 1), found / objects


def _ap(right: Tensor, objects: int, envelope: bool = True, reached_only: bool = False, points: int = 101) -> Tensor:
    precision, recall = _levels(right.double().cumsum(0), objects)
    values = []
    for i in range(points):
        beyond = precision[recall >= i / (points - 1)]
        if len(beyond):
            values.append(beyond.max() if envelope else beyond[0])
        elif not reached_only:
            values.append(torch.tensor(0.0, dtype=torch.float64))
    return torch.stack(values).mean()


def _trapezoids(right: Tensor, objects: int) -> Tensor:
    precision, recall = _levels(right.double().cumsum(0), objects)
    return torch.trapezoid(torch.cat((precision[:1], precision)), torch.cat((torch.zeros(1), recall)))


def _running_from_the_surest(right: Tensor, objects: int) -> Tensor:
    precision, recall = _levels(right.double().cumsum(0), objects)
    values = [x[0] if len(x := precision.cummax(0).values[recall >= i / 100]) else x.sum() for i in range(101)]
    return torch.stack(values).mean()


def _at_hits(right: Tensor, objects: int) -> Tensor:
    precision, _ = _levels(right.double().cumsum(0), objects)
    return precision[right].sum() / objects


def _over(
    one: Callable[[Tensor, int], Tensor] = _ap, ordered: bool = True, left_out: str = "dropped", count: str = "given"
) -> Callable[[Tensor, Tensor, int], Tensor]:
    """The mean of `one` over the thresholds, with one thing or another done wrongly."""

    def mean(scores: Tensor, verdicts: Tensor, objects: int) -> Tensor:
        values = []
        for row in verdicts[:, scores.argsort(descending=True)] if ordered else verdicts:
            kept = row[row >= 0] if left_out == "dropped" else row.where(row >= 0, int(left_out == "right"))
            known = {"given": objects, "detections": len(kept), "hits": max(int((kept == 1).sum()), 1)}[count]
            values.append(one(kept == 1, known))
        return torch.stack(values).mean()

    return mean


def _loosest(scores: Tensor, verdicts: Tensor, objects: int) -> Tensor:
    return _over()(scores, verdicts[:1], objects)


def _best_of_thresholds(scores: Tensor, verdicts: Tensor, objects: int) -> Tensor:
    return torch.stack([_over()(scores, row[None], objects) for row in verdicts]).max()


def _ap_over_thresholds(scores: Tensor, verdicts: Tensor, objects: int) -> Tensor:
    return _over()(scores, verdicts, objects)


def _ap_cases() -> list[Case]:
    loose, tight = [1, 0, 1, -1, 0, 1, 1], [1, 0, 0, -1, 0, 1, 0]
    tighter = [0, 0, 0, -1, 0, 1, -1]
    return [
        Case("five detections of three objects, one threshold, none left out",
             (torch.tensor([0.9, 0.8, 0.6, 0.5, 0.3]), torch.tensor([[1, 0, 0, 1, 1]]), 3)),
        Case("seven detections of seven objects in any order, three thresholds",
             (torch.tensor([0.7, 0.9, 0.5, 0.85, 0.6, 0.4, 0.2]), torch.tensor([loose, tight, tighter]), 7)),
        Case("all objects found, and one detection left out",
             (torch.tensor([0.5, 0.9, 0.7]), torch.tensor([[1, 1, -1], [1, 0, -1]]), 2)),
        Case("two thresholds, the tighter one first", (torch.tensor([0.9, 0.4]), torch.tensor([[0, 1], [1, 1]]), 2)),
    ]  # fmt: skip


AP_OVER_THRESHOLDS = Exercise(
    name="ap_over_thresholds",
    notebook="10",
    task="For each threshold AP over 101 recalls, without the detections that are left out; then the mean over thresholds.",
    reference=_ap_over_thresholds,
    cases=_ap_cases,
    hints=(
        "Sort the columns first: verdicts[:, scores.argsort(descending=True)]. Then go row by row.",
        "row[row >= 0] are those that are judged, and == 1 of them says which are right.",
        "The rest is section 1.2 (or 05): cumsum, precision, recall, and at each of 101 recalls the best precision there or "
        "beyond, 0 where none is.",
    ),
    mistakes=(
        Mistake("what is left out counts as wrong; drop it before you count", _over(left_out="wrong")),
        Mistake("what is left out counts as right; drop it before you count", _over(left_out="right")),
        Mistake("the detections are not sorted by score", _over(ordered=False)),
        Mistake("the envelope is missing: at each recall take the best precision there *or beyond*",
                _over(lambda right, n: _ap(right, n, envelope=False))),
        Mistake("the running maximum goes from the surest down; the envelope looks beyond, so it comes from the end",
                _over(_running_from_the_surest)),
        Mistake("recalls that are never reached are left out of the mean; they count as 0",
                _over(lambda right, n: _ap(right, n, reached_only=True))),
        Mistake("this is the area below the zigzag of precision and recall; COCO takes the envelope at 101 recalls",
                _over(_trapezoids)),
        Mistake("this is the mean precision at the detections that are right; COCO takes the envelope at 101 recalls",
                _over(_at_hits)),
        Mistake("eleven recalls are taken, as in the older VOC benchmark; COCO takes 101",
                _over(lambda right, n: _ap(right, n, points=11))),
        Mistake("recall is counted against the objects that were found; it is the share of all `objects`",
                _over(count="hits")),
        Mistake("recall is counted against the detections; it is the share of all `objects`", _over(count="detections")),
        Mistake("only the first threshold is taken; the mean over all of them is asked for", _loosest),
        Mistake("the best threshold is taken; the mean over all of them is asked for", _best_of_thresholds),
    ),
)  # fmt: skip

# --- kind_of_mistake ----------------------------------------------------------------------------------------------


def _kind(
    overlap: Tensor,
    same_class: Tensor,
    low: float = 0.1,
    high: float = 0.5,
    order: tuple[str, ...] = ("place", "class", "duplicate", "background"),
    empty: float | None = None,
    lowest: float | None = None,
    covers: float | None = None,
    strict: str = "",
) -> str:
    """empty, lowest, covers: what stands in place of `low` and `high`; strict: the kind whose lower bound is left out."""
    if len(overlap) == 0:
        return "background"
    mine, others = (float((overlap * chosen).max()) for chosen in (same_class, ~same_class))
    empty, lowest, covers = (
        own if own is not None else usual for own, usual in ((empty, low), (lowest, low), (covers, high))
    )
    holds = {
        "place": lowest <= mine < high and not (strict == "place" and mine == lowest),
        "class": others >= covers,
        "duplicate": mine >= high,
        "background": max(mine, others) <= empty and not (strict == "background" and max(mine, others) == empty),
    }
    return next((kind for kind in order if holds[kind]), "both")


def _kind_with(**changes: Any) -> Callable[..., str]:
    """The rule with one thing or another done wrongly."""

    def wrong(overlap: Tensor, same_class: Tensor, low: float = 0.1, high: float = 0.5) -> str:
        return _kind(overlap, same_class, low, high, **changes)

    return wrong


def _kind_of_mistake(overlap: Tensor, same_class: Tensor, low: float = 0.1, high: float = 0.5) -> str:
    return _kind(overlap, same_class, low, high)


def _without_a_look_at_the_number(overlap: Tensor, same_class: Tensor, low: float = 0.1, high: float = 0.5) -> str:
    overlap.max()  # of nothing: an error
    return _kind(overlap, same_class, low, high)


def _of_its_class_or_error(overlap: Tensor, same_class: Tensor, low: float = 0.1, high: float = 0.5) -> str:
    if len(overlap):
        overlap[same_class].max()  # of nothing: an error
    return _kind(overlap, same_class, low, high)


def _kind_cases() -> list[Case]:
    def case(what: str, overlap: list[float], same: list[bool], *limits: float) -> Case:
        return Case(what, (torch.tensor(overlap), torch.tensor(same, dtype=torch.bool), *limits))

    yes, no = True, False
    return [
        case("an IoU of 0.3 with an object of its class", [0.3], [yes]),
        case("0.8 with an object of another class", [0.8], [no]),
        case("0.9 with an object of its class (so a surer detection has it)", [0.9, 0.0], [yes, no]),
        case("0.05 with both objects", [0.05, 0.05], [yes, no]),
        case("0.3 with an object of another class", [0.0, 0.3], [yes, no]),
        case("0.3 with its class, 0.7 with another", [0.3, 0.7], [yes, no]),
        case("0.6 with its class, 0.7 with another", [0.6, 0.7], [yes, no]),
        case("0.02 with its class, 0.7 with another", [0.02, 0.7], [yes, no]),
        case("0.02 with its class, 0.2 with another", [0.02, 0.2], [yes, no]),
        case("0.5 with an object of its class, which is enough to cover it", [0.5], [yes]),
        case("0.5 with an object of another class", [0.5], [no]),
        case("a picture without objects", [], []),
        # Quarters are the same in float32 and in Python.
        case("low=0.25, high=0.75: 0.25 with its class", [0.25], [yes], 0.25, 0.75),
        case("low=0.25, high=0.75: 0.25 with another class", [0.25], [no], 0.25, 0.75),
        case("low=0.25, high=0.75: 0.6 with another class", [0.6], [no], 0.25, 0.75),
    ]


KIND_OF_MISTAKE = Exercise(
    name="kind_of_mistake",
    notebook="10",
    task='In this order: "place", "class", "duplicate", "background"; "both" is what is left.',
    reference=_kind_of_mistake,
    cases=_kind_cases,
    hints=(
        "Two numbers decide: the largest IoU with objects of its own class, and with those of others. "
        "(overlap * same_class).max() is 0 where there is none.",
        "max of nothing is an error: a picture without objects comes first, and makes it \"background\".",
        "place: 0.1 ≤ own < 0.5. class: other ≥ 0.5. duplicate: own ≥ 0.5. background: both at most 0.1.",
    ),
    mistakes=(
        Mistake('"class" is asked before "place": a box that is off from an object of its own class is of kind "place"',
                _kind_with(order=("class", "place", "duplicate", "background"))),
        Mistake('"duplicate" is asked before "class"',
                _kind_with(order=("place", "duplicate", "class", "background"))),
        Mistake("everything below 0.5 is taken for background; that ends at 0.1",
                lambda x, c, low=0.1, high=0.5: _kind(x, c, low, high, ("background", "place", "class", "duplicate"),
                                                      empty=high - 1e-6)),
        Mistake('"place" has no lower limit; below 0.1 the box is not at this object at all',
                _kind_with(lowest=-1.0)),
        Mistake('"class" and "place" are interchanged: same_class is True where the class is right',
                lambda x, c, *limits: _kind(x, ~c, *limits)),
        Mistake("duplicates are forgotten: its object is of the right class and well covered, but a surer detection has it",
                _kind_with(order=("place", "class", "background"))),
        Mistake('a box that only touches an object of another class is of kind "both"; for "class" it has to cover it (0.5)',
                lambda x, c, low=0.1, high=0.5: _kind(x, c, low, high, covers=low)),
        Mistake("an IoU of exactly 0.5 is too little; it is enough, as everywhere in COCO's rules",
                lambda x, c, low=0.1, high=0.5: _kind((x - 1e-6 * (x == high)).clamp(min=0), c, low, high)),
        Mistake('an IoU of exactly `low` with its class is refused; at least `low` makes it "place"',
                _kind_with(strict="place")),
        Mistake('an IoU of exactly `low` is too much for "background"; at most `low` is enough for it',
                _kind_with(strict="background")),
        Mistake("0.1 and 0.5 are written into the function; the parameters `low` and `high` may be others",
                lambda x, c, *limits: _kind(x, c)),
        Mistake("a picture without objects was not thought of: the largest of no numbers is an error. There it is background",
                _without_a_look_at_the_number),
        Mistake("a picture without an object of its class was not thought of: the largest of no numbers is an error. "
                "(overlap * same_class).max() is 0 there", _of_its_class_or_error),
    ),
)  # fmt: skip

# --- epochs_for ---------------------------------------------------------------------------------------------------

Ends = Sequence[tuple[int, float]]
_epochs_for = results.epochs_for  # the package's own, also while a learner's is plugged in


def _reference_epochs(ends: Ends, target: float) -> float | None:
    return _epochs_for(ends, target)


def _between(ends: Ends, target: float, how: Callable[[int, int, float], float]) -> float | None:
    """The first crossing, with another rule between two lengths: how(before, after, share of the way up)."""
    if target > max(score for _, score in ends):
        return None
    if target <= ends[0][1]:
        return float(ends[0][0])
    pairs = ((a, b, (target - low) / (high - low)) for (a, low), (b, high) in pairwise(ends) if low < target <= high)
    return next(how(*pair) for pair in pairs)


def _logarithmic(before: int, after: int, share: float) -> float:
    return before * (after / before) ** share


def _last_crossing(ends: Ends, target: float) -> float | None:
    if target > max(score for _, score in ends) or target <= ends[0][1]:
        return _epochs_for(ends, target)
    crossings = [[first, second] for first, second in pairwise(ends) if first[1] < target <= second[1]]
    return _epochs_for(crossings[-1], target)


def _longest_for_all(ends: Ends, target: float) -> float | None:
    return _epochs_for(ends, min(target, max(score for _, score in ends)))


def _beyond_the_end(ends: Ends, target: float) -> float | None:
    if target <= max(score for _, score in ends):
        return _epochs_for(ends, target)
    (before, low), (after, high) = ends[-2:]
    return _logarithmic(before, after, (target - low) / (high - low))


def _before_the_start(ends: Ends, target: float) -> float | None:
    if target > ends[0][1]:
        return _epochs_for(ends, target)
    (before, low), (after, high) = ends[:2]
    return _logarithmic(before, after, (target - low) / (high - low))


def _none_by_the_last(ends: Ends, target: float) -> float | None:
    return _epochs_for(ends, target) if target <= ends[-1][1] else None


def _of_the_best(ends: Ends, target: float) -> float | None:
    epochs, score = max(ends, key=lambda end: end[1])
    return None if target > score else float(epochs)


def _epochs_cases() -> list[Case]:
    rising = [(3, 0.4), (12, 0.6), (48, 0.7)]
    wavy = [(3, 0.5), (9, 0.7), (18, 0.65), (36, 0.8)]
    return [
        Case("half-way up between 3 and 12 epochs", (rising, 0.5)),
        Case("a quarter of the way up from 12 to 48 epochs", (rising, 0.625)),
        Case("exactly what 12 epochs reach", (rising, 0.6)),
        Case("less than the shortest schedule reaches", (rising, 0.3)),
        Case("more than any schedule reaches", (rising, 0.75)),
        Case("a curve that goes up, down and up", (wavy, 0.68)),
        Case("a curve that falls at the end, below the target", ([(3, 0.2), (9, 0.7), (18, 0.6)], 0.65)),
    ]


EPOCHS_FOR = Exercise(
    name="epochs_for",
    notebook="10",
    task="The epochs at which AP first reaches `target`; between two lengths AP is a line over log(epochs). The first length "
    "where that is enough already, None where no length is.",
    reference=_reference_epochs,
    cases=_epochs_cases,
    part=results.epochs_for,
    hints=(
        "First the two ends: None if target is above all scores, float(ends[0][0]) if it is not above the first.",
        "itertools.pairwise(ends), imported inside the function, gives ((before, low), (after, high)). The first pair with "
        "low < target <= high is the one.",
        "share = (target − low) / (high − low); then exp(log(before) + share · (log(after) − log(before))).",
    ),
    mistakes=(
        Mistake("AP is taken as a line over the epochs; take it over their logarithm",
                lambda e, t: _between(e, t, lambda a, b, share: a + share * (b - a))),
        Mistake("the next longer schedule is taken as it is; go only as far between both as the score asks",
                lambda e, t: _between(e, t, lambda a, b, share: float(b))),
        Mistake("the share is counted from the longer schedule down; (target − low) / (high − low) goes up from the shorter",
                lambda e, t: _between(e, t, lambda a, b, share: _logarithmic(b, a, share))),
        Mistake("the epochs of the best schedule are taken; the first that reaches the target is asked for", _of_the_best),
        Mistake("the last crossing is taken; the first one is asked for", _last_crossing),
        Mistake("a target that no schedule reaches gets the length of one; it should get None", _longest_for_all),
        Mistake("the longest schedule alone decides whether the target is reached; a shorter one may have reached it",
                _none_by_the_last),
        Mistake("you go on beyond the longest schedule; nobody knows what is there: None", _beyond_the_end),
        Mistake("you go on before the shortest schedule; take its length, which is then an upper bound",
                _before_the_start),
    ),
)  # fmt: skip

EXERCISES = (MATCH_DETECTIONS, AP_OVER_THRESHOLDS, KIND_OF_MISTAKE, EPOCHS_FOR)
