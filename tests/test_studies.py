"""Studies: which runs are wanted, what their logs say, and the factor between two models. Only one test trains."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from matplotlib.patches import Rectangle
from torch import nn
from torchvision.ops import box_iou

from ddetr_lite.batching import RawBatch
from ddetr_lite.benchmarks.cost import kept_bytes, multiply_adds
from ddetr_lite.benchmarks.studies import STUDIES, training
from ddetr_lite.benchmarks.studies.convergence import CONVERGENCE
from ddetr_lite.benchmarks.studies.figure import rows_figure, study_figure
from ddetr_lite.benchmarks.studies.mistakes import NMS, mistakes_table, nms_table
from ddetr_lite.benchmarks.studies.orderings import judge, verdict
from ddetr_lite.benchmarks.studies.plan import (
    Ordering,
    PlannedRun,
    Row,
    Side,
    Study,
    chosen_rate,
    counted_runs,
    open_runs,
    search_runs,
)
from ddetr_lite.benchmarks.studies.results import (
    Outcome,
    Spread,
    epochs_for,
    factors,
    finished,
    outcomes,
    scores_in,
    spread,
)
from ddetr_lite.benchmarks.studies.table import markdown, orderings_table, tables
from ddetr_lite.benchmarks.studies.tables import PAPER
from ddetr_lite.cli import main
from ddetr_lite.cli.benching import STUDIES as NAMES
from ddetr_lite.datasets.shapes import ShapesConfig
from ddetr_lite.engine.errors import KINDS
from ddetr_lite.engine.recipe_checks import check
from ddetr_lite.engine.recipes import recipe, recipe_to_dict
from ddetr_lite.layers.attention import MultiHeadAttention
from ddetr_lite.layers.deformable_attention import MultiScaleDeformableAttention
from ddetr_lite.models.presets import ROWS, build
from ddetr_lite.set_prediction.postprocess import without_repeats

SLOW = Row("slow", "Slow", recipe("shapes", "detr"), (4, 8))
QUICK = Row("quick", "Quick", recipe("shapes", "deformable-detr"), (2, 4))
STUDY = Study("trial", "A trial", "The method.", (SLOW, QUICK), "slow", search_epochs=4, seeds=2)
TABLE_1_LOGS = Path(__file__).parents[1] / "data" / "results" / "table1-cpu"


def scores_of(row: Row, found: dict[float, float]) -> dict[str, float]:
    """Of a row's search: multiple → AP."""
    return {PlannedRun(row, rate, STUDY.search_epochs, 0).name: ap for rate, ap in found.items()}


def write_run(
    folder: Path, run: PlannedRun, ap: float, steps: int = 100, done: int | None = None, **changes: Any
) -> Path:
    """A log as training leaves it, of a run that came to step `done`."""
    chosen = recipe_to_dict(run.recipe)
    chosen["train"] = {**chosen["train"], **changes}
    metrics = {"AP": ap, "AP50": min(1.0, ap * 1.3), "AP75": ap, "AP_small": ap / 2, "AP_medium": ap, "AP_large": -1.0}
    done = steps if done is None else done
    lines: list[dict[str, Any]] = [
        {
            "kind": "start",
            "step": 0,
            "recipe": chosen,
            "steps_in_all": steps,
            "parameters": 1000,
            "device": "x86, 2 threads",
            "versions": {"torch": "9.9"},
        },
        {"kind": "evaluate", "step": done // 2, "epoch": 1, "train_seconds": 1.0, **metrics, "AP": 0.9},
        {"kind": "evaluate", "step": done, "epoch": 2, "train_seconds": 2.0, **metrics},
    ]
    (folder / run.name).mkdir(parents=True)
    path = folder / run.name / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_study(folder: Path) -> None:
    """Rate 1 wins both searches; AP rises with the epochs, and is the same whatever the seed but for a hundredth."""
    for row, ends in ((SLOW, {4: 0.2, 8: 0.4}), (QUICK, {2: 0.2, 4: 0.5})):
        for rate in (0.5, 2.0):
            write_run(folder, PlannedRun(row, rate, 4, 0), 0.1)
        for seed in (0, 1):
            for epochs, ap in ends.items():
                write_run(folder, PlannedRun(row, 1.0, epochs, seed), ap + 0.01 * seed)


def test_search_begins_with_three_rates_and_goes_on_beyond_an_edge() -> None:
    rates = [run.rate for run in search_runs(STUDY, SLOW, {})]
    assert rates == [0.5, 1.0, 2.0]
    inside = scores_of(SLOW, {0.5: 0.1, 1.0: 0.3, 2.0: 0.2})
    assert [run.rate for run in search_runs(STUDY, SLOW, inside)] == rates
    assert chosen_rate(STUDY, SLOW, inside) == 1.0
    above = scores_of(SLOW, {0.5: 0.1, 1.0: 0.2, 2.0: 0.3})
    assert [run.rate for run in search_runs(STUDY, SLOW, above)] == [*rates, 4.0]
    assert chosen_rate(STUDY, SLOW, above) is None
    assert chosen_rate(STUDY, SLOW, above | scores_of(SLOW, {4.0: 0.25})) == 2.0
    below = scores_of(SLOW, {0.5: 0.3, 1.0: 0.2, 2.0: 0.1})
    assert [run.rate for run in search_runs(STUDY, SLOW, below)] == [*rates, 0.25]
    assert chosen_rate(STUDY, SLOW, below | scores_of(SLOW, {0.25: 0.31, 0.125: 0.1})) == 0.25
    rising = scores_of(SLOW, {0.5: 0.1, 1.0: 0.2, 2.0: 0.3, 4.0: 0.4, 8.0: 0.5})
    assert [run.rate for run in search_runs(STUDY, SLOW, rising)] == [*rates, 4.0, 8.0]  # and no further
    assert chosen_rate(STUDY, SLOW, rising) == 8.0


def test_runs_come_search_first_then_seed_by_seed() -> None:
    assert [run.name for run in open_runs(STUDY, {})][:2] == [
        "slow-4-epochs-rate-0.5-seed-0",
        "slow-4-epochs-rate-1-seed-0",
    ]
    assert len(open_runs(STUDY, {})) == 6
    known = scores_of(SLOW, {0.5: 0.1, 1.0: 0.3, 2.0: 0.2})
    # Of the row whose rate is known the counted runs join in; the search's own run at that rate counts, and is not done again.
    assert [run.name for run in open_runs(STUDY, known)][3:] == [
        "slow-8-epochs-rate-1-seed-0", "slow-4-epochs-rate-1-seed-1", "slow-8-epochs-rate-1-seed-1"
    ]  # fmt: skip
    known |= scores_of(QUICK, {0.5: 0.1, 1.0: 0.2, 2.0: 0.3, 4.0: 0.1})
    names = [(run.row.name, run.rate, run.epochs, run.seed) for run in counted_runs(STUDY, known)]
    assert names == [
        (n, r, e, s) for s in (0, 1) for n, r, ends in (("slow", 1, (4, 8)), ("quick", 2, (2, 4))) for e in ends
    ]


def test_a_row_can_have_fewer_seeds_than_the_study() -> None:
    known = scores_of(SLOW, {0.5: 0.1, 1.0: 0.3, 2.0: 0.2})
    once = replace(STUDY, rows=(replace(SLOW, seeds=1), QUICK), seeds=3)
    assert [run.seed for run in counted_runs(once, known) if run.row.name == "slow"] == [0, 0]
    assert [run.seed for run in counted_runs(replace(STUDY, seeds=3), known)] == [0, 0, 1, 1, 2, 2]


def test_a_row_can_take_the_rate_of_another() -> None:
    variant = Row("variant", "Variant", QUICK.recipe, (4,), rate_of="slow")
    study = replace(STUDY, rows=(SLOW, variant))
    assert {run.row.name for run in open_runs(study, {})} == {"slow"}
    known = scores_of(SLOW, {0.5: 0.1, 1.0: 0.2, 2.0: 0.3, 4.0: 0.1})
    assert [run.rate for run in counted_runs(study, known) if run.row is variant] == [2.0, 2.0]


def test_a_rate_can_be_known_from_elsewhere() -> None:
    known = replace(QUICK, name="known", rate=2.0)
    study = replace(STUDY, rows=(SLOW, known))
    first = open_runs(study, {})
    assert [run.rate for run in first if run.row is SLOW] == [0.5, 1.0, 2.0]  # its search, and no other
    assert [run.rate for run in first if run.row is known] == [2.0] * len(known.epochs) * study.seeds


def test_the_rows_of_the_lead_that_table_1_has_are_its_own() -> None:
    lead, table = STUDIES["lead-cpu"], STUDIES["table1-cpu"]
    for name in ("faster-rcnn", "deformable-detr-two-stage"):
        a, b = (PlannedRun(study.row(name), 1.0, 6, 0) for study in (lead, table))
        assert (a.name, a.recipe) == (b.name, b.recipe)
    scores = scores_in(table, TABLE_1_LOGS)  # what the search found
    assert all(chosen_rate(table, table.row(name), scores) == 1.0 for name in ("faster-rcnn", "deformable-detr"))


def test_coco_mini_on_a_cpu_has_the_learning_rates_that_table_1_found() -> None:
    table = STUDIES["table1-cpu"]
    scores = scores_in(table, TABLE_1_LOGS)
    for row in STUDIES["coco-mini-cpu"].rows:
        searched = table.row(row.name if row.name in ("faster-rcnn", "detr") else "deformable-detr")
        rate = chosen_rate(table, searched, scores)
        assert rate is not None
        ours, theirs = (PlannedRun(one, r, 6, 0).recipe.train for one, r in ((row, row.rate), (searched, rate)))
        for name in ("lr", "muon_lr", "optimizer", "batch", "schedule"):
            assert getattr(ours, name) == getattr(theirs, name), (row.name, name)


def test_recipe_of_a_run() -> None:
    base, changed = SLOW.recipe.train, PlannedRun(SLOW, 2.0, 8, 3).recipe.train
    assert changed == replace(base, epochs=8, seed=3, lr=2 * base.lr, muon_lr=2 * base.muon_lr)


@pytest.mark.parametrize("name", NAMES)
def test_studies_can_be_trained_and_typed(name: str) -> None:
    """Every row's recipe is valid, can be written as a command line, and shares what the method says is equal."""
    study = STUDIES[name]
    study.row(study.baseline)
    for row in study.rows:
        check(row.recipe)
        build(row.recipe.model, 8, load_backbone=False)
        assert list(row.epochs) == sorted(row.epochs)
        assert not row.rate_of or not study.row(row.rate_of).rate_of
        words = training.command_of(PlannedRun(row, 2.0, row.epochs[0], 1), Path("runs"))
        assert words.startswith(f"ddetr-lite train {row.recipe.name} ")
        assert "--seed 1" in words
        assert (row.recipe.data, row.recipe.augment) == (study.rows[0].recipe.data, study.rows[0].recipe.augment)
        assert row.recipe.train.batch == study.rows[0].recipe.train.batch


def test_convergence_compares_like_with_like() -> None:
    first, second, same_map = (row.recipe for row in CONVERGENCE.rows)
    assert first.train == replace(second.train, epochs=first.train.epochs)
    for field in ("backbone", "dim", "heads", "hidden", "encoder_layers", "decoder_layers", "queries", "dropout"):
        assert getattr(first.model, field) == getattr(second.model, field)
    # What is not equal is said: DETR's backbone ends where its map is.
    backbones = [build(r.model, 8).backbone for r in (first, second)]
    sizes = [sum(p.numel() for p in backbone.parameters()) for backbone in backbones]
    assert all(f"{size:,}" in CONVERGENCE.method for size in sizes)
    # The third row has DETR's backbone and map, and all else of the second.
    third = build(same_map.model, 8).backbone
    assert sum(p.numel() for p in third.parameters()) == sizes[0]
    one_map: Any = {"levels": 1, "stride": 8}
    assert same_map == replace(second, model=replace(second.model, **one_map))
    pixels = torch.zeros(1, 3, 96, 96)
    assert [m.shape for m in third[0](pixels)] == [m.shape for m in backbones[0][0](pixels)]
    assert set(PAPER) == set(ROWS)


def test_scores_are_those_at_the_end_of_finished_runs(tmp_path: Path) -> None:
    whole, part, none = (PlannedRun(SLOW, rate, 4, 0) for rate in (0.5, 1.0, 2.0))
    write_run(tmp_path, whole, 0.25)
    write_run(tmp_path, part, 0.5, done=60)
    assert scores_in(STUDY, tmp_path) == {
        whole.name: 0.25
    }  # neither the best on the way, 0.9, nor one that is not over
    assert finished(part, tmp_path) is None
    assert finished(none, tmp_path) is None
    log = tmp_path / whole.name / "log.jsonl"
    log.write_text(log.read_text().rstrip("\n")[:-5])  # being written
    assert finished(whole, tmp_path) is None


def test_a_run_with_another_recipe_is_an_error(tmp_path: Path) -> None:
    run = PlannedRun(SLOW, 1.0, 4, 0)
    write_run(tmp_path, run, 0.25, batch=7)
    with pytest.raises(
        ValueError, match=r"slow-4-epochs-rate-1-seed-0.log\.jsonl is not a run of this study: batch was 7"
    ):
        scores_in(STUDY, tmp_path)


def test_a_run_on_another_data_set_is_an_error(tmp_path: Path) -> None:
    """Its recipe may be the same but for the folder, and a folder may lie anywhere: its own name tells."""
    run = PlannedRun(SLOW, 1.0, 4, 0)
    path = write_run(tmp_path, run, 0.25)
    start, *others = path.read_text().splitlines()
    line = json.loads(start)
    line["recipe"]["data"]["folder"] = "/elsewhere/shapes"
    path.write_text("\n".join([json.dumps(line), *others]) + "\n")
    assert finished(run, tmp_path) is not None
    line["recipe"]["data"]["folder"] = "data/shapes-128"
    path.write_text("\n".join([json.dumps(line), *others]) + "\n")
    with pytest.raises(ValueError, match=r"not a run of this study: folder was shapes-128 and is now shapes"):
        finished(run, tmp_path)
    line["recipe"]["name"] = "coco-mini"
    path.write_text("\n".join([json.dumps(line), *others]) + "\n")
    with pytest.raises(ValueError, match=r"it was trained on coco-mini, this study on shapes"):
        finished(run, tmp_path)


def test_a_run_that_diverged_has_a_score_of_nothing_and_is_named(tmp_path: Path) -> None:
    write_study(tmp_path)
    lost = PlannedRun(SLOW, 2.0, 4, 0)
    log = tmp_path / lost.name / "log.jsonl"
    log.write_text(log.read_text() + json.dumps({"kind": "diverged", "step": 60, "reason": "NaN"}) + "\n")
    assert scores_in(STUDY, tmp_path)[lost.name] == 0.0
    assert open_runs(STUDY, scores_in(STUDY, tmp_path)) == []  # it is over, and not tried again
    assert len(outcomes(STUDY, tmp_path)) == 8
    assert f"Gave up, since no gradient was finite any more: `{lost.name}`." in tables(STUDY, tmp_path)
    counted = tmp_path / PlannedRun(SLOW, 1.0, 8, 1).name / "log.jsonl"
    counted.write_text(counted.read_text() + json.dumps({"kind": "diverged", "step": 60, "reason": "NaN"}) + "\n")
    assert len(outcomes(STUDY, tmp_path)) == 7


def test_a_run_of_an_older_version_counts(tmp_path: Path) -> None:
    """Its log does not know the newest fields, which were at their defaults then."""
    path = write_run(tmp_path, PlannedRun(QUICK, 1.0, 2, 0), 0.25)
    start, *others = path.read_text().splitlines()
    line = json.loads(start)
    del line["recipe"]["model"]["own_level"]
    path.write_text("\n".join([json.dumps(line), *others]) + "\n")
    assert finished(PlannedRun(QUICK, 1.0, 2, 0), tmp_path) is not None


def test_epochs_for_a_score() -> None:
    ends = [(2, 0.1), (8, 0.4), (32, 0.6)]
    assert epochs_for(ends, 0.25) == pytest.approx(4)  # half the way in the logarithm
    assert epochs_for(ends, 0.4) == pytest.approx(8)
    assert epochs_for(ends, 0.55) == pytest.approx(8 * math.sqrt(4) ** 1.5)
    assert epochs_for(ends, 0.05) == 2
    assert epochs_for(ends, 0.61) is None
    assert epochs_for([(2, 0.3), (4, 0.2), (8, 0.5)], 0.4) == pytest.approx(4 * 2 ** (2 / 3))  # a run that went wrong
    assert epochs_for([], 0.1) is None


def test_factors_compare_seed_with_seed(tmp_path: Path) -> None:
    write_study(tmp_path)
    found = outcomes(STUDY, tmp_path)
    assert len(found) == 8
    short, long = factors(STUDY, found, QUICK)
    # AP 0.20 and 0.21 after four epochs of the slow one: the quick one has both after two already, its shortest schedule.
    assert short.at_most
    assert short.factor == Spread((2.0, 2.0))
    # 0.40 and 0.41 after eight: two thirds of the way from 0.20 to 0.50, and from 0.21 to 0.51.
    assert not long.at_most
    assert long.factor is not None
    assert long.factor.values == pytest.approx((8 / 2 ** (1 + 2 / 3),) * 2)
    assert f"{long.target:.2f}" == "0.41 (0.40–0.41)"  # the mean of 0.400 and 0.410 is 0.405
    worse = [o for o in found if (o.run.row.name, o.run.epochs, o.run.seed) != ("quick", 4, 1)]
    assert len(factors(STUDY, worse, QUICK)[1].target.values) == 1  # a seed that is not finished is not compared
    assert spread(found, QUICK, 4, "AP_large") is None
    assert factors(STUDY, found, QUICK, "AP_large") == []  # there are no such objects
    small = factors(STUDY, found, QUICK, "AP_small")[1]
    assert small.target.values == pytest.approx((0.2, 0.205))


def test_a_target_that_is_not_reached_gives_no_factor(tmp_path: Path) -> None:
    write_study(tmp_path)
    found = factors(replace(STUDY, baseline="quick", rows=(SLOW, QUICK)), outcomes(STUDY, tmp_path), SLOW)
    assert found[1].factor is None
    assert found[1].needed == (None, None)
    write_run(tmp_path / "more", PlannedRun(SLOW, 1.0, 8, 1), 0.6)
    log = Path(PlannedRun(SLOW, 1.0, 8, 1).name) / "log.jsonl"
    (tmp_path / log).write_text((tmp_path / "more" / log).read_text())
    page = tables(replace(STUDY, baseline="quick", rows=(SLOW, QUICK)), tmp_path)
    assert "AP 0.505 (0.500–0.510) of Quick after 4 epochs: Slow reaches it within 8 epochs with 1 of 2 seeds." in page


def test_a_search_that_says_nothing_is_named(tmp_path: Path) -> None:
    write_study(tmp_path)
    assert "the choice is chance" not in tables(STUDY, tmp_path)
    for rate in (0.5, 1.0, 2.0, 4.0):
        shutil.rmtree(tmp_path / PlannedRun(QUICK, rate, 4, 0).name, ignore_errors=True)
        write_run(tmp_path, PlannedRun(QUICK, rate, 4, 0), 0.01 * (rate == 1.0))
    assert "No run of the search reached AP 0.02 for: Quick. There the choice is chance." in tables(STUDY, tmp_path)


def test_no_factor_where_a_row_has_one_length_alone(tmp_path: Path) -> None:
    write_study(tmp_path)
    assert "## How many times as many epochs Slow takes" in tables(STUDY, tmp_path)
    once = replace(STUDY, rows=(SLOW, replace(QUICK, epochs=(4,))))
    assert "## How many times" not in tables(once, tmp_path)


def test_page_says_everything(tmp_path: Path) -> None:
    write_study(tmp_path)
    costs: Any = {
        "slow": {"parameters": 2e6, "multiply_adds": 9e7, "activation_bytes": 5e7, "batch": 16, "step_seconds": 0.1,
                 "picture_seconds": 0.01},
        "quick": {"parameters": 1e6, "multiply_adds": 8e7, "activation_bytes": 4e7, "batch": 8, "step_seconds": 0.1,
                  "picture_seconds": 0.02},
    }  # fmt: skip
    machine = {"chip": "A chip", "threads": 1, "torch": "9.9"}
    page = tables(
        STUDY, tmp_path, {"rows": costs, "machine": machine, "date": "2026-01-01", "command": "ddetr-lite bench trial"}
    )
    assert "Measured on A chip, 1 thread, torch 9.9, 2026-01-01: `ddetr-lite bench trial`." in page
    assert "| Quick | 4 | 2 | 0.505 (0.500–0.510) |" in page
    assert "| Quick | 1.00M | 80M | 40 | 0.50× | 0.50× |" in page
    needed, factor = 2 ** (1 + 2 / 3), 8 / 2 ** (1 + 2 / 3)
    span = f"{needed:.1f} ({needed:.1f}–{needed:.1f}) epochs, a factor of **{factor:.1f} ({factor:.1f}–{factor:.1f})**"
    assert f"AP 0.405 (0.400–0.410) of Slow after 8 epochs: Quick needs {span} in epochs and {factor / 2:.1f}" in page
    assert "Quick needs at most 2.0 (2.0–2.0) epochs, a factor of at least **2.0" in page
    assert "in epochs and at least 1.0 (1.0–1.0) in time" in page
    assert "| Slow | 0.001, Muon 0.005 | 0.200 | × |" in page
    assert "ddetr-lite train shapes --model detr --epochs 8 --out runs/slow-8-epochs-rate-1-seed-0" in page
    assert "8 runs, on x86, 2 threads; torch 9.9." in page
    assert "ddetr-lite data" not in page
    own = replace(STUDY, shapes=ShapesConfig(size=192, max_objects=6))
    assert "ddetr-lite data shapes --folder data/shapes --size 192 --max-objects 6\n" in tables(own, tmp_path)
    assert "## Cost" not in tables(STUDY, tmp_path)
    assert markdown([["a", "b"], ["1", "2"]]) == "| a | b |\n| --- | --: |\n| 1 | 2 |"


@pytest.mark.parametrize(
    ("ahead", "behind", "word"),
    [
        ((0.5, 0.6), (0.3, 0.4), "confirmed"),
        ((0.3, 0.4), (0.5, 0.6), "reversed"),
        ((0.3, 0.6), (0.4, 0.5), "open"),  # the seeds cross
        ((0.305,), (0.3,), "open"),  # a single seed, too near
        ((0.305, 0.306), (0.3,), "open"),
        ((0.305, 0.306), (0.3, 0.301), "confirmed"),
        ((0.33,), (0.3,), "confirmed"),
        ((0.3,), (0.33,), "reversed"),
        ((), (0.3,), "not run"),
    ],
)
def test_verdict_on_an_ordering(ahead: tuple[float, ...], behind: tuple[float, ...], word: str) -> None:
    assert verdict(ahead, behind) == word


def test_orderings_name_rows_scores_and_lengths(tmp_path: Path) -> None:
    write_study(tmp_path)
    slow = replace(SLOW, paper={"AP": 42.0, "AP_small": 20.0}, paper_short={"AP": 35.0})
    study = replace(
        STUDY,
        rows=(slow, QUICK),
        orderings=(
            Ordering(Side("quick"), Side("slow")),
            Ordering(Side("quick"), Side("slow", short=True)),
            Ordering(Side("slow"), Side("quick"), "AP_small"),
        ),
    )
    _, *lines = orderings_table(study, outcomes(study, tmp_path))
    assert lines == [
        ["Quick, 4 epochs", "Slow, 8 epochs", "AP", "– / 42.0", "0.505 (0.500–0.510) / 0.405 (0.400–0.410)", "confirmed"],
        ["Quick, 4 epochs", "Slow, 4 epochs", "AP", "– / 35.0", "0.505 (0.500–0.510) / 0.205 (0.200–0.210)", "confirmed"],
        ["Slow, 8 epochs", "Quick, 4 epochs", "AP small", "20.0 / –", "0.203 (0.200–0.205) / 0.253 (0.250–0.255)", "reversed"],
    ]  # fmt: skip
    page = tables(study, tmp_path)
    assert "## The order of the rows" in page
    assert "| reversed |" in page
    table = page.split("## Average precision")[1].split("## ")[0]  # the paper's short schedule beside our shortest
    assert [line.rsplit("| ", 1)[1] for line in table.splitlines() if line.startswith("| Slow")] == [
        "35.0 |",
        "42.0 (20.0) |",
    ]
    nothing = judge(study, [])
    assert {judged.verdict for judged in nothing} == {"not run"}


def test_every_ordering_agrees_with_the_papers_numbers() -> None:
    for study in STUDIES.values():
        for judged in judge(study, []):
            ahead, behind = judged.paper
            assert ahead is not None, judged
            assert behind is not None, judged
            assert ahead > behind, judged


def test_bars_of_rows_are_as_long_as_their_scores(tmp_path: Path) -> None:
    write_study(tmp_path)
    study = replace(STUDY, rows=(replace(SLOW, paper={"AP": 42.0}), QUICK))
    drawn = rows_figure(study, outcomes(study, tmp_path))
    assert [[bar.get_bbox().width for bar in ax.patches if isinstance(bar, Rectangle)] for ax in drawn.axes] == [
        pytest.approx([0.205, 0.405, 0.205, 0.505]),
        pytest.approx([0.1025, 0.2025, 0.1025, 0.2525]),
        [0, 42.0, 0, 0],
    ]


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_legend_of_curves_lies_within_the_figure(name: str, tmp_path: Path) -> None:
    rows = STUDIES[name].rows
    found = []
    for run in (PlannedRun(row, 1.0, row.epochs[-1], 0) for row in rows):
        write_run(tmp_path, run, 0.5)
        results = finished(run, tmp_path)
        assert results is not None
        found.append(Outcome(run, results))
    drawn = study_figure(STUDIES[name], found)
    assert [text.get_text() for text in drawn.legends[0].texts[1:]] == [row.label for row in rows]
    of_one = study_figure(STUDIES[name], found[:1]).legends[0].texts
    assert [text.get_text() for text in of_one[1:]] == [rows[0].label]  # what is still to be run has no name there
    drawn.canvas.draw()
    legend = drawn.legends[0].get_window_extent()
    assert drawn.bbox.x0 <= legend.x0
    assert legend.x1 <= drawn.bbox.x1


def test_repeats_are_what_overlaps_a_surer_detection_of_its_class() -> None:
    corners = torch.rand(60, 2) * 20
    boxes = torch.cat((corners, corners + 5 + torch.rand(60, 2) * 20), 1)
    found = {"boxes": boxes, "scores": torch.rand(60).sort(descending=True).values, "labels": torch.arange(60) % 2}
    overlaps = box_iou(boxes, boxes)
    kept: list[int] = []
    for i in range(60):
        if not any(overlaps[i, j] > NMS and found["labels"][i] == found["labels"][j] for j in kept):
            kept.append(i)
    assert 2 < len(kept) < 58
    left = without_repeats(found, NMS)
    for name, values in found.items():
        assert torch.equal(left[name], values[kept])


def test_scores_without_repeats_stand_beside_those_with_them(tmp_path: Path) -> None:
    write_study(tmp_path)
    found = outcomes(STUDY, tmp_path)
    last = found[-1]
    known: dict[str, dict[str, Any]] = {"quick": {"run": last.run.name, "nms": {"AP": 0.75, "AP50": 0.9}}}
    labels = {"slow": "Slow", "quick": "Quick"}
    expected = ["Quick", f"{last.last['AP']:.3f}", "0.750", f"{last.last['AP50']:.3f}", "0.900"]
    assert nms_table(labels, known, found)[1:] == [expected]
    known["quick"].pop("nms")  # counted before there was such a thing
    assert nms_table(labels, known, found)[1:] == []


def test_mistakes_are_given_for_a_hundred_objects() -> None:
    known = {"b": {"epochs": 4, "threshold": 0.314, "objects": 40, **dict.fromkeys(KINDS, 2), "missed": 30}}
    assert mistakes_table({"a": "A", "b": "B"}, known)[1:] == [["B", "4", "0.31", *["5.0"] * 6, "75.0"]]


@pytest.mark.parametrize("row", ["detr", "deformable-detr-two-stage", "deformable-detr-single-scale"])
def test_multiply_adds_are_those_of_a_slow_count(row: str) -> None:
    """Module by module, from shapes: linear layers, convolutions, dense attention, and four rows a sample."""
    sizes: Any = {"dim": 32, "heads": 2, "hidden": 48, "encoder_layers": 1, "decoder_layers": 2, "queries": 7}
    model = build(replace(recipe("shapes", row).model, **sizes), 5)
    picture = RawBatch(torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8), [(64, 96)])
    counted = 0.0

    def count(module: nn.Module, inputs: Any, keywords: Any, output: Any) -> None:
        nonlocal counted
        if isinstance(module, nn.Conv2d):
            counted += output.numel() * module.weight[0].numel()
        elif isinstance(module, MultiHeadAttention):
            query, key = inputs[:2]  # its projections are one product each, not modules
            d, n, n_q = query.shape[-1], key.shape[1], query.shape[1]
            counted += 2 * (n_q + n) * d * d + 2 * n_q * n * d
        elif isinstance(module, nn.Linear) and not isinstance(
            module, nn.modules.linear.NonDynamicallyQuantizableLinear
        ):
            counted += output.numel() * module.in_features
        elif isinstance(module, MultiScaleDeformableAttention):
            samples = output.shape[1] * module.heads * module.levels * module.points
            counted += samples * 4 * module.dim / module.heads

    inner = {id(m) for a in model.modules() if isinstance(a, MultiHeadAttention) for m in a.modules() if m is not a}
    for module in model.modules():
        if id(module) not in inner:
            module.register_forward_hook(count, with_kwargs=True)
    with torch.no_grad():
        model.eval()(picture)
    for module in model.modules():
        module._forward_hooks.clear()
        module._forward_hooks_with_kwargs.clear()
    assert multiply_adds(model, picture) == pytest.approx(counted, rel=2e-3)  # levels, ratios: small products


def test_what_a_backward_pass_needs_is_counted_once() -> None:
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4))
    x = torch.randn(8, 6)
    # Of the first layer its input, of ReLU its output, which is the second layer's input too; weights are not counted.
    assert kept_bytes(lambda: model(x), model) == 4 * (8 * 6 + 8 * 10)
    assert kept_bytes(lambda: [model(x), model(x)], model) == 4 * (8 * 6 + 2 * 8 * 10)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study whose runs take seconds."""
    rows = []
    for row in (SLOW, QUICK):
        values: Any = {"dim": 32, "heads": 2, "hidden": 32, "encoder_layers": 1, "decoder_layers": 1, "queries": 6}
        train = replace(row.recipe.train, batch=4, warmup_steps=0, evaluate_every=0, forecast=False)
        data = replace(row.recipe.data, folder=str(tmp_path / "shapes"))
        rows.append(replace(row, epochs=(1,), recipe=replace(
            row.recipe, model=replace(row.recipe.model, **values), data=data, train=train
        )))  # fmt: skip
    rows[1] = replace(rows[1], rate_of="slow")
    shapes = ShapesConfig(size=48, min_size=0.15, max_objects=3, train_images=8, val_images=2)
    study = replace(STUDY, rows=tuple(rows), search_epochs=1, seeds=1, shapes=shapes)
    monkeypatch.setattr("ddetr_lite.benchmarks.studies.plan.RATES", (1.0,))
    monkeypatch.setattr("ddetr_lite.benchmarks.studies.plan.WIDEST", 1.0)
    monkeypatch.setitem(STUDIES, "convergence", study)
    monkeypatch.setattr(training, "PAUSE", 0.05)
    return study


def objects_in(folder: Path) -> int:
    return len(json.loads((folder / "shapes" / "annotations" / "instances_val.json").read_text())["annotations"])


def test_command_trains_goes_on_and_writes(tiny: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, kept = tmp_path / "runs", tmp_path / "kept"
    words = ["bench", "convergence", "--out", str(out)]
    assert main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("ddetr-lite train shapes") == 1  # quick's rate is not known yet
    assert main([*words, "--minutes", "0.001"]) == 0
    assert "still to come: the same command goes on" in capsys.readouterr().out
    assert main([*words, "--jobs", "2", "--threads", "1", "--collect", str(kept)]) == 0
    said = capsys.readouterr().out
    assert "of 2 finished runs" in said
    assert len(re.findall(r"(?m)^quick-1-epochs-rate-1-seed-0: \d\.\d{3} AP$", said)) == 1
    names = {f"{n}-1-epochs-rate-1-seed-0" for n in ("slow", "quick")}
    assert {path.parent.name for path in kept.glob("*/log.jsonl")} == names
    assert (kept / "curves.png").stat().st_size > 5000
    assert "| Quick | 1 | 1 |" in (kept / "table.md").read_text()
    wrong = json.loads((kept / "mistakes.json").read_text())
    assert {name: row["objects"] for name, row in wrong.items()} == dict.fromkeys(
        ("slow", "quick"), objects_in(tmp_path)
    )
    assert all(row["missed"] <= row["objects"] for row in wrong.values())
    assert "AP50 with NMS" in (kept / "table.md").read_text()
    assert not list(kept.rglob("*.pt"))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("log.jsonl")}
    assert main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("log.jsonl")} == before  # nothing is trained twice
    assert main(["bench", "convergence", "--out", str(kept), "--table"]) == 0  # logs alone are enough
    assert json.loads((kept / "mistakes.json").read_text()) == wrong  # detections are not kept, what came of them is
    assert "## Where detections go wrong" in (kept / "table.md").read_text()
    capsys.readouterr()
    assert main([*words, "--cost", "--device", "cpu"]) == 0
    found = json.loads((out / "cost.json").read_text())["rows"]
    assert found["quick"]["parameters"] < 2e6
    assert "## Cost" in (out / "table.md").read_text()


def test_a_run_that_fails_is_named_and_the_others_are_trained(
    tiny: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few: Any = {"queries": 1}
    broken = replace(tiny.rows[1].recipe.model, **few)
    bad = replace(tiny.rows[1], recipe=replace(tiny.rows[1].recipe, model=broken))
    monkeypatch.setitem(STUDIES, "convergence", replace(tiny, rows=(tiny.rows[0], bad)))
    assert main(["bench", "convergence", "--out", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr()
    assert "run quick-1-epochs-rate-1-seed-0 failed: ddetr-lite: " in said.err
    assert "train with --queries" in said.err
    assert "of 1 finished runs" in said.out


def test_two_do_not_train_in_one_folder(tiny: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").mkdir()
    with FileLock(tmp_path / "runs" / ".lock"):
        assert main(["bench", "convergence", "--out", str(tmp_path / "runs")]) == 2
    assert "is being trained in by another process" in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*/log.jsonl"))


def test_a_log_without_a_checkpoint_is_not_lost(
    tiny: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = PlannedRun(tiny.rows[0], 1.0, 1, 0)
    log = write_run(tmp_path / "runs", run, 0.25, done=60)
    before = log.read_text()
    assert main(["bench", "convergence", "--out", str(tmp_path / "runs")]) == 2
    assert "has a log but no last.pt to go on from: move the folder away" in capsys.readouterr().err
    assert log.read_text() == before


def test_a_terminated_study_ends_its_runs_and_goes_on(
    tiny: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process gets the signal while a run is going on; the run is ended with it."""
    started: list[subprocess.Popen[bytes]] = []

    def sleeper(run: PlannedRun, folder: Path, threads: int) -> Any:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        return training._Started(run, started[-1], folder / "output.txt")

    monkeypatch.setattr(training, "_start", sleeper)
    with pytest.raises(SystemExit) as ended:
        training.train_study(tiny, tmp_path / "runs")
    assert ended.value.code == 143
    assert [process.poll() is not None for process in started] == [True]


def test_broken_files_of_a_study_are_named(tiny: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, PlannedRun(tiny.rows[0], 1.0, 1, 0), 0.25)
    for name in ("cost.json", "mistakes.json"):
        (tmp_path / name).write_text("[1, 2")
        assert main(["bench", "convergence", "--out", str(tmp_path), "--table"]) == 2
        assert re.search(rf"{name} is broken \(.*\): delete it, and measure again", capsys.readouterr().err)
        (tmp_path / name).unlink()


def test_tables_keep_rows_that_were_not_asked_for(tiny: Study, tmp_path: Path) -> None:
    for row in tiny.rows:
        write_run(tmp_path, PlannedRun(row, 1.0, 1, 0), 0.25)
    assert main(["bench", "convergence", "--out", str(tmp_path), "--rows", "slow"]) == 0
    assert "| Quick | 1 | 1 | 0.250 |" in (tmp_path / "table.md").read_text()


def test_mistakes_are_answered_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "convergence", "--rows", "detr-dc6"]) == 2
    assert "row 'detr-dc6' is unknown in convergence: choose from detr, deformable-detr" in capsys.readouterr().err
    assert main(["bench", "convergence", "--jobs", "0"]) == 2
    assert "--jobs must be at least 1" in capsys.readouterr().err
    assert main(["bench", "convergence", "--seeds", "-1"]) == 2
    assert "--seeds must not be negative" in capsys.readouterr().err
    assert main(["bench", "convergence", "--cost", "--table"]) == 2
    assert "give one of them" in capsys.readouterr().err
