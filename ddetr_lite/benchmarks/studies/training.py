"""Train the runs of a study, several at a time, each in a process of its own; what is finished is not trained again."""

import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ddetr_lite.benchmarks.studies.plan import PlannedRun, Study, open_runs
from ddetr_lite.benchmarks.studies.results import finished, scores_in
from ddetr_lite.datasets.shapes import write_shapes
from ddetr_lite.engine.recipes import recipe_to_dict
from ddetr_lite.engine.repeat import command
from ddetr_lite.engine.run_results import row_of
from ddetr_lite.plots.run_curves import score

PAUSE = 0.5  # seconds between looks at the processes


@dataclass
class _Started:
    run: PlannedRun
    process: subprocess.Popen[bytes]
    output: Path


def command_of(run: PlannedRun, folder: Path) -> str:
    """The command line that trains this run alone."""
    values = recipe_to_dict(run.recipe)
    return command(values, row_of(values["model"]), str(folder / run.name))


def train_study(study: Study, folder: Path, jobs: int = 1, threads: int = 0, minutes: float = 0.0) -> bool:
    """Train what is missing in `folder`, `jobs` runs at a time with `threads` threads each (0: torch's choice).

    minutes: stop the runs after so long; the next call goes on with them. Returns whether all is done. A run that fails is
    named with the last line that it wrote, in a ChildProcessError at the end, after all others had their turn.
    """
    prepare(study)
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + minutes * 60 if minutes else float("inf")
    running: list[_Started] = []
    failed: dict[str, str] = {}
    try:
        wanted = open_runs(study, scores_in(study, folder))
        while time.monotonic() < deadline:
            ended = [started for started in running if started.process.poll() is not None]
            for started in ended:
                running.remove(started)
                if started.process.returncode:
                    failed[started.run.name] = _last_line(started.output)
                elif results := finished(started.run, folder):
                    print(f"{started.run.name}: {score(results.last, 'AP')} AP", flush=True)
                else:  # it would be started for ever
                    failed[started.run.name] = "it ended before its last evaluation"
            if ended:  # nothing else changes what is wanted, and all logs are read for it
                wanted = open_runs(study, scores_in(study, folder))
            taken = {started.run.name for started in running} | failed.keys()
            waiting = [run for run in wanted if run.name not in taken]
            if not waiting and not running:
                break
            for run in waiting[: jobs - len(running)]:
                print(f"{run.name}: {'goes on' if (folder / run.name).exists() else 'starts'}", flush=True)
                running.append(_start(run, folder, threads))
            time.sleep(PAUSE)
    finally:
        for started in running:
            started.process.terminate()
        for started in running:
            started.process.wait()
    if failed:
        raise ChildProcessError(
            "; ".join(f"run {name} failed: {line}" for name, line in failed.items()) + f" (see {folder}/NAME.txt)"
        )
    return not open_runs(study, scores_in(study, folder))


def prepare(study: Study) -> None:
    """Make the study's generated data set where it is missing."""
    if study.shapes is not None:
        for folder in dict.fromkeys(row.recipe.data.folder for row in study.rows):
            write_shapes(folder, study.shapes, processes=os.cpu_count() or 1)


def _start(run: PlannedRun, folder: Path, threads: int) -> _Started:
    if (folder / run.name / "last.pt").exists():
        words = ["train", run.recipe.name, "--out", str(folder / run.name), "--resume"]
    else:
        words = shlex.split(command_of(run, folder))[1:]
        # It was stopped between its first line and its first checkpoint.
        (folder / run.name / "log.jsonl").unlink(missing_ok=True)
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    output = folder / f"{run.name}.txt"
    with output.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "ddetr_lite", *words], stdout=file, stderr=subprocess.STDOUT, env=environment
        )
    return _Started(run, process, output)


def _last_line(path: Path) -> str:
    text = path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it wrote nothing")
