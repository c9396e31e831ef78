"""What a study is: models that are trained by one method, at several lengths of schedule and seeds, and the list of its runs.

The method is the same for all rows: first a search for the learning rate (`open_runs` asks for it), then the runs that count.
Everything here is arithmetic on names and scores; `training` trains, `results` reads what came out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ddetr_lite.datasets.shapes import ShapesConfig
from ddetr_lite.engine.recipes import Recipe

RATES = (0.5, 1.0, 2.0)
"""The search: these multiples of a recipe's learning rates, AdamW's and Muon's alike."""
WIDEST = 8.0
"""Where the best multiple is the largest or smallest tried, the next one is tried too, as far as this or its inverse."""


@dataclass(frozen=True)
class Row:
    """A model of a study."""

    name: str
    label: str
    recipe: Recipe
    """All of a run but its epochs, seed, and the multiple of its learning rates."""
    epochs: tuple[int, ...]
    """The lengths of schedule, rising: each a run of its own, whose learning rate falls to nothing at its end."""
    rate_of: str = ""
    """The row whose search decides this row's learning rate; "": its own."""
    rate: float = 0.0
    """The multiple of the learning rates where it is known, as from another study's search; 0: it is searched for."""
    seeds: int = 0
    """How many seeds it is trained with at most; 0: as many as the study has."""
    paper: Mapping[str, float] = field(default_factory=dict)
    """What the paper reports on COCO, in percent: "AP", "AP_small", ..."""
    paper_short: Mapping[str, float] = field(default_factory=dict)
    """The same after a short schedule, which stands beside the shortest here."""

    def paper_after(self, epochs: int) -> Mapping[str, float]:
        """What the paper has to be set beside a run of this length."""
        return self.paper if epochs == self.epochs[-1] else self.paper_short


@dataclass(frozen=True)
class PlannedRun:
    """A run of a study; its name is its folder's."""

    row: Row
    rate: float
    epochs: int
    seed: int

    @property
    def name(self) -> str:
        """Unique within a study."""
        return f"{self.row.name}-{self.epochs}-epochs-rate-{self.rate:g}-seed-{self.seed}"

    @property
    def recipe(self) -> Recipe:
        """What is trained."""
        train = self.row.recipe.train
        lr, muon_lr = _digits(train.lr * self.rate), _digits(train.muon_lr * self.rate)
        train = replace(train, epochs=self.epochs, seed=self.seed, lr=lr, muon_lr=muon_lr)
        return replace(self.row.recipe, train=train)


@dataclass(frozen=True)
class Side:
    """One side of an ordering: a row after its longest schedule, or after its shortest."""

    row: str
    short: bool = False


@dataclass(frozen=True)
class Ordering:
    """That in the paper one row is ahead of another."""

    ahead: Side
    behind: Side
    metric: str = "AP"


@dataclass(frozen=True)
class Study:
    """Rows that are compared, and how."""

    name: str
    title: str
    method: str
    """In words: data, budget, how learning rates were chosen, what counts as equal. Written before the runs."""
    rows: tuple[Row, ...]
    baseline: str
    """The row that the others are measured against."""
    search_epochs: int
    """How long the runs of the search are."""
    seeds: int = 3
    shapes: ShapesConfig | None = None
    """The generated data set that is made where it is missing."""
    orderings: tuple[Ordering, ...] = ()
    """Those of the paper that are to be confirmed."""

    def row(self, name: str) -> Row:
        """By its name. Raises ValueError naming those that there are."""
        for row in self.rows:
            if row.name == name:
                return row
        raise ValueError(
            f"row {name!r} is unknown in {self.name}: choose from {', '.join(row.name for row in self.rows)}"
        )


Scores = Mapping[str, float]
"""The AP at the end of each run that is over, by the run's name; 0 where it diverged."""


def search_runs(study: Study, row: Row, scores: Scores) -> list[PlannedRun]:
    """The runs of a row's search for its learning rate, as far as `scores` says how far it has to go."""
    rates = list(RATES)
    while True:
        planned = [PlannedRun(row, rate, study.search_epochs, seed=0) for rate in rates]
        if any(run.name not in scores for run in planned):
            return planned
        best = max(planned, key=lambda run: scores[run.name]).rate
        further = best * 2 if best == max(rates) else best / 2
        if min(rates) < best < max(rates) or not 1 / WIDEST <= further <= WIDEST:
            return planned
        rates.append(further)


def chosen_rate(study: Study, row: Row, scores: Scores) -> float | None:
    """The multiple with the best AP at the end of a run of `search_epochs`; None while the search is going on."""
    if row.rate:
        return row.rate
    if row.rate_of:
        return chosen_rate(study, study.row(row.rate_of), scores)
    planned = search_runs(study, row, scores)
    if any(run.name not in scores for run in planned):
        return None
    return max(planned, key=lambda run: scores[run.name]).rate


def counted_runs(study: Study, scores: Scores) -> list[PlannedRun]:
    """The runs that count, of all rows whose learning rate is known: all of seed 0 first, then the others."""
    rates = {row.name: chosen_rate(study, row, scores) for row in study.rows}
    return [
        PlannedRun(row, rate, epochs, seed)
        for seed in range(study.seeds)
        for row in study.rows
        if (rate := rates[row.name]) is not None and seed < (row.seeds or study.seeds)
        for epochs in row.epochs
    ]


def searches(study: Study, scores: Scores) -> list[PlannedRun]:
    """The runs of all searches, row by row, as far as they are known."""
    return [run for row in study.rows if not (row.rate or row.rate_of) for run in search_runs(study, row, scores)]


def open_runs(study: Study, scores: Scores) -> list[PlannedRun]:
    """The runs that could be started now, most wanted first: searches, then those that count. Empty when all is done."""
    wanted = {run.name: run for run in [*searches(study, scores), *counted_runs(study, scores)]}
    return [run for name, run in wanted.items() if name not in scores]


def _digits(value: float) -> float:
    return float(f"{value:.6g}")
