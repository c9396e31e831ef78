"""A study's results in words: a table in Markdown, the factors in epochs, the search, and the command behind each row."""

import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddetr_lite.benchmarks.cost import seconds_per_picture
from ddetr_lite.benchmarks.studies.mistakes import NMS, mistakes_table, nms_table
from ddetr_lite.benchmarks.studies.orderings import CLOSE, judge
from ddetr_lite.benchmarks.studies.plan import PlannedRun, Row, Study
from ddetr_lite.benchmarks.studies.results import (
    Factor,
    Outcome,
    Spread,
    diverged,
    factors,
    outcomes,
    rates,
    searched,
    spread,
)
from ddetr_lite.benchmarks.studies.training import command_of
from ddetr_lite.datasets.shapes import HARD, ShapesConfig
from ddetr_lite.engine.repeat import options

METRICS = {"AP": "AP", "AP50": "AP50", "AP_small": "AP small", "AP_medium": "AP medium", "AP_large": "AP large"}
NONE = "–"


def tables(
    study: Study, folder: Path, cost: Mapping[str, Any] | None = None, known: dict[str, Any] | None = None
) -> str:
    """The whole page. cost: what `bench NAME --cost` wrote, known: what `mistakes` found; None where not measured."""
    found = outcomes(study, folder)
    parts = [f"# {study.title}", study.method, "## Average precision", _circumstances(found)]
    parts += [markdown(scores_table(study, found))]
    if lost := diverged(study, folder):
        parts += ["Gave up, since no gradient was finite any more: " + ", ".join(f"`{name}`" for name in lost) + "."]
    if study.orderings:
        parts += ["## The order of the rows", _ORDER, markdown(orderings_table(study, found))]
    costs = cost["rows"] if cost else None
    if cost and costs:
        parts += ["## Cost", _measured_on(cost), markdown(cost_table(study, costs))]
    others = [row for row in study.rows if row.name != study.baseline and len(row.epochs) > 1]
    lines = [
        sentence
        for row in others
        for metric in ("AP", "AP_small")
        for sentence in _factors(study, found, row, metric, costs)
    ]
    if lines:
        parts += [f"## How many times as many epochs {study.row(study.baseline).label} takes", "\n".join(lines)]
    if known:
        labels = {row.name: row.label for row in study.rows}
        intro = "For a hundred objects of the validation set (seed 0, IoU 0.5, the score at which F1 is best; TIDE's kinds):"
        parts += ["## Where detections go wrong", intro, markdown(mistakes_table(labels, known))]
        if len(repeats := nms_table(labels, known, found)) > 1:
            intro = (
                f"Non-maximum suppression (IoU {NMS}, within a class), without which a set of predictions has to do:"
            )
            parts += [intro, markdown(repeats)]
    chosen = rates(study, folder)
    tried = searched(study, folder)
    trial = [[run.row.label, _rates(run), f"{ap:.3f}", "×" if chosen.get(run.row.name) == run.rate else ""]
             for run, ap in tried]  # fmt: skip
    if trial:
        head = ["model", "learning rates", "AP", "chosen"]
        parts += ["## The search for the learning rates", markdown([head, *trial]), _undecided(tried)]
    parts += ["## Commands", _data_command(study), *(_commands(found, row) for row in study.rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def scores_table(study: Study, found: Sequence[Outcome]) -> list[list[str]]:
    """A line for each row and length: AP at the end, mean and spread over seeds; and what the paper has."""
    paper = any(row.paper for row in study.rows)
    lines = [["model", "epochs", "seeds", *METRICS.values(), *(["authors: AP (S / M / L)"] if paper else [])]]
    for row in study.rows:
        for epochs in row.epochs:
            scores = [spread(found, row, epochs, metric) for metric in METRICS]
            if scores[0] is None:
                continue
            cells = [NONE if s is None else f"{s:.3f}" for s in scores]
            lines.append(
                [row.label, str(epochs), str(len(scores[0].values)), *cells, *([_paper(row, epochs)] if paper else [])]
            )
    return lines


_ORDER = textwrap.fill(
    "What is ahead of what in the paper, the authors' scores in percent, and whether it is so here. Confirmed: every run of "
    "the one is above every run of the other; reversed: below; open: neither, or a row has a single run and the difference "
    f"is below {CLOSE}.",
    120,
    break_on_hyphens=False,
)


def orderings_table(study: Study, found: Sequence[Outcome]) -> list[list[str]]:
    """A line for each ordering of the paper: both rows, the score, the paper's values and ours, the verdict."""
    lines = [["ahead", "behind", "score", "authors", "here", "verdict"]]
    for judged in judge(study, found):
        paper = " / ".join(NONE if value is None else f"{value:.1f}" for value in judged.paper)
        here = " / ".join(NONE if side is None else f"{side:.3f}" for side in judged.here)
        lines.append([*judged.labels, METRICS[judged.ordering.metric], paper, here, judged.verdict])
    return lines


def cost_table(study: Study, costs: Mapping[str, Any]) -> list[list[str]]:
    """What the rows cost; speeds as multiples of the baseline's."""
    base = costs[study.baseline]
    on_gpu = "peak_bytes" in base
    memory = "peak memory, MB" if on_gpu else "kept for backward, MB"
    lines = [["model", "parameters", "multiply-adds a picture", memory, "training speed", "speed of finding"]]
    for row in study.rows:
        if row.name in costs:
            cost = costs[row.name]
            training = seconds_per_picture(base) / seconds_per_picture(cost)
            finding = base["picture_seconds"] / cost["picture_seconds"]
            lines.append([
                row.label, f"{cost['parameters'] / 1e6:.2f}M", f"{cost['multiply_adds'] / 1e6:,.0f}M",
                f"{cost['peak_bytes' if on_gpu else 'activation_bytes'] / 1e6:.0f}",
                f"{training:.2f}×", f"{finding:.2f}×",
            ])  # fmt: skip
    return lines


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table whose first line is its head."""
    head, *rest = lines
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *rest))


def _factors(
    study: Study, found: Sequence[Outcome], row: Row, metric: str, costs: Mapping[str, Any] | None
) -> list[str]:
    return [f"- {_sentence(study, row, factor, costs)}" for factor in factors(study, found, row, metric)]


def _sentence(study: Study, row: Row, factor: Factor, costs: Mapping[str, Any] | None) -> str:
    base = study.row(study.baseline)
    start = f"{METRICS[factor.metric]} {factor.target:.3f} of {base.label} after {factor.baseline_epochs} epochs: {row.label} "
    if factor.factor is None:
        seeds = f"{len(factor.reached)} of {len(factor.needed)} seeds"
        return start + f"reaches it within {row.epochs[-1]} epochs with {seeds}."
    needed = Spread(tuple(e for e in factor.needed if e is not None))
    bound = "at most " if factor.at_most else ""
    text = (
        start + f"needs {bound}{needed:.1f} epochs, a factor of {'at least ' if bound else ''}**{factor.factor:.1f}**"
    )
    if costs and row.name in costs:
        speed = seconds_per_picture(costs[base.name]) / seconds_per_picture(costs[row.name])
        time = Spread(tuple(v * speed for v in factor.factor.values))
        text += f" in epochs and {'at least ' if bound else ''}{time:.1f} in time"
    return text + "."


TELLING = 0.02
"""An AP below which the order of two runs is chance: on a few hundred pictures a hundredth is."""


def _undecided(tried: Sequence[tuple[PlannedRun, float]]) -> str:
    """Which searches said nothing, since none of their runs learned enough; "" where all did."""
    best: dict[str, float] = {}
    for run, ap in tried:
        best[run.row.label] = max(ap, best.get(run.row.label, 0.0))
    low = [label for label, ap in best.items() if ap < TELLING]
    return (
        f"No run of the search reached AP {TELLING} for: {', '.join(low)}. There the choice is chance." if low else ""
    )


def _paper(row: Row, epochs: int) -> str:
    scores = row.paper_after(epochs)
    if not scores:
        return NONE
    parts = [f"{scores[name]:.1f}" for name in ("AP_small", "AP_medium", "AP_large") if name in scores]
    return f"{scores['AP']:.1f}" + (f" ({' / '.join(parts)})" if parts else "")


def _rates(run: PlannedRun) -> str:
    train = run.recipe.train
    return f"{train.lr:g}, Muon {train.muon_lr:g}" if train.optimizer == "muon" else f"{train.lr:g}"


def _circumstances(found: Sequence[Outcome]) -> str:
    """Machines and versions, as the logs say."""
    starts = [outcome.results.start for outcome in found]
    devices = sorted({str(start.get("device", "an unknown device")) for start in starts})
    versions = sorted({f"torch {start['versions']['torch']}" for start in starts if "versions" in start})
    runs = f"{len(found)} run{'s' * (len(found) != 1)}"
    return f"{runs}, on {'; '.join(devices)}; {', '.join(versions) or 'unknown versions'}."


def _measured_on(cost: Mapping[str, Any]) -> str:
    """The machine of the speeds, which need not be that of the runs."""
    machine = cost["machine"]
    threads = f", {machine['threads']} thread{'s' * (machine['threads'] != 1)}" if "threads" in machine else ""
    return f"Measured on {machine['chip']}{threads}, torch {machine['torch']}, {cost['date']}: `{cost['command']}`."


def _data_command(study: Study) -> str:
    """How the study's own data set is made, where it is not the recipe's."""
    folder = study.rows[0].recipe.data.folder
    usual = HARD if study.rows[0].recipe.name == "shapes-hard" else ShapesConfig()
    if study.shapes is None or study.shapes == usual:
        return ""
    words = ["ddetr-lite", "data", study.rows[0].recipe.name, "--folder", folder, *options(study.shapes, usual)]
    command = shlex.join(words)
    return f"The data first:\n\n```\n{command}\n```"


def _commands(found: Sequence[Outcome], row: Row) -> str:
    """The commands that train a row's runs, each alone: seeds differ in nothing else, so one stands for all."""
    runs = [o.run for o in found if o.run.row.name == row.name and o.run.seed == 0]
    if not runs:
        return ""
    return "\n".join(
        [f"{row.label} (other seeds: `--seed 1`, ...):", "", "```", *(command_of(r, Path("runs")) for r in runs), "```"]
    )
