"""A proof by trial that a run which is killed and resumed is the run that was never disturbed, to the last bit.

`python -m ddetr_lite.engine.resume_proof RECIPE.json FOLDER [resume]` is the run itself, as a process that can be killed.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddetr_lite.datasets.shapes import ShapesConfig, write_shapes
from ddetr_lite.datasets.transforms import AugmentConfig
from ddetr_lite.engine.checkpoint import read
from ddetr_lite.engine.log import read_log
from ddetr_lite.engine.recipes import Recipe, recipe, recipe_from_dict, recipe_to_dict

TIMED = {"pictures_per_second", "train_seconds", "memory_bytes"}  # the only values that may differ
PATIENCE = 600.0  # seconds until a step is given up


@dataclass(frozen=True)
class Proof:
    """What came out: where the run was killed and went on, and how far both runs agree."""

    workers: int
    steps: int
    killed: list[int]
    """The last step in the log when the process was killed, each time."""
    resumed: list[int]
    """The step of the checkpoint from which it went on."""
    identical: int
    """Both logs agree to this step, in every number of every line."""
    differing: list[str]
    """What differs in the end: names of tensors and numbers of `last.pt`, `best.pt` and `watched.jsonl`."""

    @property
    def holds(self) -> bool:
        """Whether the two runs are the same."""
        return self.identical == self.steps and not self.differing

    def __str__(self) -> str:
        disturbed = " and ".join(
            f"at step {k} (went on from {r})" for k, r in zip(self.killed, self.resumed, strict=True)
        )
        text = f"{self.workers} workers: killed {disturbed};\n  bit-identical to step {self.identical} of {self.steps}"
        if self.holds:
            return text + ": weights, optimizers, running average, best model, detections and log"
        return text + f"; differing in the end: {', '.join(self.differing[:5]) or 'nothing but the log'}"


def tiny_recipe(folder: Path, model: str = "deformable-detr-two-stage") -> Recipe:
    """A run of some seconds with all that could differ: augmentation, dropout, hints, two optimizers, pieces, an average.

    folder: where its generated data set lies, or is written.
    """
    if not folder.exists():
        write_shapes(folder, ShapesConfig(size=48, min_size=0.15, train_images=26, val_images=4), progress=False)
    chosen = recipe("shapes", model)
    sizes: dict[str, Any] = {
        "dim": 32,
        "heads": 2,
        "hidden": 32,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "queries": 6,
    }
    sizes |= {"dropout": 0.1, "hints": 1 if model == "deformable-detr-two-stage" else 0}
    config = replace(chosen.model, **{k: v for k, v in sizes.items() if hasattr(chosen.model, k)})
    return replace(
        chosen,
        model=config,
        data=replace(chosen.data, folder=str(folder)),
        augment=AugmentConfig(short_sides=(40, 48), max_side=64, eval_short_side=0, flip_vertical=True, color=True),
        train=replace(
            chosen.train, epochs=4, batch=4, accumulate=2, ema=0.9, one_size=True, group_orientations=True, warmup_steps=2,
            checkpoint_every=2, log_every=1, evaluate_every=2, forecast=False, deterministic=True,
        ),
    )  # fmt: skip


def prove(chosen: Recipe, folder: Path, workers: int, kill_at: tuple[int, ...] = (7, 15)) -> Proof:
    """Run the recipe undisturbed, and once more with a SIGKILL when the log has come to each of these steps; compare.

    Raises RuntimeError when a run fails, or is over before it could be killed.
    """
    chosen = replace(chosen, train=replace(chosen.train, workers=workers))
    folder.mkdir(parents=True, exist_ok=True)
    file, whole, killed = folder / "recipe.json", folder / "whole", folder / "killed"
    file.write_text(json.dumps(recipe_to_dict(chosen)), encoding="utf-8")
    _finish(_start(file, whole))
    seen, resumed = [], []
    for number, step in enumerate(kill_at):
        process = _start(file, killed, *(["resume"] if number else []))
        seen.append(_kill(process, killed, step))
        resumed.append(read(killed / "last.pt")["step"])
    _finish(_start(file, killed, "resume"))
    steps = read(whole / "last.pt")["step"]
    return Proof(workers, steps, seen, resumed, _agree_to(whole, killed, steps), list(_differences(whole, killed)))


def _start(file: Path, folder: Path, *resume: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "ddetr_lite.engine.resume_proof", str(file), str(folder), *resume]
    return subprocess.Popen(words, stderr=subprocess.PIPE)


def _finish(process: subprocess.Popen[bytes]) -> None:
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a run failed:\n{said.decode(errors='replace')}")


def _kill(process: subprocess.Popen[bytes], folder: Path, step: int) -> int:
    """SIGKILL once the log has come to a step and there is a checkpoint. Returns the last step in the log."""
    log, deadline = folder / "log.jsonl", time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and (folder / "last.pt").exists() and _last_step(log) >= step:
            process.kill()  # SIGKILL: nothing can be put in order
            process.communicate()
            return _last_step(log)
        time.sleep(0.005)
    process.kill()
    _, said = process.communicate()
    raise RuntimeError(
        f"the run was over before step {step}, where it should be killed:\n{said.decode(errors='replace')}"
    )


def _last_step(log: Path) -> int:
    return max((int(line["step"]) for line in read_log(log)), default=0)


def _agree_to(whole: Path, killed: Path, steps: int) -> int:
    """The last step up to which all lines of both logs are the same, but for times."""
    lines = [
        [{k: v for k, v in line.items() if k not in TIMED} for line in read_log(f / "log.jsonl")]
        for f in (whole, killed)
    ]
    for a, b in zip(*lines, strict=False):
        if a != b:
            return min(a["step"], b["step"]) - 1
    return steps if len(lines[0]) == len(lines[1]) else min(len(lines[0]), len(lines[1]))


def _differences(whole: Path, killed: Path) -> Iterator[str]:
    for name in ("last.pt", "best.pt"):
        a, b = read(whole / name), read(killed / name)
        yield from (f"{name}: {place}" for place in _differing(a, b) if place != "/seconds")
    for name in ("watched.jsonl", "detections.json"):
        if (whole / name).read_bytes() != (killed / name).read_bytes():
            yield name


def _differing(a: Any, b: Any, place: str = "") -> Iterator[str]:
    """Where two nests of dicts, lists, tensors and numbers differ."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            yield from _differing(a[key], b[key], f"{place}/{key}")
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for index, (first, second) in enumerate(zip(a, b, strict=True)):
            yield from _differing(first, second, f"{place}/{index}")
    elif not (torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b):
        yield place


def _main(file: str, folder: str, *resume: str) -> None:
    from ddetr_lite.engine.train import train

    torch.set_num_threads(1)
    train(recipe_from_dict(json.loads(Path(file).read_text(encoding="utf-8"))), folder, bool(resume), progress=False)


if __name__ == "__main__":
    _main(*sys.argv[1:])
