"""Where a healthy run stands after so many pictures: the runs of data/results, of which a test compares this table."""

from dataclasses import dataclass
from itertools import pairwise

from ddetr_lite.engine.explain_evidence import Evidence, Observation, Verdict

ON_PAR, FAR_BELOW = 0.6, 0.3  # of a healthy run's AP
LITTLE = 0.02  # an AP this low is the same as none: two runs may differ by it
FEW_STEPS = (300, 1500)  # of a recipe without a healthy run: certainly, and perhaps too few


@dataclass(frozen=True)
class HealthyRun:
    """(pictures seen, AP or None between evaluations, mean loss over the last fifth of the steps so far)."""

    recipe: str
    row: str
    source: str
    """Folder in data/results."""
    points: tuple[tuple[int, float | None, float], ...]

    def ap(self, pictures: int) -> float:
        """AP after so many pictures, on a line between evaluations; the last AP beyond them."""
        known = [(0, 0.0), *((n, ap) for n, ap, _ in self.points if ap is not None)]
        return _between(known, pictures)

    def loss(self, pictures: int) -> float:
        """The loss after so many pictures."""
        return _between([(n, loss) for n, _, loss in self.points], pictures)

    @property
    def first_evaluated(self) -> int:
        """Pictures until AP was measured first: what is said of it before is a line from nothing."""
        return next(n for n, ap, _ in self.points if ap is not None)

    @property
    def best(self) -> float:
        """The AP at its end."""
        return self.ap(self.points[-1][0])

    @property
    def half_way(self) -> int:
        """Pictures until it had half of its last AP."""
        return next(n for n, ap, _ in self.points if ap is not None and ap >= self.best / 2)


RUNS = (
    HealthyRun("shapes", "deformable-detr-two-stage", "shapes", (
        (800, None, 13.92), (1600, None, 10.17), (3200, None, 7.362), (4000, 0.2257, 6.81), (8000, 0.4641, 5.359),
        (12000, 0.5858, 4.496), (16000, 0.6784, 3.924), (20000, 0.7171, 3.663), (24000, 0.7512, 3.252),
    )),
    HealthyRun("shapes", "deformable-detr", "shapes-deformable-eight-epochs", (
        (800, None, 10.45), (1600, None, 6.87), (3200, None, 4.916), (8000, 0.1759, 3.89), (16000, 0.3984, 2.907),
        (24000, 0.5419, 2.402), (32000, 0.6341, 1.97),
    )),
    HealthyRun("shapes", "detr", "shapes-detr", (
        (800, None, 20.53), (1600, None, 13.82), (3200, None, 13.31), (8000, 0.0065, 11.22), (16000, 0.0405, 9.482),
        (24000, 0.1898, 7.164), (32000, 0.3398, 5.693), (48000, 0.4709, 4.392), (64000, 0.5348, 3.774),
        (80000, 0.5942, 3.319), (96000, 0.638, 2.942), (112000, 0.705, 2.639), (128000, 0.7335, 2.307),
        (144000, 0.7791, 1.921),
    )),
    HealthyRun("shapes", "faster-rcnn", "shapes-faster-rcnn", (
        (800, None, 1.536), (1600, None, 1.246), (3200, None, 0.8525), (4000, 0.4232, 0.8349), (8000, 0.6571, 0.5202),
    )),
    HealthyRun("coco-mini", "deformable-detr-two-stage", "coco-mini", (
        (800, None, 25.02), (1600, None, 20.84), (3200, None, 18.05), (7104, 0.0174, 16.11), (14208, 0.0231, 15.05),
        (21312, 0.0339, 14.13), (28416, 0.0386, 13.24), (35520, 0.0433, 12.63), (39072, 0.0468, 12.35),
    )),
)  # fmt: skip


def healthy_run(evidence: Evidence) -> HealthyRun | None:
    """The run to compare with: the same recipe and row of the table, or else the same architecture."""
    if evidence.recipe is None or evidence.recipe.data.overfit:
        return None
    row, own = evidence.run.row, [run for run in RUNS if run.recipe == evidence.recipe.name]
    exact = [run for run in own if run.row == row]
    kin = [
        run for run in own if (run.row.startswith("deformable")) == row.startswith("deformable") and "rcnn" not in row
    ]
    return next(iter([*exact, *kin]), None)


def set_young(evidence: Evidence) -> None:
    """Say whether the run has had so few steps that even a healthy one would have little to show."""
    healthy, steps = healthy_run(evidence), evidence.run.steps
    if healthy is None:
        evidence.young = steps < FEW_STEPS[0]
    else:
        evidence.young = evidence.pictures_seen < healthy.half_way


def check_steps(evidence: Evidence) -> Observation:
    """Too few steps: the most frequent reason of all for an AP of 0."""
    name, seen, steps = "number of steps", evidence.pictures_seen, evidence.run.steps
    if evidence.recipe is None or evidence.recipe.data.overfit:
        return Observation(
            name, "skipped", "unknown recipe" if evidence.recipe is None else "overfitting a few pictures"
        )
    healthy, low = healthy_run(evidence), (evidence.ap or 0.0) < 0.2
    if healthy is not None:
        text = f"{seen} pictures seen; a healthy run needs {healthy.half_way} for AP {healthy.ap(healthy.half_way):.2f}"
        if seen >= healthy.half_way:
            return Observation(name, "OK", text)
        times = healthy.points[-1][0] / max(seen, 1)
        return Observation(name, "cause", text, f"train about {times:.1f} × as long: --epochs, or more pictures")
    text = f"{steps} steps, {seen} pictures seen"
    if steps < FEW_STEPS[0] or (steps < FEW_STEPS[1] and low):
        verdict: Verdict = "cause" if steps < FEW_STEPS[0] and low else "suspicious"
        remedy = "train longer (DETR learns slowly)"
        if not evidence.recipe.train.start_from:
            remedy += ", or start from a trained detector with --start-from"
        return Observation(name, verdict, text, remedy)
    return Observation(name, "OK", text)


def check_healthy(evidence: Evidence) -> Observation:
    """AP and loss against those of a healthy run after as many pictures."""
    name, healthy, run = "healthy run", healthy_run(evidence), evidence.run
    if healthy is None or evidence.recipe is None:
        return Observation(name, "skipped", "there is no known healthy run of this recipe to compare with")
    if not run.train:
        return Observation(name, "skipped", "this run's log has no loss yet")
    loss = float(run.train[-1]["loss"])
    seen = int(run.train[-1]["step"]) * evidence.recipe.train.batch
    text = f"after {seen} pictures data/results/{healthy.source} had loss {healthy.loss(seen):.3g}, this run {loss:.3g}"
    if healthy.row != run.row:
        text += f" (that was {healthy.row}: a rough comparison)"
    if run.last is None or evidence.ap is None:
        return _by_loss(name, text, loss, healthy.loss(seen))
    judged = int(run.last["step"]) * evidence.recipe.train.batch
    if judged < healthy.first_evaluated:
        text += f"; its AP was first measured after {healthy.first_evaluated}, so there is none to compare with yet"
        return _by_loss(name, text, loss, healthy.loss(seen))
    expected = healthy.ap(judged)
    text += f"; AP {expected:.3f}, this run {evidence.ap:.3f}"
    if evidence.ap >= ON_PAR * expected - LITTLE:
        return Observation(name, "OK", text)
    how = "far below" if evidence.ap < FAR_BELOW * expected else "below"
    return Observation(name, "suspicious", f"{text}: {how}", "something is wrong, but not the number of steps")


def _by_loss(name: str, text: str, loss: float, expected: float) -> Observation:
    """What a loss alone says, beside that of a healthy run."""
    much = loss > 1.5 * expected
    remedy = "it learns slower than it should: see the other checks" if much else ""
    return Observation(name, "suspicious" if much else "OK", text, remedy)


def _between(known: list[tuple[int, float]], at: int) -> float:
    if at <= known[0][0]:
        return known[0][1]
    for (x0, y0), (x1, y1) in pairwise(known):
        if at <= x1:
            return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
    return known[-1][1]
