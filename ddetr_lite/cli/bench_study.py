"""`ddetr-lite bench convergence`, `table1`, ...: train a study's runs, and write what came out."""

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ddetr_lite.benchmarks.studies.plan import Row, Study, open_runs
from ddetr_lite.cli.parsing import Mistake, parse


@dataclass(frozen=True)
class StudyOptions:
    """Train the rows of a study at one budget; what is finished is not trained again. Writes table.md and curves.png."""

    out: Path | None = None
    """The folder of the runs; by default runs/NAME."""
    jobs: int = 1
    """Runs at a time, each a process of its own. On a CPU: as many as cores, with one thread each."""
    threads: int = 0
    """Threads of each run, and of what --cost measures; 0: torch's choice."""
    minutes: float = 0.0
    """Stop after so long; the same command goes on. 0: until all is done."""
    seeds: int = 0
    """Seeds 0, 1, ... of each row; 0: the study's own number."""
    rows: tuple[str, ...] = ()
    """Train or list only these rows (and the baseline, and those whose learning rates they take)."""
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

    if options.jobs < 1 or min(options.threads, options.minutes, options.seeds) < 0:
        raise Mistake("--jobs must be at least 1; --threads, --minutes and --seeds must not be negative")
    if options.cost and options.table:
        raise Mistake("--cost measures and --table only writes: give one of them")
    whole = STUDIES[name]
    if options.seeds:  # what more seeds have given stays in the tables
        whole = replace(whole, seeds=max(whole.seeds, options.seeds))
    study = replace(whole, rows=_chosen(whole, options.rows), seeds=options.seeds or whole.seeds)
    folder = options.out or Path("runs") / name
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
        with _threads(options.threads):
            found = costs({row.name: row.recipe for row in study.rows}, device)
            result = {**heading(command, device), "rows": found}
        print(f"{write_result(result, folder / 'cost')} is written.")
    done = True
    try:
        if not (options.table or options.cost):
            done = train_study(study, folder, options.jobs, options.threads, options.minutes)
    finally:  # a run that failed does not hide what the others found
        write_tables(whole, folder)
    if options.collect is not None:
        collect(folder, options.collect, scores_in(whole, folder))
    if not done:
        left = len(open_runs(study, scores_in(study, folder)))
        print(f"{left} runs or more are still to come: the same command goes on with them.")


def _chosen(study: Study, names: tuple[str, ...]) -> tuple[Row, ...]:
    """The rows of these names, with those that they need; all where none is named."""
    if not names:
        return study.rows
    wanted = {study.baseline, *(study.row(name).name for name in names)}
    wanted |= {study.row(name).rate_of for name in wanted}
    return tuple(row for row in study.rows if row.name in wanted)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch with so many threads; 0: as it is."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


KEPT = ("table.md", "curves.png", "rows.png", "cost.json", "mistakes.json")


def write_tables(study: Study, folder: Path) -> None:
    """table.md, curves.png and, where rows are to be in an order, rows.png, of the runs that are finished."""
    from ddetr_lite.benchmarks.studies.figure import rows_figure, study_figure
    from ddetr_lite.benchmarks.studies.mistakes import mistakes
    from ddetr_lite.benchmarks.studies.results import outcomes, read_json
    from ddetr_lite.benchmarks.studies.table import tables
    from ddetr_lite.plots.style import png

    found = outcomes(study, folder)
    if not found:
        print("No run that counts is finished yet.")
        return
    path = folder / "cost.json"
    cost = read_json(path) if path.exists() else None
    page = tables(study, folder, cost, mistakes(found, folder))
    (folder / "table.md").write_text(page, encoding="utf-8")
    (folder / "curves.png").write_bytes(png(study_figure(study, found, cost and cost["rows"])))
    written = ["table.md", "curves.png"]
    if study.orderings:
        (folder / "rows.png").write_bytes(png(rows_figure(study, found)))
        written.append("rows.png")
    print(f"{folder}: {', '.join(written[:-1])} and {written[-1]} are written, of {len(found)} finished runs.")


def collect(folder: Path, target: Path, runs: Iterable[str]) -> None:
    """Copy what belongs into a repository: the logs of these runs, tables, curves, costs."""
    for path in [*(folder / name / "log.jsonl" for name in runs), *(folder / name for name in KEPT)]:
        if path.exists():
            new = target / path.relative_to(folder)
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, new)
    print(f"{target} has the logs, the table and the curves.")
