"""What came out of a study, read from the logs of its runs: scores, and the epochs that rows need for the same score."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePath
from statistics import mean
from typing import Any

from ddetr_lite.benchmarks.studies.plan import PlannedRun, Row, Study, chosen_rate, counted_runs, open_runs, searches
from ddetr_lite.engine.recipes import recipe_to_dict
from ddetr_lite.engine.run import differing
from ddetr_lite.engine.run_results import Line, RunResults, read_run


@dataclass(frozen=True)
class Outcome:
    """A finished run that counts."""

    run: PlannedRun
    results: RunResults

    @property
    def last(self) -> Line:
        """The evaluation at the end: never the best of several, which would favour whoever is evaluated more often."""
        assert self.results.last is not None
        return self.results.last


def finished(run: PlannedRun, folder: Path) -> RunResults | None:
    """The run as it lies in a study's folder, if it was trained to its end, or diverged.

    Raises ValueError where it was trained with another recipe than the one planned, or on another data set, and says which.
    """
    log = folder / run.name / "log.jsonl"
    if not log.exists() or not log.read_text(encoding="utf-8").endswith("\n"):
        return None
    results = read_run(log)
    if results.recipe and (other := _differing(results.recipe, recipe_to_dict(run.recipe))):
        raise ValueError(f"{log} is not a run of this study: {other}; move its folder away")
    if results.diverged:
        return results
    last = results.last
    return results if last is not None and last["step"] == results.start.get("steps_in_all") else None


def _differing(before: dict[str, Any], now: dict[str, Any]) -> str:
    """As `differing`, and also the data set: the name of the recipe and that of the folder, wherever it lies."""
    if before["name"] != now["name"]:
        return f"it was trained on {before['name']}, this study on {now['name']}"
    folders = [PurePath(recipe["data"]["folder"]).name for recipe in (before, now)]
    if folders[0] != folders[1]:
        return f"folder was {folders[0]} and is now {folders[1]}"
    return differing(before, now)


def scores_in(study: Study, folder: Path) -> dict[str, float]:
    """The AP at the end of every run that is over, by the run's name; 0 where it diverged."""
    scores: dict[str, float] = {}
    while True:  # which runs there are depends on what the search found, and that on the scores known so far
        new = {
            run.name: 0.0 if results.diverged else float(Outcome(run, results).last["AP"])
            for run in open_runs(study, scores)
            if (results := finished(run, folder)) is not None
        }
        if not new:
            return scores
        scores |= new


def outcomes(study: Study, folder: Path) -> list[Outcome]:
    """The runs that count and came to their end."""
    planned = counted_runs(study, scores_in(study, folder))
    runs = [(run, finished(run, folder)) for run in planned]
    return [Outcome(run, results) for run, results in runs if results is not None and not results.diverged]


def diverged(study: Study, folder: Path) -> list[str]:
    """The names of the runs, of the search or that count, that gave up."""
    scores = scores_in(study, folder)
    planned = {run.name: run for run in [*searches(study, scores), *counted_runs(study, scores)]}
    runs = [(name, finished(run, folder)) for name, run in planned.items()]
    return [name for name, results in runs if results is not None and results.diverged]


def searched(study: Study, folder: Path) -> list[tuple[PlannedRun, float]]:
    """The finished runs of all searches, by row and rate, with the AP at their end."""
    scores = scores_in(study, folder)
    place = {row.name: number for number, row in enumerate(study.rows)}
    planned = sorted(searches(study, scores), key=lambda run: (place[run.row.name], run.rate))
    return [(run, scores[run.name]) for run in planned if run.name in scores]


def rates(study: Study, folder: Path) -> dict[str, float]:
    """The multiple of the learning rates that the search chose, by row."""
    scores = scores_in(study, folder)
    return {row.name: rate for row in study.rows if (rate := chosen_rate(study, row, scores)) is not None}


def read_json(path: Path) -> dict[str, Any]:
    """What a study wrote into its folder. Raises ValueError, with the remedy, where it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is broken ({error}): delete it, and measure again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is broken (a {type(content).__name__}): delete it, and measure again")
    return content


@dataclass(frozen=True)
class Spread:
    """A quantity over seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of all seeds."""
        return mean(self.values)

    def __format__(self, form: str) -> str:
        """ "0.634 (0.627–0.641)"; of a single value "0.634"."""
        if len(self.values) == 1:
            return format(self.mean, form)
        return f"{self.mean:{form}} ({min(self.values):{form}}–{max(self.values):{form}})"


def spread(found: Sequence[Outcome], row: Row, epochs: int, metric: str) -> Spread | None:
    """A metric at the end of the runs of a row and length, over seeds; None where there is no run, or no such object."""
    values = [o.last[metric] for o in found if o.run.row.name == row.name and o.run.epochs == epochs]
    values = [value for value in values if value >= 0]
    return Spread(tuple(values)) if values else None


def epochs_for(ends: Sequence[tuple[int, float]], target: float) -> float | None:
    """The length of schedule at which a row would end with the AP `target`.

    ends: (epochs, AP at the end) of schedules, rising. Between two lengths AP is taken as a line over log(epochs). None where
    the target is above all ends; where it is below the first, that first length, which is then an upper bound.
    """
    if ends and target <= ends[0][1]:
        return float(ends[0][0])
    for (before, low), (after, high) in pairwise(ends):
        if low < target <= high:
            share = (target - low) / (high - low)
            return math.exp(math.log(before) + share * math.log(after / before))
    return None


@dataclass(frozen=True)
class Factor:
    """How many times as many epochs the baseline took for a score as another row did, seed by seed."""

    metric: str
    baseline_epochs: int
    target: Spread
    """What the baseline reaches."""
    needed: tuple[float | None, ...]
    """The epochs that the other row needs for it; None: more than its longest schedule."""
    at_most: bool
    """Whether a seed of the other row was above the target after its shortest schedule: then factors are lower bounds."""

    @property
    def reached(self) -> tuple[float, ...]:
        """The epochs needed with those seeds that reached the target."""
        return tuple(epochs for epochs in self.needed if epochs is not None)

    @property
    def factor(self) -> Spread | None:
        """Baseline's epochs over the other row's; None where a seed did not reach the target."""
        if len(self.reached) < len(self.needed):
            return None
        return Spread(tuple(self.baseline_epochs / epochs for epochs in self.reached))


def factors(study: Study, found: Sequence[Outcome], row: Row, metric: str = "AP") -> list[Factor]:
    """For each length of the baseline's schedules: the epochs that `row` needs for the same score, seed against same seed."""
    baseline = study.row(study.baseline)
    seeds = sorted({o.run.seed for o in found})
    ends = {
        (name, seed): [
            (o.run.epochs, float(o.last[metric])) for o in found if o.run.row.name == name and o.run.seed == seed
        ]
        for name in (baseline.name, row.name)
        for seed in seeds
    }
    result = []
    for epochs in baseline.epochs:
        pairs = []
        for seed in seeds:
            target = dict(ends[baseline.name, seed]).get(epochs)
            if target is not None and target >= 0 and len(ends[row.name, seed]) == len(row.epochs):
                pairs.append((target, epochs_for(ends[row.name, seed], target), ends[row.name, seed][0][1] >= target))
        if pairs:
            targets, needed, below = zip(*pairs, strict=True)
            result.append(Factor(metric, epochs, Spread(tuple(targets)), needed, any(below)))
    return result
