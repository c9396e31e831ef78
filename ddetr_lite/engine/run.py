"""A run's folder: what is written there, and how a run is found again.

`recipe.json`, `log.jsonl`, `last.pt` (all that is needed to go on), `best.pt` (the model with the best AP so far),
`detections.json` (what the latest evaluation found) and `watched.jsonl` (where fixed queries looked, evaluation by evaluation).
"""

import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch.optim.swa_utils import AveragedModel

from ddetr_lite.datasets.coco import CocoDetection
from ddetr_lite.engine.average import weights_to_use
from ddetr_lite.engine.checkpoint import model_content, read, save_model, write_atomically
from ddetr_lite.engine.distributed import World
from ddetr_lite.engine.log import read_log
from ddetr_lite.engine.recipes import Recipe, recipe_to_dict, with_defaults
from ddetr_lite.models.presets import Model
from ddetr_lite.writing import write_json

NUMBERS = ("step", "best", "seconds", "bad_steps", "evaluated")


@dataclass
class State:
    """All that changes while a run goes on. Random numbers are not among it: they are drawn from (seed, step)."""

    model: Model
    optimizers: list[torch.optim.Optimizer]
    average: AveragedModel | None
    step: int = 0
    best: float = -1.0
    seconds: float = 0.0
    """Of training, without evaluations."""
    bad_steps: int = 0
    """Steps in a row that were skipped."""
    evaluated: int = 0
    """The step of the latest evaluation that this state knows of."""

    def save(self, folder: Path, recipe: Recipe, classes: list[str], pictures: int) -> None:
        """Write `last.pt`. pictures: how many there are to train on."""
        about = {"recipe": recipe_to_dict(recipe), "step": self.step, "pictures": pictures}
        content = model_content(self.model, classes, about)
        numbers = {name: getattr(self, name) for name in NUMBERS}
        average = None if self.average is None else self.average.state_dict()
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        write_atomically({**content, **numbers, "optimizers": optimizers, "average": average}, folder / "last.pt")

    def load(self, content: dict[str, Any]) -> None:
        """Become what `last.pt` holds."""
        self.model.load_state_dict(content["model"])
        for optimizer, saved in zip(self.optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if self.average is not None:
            self.average.load_state_dict(content["average"])
        for name in NUMBERS:
            setattr(self, name, content[name])

    def save_best(
        self, folder: Path, recipe: Recipe, classes: list[str], epoch: int, metrics: dict[str, float], **more: Any
    ) -> None:
        """Write `best.pt` where the metrics are not worse than the best so far. more: what else it is to say about itself."""
        if metrics["AP"] < self.best:
            return
        self.best = metrics["AP"]
        about = {"recipe": recipe_to_dict(recipe), "epoch": epoch, "step": self.step, "metrics": metrics, **more}
        save_model(folder / "best.pt", weights_to_use(self.model, self.average), classes, about)


def open_run(recipe: Recipe, folder: Path, resume: bool, place: World) -> dict[str, Any] | None:
    """See that a run may begin in the folder, or read the state to go on from.

    Processes that torchrun starts anew after one of them died go on by themselves. Raises ValueError where a run would be
    overwritten, or there is none to go on with.
    """
    last, log = folder / "last.pt", folder / "log.jsonl"
    own = place.restarts > 0 and log.exists() and _begun_by(log) == torchrun_id()
    if resume or (own and last.exists()):
        if not last.exists():
            raise ValueError(f"nothing to resume: {last} does not exist; start without --resume")
        saved = read(last)
        if "evaluated" not in saved:
            raise ValueError(
                f"{last} holds no run to go on with, or one of an older version: start a new run with --start-from {last}"
            )
        if other := differing(saved["about"]["recipe"], recipe_to_dict(recipe)):
            raise ValueError(
                f"{last} was made with another recipe: {other}; resume with the options of {folder / 'recipe.json'}. (Another "
                f"{', '.join(sorted(FREE))} may be given: they do not change what is learned.) To learn more under others, "
                f"start a new run with --start-from {folder / 'best.pt'}"
            )
        return saved
    if place.main:
        if log.exists() and not last.exists() and not any(line["step"] for line in read_log(log)):
            log.unlink()  # it died between its first line and its first checkpoint
        if log.exists():
            raise ValueError(f"{folder} already holds a run: go on with --resume, or give another --out")
    return None


def begin(recipe: Recipe, folder: Path) -> None:
    """Make of the folder a run's."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "recipe.json", recipe_to_dict(recipe), indent=2)


def check_data(saved: dict[str, Any], training: CocoDetection) -> None:
    """Raise ValueError where a run is to go on with other data: another folder may hold the same data elsewhere, no other."""
    before, now = saved["classes"], training.classes
    if before != now:
        other = [f"{a!r} is now {b!r}" for a, b in zip(before, now) if a != b]
        how = ", ".join(other[:3]) or f"there were {len(before)} classes and are now {len(now)}"
        raise ValueError(
            f"{training.folder.annotations} has other classes than the run began with ({how}): resume with its data, or start "
            "a new run with --start-from, which goes by the names of classes"
        )
    pictures = saved["about"].get("pictures", len(training))  # older checkpoints do not say it
    if pictures != len(training):
        raise ValueError(
            f"{training.folder.annotations} gives {len(training)} pictures to train on, and the run began with {pictures}: "
            "resume with its data, or start a new run with --start-from"
        )


def _begun_by(log: Path) -> str | None:
    """The torchrun that its first line names."""
    return next((line.get("torchrun") for line in read_log(log)), None)


def torchrun_id() -> str:
    """The name of the torchrun that started this process, "" where none did: all its attempts have the same."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "")


FREE = {"workers", "device", "accumulate", "compile", "folder", "log_every", "checkpoint_every", "forecast"}


def differing(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first option in which two recipes differ and that changes what a run does, in words; "" where there is none.

    An option that an older version did not know is at its default.
    """
    before, now = with_defaults(before), with_defaults(now)
    for part in ("model", "augment", "data", "train"):
        for name in sorted({*before[part], *now[part]} - FREE):
            old, new = (json.loads(json.dumps(recipe[part].get(name))) for recipe in (before, now))  # tuples are lists
            if name == "cache" and "none" not in (old, new):  # kept in memory or on the disk, pictures are the same
                continue
            if old != new:
                return f"{name} was {old} and is now {new}"
    return ""


def circumstances(
    recipe: Recipe, model: Model, place: World, training: CocoDetection, validation: CocoDetection, steps: int
) -> dict[str, Any]:
    """What a reader of the log must know to repeat the run."""
    device = place.device
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    return {
        "recipe": recipe_to_dict(recipe),
        "classes": training.classes,
        "pictures": len(training),
        "validation_pictures": len(validation),
        "steps_in_all": steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": f"{chip}, {torch.get_num_threads()} threads" + (f", × {place.size}" if place.size > 1 else ""),
        "processes": place.size,
        "torchrun": torchrun_id(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
    }
