"""`ddetr-lite bench convergence`, `table1`, ...: train a study's runs, and write what came out."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ddetr_lite.benchmarks.studies.plan import Study, open_runs
from ddetr_lite.cli.parsing import Mistake, parse


@dataclass(frozen=True)
class StudyOptions:
    """Train the rows of a study at one budget; what is finished is not trained again. Writes table.md and curves.png."""

    out: Path | None = None
    """The folder of the runs; by default runs/NAME."""
    jobs: int = 1
    """Runs at a time, each a process of its own. On a CPU: as many as cores, with one thread each."""
    threads: int = 0
    """Threads of each run; 0: torch's choice."""
    minutes: float = 0.0
    """Stop after so long; the same command goes on. 0: until all is done."""
    seeds: int = 0
    """Seeds 0, 1, ... of each row; 0: the study's own number."""
    rows: tuple[str, ...] = ()
    """Only these rows (and the baseline)."""
    dry_run: bool = False
    """Only list the runs that could start now, with their commands."""
    cost: bool = False
    """Train nothing; measure what the rows cost and write cost.json. For times the machine must be idle."""
    table: bool = False
    """Train nothing; write the tables from the logs that are there."""
    collect: Path | None = None
    """Also copy logs, tables and curves (without checkpoints) there."""
    device: str = "auto"
    """For --cost: where."""


def bench_study(name: str, words: list[str], command: str) -> None:
    """Run a study's command line."""
    options = parse(StudyOptions, words, f"ddetr-lite bench {name}")
    from ddetr_lite.benchmarks.studies import STUDIES
    from ddetr_lite.benchmarks.studies.results import scores_in
    from ddetr_lite.benchmarks.studies.training import command_of, prepare, train_study

    study = STUDIES[name]
    if options.rows:
        wanted = {study.baseline, *(study.row(row).name for row in options.rows)}
        wanted |= {study.row(row).rate_of for row in options.rows} - {""}
        study = replace(study, rows=tuple(row for row in study.rows if row.name in wanted))
    if options.seeds:
        study = replace(study, seeds=options.seeds)
    folder = options.out or Path("runs") / name
    if options.jobs < 1 or options.threads < 0 or options.minutes < 0:
        raise Mistake("--jobs must be at least 1, --threads and --minutes not negative")
    if options.dry_run:
        for run in open_runs(study, scores_in(study, folder)):
            print(command_of(run, folder))
        return
    if options.cost:
        from ddetr_lite.benchmarks.cost import costs
        from ddetr_lite.benchmarks.machine import heading, write_result
        from ddetr_lite.engine.distributed import pick_device

        prepare(study)
        device = pick_device(options.device)
        found = costs({row.name: row.recipe for row in study.rows}, device)
        print(f"{write_result({**heading(command, device), 'rows': found}, folder / 'cost')} is written.")
    done = True
    try:
        if not (options.table or options.cost):
            done = train_study(study, folder, options.jobs, options.threads, options.minutes)
    finally:  # a run that failed does not hide what the others found
        write_tables(study, folder)
    if options.collect is not None:
        collect(folder, options.collect, scores_in(study, folder))
    if not done:
        left = len(open_runs(study, scores_in(study, folder)))
        print(f"{left} runs or more are still to come: the same command goes on with them.")


KEPT = ("table.md", "curves.png", "cost.json", "mistakes.json")


def write_tables(study: Study, folder: Path) -> None:
    """table.md and curves.png in the study's folder, of the runs that are finished."""
    from ddetr_lite.benchmarks.studies.figure import study_figure
    from ddetr_lite.benchmarks.studies.mistakes import mistakes
    from ddetr_lite.benchmarks.studies.results import outcomes
    from ddetr_lite.benchmarks.studies.table import tables
    from ddetr_lite.plots.style import png

    found = outcomes(study, folder)
    if not found:
        print("No run that counts is finished yet.")
        return
    path = folder / "cost.json"
    costs = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else None
    page = tables(study, folder, costs, mistakes(found, folder))
    (folder / "table.md").write_text(page, encoding="utf-8")
    (folder / "curves.png").write_bytes(png(study_figure(study, found, costs)))
    print(f"{folder}: table.md and curves.png are written, of {len(found)} finished runs.")


def collect(folder: Path, target: Path, runs: Iterable[str]) -> None:
    """Copy what belongs into a repository: the logs of these runs, tables, curves, costs."""
    for path in [*(folder / name / "log.jsonl" for name in runs), *(folder / name for name in KEPT)]:
        if path.exists():
            new = target / path.relative_to(folder)
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, new)
    print(f"{target} has the logs, the table and the curves.")
