"""Where the time of a training step goes, part by part, and what would make it shorter."""

import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddetr_lite.datasets.loading import PREFETCH, RunSampler, loader
from ddetr_lite.engine.distributed import World, world
from ddetr_lite.engine.optimization import learning_rate
from ddetr_lite.engine.recipes import Recipe
from ddetr_lite.engine.train import Run

WARM_UP = 3

WAITING = "waiting for pictures"
PARTS = (
    WAITING,
    "copying, normalising",
    "backbone",
    "encoder",
    "queries",
    "decoder",
    "heads, matching, losses",
    "backward",
    "update",
)


@dataclass(frozen=True)
class Profile:
    """Milliseconds of a step: all in one, and of each part, measured with a halt behind each."""

    step: float
    parts: dict[str, float]
    pictures: int
    peak_bytes: int
    workers: int

    def lines(self) -> list[str]:
        """A table, and what it means."""
        whole = sum(self.parts.values())
        text = [f"{self.pictures / self.step * 1e3:.1f} pictures/s: a step of {self.pictures} takes {self.step:.1f} ms"]
        text += [
            f"  {name:<26}{ms:8.1f} ms {ms / whole:5.0%} {'█' * round(40 * ms / whole)}"
            for name, ms in self.parts.items()
        ]
        if whole > 1.15 * self.step:
            text.append(f"  (parts one by one: {whole:.1f} ms; in a run they overlap)")
        if self.peak_bytes:
            text.append(f"  GPU memory: at most {self.peak_bytes / 1e9:.2f} GB")
        text.append(self.advice())
        return text

    def advice(self) -> str:
        """The first thing to change."""
        whole = sum(self.parts.values())
        if self.parts[WAITING] > 0.1 * whole:
            more = f"more than --workers {self.workers}" if self.workers else "--workers 4 or more"
            return f"The model waits for pictures: try {more}, or --cache memory (--cache disk for a large set)."
        if self.parts["heads, matching, losses"] > 0.3 * whole:
            return "Matching takes a large share: fewer queries, or fewer levels in a two-stage model, make it shorter."
        return (
            "Nothing waits for pictures. Smaller --short-sides, --one-size, or bfloat16 on a GPU make a step shorter."
        )


class _Clock:
    """Adds up what has passed since the last mark, under a name; on a GPU it waits for what was started."""

    def __init__(self, place: World):
        self.place = place
        self.parts: defaultdict[str, float] = defaultdict(float)
        self.last = 0.0
        self.forward_done = False  # of this step's first piece

    def start(self) -> None:
        self.last = self.place.now()

    def mark(self, name: str) -> None:
        now = self.place.now()
        self.parts[name] += now - self.last
        self.last = now

    def begin_piece(self) -> None:
        self.mark("backward" if self.forward_done else "copying, normalising")

    def end_forward(self) -> None:
        self.mark("heads, matching, losses")
        self.forward_done = True

    def hook(self, module: nn.Module | None, before: str, after: str) -> list[Any]:
        """Mark what passed before a module runs, and what passes in it."""
        if module is None:
            return []
        return [
            module.register_forward_pre_hook(lambda *_: self.mark(before)),
            module.register_forward_hook(lambda *_: self.mark(after)),
        ]


def profile(recipe: Recipe, steps: int = 10) -> Profile:
    """Train `steps` steps as in a run, and `steps` with a halt behind each part. Nothing is kept.

    With loading processes there are as many steps as batches that they can hold, if those are more.
    """
    with tempfile.TemporaryDirectory() as folder, world(recipe.train.device) as place:
        run = Run(recipe, Path(folder) / "run", resume=False, progress=False, place=place)
        sampler = RunSampler(run.order, 10**6, 0, place.rank, place.size, run.config.accumulate)
        batches = iter(loader(run.training, sampler, run.config.workers, place.device))
        clock, model = _Clock(place), run.state.model.train()
        rate = learning_rate(0, run.config, run.order.steps_per_epoch)

        def step() -> None:
            pieces = [next(batches) for _ in range(run.config.accumulate)]
            clock.mark(WAITING)
            clock.forward_done = False
            run.step.gradient(pieces)
            clock.mark("backward")
            run.step.update(pieces, rate)
            clock.mark("update")

        def plain() -> None:
            run.step([next(batches) for _ in range(run.config.accumulate)], rate)

        def take_what_is_ready() -> None:
            """Batches that wait already would hide for many steps that loading is slower than training."""
            for _ in range(run.config.workers * PREFETCH):
                next(batches)

        for _ in range(WARM_UP):
            plain()
        steps = max(steps, run.config.workers * PREFETCH // run.config.accumulate)
        take_what_is_ready()
        start = place.now()
        for _ in range(steps):
            plain()
        whole = (place.now() - start) / steps
        transformer, backbone = getattr(model, "transformer", None), model.backbone
        backbone = backbone[0] if isinstance(backbone, nn.Sequential) else backbone
        hooks = clock.hook(backbone, "copying, normalising", "backbone")
        hooks += clock.hook(getattr(transformer, "encoder", None), "backbone", "encoder")
        hooks += clock.hook(getattr(transformer, "decoder", None), "queries", "decoder")
        hooks.append(run.step.losses.register_forward_pre_hook(lambda *_: clock.begin_piece()))
        hooks.append(run.step.losses.register_forward_hook(lambda *_: clock.end_forward()))
        take_what_is_ready()
        clock.start()
        for _ in range(steps):
            step()
        for hook in hooks:
            hook.remove()
        return Profile(
            step=whole * 1e3,
            parts={name: clock.parts[name] / steps * 1e3 for name in PARTS if name in clock.parts},
            pictures=min(run.order.batch, run.order.length),
            peak_bytes=torch.cuda.max_memory_allocated(place.device) if place.device.type == "cuda" else 0,
            workers=run.config.workers,
        )
