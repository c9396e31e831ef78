"""A run that is over or still going, read from its folder.

Old runs lack files and fields that newer ones have: what is missing is empty here, and never an error. Only a log is needed.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from ddetr_lite.engine.log import read_log
from ddetr_lite.models.presets import row_of

Line = dict[str, Any]


@dataclass(frozen=True)
class RunResults:
    """The lines of a run's log, and where they come from."""

    log: Path
    lines: list[Line]

    @property
    def folder(self) -> Path:
        """Where the run's other files are."""
        return self.log.parent

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.log.resolve().parent.name

    @property
    def start(self) -> Line:
        """What the log says of the run's circumstances: recipe, device, versions, ..."""
        return next((line for line in self.lines if line["kind"] == "start"), {})

    @property
    def recipe(self) -> Line:
        """The recipe as plain values, perhaps of an older version."""
        return dict(self.start.get("recipe", {}))

    @property
    def train(self) -> list[Line]:
        """The lines about training steps."""
        return [line for line in self.lines if line["kind"] == "train"]

    @property
    def evaluations(self) -> list[Line]:
        """The lines about evaluations that have an AP."""
        return [line for line in self.lines if line["kind"] == "evaluate" and "AP" in line]

    @property
    def skips(self) -> list[Line]:
        """The lines about steps whose update was left out."""
        return [line for line in self.lines if line["kind"] == "skip"]

    @property
    def diverged(self) -> bool:
        """Whether training gave up, since no gradient was finite any more."""
        return bool(self.lines) and self.lines[-1]["kind"] == "diverged"

    @property
    def best(self) -> Line | None:
        """The evaluation with the highest AP; of equal ones the last, whose model `best.pt` is."""
        return max(reversed(self.evaluations), key=lambda line: line["AP"], default=None)

    @property
    def last(self) -> Line | None:
        """The latest evaluation."""
        return self.evaluations[-1] if self.evaluations else None

    @property
    def steps(self) -> int:
        """How far the run has come."""
        return max((int(line["step"]) for line in self.lines), default=0)

    @property
    def steps_per_epoch(self) -> float:
        """At least 1."""
        epochs = self.recipe.get("train", {}).get("epochs", 1)
        return max(self.start.get("steps_in_all", 1) / epochs, 1.0)

    def epoch_of(self, line: Line) -> float:
        """How many epochs had passed when the line was written."""
        return float(line["step"]) / self.steps_per_epoch

    @property
    def seconds(self) -> float | None:
        """Time spent in training, without evaluations."""
        return max((float(line["train_seconds"]) for line in self.lines if "train_seconds" in line), default=None)

    @property
    def speed(self) -> float | None:
        """Pictures a second in training: the median over the log's lines."""
        speeds = [line["pictures_per_second"] for line in self.train if "pictures_per_second" in line]
        return median(speeds) if speeds else None

    @property
    def memory(self) -> int | None:
        """Bytes of GPU memory at most."""
        return max((int(line["memory_bytes"]) for line in self.lines if line.get("memory_bytes")), default=None)

    @property
    def date(self) -> str:
        """When the log was written last."""
        return datetime.fromtimestamp(self.log.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M UTC")

    @property
    def row(self) -> str:
        """The row of the table (`models.presets.ROWS`) that the model is a variant of; its architecture for another."""
        return row_of(self.recipe.get("model", {}))

    def detections(self) -> Line | None:
        """What `detections.json` holds: {"epoch", "step", "detections": COCO results}; None where it is not there."""
        path = self.folder / "detections.json"
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError):
            return None  # cut off by a crash
        return content if isinstance(content, dict) and isinstance(content.get("detections"), list) else None

    def watched(self) -> list[Line]:
        """The lines of `watched.jsonl` (`engine.watch`), which may be none."""
        path = self.folder / "watched.jsonl"
        return read_log(path) if path.is_file() else []


def read_run(path: str | Path) -> RunResults:
    """A run from its folder or its log. Raises ValueError where there is no log, or nothing in it."""
    path = Path(path).expanduser()
    log = path / "log.jsonl" if path.is_dir() else path
    if not log.is_file():
        there = "holds no log.jsonl" if path.is_dir() else "does not exist"
        raise ValueError(f"{path} {there}: name the folder of a training run, such as runs/shapes")
    try:
        lines = [line for line in read_log(log) if isinstance(line, dict) and "kind" in line and "step" in line]
    except UnicodeDecodeError as error:
        raise ValueError(f"{log} is not the log of a run: {error}") from error
    if not lines:
        raise ValueError(f"{log} has no line of a run: it was stopped before its first step, or this is another file")
    return RunResults(log, lines)
