"""Train the runs of a study, several at a time, each in a process of its own; what is finished is not trained again."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ddetr_lite.benchmarks.studies.plan import PlannedRun, Study, open_runs
from ddetr_lite.benchmarks.studies.results import finished, scores_in
from ddetr_lite.datasets.shapes import write_shapes
from ddetr_lite.engine.log import read_log
from ddetr_lite.engine.recipes import recipe_to_dict
from ddetr_lite.engine.repeat import command
from ddetr_lite.models.presets import row_of
from ddetr_lite.plots.run_curves import score
from ddetr_lite.writing import alone_in

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
    named with the last line that it wrote, in a ChildProcessError at the end, after all others had their turn. One that
    diverged did not fail: it is over, with an AP of 0. Raises ValueError where another process trains in this folder.
    """
    prepare(study)
    with alone_in(folder), _ended_by_sigterm():
        return _train_all(study, folder, jobs, threads, minutes)


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """A termination unwinds the stack, so that the runs are ended too; their checkpoints are there to go on from."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _train_all(study: Study, folder: Path, jobs: int, threads: int, minutes: float) -> bool:
    deadline = time.monotonic() + minutes * 60 if minutes else float("inf")
    running: list[_Started] = []
    failed: dict[str, str] = {}
    try:
        wanted = open_runs(study, scores_in(study, folder))
        while time.monotonic() < deadline:
            ended = [started for started in running if started.process.poll() is not None]
            for started in ended:
                running.remove(started)
                results = finished(started.run, folder)
                if results is not None:
                    said = "diverged" if results.diverged else f"{score(results.last, 'AP')} AP"
                    print(f"{started.run.name}: {said}", flush=True)
                elif started.process.returncode:
                    failed[started.run.name] = _last_line(started.output)
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
    log = folder / run.name / "log.jsonl"
    if (folder / run.name / "last.pt").exists():
        words = ["train", run.recipe.name, "--out", str(folder / run.name), "--resume"]
    else:
        words = shlex.split(command_of(run, folder))[1:]
        if log.exists() and any(line["step"] for line in read_log(log)):
            raise ValueError(
                f"{log.parent} has a log but no last.pt to go on from: move the folder away to train it anew"
            )
        log.unlink(missing_ok=True)  # it was stopped between its first line and its first checkpoint
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
