"""Which row is ahead of which in the paper, and whether it is so here."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from ddetr_lite.benchmarks.studies.plan import Ordering, Row, Side, Study
from ddetr_lite.benchmarks.studies.results import Outcome, Spread, spread

CLOSE = 0.02
"""Two seeds of one row can differ by nearly as much, so with a single seed a smaller difference says nothing."""


def verdict(ahead: Sequence[float], behind: Sequence[float]) -> str:
    """ "confirmed", "reversed", "open" or "not run", from the scores of the runs of two rows.

    Confirmed: every run of the one is above every run of the other; reversed: below. Open: neither, or a row has a single run
    and the means differ by less than `CLOSE`.
    """
    if not ahead or not behind:
        return "not run"
    if min(len(ahead), len(behind)) == 1 and abs(mean(ahead) - mean(behind)) < CLOSE:
        return "open"
    if min(ahead) > max(behind):
        return "confirmed"
    return "reversed" if max(ahead) < min(behind) else "open"


@dataclass(frozen=True)
class Judged:
    """An ordering of the paper beside what was found here."""

    ordering: Ordering
    labels: tuple[str, str]
    """Each side in words, with its epochs."""
    paper: tuple[float | None, float | None]
    """In percent; None where the paper does not say."""
    here: tuple[Spread | None, Spread | None]
    """Over seeds; None where nothing was run."""

    @property
    def verdict(self) -> str:
        """As `verdict` says."""
        ahead, behind = (() if side is None else side.values for side in self.here)
        return verdict(ahead, behind)


def judge(study: Study, found: Sequence[Outcome]) -> list[Judged]:
    """All orderings of a study."""
    return [_judged(study, found, ordering) for ordering in study.orderings]


def _judged(study: Study, found: Sequence[Outcome], ordering: Ordering) -> Judged:
    (a, a_epochs), (b, b_epochs) = (_after(study, side) for side in (ordering.ahead, ordering.behind))
    metric = ordering.metric
    return Judged(
        ordering,
        (f"{a.label}, {a_epochs} epochs", f"{b.label}, {b_epochs} epochs"),
        (a.paper_after(a_epochs).get(metric), b.paper_after(b_epochs).get(metric)),
        (spread(found, a, a_epochs, metric), spread(found, b, b_epochs, metric)),
    )


def _after(study: Study, side: Side) -> tuple[Row, int]:
    row = study.row(side.row)
    return row, row.epochs[0 if side.short else -1]
