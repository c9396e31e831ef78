"""Why is AP 0, or low? What DETR's authors were asked most, answered by measuring: a run's log, data, model and detections.

Each check measures something and says whether that is fine, suspicious, or explains a low AP by itself. Nothing is written.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ddetr_lite.engine.explain_boxes import check_boxes
from ddetr_lite.engine.explain_data import check_data
from ddetr_lite.engine.explain_detections import check_classes, check_kinds, check_scores
from ddetr_lite.engine.explain_evidence import Evidence, Observation, find_objects, gather
from ddetr_lite.engine.explain_healthy import check_healthy, check_steps, set_young
from ddetr_lite.engine.explain_log import (
    check_backbone,
    check_decay,
    check_gradient,
    check_loss,
    check_progress,
    check_rate,
    check_sizes,
    check_skips,
)
from ddetr_lite.engine.explain_model import check_generalisation, check_one_batch, check_weights
from ddetr_lite.engine.explain_queries import check_queries

# The likeliest reason first: what is wrong with data or options explains what the model does, and not the reverse. Each check
# that can find something has its place here.
ORDER = (
    "checkpoint", "data", "pictures", "data and model", "number of queries", "classes", "boxes", "detections", "weight decay",
    "skipped steps", "learning rate", "backbone", "weight of no object", "picture size", "weights", "number of steps",
    "one batch", "query collapse", "gradient", "loss", "training and validation", "scores", "matching", "kinds of error",
    "healthy run", "progress",
)  # fmt: skip


# Where these name a mistake, that is it; where they only say that boxes or classes are poor, that is a symptom.
MEASURED = ("classes", "boxes", "detections")


@dataclass(frozen=True)
class Explanation:
    """What all checks said, in the order in which they were made."""

    observations: list[Observation]

    def likely(self) -> list[Observation]:
        """The causes, likeliest first; where there is none, what is suspicious."""
        for verdict in ("cause", "suspicious"):
            own = [o for o in self.observations if o.verdict == verdict]
            if own:
                return sorted(own, key=_rank)
        return []

    def lines(self) -> list[str]:
        """For a terminal: one line for each check, and the conclusion."""
        wide = max(len(o.name) for o in self.observations)
        lines = [f"{o.verdict:<10}  {o.name:<{wide}}  {o.text}" for o in self.observations]
        return [*lines, "", *self.conclusion()]

    def conclusion(self) -> list[str]:
        """ "Most likely: ..." with a remedy for each, in a line."""
        likely = self.likely()
        if not likely:
            return ["Most likely: nothing is wrong; a low AP needs more steps, more pictures or a larger model."]
        sure = any(o.verdict == "cause" for o in likely)
        start = "Most likely:" if sure else "Most likely: no clear cause. Suspicious, likeliest first:"
        return [start, *(f"  {i}. {o.name}: {o.remedy or o.text}" for i, o in enumerate(likely, 1))]


def _rank(observation: Observation) -> int:
    """Its place in the conclusion."""
    name = observation.name
    if observation.verdict != "cause" and name in MEASURED:
        name = "scores"
    return ORDER.index(name)


def explain(
    run: str | Path, folder: str | Path | None = None, pictures: int = 32, steps: int = 60, device: str = "auto"
) -> Explanation:
    """Look at a run's folder for reasons of a low AP.

    folder: of the data, where that is not where the recipe says; pictures: of each split to look at; steps: to learn one
    batch by heart. Raises ValueError where there is no run; all else that is missing is said in an observation.
    """
    evidence = gather(run, folder, pictures, steps, device)
    set_young(evidence)
    return Explanation(list(_look(evidence)))


def _look(evidence: Evidence) -> Iterator[Observation]:
    for check in (check_progress, check_steps, check_healthy, check_loss, check_skips, check_gradient, check_rate):
        yield check(evidence)
    yield check_decay(evidence)
    yield check_backbone(evidence)
    yield check_sizes(evidence)
    yield from check_data(evidence)
    weights = check_weights(evidence)
    yield weights
    if weights.verdict == "cause":  # NaN in, NaN out
        evidence.best = evidence.last = None
    try:
        yield check_one_batch(evidence)
        yield check_generalisation(evidence)
        yield from check_queries(evidence)
        find_objects(evidence)
    except (ValueError, OSError) as error:  # a picture that cannot be read, which the check of a sample did not see
        yield Observation("pictures", "cause", str(error), "restore it, or drop its record")
    yield from evidence.problems
    for check in (check_boxes, check_classes, check_scores, check_kinds):
        yield check(evidence)
